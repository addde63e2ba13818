"""What a kernel at every pixel gives, and its derivatives.

B batch, C channels, h x w cells, S = 1 or 2 pixels per cell along each axis,
K x K window, P = K * K taps row by row. A source is padded already: it is
(h + K - 1) x (w + K - 1), and tap (i, j) of pixel (y, x) reads it at
(y // S + i, x // S + j). With S = 2 all four pixels of a cell have the same
window: a step of joint bilateral upsampling whose bicubic doubling was folded
into its kernels.

The source x, the kernels k and the result g meet in one trilinear form,
``sum g[b, c, y, x] * k[b, i K + j, y, x] * x[b, c, y // S + i, x // S + j]``.
Its three partial derivatives gather, correlate and scatter; each one's
gradient is made of the other two, so that every one of them differentiates any
number of times.

- ``gather(x, kernel, ...)`` weighs the window around each pixel by its kernel,
- ``correlate(g, x, ...)`` compares each pixel with the window around it,
- ``scatter(g, kernel, ...)`` spreads each pixel over that window.

All three take the window K, the scale S, the dtype of the result and a
backend, ``'torch'`` or ``'triton'``; nothing is checked here. Sums run in
float32 at least. Results of matrix products lie in memory as in channels_last.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from . import adaptive_conv_blocks as blocks
from .operators import Operator, bilinear

# Elements of the products that a correlation holds at once.
_BLOCK = 2**22
# Channels below which shifted multiply-adds are faster than matrix products.
_FEW = 24


def sum_dtype(*tensors: Tensor) -> torch.dtype:
    """What sums of products run in: float32 at least."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def _gather(
    x: Tensor,
    kernel: Tensor,
    size: int,
    scale: int,
    dtype: torch.dtype,
    backend: str,
) -> Tensor:
    if backend == 'triton':
        from . import adaptive_conv_triton

        return adaptive_conv_triton.gather(x, kernel, size, scale, dtype)
    total = sum_dtype(x, kernel)
    x, kernel = x.to(total), kernel.to(total)
    if _in_blocks(x, scale):
        return blocks.gather(x, kernel, size, scale).to(dtype)
    out = x.new_zeros(*x.shape[:2], *kernel.shape[-2:])
    x, kernel = x.contiguous(), kernel.contiguous()
    for window, tap in zip(
        _windows(x, size), kernel.split(1, dim=1), strict=True
    ):
        out.addcmul_(window, tap)
    return out.to(dtype)


def _correlate(
    g: Tensor,
    x: Tensor,
    size: int,
    scale: int,
    dtype: torch.dtype,
    backend: str,
) -> Tensor:
    if backend == 'triton':
        from . import adaptive_conv_triton

        return adaptive_conv_triton.correlate(g, x, size, scale, dtype)
    total = sum_dtype(g, x)
    g, x = g.to(total), x.to(total)
    if _in_blocks(x, scale):
        return blocks.correlate(g, x, size, scale).to(dtype)
    batch, channels, height, width = g.shape
    out = g.new_zeros(batch, size**2, height, width)
    x, g = x.contiguous(), g.contiguous()
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
    return out.to(dtype)


def _scatter(
    g: Tensor,
    kernel: Tensor,
    size: int,
    scale: int,
    dtype: torch.dtype,
    backend: str,
) -> Tensor:
    if backend == 'triton':
        from . import adaptive_conv_triton

        return adaptive_conv_triton.scatter(g, kernel, size, scale, dtype)
    total = sum_dtype(g, kernel)
    g, kernel = g.to(total), kernel.to(total)
    if _in_blocks(g, scale):
        return blocks.scatter(g, kernel, size, scale).to(dtype)
    out = g.new_zeros(*g.shape[:2], *(n + size - 1 for n in g.shape[-2:]))
    g, kernel = g.contiguous(), kernel.contiguous()
    for window, tap in zip(
        _windows(out, size), kernel.split(1, dim=1), strict=True
    ):
        window.addcmul_(g, tap)
    return out.to(dtype)


def _in_blocks(x: Tensor, scale: int) -> bool:
    """Whether products of matrices are the better way for these channels."""
    return scale > 1 or (x.device.type == 'cpu' and x.shape[1] >= _FEW)


def _windows(x: Tensor, size: int) -> Iterator[Tensor]:
    """One view of a padded source per tap, as large as the result."""
    height, width = x.shape[-2] - size + 1, x.shape[-1] - size + 1
    for i in range(size):
        for j in range(size):
            yield x[..., i : i + height, j : j + width]


def _laid_out(
    like: Tensor,
    shape: Sequence[int],
    scale: int,
    dtype: torch.dtype,
    backend: str,
) -> Tensor:
    """Empty result, in the order that its values will have."""
    last = backend != 'triton' and _in_blocks(like, scale)
    return torch.empty(
        (like.shape[0], *shape),
        dtype=dtype,
        device=like.device,
        memory_format=(
            torch.channels_last if last else torch.contiguous_format
        ),
    )


def _fake_gather(x, kernel, size, scale, dtype, backend):
    shape = (x.shape[1], *kernel.shape[-2:])
    return _laid_out(x, shape, scale, dtype, backend)


def _fake_correlate(g, x, size, scale, dtype, backend):
    shape = (size**2, *g.shape[-2:])
    return _laid_out(g, shape, scale, dtype, backend)


def _fake_scatter(g, kernel, size, scale, dtype, backend):
    padded = (n // scale + size - 1 for n in g.shape[-2:])
    return _laid_out(g, (g.shape[1], *padded), scale, dtype, backend)


def _of_gather(grad, needs, x, kernel, size, scale, dtype, backend):
    how = (size, scale)
    return (
        scatter(grad, kernel, *how, x.dtype, backend) if needs[0] else None,
        correlate(grad, x, *how, kernel.dtype, backend) if needs[1] else None,
    )


def _of_correlate(grad, needs, g, x, size, scale, dtype, backend):
    how = (size, scale)
    return (
        gather(x, grad, *how, g.dtype, backend) if needs[0] else None,
        scatter(g, grad, *how, x.dtype, backend) if needs[1] else None,
    )


def _of_scatter(grad, needs, g, kernel, size, scale, dtype, backend):
    how = (size, scale)
    return (
        gather(grad, kernel, *how, g.dtype, backend) if needs[0] else None,
        correlate(g, grad, *how, kernel.dtype, backend) if needs[1] else None,
    )


gather = Operator(_gather, _fake_gather)
gather.differentiate(_of_gather, bilinear(gather))
correlate = Operator(_correlate, _fake_correlate)
correlate.differentiate(_of_correlate, bilinear(correlate))
scatter = Operator(_scatter, _fake_scatter)
scatter.differentiate(_of_scatter, bilinear(scatter))
