"""Convolution with a kernel of its own at every pixel, by Triton.

B batch, C channels, D key channels, h x w cells, S = 1 or 2 pixels per cell
along each axis, K x K window, P = K * K taps row by row. A source is padded
already: it is (h + K - 1) x (w + K - 1), and tap (i, j) of pixel (y, x) reads
it at (y // S + i, x // S + j). With S = 2 all four pixels of a cell have the
same window: a step of joint bilateral upsampling whose bicubic doubling was
folded into its kernels.

The source x, the kernels k and the result g meet in one trilinear form,
``sum g[b, c, y, x] * k[b, i K + j, y, x] * x[b, c, y // S + i, x // S + j]``.
:func:`gather`, :func:`correlate` and :func:`scatter` are its derivatives by
g, k and x; the gradient of each one is made of the other two. None of them
adds into memory that another program writes, so results repeat exactly.

Sums run in float32, in float64 where an input is float64. Offsets that grow
with the tensors are 64 bits wide. On a CPU the kernels run in Triton's
interpreter alone: TRITON_INTERPRET=1, set before Triton is imported.
"""

from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import FunctionCtx

from . import adaptive_conv_kernels as kernels

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Keeps the kernel of a window finite where all its weights vanish.
_EPS = 1e-7
# Programs below which tiles are made smaller, a few per multiprocessor.
_PROGRAMS = 512
# Rows of windows that a thread sums at once: what its registers hold.
_SUMS = 28
# Channels that a program of a split correlation sums at least.
_SHARE = 16


def _guard(x: Tensor) -> object:
    """Context to launch in: the device of the tensors, if any can run."""
    if x.is_cuda:
        return torch.cuda.device_of(x)
    if x.device.type == 'cpu' and not kernels.INTERPRETED:
        raise ValueError(
            "backend 'triton' needs tensors on a GPU, got cpu; there it runs "
            'only with TRITON_INTERPRET=1 set before triton is imported'
        )
    return nullcontext()


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


