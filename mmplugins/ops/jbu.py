"""Joint bilateral upsampling by two.

B batch, C channels, h x w map, 2h x 2w result, K = 2 r + 1
window, P = K * K taps row by row. Pixel centres, align_corners=False.

Bicubic interpolation by two, reflection and a window of K x K pixels are one
window of K' x K' cells of the map before, with kernels ``Y^T k X``: Y[y] and
X[x], (K, K') each, are what the taps of a row and a column read. With K' =
2 (r // 2) + 5 that is 7 for K = 7, and the kernels are far fewer numbers than
the channels that they are for.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .adaptive_conv import KERNELS, adaptive_conv, scaled_conv, window_size
from .backends import choose_backend
from .operators import Operator

# Channels from which it pays to change the kernels instead of the map.
_MANY = 16
# Cubic convolution (Keys 1981, a = -0.75) at three and at one quarter from
# the second of four cells: the even and the odd pixels.
_CUBIC = (
    (-0.03515625, 0.26171875, 0.87890625, -0.10546875),
    (-0.10546875, 0.87890625, 0.26171875, -0.03515625),
)


def jbu_upsample(x: Tensor, kernel: Tensor, backend: str = 'auto') -> Tensor:
    """Bicubic by two, reflection, one kernel per pixel.

    Args:
        x (Tensor): Map, (B, C, h, w).
        kernel (Tensor): Kernels, (B, K * K, 2h, 2w), K odd.
        backend (str): As in :func:`mmplugins.ops.adaptive_conv`. Defaults to
            ``'auto'``.

    Returns:
        Tensor: Upsampled map, (B, C, 2h, 2w).

    Raises:
        ValueError: If the kernels are not twice the size of the map, or not
            of an odd window.
    """
    size = (2 * x.shape[-2], 2 * x.shape[-1])
    if kernel.shape[-2:] != size:
        raise ValueError(
            f'kernel must be {size[0]} x {size[1]}, twice the map, got '
            f'{kernel.shape[-2]} x {kernel.shape[-1]}'
        )
    return bilateral_resample(x, kernel, backend)


def bilateral_resample(
    x: Tensor, kernel: Tensor, backend: str = 'auto'
) -> Tensor:
    """Bicubic to the kernels' size, reflection, one kernel per pixel.

    Args:
        x (Tensor): Map, (B, C, h, w).
        kernel (Tensor): Kernels, (B, K * K, H, W), K odd, of any size.
        backend (str): As in :func:`mmplugins.ops.adaptive_conv`. Defaults to
            ``'auto'``.

    Returns:
        Tensor: Resampled map, (B, C, H, W).

    Raises:
        ValueError: If the kernels are not of an odd window, or not as many as
            the maps.
    """
    size = tuple(kernel.shape[-2:])
    window = window_size(kernel)
    radius = window // 2
    if window % 2 == 0:
        raise ValueError(
            f'kernel needs K * K taps of an odd K, got {kernel.shape[1]}'
        )
    if len(x) != len(kernel):
        raise ValueError(
            f'kernel must be for {len(x)} maps, got {len(kernel)}'
        )
    if _folds(x, kernel, radius, backend):
        dtype = torch.promote_types(kernel.dtype, torch.float32)
        rows, columns = (
            _reads(n, radius).to(kernel.device, dtype) for n in size
        )
        kernel = fold_kernels(kernel.to(dtype), rows, columns, radius)
        # Compilers fail at the gradient of what is padded channels last.
        x = F.pad(x.contiguous(), [radius // 2 + 2] * 4, mode='replicate')
        if x.device.type == 'cpu':
            # The products of matrices want the channels last.
            x = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        return scaled_conv(x, kernel, 2, backend)
    x = F.interpolate(x, size, mode='bicubic', align_corners=False)
    x = F.pad(x, [radius] * 4, mode='reflect')
    return adaptive_conv(x, kernel, backend)


def _folds(x: Tensor, kernel: Tensor, radius: int, backend: str) -> bool:
    """Whether to put the interpolation into the kernels."""
    size = tuple(kernel.shape[-2:])
    if size != (2 * x.shape[-2], 2 * x.shape[-1]) or min(size) <= radius:
        return False
    backend = choose_backend('jbu_upsample', backend, KERNELS, x, kernel)
    if backend == 'torch':
        return x.device.type == 'cpu' and x.shape[1] >= _MANY
    return backend == 'triton'


def _reads(pixels: int, radius: int) -> Tensor:
    """What the taps of a row read of a map of half as many rows.

    Args:
        pixels (int): Number of rows, even.
        radius (int): Radius r of the window.

    Returns:
        Tensor: Weights, (pixels, K, K'), float64: of tap i at row y for row
        y // 2 + i' of the map, which is padded by r // 2 + 2 copies of the
        border.
    """
    reach = radius // 2 + 2
    row = torch.arange(pixels)[:, None]
    read = (row + torch.arange(-radius, radius + 1)).abs()  # reflection
    read = torch.where(read < pixels, read, 2 * (pixels - 1) - read)
    parity = read % 2
    first = read // 2 + parity - 2 + reach - row // 2  # of four cells
    weights = torch.zeros(
        pixels, 2 * radius + 1, 2 * reach + 1, dtype=torch.float64
    )
    cubic = torch.tensor(_CUBIC, dtype=torch.float64)[parity]
    return weights.scatter_(2, first[..., None] + torch.arange(4), cubic)


def _fold_kernels(
    kernel: Tensor, rows: Tensor, columns: Tensor, radius: int
) -> Tensor:
    """Kernels ``Y^T k X``, with a matrix of each row and one of each column.

    Args:
        kernel (Tensor): Kernels, (B, K * K, H, W), H and W even.
        rows (Tensor): Matrices, (H, K, K').
        columns (Tensor): Matrices, (W, K, K').
        radius (int): Rows and columns at a border whose matrices differ from
            those of the others, which alternate between two.

    Returns:
        Tensor: Kernels, (B, K' * K', H, W).
    """
    with torch.autocast(kernel.device.type, enabled=False):
        return _fold(kernel, rows, columns, radius)


def _fold(
    kernel: Tensor, rows: Tensor, columns: Tensor, radius: int
) -> Tensor:
    before = rows.shape[1]
    height, width = kernel.shape[-2:]
    out = _folded_like(kernel, rows, columns, radius)
    kernel, folded = kernel.permute(0, 2, 3, 1), out.permute(0, 2, 3, 1)
    edge = radius + radius % 2
    top, left = min(edge, height), min(edge, width)
    bottom, right = max(top, height - edge), max(left, width - edge)
    # Inside, each of the four pixels of a cell has one matrix everywhere.
    if top < bottom and left < right:
        for y in (top, top + 1):
            for x in (left, left + 1):
                inside = (slice(None), slice(y, bottom, 2))
                inside += (slice(x, right, 2),)
                matrix = torch.kron(rows[y], columns[x])  # (K K, K' K')
                folded[inside] = kernel[inside] @ matrix
    for y, x in (
        (slice(0, top), slice(None)),
        (slice(bottom, None), slice(None)),
        (slice(top, bottom), slice(0, left)),
        (slice(top, bottom), slice(right, None)),
    ):
        part = kernel[:, y, x].unflatten(3, (before, before))
        part = torch.einsum('byxij,yik->byxkj', part, rows[y])
        part = torch.einsum('byxkj,xjl->byxkl', part, columns[x])
        folded[:, y, x] = part.flatten(3)
    return out


def _folded_like(
    kernel: Tensor, rows: Tensor, columns: Tensor, radius: int
) -> Tensor:
    return torch.empty(
        (kernel.shape[0], rows.shape[2] ** 2, *kernel.shape[-2:]),
        dtype=kernel.dtype,
        device=kernel.device,
        memory_format=torch.channels_last,
    )


# Linear in the kernels; the matrices are constants.
fold_kernels = Operator(_fold_kernels, _folded_like)
fold_kernels.differentiate(
    lambda grad, needs, kernel, rows, columns, radius: (
        fold_kernels(grad, rows.mT, columns.mT, radius),
    ),
    lambda tangents, kernel, *how: fold_kernels(tangents[0], *how),
)
