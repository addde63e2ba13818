"""Joint bilateral upsampling by two.

B batch, C channels, D key channels, h x w map, 2h x 2w result, K = 2 r + 1
window, P = K * K taps row by row. Pixel centres, align_corners=False.

Bicubic interpolation by two, reflection and a window of K x K pixels are one
window of K' x K' cells of the map before, with kernels ``Y^T k X``: Y[y] and
X[x], (K, K') each, are what the taps of a row and a column read. With K' =
2 (r // 2) + 5 that is 7 for K = 7, and the kernels are far fewer numbers than
the channels that they are for.
"""

from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx

from .adaptive_conv import (
    adaptive_conv,
    check_backend,
    local_correlation,
    scaled_conv,
)

SIMILARITIES = ('dot', 'gaussian')

# Channels from which it pays to change the kernels instead of the map.
_MANY = 16
# Cubic convolution (Keys 1981, a = -0.75) at three and at one quarter from
# the second of four cells: the even and the odd pixels.
_CUBIC = (
    (-0.03515625, 0.26171875, 0.87890625, -0.10546875),
    (-0.10546875, 0.87890625, 0.26171875, -0.03515625),
)


def joint_bilateral_kernel(
    keys: Tensor,
    temperature: Tensor,
    sigma: Tensor,
    radius: int,
    backend: str = 'auto',
    similarity: str = 'dot',
) -> Tensor:
    """Kernels that follow the guidance as in FeatUp (arXiv 2403.10516).

    ``k[p] = softmax_p(t <keys_p, keys_centre>) exp(-|d_p|^2 / (2 sigma^2))``,
    divided by its sum over the window, with offsets d in units of the radius.
    With ``similarity='gaussian'`` the softmax is of ``-t |keys_p -
    keys_centre|^2``, the Gaussian of classical joint bilateral upsampling
    (Kopf et al., SIGGRAPH 2007) in the space of the keys.
    Computed in float32 at least, for a product of keys overflows float16.

    Args:
        keys (Tensor): Projected guidance, (B, D, H, W).
        temperature (Tensor): Scale t of the dot products, a scalar.
        sigma (Tensor): Width of the spatial Gaussian in radii, a scalar.
        radius (int): Radius r of the window in pixels.
        backend (str): As in :func:`mmplugins.ops.adaptive_conv`. Defaults to
            ``'auto'``.
        similarity (str): One of :data:`SIMILARITIES`. Defaults to ``'dot'``.

    Returns:
        Tensor: Kernels that sum to one, (B, K * K, H, W), float32 at least.
    """
    keys = keys.to(torch.promote_types(keys.dtype, torch.float32))
    query = keys
    if similarity == 'gaussian':
        # |k_p - k_c|^2 = |k_p|^2 - 2 <k_p, k_c> + |k_c|^2; the last is the
        # same for the whole window and leaves the softmax as it is.
        query = torch.cat([2 * keys, -torch.ones_like(keys[:, :1])], 1)
        keys = torch.cat([keys, keys.square().sum(1, keepdim=True)], 1)
    padded = F.pad(keys, [radius] * 4, mode='reflect')
    gaussian = _gaussian(sigma, radius)
    backend = check_backend(backend, query)
    if backend == 'triton':
        from .adaptive_conv_triton import range_kernel

        return range_kernel(
            query=query,
            keys=padded,
            temperature=temperature,
            gaussian=gaussian,
            size=2 * radius + 1,
        )
    if backend == 'reference':
        logits = temperature * local_correlation(query, padded, backend)
        kernel = logits.softmax(1) * gaussian
        return kernel / kernel.sum(1, keepdim=True).clamp_min(1e-7)
    # The taps last, as they lie in memory; the scale on D values, not on P.
    logits = local_correlation(temperature * query, padded, backend)
    kernel = logits.movedim(1, -1).softmax(-1)
    if torch.is_grad_enabled() or kernel.dtype != gaussian.dtype:
        kernel = kernel * gaussian.flatten()
        kernel = kernel / kernel.sum(-1, keepdim=True).clamp_min(1e-7)
    else:
        kernel *= gaussian.flatten()
        kernel /= kernel.sum(-1, keepdim=True).clamp_min_(1e-7)
    return kernel.movedim(-1, 1)


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
    window = isqrt(kernel.shape[1])
    radius = window // 2
    if window % 2 == 0 or window**2 != kernel.shape[1]:
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
        kernel = _Fold.apply(kernel.to(dtype), rows, columns, radius)
        x = _dense(x)
        x = F.pad(x, [radius // 2 + 2] * 4, mode='replicate')
        return scaled_conv(x, kernel, 2, backend)
    x = F.interpolate(x, size, mode='bicubic', align_corners=False)
    x = F.pad(x, [radius] * 4, mode='reflect')
    return adaptive_conv(x, kernel, backend)


def _folds(x: Tensor, kernel: Tensor, radius: int, backend: str) -> bool:
    """Whether to put the interpolation into the kernels."""
    size = tuple(kernel.shape[-2:])
    if size != (2 * x.shape[-2], 2 * x.shape[-1]) or min(size) <= radius:
        return False
    backend = check_backend(backend, x, kernel)
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


class _Fold(Function):
    """Kernels ``Y^T k X``, linear in k, (B, K' * K', H, W)."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        kernel: Tensor,
        rows: Tensor,
        columns: Tensor,
        radius: int,
    ) -> Tensor:
        ctx.save_for_backward(rows, columns)
        ctx.radius = radius
        with torch.autocast(kernel.device.type, enabled=False):
            return _fold(kernel, rows, columns, radius)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple:
        rows, columns = ctx.saved_tensors
        grad = _Fold.apply(grad, rows.mT, columns.mT, ctx.radius)
        return grad, None, None, None


def _fold(
    kernel: Tensor, rows: Tensor, columns: Tensor, radius: int
) -> Tensor:
    """Multiply every kernel by a matrix of its row and one of its column.

    Args:
        kernel (Tensor): Kernels, (B, K * K, H, W), H and W even.
        rows (Tensor): Matrices, (H, K, K').
        columns (Tensor): Matrices, (W, K, K').
        radius (int): Rows and columns at a border whose matrices differ from
            those of the others, which alternate between two.

    Returns:
        Tensor: Kernels, (B, K' * K', H, W).
    """
    before, after = rows.shape[1:]
    height, width = kernel.shape[-2:]
    out = torch.empty(
        (kernel.shape[0], after**2, height, width),
        dtype=kernel.dtype,
        device=kernel.device,
        memory_format=torch.channels_last,
    )
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


def _dense(x: Tensor) -> Tensor:
    """The map as the products of matrices want it."""
    if x.device.type == 'cpu':
        return x.contiguous(memory_format=torch.channels_last)
    return x


def _gaussian(sigma: Tensor, radius: int) -> Tensor:
    """exp(-|d|^2 / (2 sigma^2)) on offsets d in radii, (P, 1, 1)."""
    offset = torch.linspace(
        -1, 1, 2 * radius + 1, device=sigma.device, dtype=sigma.dtype
    )
    distance = offset[:, None] ** 2 + offset[None] ** 2  # (K, K)
    # A width of zero would make the centre 0 / 0.
    width = (2 * sigma**2).clamp_min(1e-6)
    return torch.exp(-distance / width).view(-1, 1, 1)
