"""Convolution with a kernel of its own at every pixel.

B batch, C channels, h x w cells, S pixels per cell along each axis (S = 1 but
for :func:`scaled_conv`), K x K window, P = K * K taps row by row. A source is
padded already: it is (h + K - 1) x (w + K - 1), and tap (i, j) of pixel (y, x)
reads it at (y // S + i, x // S + j). Results may lie in memory as in
channels_last.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .backends import choose_backend
from .trilinear import correlate, gather, sum_dtype

# The module with kernels of Triton.
KERNELS = 'adaptive_conv_triton'


def adaptive_conv(x: Tensor, kernel: Tensor, backend: str = 'auto') -> Tensor:
    """Weigh the window around each pixel by that pixel's kernel.

    ``out[b, c, y, x] = sum_ij kernel[b, i K + j, y, x] * x[b, c, y+i, x+j]``,
    the operator of mhamilton723/FeatUp @ 6b5a6c0 (adaptive_conv_cuda). All
    channels share the kernel. Sums run in float32 at least.

    Args:
        x (Tensor): Padded source, (B, C, H + K - 1, W + K - 1).
        kernel (Tensor): Kernels, (B, K * K, H, W), taps row by row.
        backend (str): ``'reference'``, the formula over unfolded windows;
            ``'torch'``, products of banded matrices, or K * K shifted
            multiply-adds on a GPU and for few channels; ``'triton'``, kernels
            for a GPU; ``'auto'``, the fastest one that runs. Defaults to
            ``'auto'``.

    Returns:
        Tensor: Filtered map, (B, C, H, W), in the dtype of ``x``.

    Raises:
        ValueError: If the shapes or the backend do not fit.
    """
    size = window_size(kernel)
    _check_source(x, size, kernel, 1)
    backend = choose_backend('adaptive_conv', backend, KERNELS, x, kernel)
    if backend == 'reference':
        with torch.autocast(x.device.type, enabled=False):
            windows = _unfold(x, size)
            out = torch.einsum('bcphw,bphw->bchw', windows, kernel.to(windows))
        return out.to(x.dtype)
    return gather(x, kernel, size, 1, x.dtype, backend)


def scaled_conv(
    x: Tensor, kernel: Tensor, scale: int, backend: str = 'auto'
) -> Tensor:
    """As :func:`adaptive_conv` with several pixels for each cell of a map.

    ``out[b, c, y, x] = sum_ij kernel[b, i K + j, y, x]
    * x[b, c, y // S + i, x // S + j]``; there is no reference of it.

    Args:
        x (Tensor): Padded source, (B, C, h + K - 1, w + K - 1).
        kernel (Tensor): Kernels, (B, K * K, S h, S w), taps row by row.
        scale (int): Pixels S of a cell along each axis, 1 or 2.
        backend (str): As there. Defaults to ``'auto'``.

    Returns:
        Tensor: Filtered map, (B, C, S h, S w), in the dtype of ``x``.

    Raises:
        ValueError: If the shapes or the backend do not fit.
    """
    size = window_size(kernel)
    _check_source(x, size, kernel, scale)
    backend = choose_backend('adaptive_conv', backend, KERNELS, x, kernel)
    return gather(x, kernel, size, scale, x.dtype, backend)


def local_correlation(
    query: Tensor, keys: Tensor, backend: str = 'auto'
) -> Tensor:
    """Compare each pixel with every pixel of the window around it.

    ``out[b, i K + j, y, x] = sum_c query[b, c, y, x] * keys[b, c, y+i, x+j]``;
    the window's size K follows from the shapes.

    Args:
        query (Tensor): Vectors at the centres, (B, C, H, W).
        keys (Tensor): Padded vectors, (B, C, H + K - 1, W + K - 1).
        backend (str): As in :func:`adaptive_conv`. Defaults to ``'auto'``.

    Returns:
        Tensor: Dot products, (B, K * K, H, W), in the dtype of ``query``.

    Raises:
        ValueError: If the shapes or the backend do not fit.
    """
    if keys.shape[1] != query.shape[1]:
        raise ValueError(
            f'query has {query.shape[1]} channels, keys have {keys.shape[1]}'
        )
    size = keys.shape[-1] - query.shape[-1] + 1
    _check_source(keys, size, query, 1)
    backend = choose_backend(
        'local_correlation', backend, KERNELS, query, keys
    )
    if backend == 'reference':
        with torch.autocast(query.device.type, enabled=False):
            windows = _unfold(keys, size)
            out = torch.einsum('bchw,bcphw->bphw', query.to(windows), windows)
        return out.to(query.dtype)
    return correlate(query, keys, size, 1, query.dtype, backend)


def window_size(kernel: Tensor) -> int:
    """The window K of kernels.

    Args:
        kernel (Tensor): Kernels, (B, K * K, H, W).

    Raises:
        ValueError: If they have not as many taps as a square.
    """
    # Compilers have no square root of a size that may change.
    size = 0
    while size**2 < kernel.shape[1]:
        size += 1
    if size**2 != kernel.shape[1]:
        raise ValueError(
            f'kernel needs K * K taps in dimension 1, got {kernel.shape[1]}'
        )
    return size


def _check_source(x: Tensor, size: int, pixels: Tensor, scale: int) -> None:
    height, width = pixels.shape[-2] // scale, pixels.shape[-1] // scale
    wanted = (pixels.shape[0], height + size - 1, width + size - 1)
    given = (x.shape[0], *x.shape[-2:])
    if size < 1 or given != wanted:
        raise ValueError(
            f'{size} x {size} windows around {height} x {width} cells need a '
            f'padded source of (batch, height, width) {wanted}, got {given}'
        )


def _unfold(x: Tensor, size: int) -> Tensor:
    """All windows of a padded source, (B, C, P, H, W)."""
    height, width = x.shape[-2] - size + 1, x.shape[-1] - size + 1
    windows = F.unfold(x.to(sum_dtype(x)), size)  # (B, C P, H W)
    return windows.view(*x.shape[:2], size**2, height, width)
