"""Convolution with a kernel of its own at every pixel, by Triton.

B batch, C channels, D key channels, h x w cells, S = 1 or 2 pixels per cell
along each axis, K x K window, P = K * K taps row by row. A source is padded
already: it is (h + K - 1) x (w + K - 1), and tap (i, j) of pixel (y, x) reads
it at (y // S + i, x // S + j). With S = 2 all four pixels of a cell have the
same window: a step of joint bilateral upsampling whose bicubic doubling was
folded into its kernels.

These are launches alone: :mod:`mmplugins.ops.trilinear` and
:mod:`mmplugins.ops.bilateral_kernel` have the formulas, and their gradients.
No program adds into memory that another one writes, so results repeat exactly.
Sums run in float32, in float64 where an input is float64. Offsets that grow
with the tensors are 64 bits wide. On a CPU the kernels run in Triton's
interpreter alone: TRITON_INTERPRET=1, set before Triton is imported.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import adaptive_conv_kernels as kernels
from .adaptive_conv_kernels import INTERPRETED

__all__ = [
    'INTERPRETED',
    'correlate',
    'gather',
    'probe',
    'range_kernel',
    'scatter',
]

# Programs below which tiles are made smaller, a few per multiprocessor.
_PROGRAMS = 512
# Rows of windows that a thread sums at once: what its registers hold.
_SUMS = 28
# Channels that a program of a split correlation sums at least.
_SHARE = 16


def probe(device: torch.device, dtype: torch.dtype) -> None:
    """Launch a kernel on next to nothing; fail where that cannot be done."""
    x = torch.zeros(1, 1, 1, 1, device=device, dtype=dtype)
    gather(x, x, 1, 1, dtype)


def _sum_dtype(*tensors: Tensor) -> tl.dtype:
    double = any(tensor.dtype == torch.float64 for tensor in tensors)
    return tl.float64 if double else tl.float32


def _width(cells: int, most: int = 32) -> int:
    """Cells along a row of a tile: a warp, less for a narrow map."""
    return min(most, max(8, triton.next_power_of_2(cells)))


def _tile(
    batch: int, channels: int, height: int, width: int, rows: int, block: int
) -> tuple[int, int, int, int]:
    """Rows and channels of a tile, tiles and warps, for maps of channels.

    Tiles shrink until there are enough of them to fill a device.
    """
    wide = _width(width)
    block = min(block, triton.next_power_of_2(channels))

    def count() -> int:
        tiles = triton.cdiv(height, rows) * triton.cdiv(width, wide)
        return batch * tiles * triton.cdiv(channels, block)

    while count() < _PROGRAMS and block > 8:
        block //= 2
    while count() < _PROGRAMS and rows > 1:
        rows //= 2
    return rows, block, count(), min(4, max(1, wide * block // 128))


def gather(
    x: Tensor, kernel: Tensor, size: int, scale: int, dtype: torch.dtype
) -> Tensor:
    """Launch :data:`mmplugins.ops.trilinear.gather`; shapes as there."""
    batch, channels = x.shape[:2]
    height, width = (n // scale for n in kernel.shape[-2:])
    out = x.new_empty(batch, channels, *kernel.shape[-2:], dtype=dtype)
    if out.numel() == 0:
        return out
    rows, block, programs, warps = _tile(
        batch, channels, height, width, 2 // scale, 32
    )
    wide = _width(width)
    with torch.cuda.device_of(x):
        kernels.gather_kernel[(programs,)](
            x.contiguous(),
            kernel.contiguous(),
            out,
            channels,
            height,
            width,
            triton.cdiv(channels, block),
            triton.cdiv(width, wide),
            triton.cdiv(height, rows),
            K=size,
            S=scale,
            R=rows * scale,
            BC=block,
            BW=wide,
            ACC=_sum_dtype(x, kernel),
            num_warps=warps,
        )
    return out


def scatter(
    g: Tensor, kernel: Tensor, size: int, scale: int, dtype: torch.dtype
) -> Tensor:
    """Launch :data:`mmplugins.ops.trilinear.scatter`; shapes as there."""
    batch, channels = g.shape[:2]
    height, width = (n // scale for n in kernel.shape[-2:])
    padded = (height + size - 1, width + size - 1)
    out = g.new_empty(batch, channels, *padded, dtype=dtype)
    if g.numel() == 0:
        return out.zero_()
    rows, block, programs, warps = _tile(batch, channels, *padded, 2, 32)
    wide = _width(padded[1])
    with torch.cuda.device_of(g):
        kernels.scatter_kernel[(programs,)](
            g.contiguous(),
            kernel.contiguous(),
            out,
            channels,
            height,
            width,
            triton.cdiv(channels, block),
            triton.cdiv(padded[1], wide),
            triton.cdiv(padded[0], rows),
            K=size,
            S=scale,
            R=rows,
            BC=block,
            BW=wide,
            ACC=_sum_dtype(g, kernel),
            num_warps=warps,
        )
    return out


def _window_tile(
    batch: int, height: int, width: int, size: int, rows: int
) -> tuple[int, int, int, int, int]:
    """Rows, columns of the window and cells of a tile; tiles and warps."""
    rows = max(1, min(rows, _SUMS // size))
    across = triton.next_power_of_2(size)
    # Small windows have wide tiles, so that a program has a few warps.
    wide = _width(width, max(32, 128 // across))

    def count() -> int:
        return batch * triton.cdiv(height, rows) * triton.cdiv(width, wide)

    while rows > 1 and count() < _PROGRAMS:
        rows //= 2
    warps = min(8, max(1, across * wide // 32))
    return rows, across, wide, count(), warps


def correlate(
    g: Tensor, x: Tensor, size: int, scale: int, dtype: torch.dtype
) -> Tensor:
    """Launch :data:`mmplugins.ops.trilinear.correlate`; shapes as there."""
    batch, channels = g.shape[:2]
    height, width = (n // scale for n in g.shape[-2:])
    shape = (batch, size * size, *g.shape[-2:])
    if g.numel() == 0:
        return g.new_zeros(shape, dtype=dtype)
    rows, across, wide, programs, warps = _window_tile(
        batch, height, width, size, 4 // scale**2
    )
    # Few pixels and many channels: programs share the channels of a pixel.
    parts = min(triton.cdiv(_PROGRAMS, programs), channels // _SHARE)
    share = triton.cdiv(channels, max(1, parts))
    parts = triton.cdiv(channels, share)
    total = _sum_dtype(g, x)
    wanted = dtype
    if parts > 1:
        wanted = torch.float64 if total == tl.float64 else torch.float32
        shape = (parts, *shape)
    out = g.new_empty(shape, dtype=wanted)
    with torch.cuda.device_of(g):
        kernels.correlate_kernel[(programs * parts,)](
            g.contiguous(),
            x.contiguous(),
            out,
            batch,
            channels,
            height,
            width,
            share,
            triton.cdiv(width, wide),
            triton.cdiv(height, rows),
            K=size,
            S=scale,
            R=rows * scale,
            BJ=across,
            BW=wide,
            ACC=total,
            num_warps=warps,
        )
    return out.sum(0).to(dtype) if parts > 1 else out


def range_kernel(
    query: Tensor,
    keys: Tensor,
    temperature: Tensor,
    gaussian: Tensor,
    size: int,
    dtype: torch.dtype,
    eps: float,
) -> Tensor:
    """Launch :data:`mmplugins.ops.bilateral_kernel.range_kernel`."""
    batch, channels, height, width = query.shape
    out = query.new_empty(batch, size * size, height, width, dtype=dtype)
    if out.numel() == 0:
        return out
    rows, across, wide, programs, warps = _window_tile(
        batch, height, width, size, 4
    )
    with torch.cuda.device_of(query):
        kernels.range_kernel[(programs,)](
            query.contiguous(),
            keys.contiguous(),
            temperature.contiguous(),
            gaussian.contiguous(),
            out,
            channels,
            height,
            width,
            triton.cdiv(width, wide),
            triton.cdiv(height, rows),
            EPS=eps,
            K=size,
            R=rows,
            BJ=across,
            BW=wide,
            ACC=_sum_dtype(query, keys, temperature, gaussian),
            num_warps=warps,
        )
    return out
