"""Convolution with a kernel of its own at every pixel.

B batch, C channels, h x w cells, S pixels per cell along each axis (S = 1 but
for :func:`scaled_conv`), K x K window, P = K * K taps row by row. A source is
padded already: it is (h + K - 1) x (w + K - 1), and tap (i, j) of pixel (y, x)
reads it at (y // S + i, x // S + j). Results may lie in memory as in
channels_last.

The source x, the kernels k and the result g meet in one trilinear form,
``sum g[b, c, y, x] * k[b, i K + j, y, x] * x[b, c, y // S + i, x // S + j]``.
Its three partial derivatives gather, correlate and scatter; each one's
gradient is made of the other two, so that every one of them differentiates any
number of times.
"""

import os
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx

from . import adaptive_conv_blocks as blocks

BACKENDS = ('auto', 'reference', 'torch', 'triton')

# Elements of the products that a correlation holds at once.
_BLOCK = 2**22
# Channels below which shifted multiply-adds are faster than matrix products.
_FEW = 24
# What the kernels of triton are for, where no backend is named.
_TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


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
    size = isqrt(kernel.shape[1])
    height, width = kernel.shape[-2:]
    if size * size != kernel.shape[1]:
        raise ValueError(
            f'kernel needs K * K taps in dimension 1, got {kernel.shape[1]}'
        )
    _check_source(x, size, kernel.shape[0], height, width)
    if check_backend(backend, x, kernel) == 'reference':
        with torch.autocast(x.device.type, enabled=False):
            windows = _unfold(x, size)
            out = torch.einsum('bcphw,bphw->bchw', windows, kernel.to(windows))
        return out.to(x.dtype)
    return scaled_conv(x, kernel, 1, backend)


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
    size = isqrt(kernel.shape[1])
    height, width = (n // scale for n in kernel.shape[-2:])
    _check_source(x, size, kernel.shape[0], height, width)
    if check_backend(backend, x, kernel) == 'triton':
        from .adaptive_conv_triton import gather

        return gather(x, kernel, size, scale)
    dtype = _sum_dtype(x, kernel)
    out = _Gather.apply(x.to(dtype), kernel.to(dtype), size, scale)
    return out.to(x.dtype)


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
    batch, channels, height, width = query.shape
    if keys.shape[1] != channels:
        raise ValueError(
            f'query has {channels} channels, keys have {keys.shape[1]}'
        )
    size = keys.shape[-1] - width + 1
    _check_source(keys, size, batch, height, width)
    backend = check_backend(backend, query, keys)
    if backend == 'reference':
        with torch.autocast(query.device.type, enabled=False):
            windows = _unfold(keys, size)
            out = torch.einsum('bchw,bcphw->bphw', query.to(windows), windows)
        return out.to(query.dtype)
    if backend == 'triton':
        from .adaptive_conv_triton import correlate

        return correlate(query, keys, size)
    dtype = _sum_dtype(query, keys)
    out = _Correlate.apply(query.to(dtype), keys.to(dtype), size, 1)
    return out.to(query.dtype)


def check_backend(backend: str, *tensors: Tensor) -> str:
    """Backend to run, with ``'auto'`` resolved.

    Args:
        backend (str): One of :data:`BACKENDS`.
        *tensors (Tensor): What it is to run on. Without them, where triton
            runs is not looked at.

    Returns:
        str: The backend, never ``'auto'``: ``'triton'`` for tensors of single
        or half precision on a GPU that can run it, else ``'torch'``.

    Raises:
        ValueError: If there is no such backend, or it cannot run on those
            tensors.
    """
    if backend not in BACKENDS:
        raise ValueError(f'backend must be one of {BACKENDS}, got {backend!r}')
    if backend == 'auto':
        fits = tensors and all(
            t.device == tensors[0].device
            and t.device.type == 'cuda'
            and t.dtype in _TRITON_DTYPES
            for t in tensors
        )
        fits = fits and _triton_works(tensors[0].device)
        return 'triton' if fits else 'torch'
    if backend == 'triton' and tensors:
        without = tuple(name for name in BACKENDS if name != 'triton')
        device = tensors[0].device.type
        if not find_spec('triton'):
            raise ValueError(
                f'backend must be one of {without} where Triton is not '
                "installed, got 'triton'"
            )
        if device != 'cuda' and os.environ.get('TRITON_INTERPRET') != '1':
            raise ValueError(
                f'backend must be one of {without} on {device} unless '
                'TRITON_INTERPRET=1 is set before Triton is imported, got '
                "'triton'"
            )
    return backend


@lru_cache
def _triton_works(device: torch.device) -> bool:
    """Whether kernels can be compiled for a GPU, and run there."""
    if not find_spec('triton'):
        return False
    x = torch.zeros(1, 1, 1, 1, device=device)
    try:
        from .adaptive_conv_triton import gather

        with torch.no_grad():
            gather(x, x, 1)
        torch.cuda.synchronize(device)
    # Whatever a compiler or a driver may raise, the other backend runs.
    except Exception:
        return False
    return True


def _check_source(
    x: Tensor, size: int, batch: int, height: int, width: int
) -> None:
    wanted = (batch, height + size - 1, width + size - 1)
    given = (x.shape[0], *x.shape[-2:])
    if size < 1 or given != wanted:
        raise ValueError(
            f'{size} x {size} windows around {height} x {width} pixels need a '
            f'padded source of (batch, height, width) {wanted}, got {given}'
        )


def _sum_dtype(*tensors: Tensor) -> torch.dtype:
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def _unfold(x: Tensor, size: int) -> Tensor:
    """All windows of a padded source, (B, C, P, H, W)."""
    height, width = x.shape[-2] - size + 1, x.shape[-1] - size + 1
    windows = F.unfold(x.to(_sum_dtype(x)), size)  # (B, C P, H W)
    return windows.view(*x.shape[:2], size**2, height, width)


def _windows(x: Tensor, size: int) -> Iterator[Tensor]:
    """One view of a padded source per tap, as large as the result."""
    height, width = x.shape[-2] - size + 1, x.shape[-1] - size + 1
    for i in range(size):
        for j in range(size):
            yield x[..., i : i + height, j : j + width]


def _gather(x: Tensor, kernel: Tensor, size: int, scale: int) -> Tensor:
    if _in_blocks(x, scale):
        return blocks.gather(x, kernel, size, scale)
    x, kernel = x.contiguous(), kernel.contiguous()
    out = x.new_zeros(*x.shape[:2], *kernel.shape[-2:])
    for window, tap in zip(
        _windows(x, size), kernel.split(1, dim=1), strict=True
    ):
        out.addcmul_(window, tap)
    return out


def _correlate(g: Tensor, x: Tensor, size: int, scale: int) -> Tensor:
    if _in_blocks(x, scale):
        return blocks.correlate(g, x, size, scale)
    x, g = x.contiguous(), g.contiguous()
    batch, channels, height, width = g.shape
    out = g.new_zeros(batch, size**2, height, width)
    # The products of a few channels at a time, so that memory stays small.
    step = max(1, _BLOCK // max(1, batch * height * width))
    for start in range(0, channels, step):
        part = g[:, start : start + step]
        source = x[:, start : start + step]
        product = torch.empty_like(part)
        for window, tap in zip(
            _windows(source, size), out.unbind(1), strict=True
        ):
            tap += torch.mul(part, window, out=product).sum(1)
    return out


def _scatter(g: Tensor, kernel: Tensor, size: int, scale: int) -> Tensor:
    if _in_blocks(g, scale):
        return blocks.scatter(g, kernel, size, scale)
    g, kernel = g.contiguous(), kernel.contiguous()
    batch, channels, height, width = g.shape
    out = g.new_zeros(batch, channels, height + size - 1, width + size - 1)
    for window, tap in zip(
        _windows(out, size), kernel.split(1, dim=1), strict=True
    ):
        window.addcmul_(g, tap)
    return out


def _in_blocks(x: Tensor, scale: int) -> bool:
    """Whether products of matrices are the better way for these channels."""
    return scale > 1 or (x.device.type == 'cpu' and x.shape[1] >= _FEW)


class _Gather(Function):
    """Result from source and kernels."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, kernel: Tensor, *shape: int
    ) -> Tensor:
        ctx.save_for_backward(x, kernel)
        ctx.shape = shape
        return _gather(x, kernel, *shape)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple:
        x, kernel = ctx.saved_tensors
        need_x, need_kernel, *_ = ctx.needs_input_grad
        return (
            _Scatter.apply(grad, kernel, *ctx.shape) if need_x else None,
            _Correlate.apply(grad, x, *ctx.shape) if need_kernel else None,
            None,
            None,
        )


class _Correlate(Function):
    """Kernels from result and source."""

    @staticmethod
    def forward(ctx: FunctionCtx, g: Tensor, x: Tensor, *shape: int) -> Tensor:
        ctx.save_for_backward(g, x)
        ctx.shape = shape
        return _correlate(g, x, *shape)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple:
        g, x = ctx.saved_tensors
        need_g, need_x, *_ = ctx.needs_input_grad
        return (
            _Gather.apply(x, grad, *ctx.shape) if need_g else None,
            _Scatter.apply(g, grad, *ctx.shape) if need_x else None,
            None,
            None,
        )


class _Scatter(Function):
    """Source from result and kernels."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, g: Tensor, kernel: Tensor, *shape: int
    ) -> Tensor:
        ctx.save_for_backward(g, kernel)
        ctx.shape = shape
        return _scatter(g, kernel, *shape)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple:
        g, kernel = ctx.saved_tensors
        need_g, need_kernel, *_ = ctx.needs_input_grad
        return (
            _Gather.apply(grad, kernel, *ctx.shape) if need_g else None,
            _Correlate.apply(g, grad, *ctx.shape) if need_kernel else None,
            None,
            None,
        )