def _gather(
    x: Tensor, kernel: Tensor, size: int, scale: int, dtype: torch.dtype
) -> Tensor:
    batch, channels = x.shape[:2]
    height, width = (n // scale for n in kernel.shape[-2:])
    out = x.new_empty(batch, channels, *kernel.shape[-2:], dtype=dtype)
    guard = _guard(x)
    if out.numel() == 0:
        return out
    rows, block, programs, warps = _tile(
        batch, channels, height, width, 2 // scale, 32
    )
    wide = _width(width)
    with guard:
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


def _scatter(
    g: Tensor, kernel: Tensor, size: int, scale: int, dtype: torch.dtype
) -> Tensor:
    batch, channels = g.shape[:2]
    height, width = (n // scale for n in kernel.shape[-2:])
    padded = (height + size - 1, width + size - 1)
    out = g.new_empty(batch, channels, *padded, dtype=dtype)
    guard = _guard(g)
    if g.numel() == 0:
        return out.zero_()
    rows, block, programs, warps = _tile(batch, channels, *padded, 2, 32)
    wide = _width(padded[1])
    with guard:
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


def _correlate(
    g: Tensor, x: Tensor, size: int, scale: int, dtype: torch.dtype
) -> Tensor:
    batch, channels = g.shape[:2]
    height, width = (n // scale for n in g.shape[-2:])
    shape = (batch, size * size, *g.shape[-2:])
    guard = _guard(g)
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
    with guard:
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


def _range(
    query: Tensor,
    keys: Tensor,
    temperature: Tensor,
    gaussian: Tensor,
    size: int,
    dtype: torch.dtype,
) -> Tensor:
    batch, channels, height, width = query.shape
    out = query.new_empty(batch, size * size, height, width, dtype=dtype)
    guard = _guard(query)
    if out.numel() == 0:
        return out
    rows, across, wide, programs, warps = _window_tile(
        batch, height, width, size, 4
    )
    with guard:
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
            EPS=_EPS,
            K=size,
            R=rows,
            BJ=across,
            BW=wide,
            ACC=_sum_dtype(query, keys, temperature, gaussian),
            num_warps=warps,
        )
    return out


@torch.library.custom_op('mmplugins::gather_triton', mutates_args=())
def _gather_op(
    x: Tensor, kernel: Tensor, size: int, scale: int, dtype: torch.dtype
) -> Tensor:
    return _gather(x, kernel, size, scale, dtype)


@_gather_op.register_fake
def _(x, kernel, size, scale, dtype):
    return x.new_empty((*x.shape[:2], *kernel.shape[-2:]), dtype=dtype)


@torch.library.custom_op('mmplugins::correlate_triton', mutates_args=())
def _correlate_op(
    g: Tensor, x: Tensor, size: int, scale: int, dtype: torch.dtype
) -> Tensor:
    return _correlate(g, x, size, scale, dtype)


@_correlate_op.register_fake
def _(g, x, size, scale, dtype):
    return g.new_empty((g.shape[0], size**2, *g.shape[-2:]), dtype=dtype)


@torch.library.custom_op('mmplugins::scatter_triton', mutates_args=())
def _scatter_op(
    g: Tensor, kernel: Tensor, size: int, scale: int, dtype: torch.dtype
) -> Tensor:
    return _scatter(g, kernel, size, scale, dtype)


@_scatter_op.register_fake
def _(g, kernel, size, scale, dtype):
    padded = [n // scale + size - 1 for n in g.shape[-2:]]
    return g.new_empty((*g.shape[:2], *padded), dtype=dtype)


@torch.library.custom_op('mmplugins::range_kernel_triton', mutates_args=())
def _range_op(
    query: Tensor,
    keys: Tensor,
    temperature: Tensor,
    gaussian: Tensor,
    size: int,
    dtype: torch.dtype,
) -> Tensor:
    return _range(query, keys, temperature, gaussian, size, dtype)


@_range_op.register_fake
def _(query, keys, temperature, gaussian, size, dtype):
    batch, _, height, width = query.shape
    return query.new_empty((batch, size**2, height, width), dtype=dtype)


def _save(ctx: FunctionCtx, inputs: tuple, output: Tensor) -> None:
    first, second, ctx.size, ctx.scale, _ = inputs
    ctx.save_for_backward(first, second)


def _gather_backward(ctx: FunctionCtx, grad: Tensor) -> tuple:
    x, kernel = ctx.saved_tensors
    how = (ctx.size, ctx.scale)
    grad_x = grad_kernel = None
    if ctx.needs_input_grad[0]:
        grad_x = _scatter_op(grad, kernel, *how, x.dtype)
    if ctx.needs_input_grad[1]:
        grad_kernel = _correlate_op(grad, x, *how, kernel.dtype)
    return grad_x, grad_kernel, None, None, None


def _correlate_backward(ctx: FunctionCtx, grad: Tensor) -> tuple:
    g, x = ctx.saved_tensors
    how = (ctx.size, ctx.scale)
    grad_g = grad_x = None
    if ctx.needs_input_grad[0]:
        grad_g = _gather_op(x, grad, *how, g.dtype)
    if ctx.needs_input_grad[1]:
        grad_x = _scatter_op(g, grad, *how, x.dtype)
    return grad_g, grad_x, None, None, None


def _scatter_backward(ctx: FunctionCtx, grad: Tensor) -> tuple:
    g, kernel = ctx.saved_tensors
    how = (ctx.size, ctx.scale)
    grad_g = grad_kernel = None
    if ctx.needs_input_grad[0]:
        grad_g = _gather_op(grad, kernel, *how, g.dtype)
    if ctx.needs_input_grad[1]:
        grad_kernel = _correlate_op(g, grad, *how, kernel.dtype)
    return grad_g, grad_kernel, None, None, None


def _save_range(ctx: FunctionCtx, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.size, _ = inputs
    ctx.save_for_backward(*tensors)


def _range_backward(ctx: FunctionCtx, grad: Tensor) -> tuple:
    """Everything again from the inputs: a softmax and its scaled sum."""
    query, keys, temperature, gaussian = ctx.saved_tensors
    dtype = torch.float32
    for tensor in (query, keys, temperature, gaussian):
        dtype = torch.promote_types(dtype, tensor.dtype)
    heat, height = temperature.to(dtype), gaussian.to(dtype).view(-1, 1, 1)
    dots = _correlate_op(query, keys, ctx.size, 1, dtype)
    soft = (heat * dots).softmax(1)
    weights = soft * height
    total = weights.sum(1, keepdim=True)
    norm = total.clamp_min(_EPS)

    grad = grad.to(dtype) / norm
    # Where the sum is clamped, nothing flows through it.
    through = (grad * weights).sum(1, keepdim=True) / norm
    grad = grad - through * (total >= _EPS)
    grads = [None] * 4
    if ctx.needs_input_grad[3]:
        grads[3] = (grad * soft).sum((0, 2, 3)).to(gaussian.dtype)
    grad = grad * height
    grad = soft * (grad - (grad * soft).sum(1, keepdim=True))
    if ctx.needs_input_grad[2]:
        grads[2] = (grad * dots).sum().to(temperature.dtype)
    grad = grad * heat
    if ctx.needs_input_grad[0]:
        grads[0] = _gather_op(keys, grad, ctx.size, 1, query.dtype)
    if ctx.needs_input_grad[1]:
        grads[1] = _scatter_op(query, grad, ctx.size, 1, keys.dtype)
    return (*grads, None, None)


_gather_op.register_autograd(_gather_backward, setup_context=_save)
_correlate_op.register_autograd(_correlate_backward, setup_context=_save)
_scatter_op.register_autograd(_scatter_backward, setup_context=_save)
_range_op.register_autograd(_range_backward, setup_context=_save_range)


def gather(
    x: Tensor,
    kernel: Tensor,
    size: int,
    scale: int = 1,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Weigh the window around each pixel by that pixel's kernel.

    ``out[b, c, y, x] = sum_ij kernel[b, i K + j, y, x]
    * x[b, c, y // S + i, x // S + j]``.

    Args:
        x (Tensor): Padded source, (B, C, h + K - 1, w + K - 1).
        kernel (Tensor): Kernels, (B, K * K, S h, S w), taps row by row.
        size (int): Window K.
        scale (int): Pixels S per cell and axis, 1 or 2. Defaults to 1.
        dtype (torch.dtype, optional): Of the result. Defaults to None, that
            of ``x``.

    Returns:
        Tensor: Filtered map, (B, C, S h, S w).

    Raises:
        ValueError: If shapes, dtypes or devices do not fit, or on a CPU
            without Triton's interpreter.
    """
    cells = _check_pixels('kernel', kernel, size, scale)
    _check_channels('kernel', kernel, size**2)
    _check_source('x', x, kernel, size, cells)
    dtype = x.dtype if dtype is None else dtype
    _check_dtypes(x=x.dtype, kernel=kernel.dtype, dtype=dtype)
    return _gather_op(x, kernel, size, scale, dtype)


def correlate(
    g: Tensor,
    x: Tensor,
    size: int,
    scale: int = 1,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Compare each pixel with every cell of the window around it.

    ``out[b, i K + j, y, x] = sum_c g[b, c, y, x]
    * x[b, c, y // S + i, x // S + j]``.

    Args:
        g (Tensor): Vectors at the pixels, (B, C, S h, S w).
        x (Tensor): Padded source, (B, C, h + K - 1, w + K - 1).
        size (int): Window K.
        scale (int): Pixels S per cell and axis, 1 or 2. Defaults to 1.
        dtype (torch.dtype, optional): Of the result. Defaults to None, that
            of ``g``.

    Returns:
        Tensor: Dot products, (B, K * K, S h, S w).

    Raises:
        ValueError: As :func:`gather`.
    """
    cells = _check_pixels('g', g, size, scale)
    _check_channels('x', x, g.shape[1])
    _check_source('x', x, g, size, cells)
    dtype = g.dtype if dtype is None else dtype
    _check_dtypes(g=g.dtype, x=x.dtype, dtype=dtype)
    return _correlate_op(g, x, size, scale, dtype)


def scatter(
    g: Tensor,
    kernel: Tensor,
    size: int,
    scale: int = 1,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Spread each pixel over the window around it by its kernel.

    ``out[b, c, Y, X] = sum kernel[b, i K + j, y, x] * g[b, c, y, x]`` over
    all taps and pixels with ``y // S + i = Y`` and ``x // S + j = X``.

    Args:
        g (Tensor): Map, (B, C, S h, S w).
        kernel (Tensor): Kernels, (B, K * K, S h, S w), taps row by row.
        size (int): Window K.
        scale (int): Pixels S per cell and axis, 1 or 2. Defaults to 1.
        dtype (torch.dtype, optional): Of the result. Defaults to None, that
            of ``g``.

    Returns:
        Tensor: Padded source, (B, C, h + K - 1, w + K - 1).

    Raises:
        ValueError: As :func:`gather`.
    """
    _check_pixels('g', g, size, scale)
    _check_channels('kernel', kernel, size**2)
    wanted = (g.shape[0], *g.shape[-2:])
    _check_place('kernel', kernel, g, wanted)
    dtype = g.dtype if dtype is None else dtype
    _check_dtypes(g=g.dtype, kernel=kernel.dtype, dtype=dtype)
    return _scatter_op(g, kernel, size, scale, dtype)


def range_kernel(
    query: Tensor,
    keys: Tensor,
    temperature: Tensor,
    gaussian: Tensor,
    size: int,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Kernels that follow the guidance, as FeatUp's (arXiv 2403.10516).

    ``k[p] = softmax_p(t <query, keys_p>) gaussian[p]``, divided by its sum
    over the window, 1e-7 at least. Nothing larger than the result is stored;
    the backward pass computes all of it again.

    Args:
        query (Tensor): Vectors at the centres, (B, D, H, W).
        keys (Tensor): Padded vectors, (B, D, H + K - 1, W + K - 1).
        temperature (Tensor): Scale t of the dot products, one element.
        gaussian (Tensor): Weights of the taps, K * K elements, row by row.
        size (int): Window K.
        dtype (torch.dtype, optional): Of the result. Defaults to None, that
            of ``query``.

    Returns:
        Tensor: Kernels, (B, K * K, H, W).

    Raises:
        ValueError: As :func:`gather`.
    """
    cells = _check_pixels('query', query, size, 1)
    _check_channels('keys', keys, query.shape[1])
    _check_source('keys', keys, query, size, cells)
    for name, tensor, count in (
        ('temperature', temperature, 1),
        ('gaussian', gaussian, size**2),
    ):
        if tensor.numel() != count:
            raise ValueError(
                f'{name} needs {count} elements, got shape '
                f'{tuple(tensor.shape)}'
            )
    dtype = query.dtype if dtype is None else dtype
    _check_dtypes(
        query=query.dtype,
        keys=keys.dtype,
        temperature=temperature.dtype,
        gaussian=gaussian.dtype,
        dtype=dtype,
    )
    return _range_op(
        query,
        keys,
        temperature.to(query.device).reshape(()),
        gaussian.to(query.device).reshape(-1),
        size,
        dtype,
    )


def _check_pixels(
    name: str, tensor: Tensor, size: int, scale: int
) -> tuple[int, int]:
    """Cells of a map of pixels."""
    if size < 1:
        raise ValueError(f'size must be 1 or more, got {size}')
    if scale not in (1, 2):
        raise ValueError(f'scale must be 1 or 2, got {scale}')
    if tensor.ndim != 4:
        raise ValueError(
            f'{name} needs 4 dimensions, got {tuple(tensor.shape)}'
        )
    height, width = tensor.shape[-2:]
    if height % scale or width % scale:
        raise ValueError(
            f'{name} needs rows and columns in multiples of scale {scale}, '
            f'got {height} x {width}'
        )
    return height // scale, width // scale


def _check_channels(name: str, tensor: Tensor, channels: int) -> None:
    if tensor.ndim != 4 or tensor.shape[1] != channels:
        raise ValueError(
            f'{name} needs 4 dimensions, {channels} of them in dimension 1, '
            f'got {tuple(tensor.shape)}'
        )


def _check_source(
    name: str, x: Tensor, other: Tensor, size: int, cells: tuple[int, int]
) -> None:
    padded = tuple(n + size - 1 for n in cells)
    if x.ndim != 4:
        raise ValueError(f'{name} needs 4 dimensions, got {tuple(x.shape)}')
    _check_place(name, x, other, (other.shape[0], *padded))


def _check_place(
    name: str, tensor: Tensor, other: Tensor, wanted: tuple[int, ...]
) -> None:
    given = (tensor.shape[0], *tensor.shape[-2:])
    if given != tuple(wanted):
        raise ValueError(
            f'{name} needs (batch, height, width) {tuple(wanted)}, got {given}'
        )
    if tensor.device != other.device:
        raise ValueError(
            f'{name} must be on {other.device} as the rest, got '
            f'{tensor.device}'
        )


def _check_dtypes(**dtypes: torch.dtype) -> None:
    for name, dtype in dtypes.items():
        if dtype not in _DTYPES:
            raise ValueError(f'{name} must be of {_DTYPES}, got {dtype}')
