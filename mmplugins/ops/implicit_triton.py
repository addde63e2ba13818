"""The local ensemble of :mod:`mmplugins.ops.implicit` as one Triton kernel.

B batch, D channels of the first hidden layer, P of every hidden layer (padded
to a power of two), L layers between hidden ones, K outputs, h x w codes, T x U
targets of a window. Coordinates are those of :mod:`mmplugins.ops.coordinates`:
(y, x) in [-1, 1], cell centres (align_corners=False).

A program has a run of targets of one row. Of each of their 2 x 2 codes it
gathers the hidden values that the first layer made of the code, adds what row
and column add, and goes through the layers; hidden values never leave the
chip. The last layer is linear and the shares sum to one, so it is applied
once, to the blend. Gradients come from the same formula in torch, whose hidden
values are computed again in bands of rows.

This module imports Triton; :mod:`mmplugins.ops.implicit` imports it once it is
asked for. With TRITON_INTERPRET=1 set before, the kernel runs on a CPU.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor, func

from .implicit import AREA
from .operators import Operator, register

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Widths of a matrix product: those of the hardware, and what registers hold.
_NARROWEST = 16
_WIDEST = 64
# Bytes of weights between hidden layers, which stay in shared memory; on GPUs
# for the desktop that is 99 KiB, and values need some of it.
_ON_CHIP = 1 << 16
# Targets of a program, at most: more would not fit into registers.
_BLOCK = 64


@triton.jit
def _ensemble_kernel(
    codes,
    of_rows,
    of_columns,
    row_index,
    column_index,
    row_offset,
    column_offset,
    hidden,
    hidden_bias,
    last,
    last_bias,
    out,
    h,
    w,
    num_rows,
    num_columns,
    num_outputs,
    width: tl.constexpr,
    size: tl.constexpr,
    num_layers: tl.constexpr,
    area: tl.constexpr,
    factor: tl.constexpr,
    precision: tl.constexpr,
    block: tl.constexpr,
):
    # Offsets of a row, a batch or an output may exceed 32 bits.
    t = tl.program_id(0).to(tl.int64)
    u = tl.program_id(1) * block + tl.arange(0, block)
    b = tl.program_id(2).to(tl.int64)
    channel = tl.arange(0, size)
    is_target = u < num_columns
    is_channel = channel < width
    is_value = is_target[:, None] & is_channel[None, :]
    dtype = codes.dtype.element_ty

    extent_y = tl.load(row_offset + t) + tl.load(row_offset + num_rows + t)
    extent_x = tl.load(column_offset + u, is_target, 0.0)
    extent_x += tl.load(column_offset + num_columns + u, is_target, 0.0)
    total = extent_y * extent_x + 4 * area
    blend = tl.zeros([block, size], tl.float32)
    for corner in range(4):
        i = corner // 2
        j = corner % 2
        row = tl.load(row_index + i * num_rows + t).to(tl.int64)
        column = tl.load(column_index + j * num_columns + u, is_target, 0)
        place = (
            (b * h + row) * w * width
            + column[:, None] * width
            + channel[None, :]
        )
        x = tl.load(codes + place, is_value, 0.0).to(tl.float32)
        place = (i * num_rows + t) * width + channel
        x += tl.load(of_rows + place, is_channel, 0.0)[None, :]
        place = (j * num_columns + u[:, None]) * width + channel[None, :]
        x += tl.load(of_columns + place, is_value, 0.0)
        # As ReLUs of torch do, these let what is not a number through.
        x = tl.where(x < 0, 0.0, x)
        for layer in tl.static_range(num_layers):
            place = (layer * size + channel[:, None]) * size + channel[None, :]
            weight = tl.load(hidden + place).to(dtype).to(factor)
            bias = tl.load(hidden_bias + layer * size + channel).to(tl.float32)
            x = x.to(dtype).to(factor)
            x = tl.dot(x, weight, input_precision=precision)
            x += bias[None, :]
            x = tl.where(x < 0, 0.0, x)
        # The share of a code is the area opposite to it.
        y_side = tl.load(row_offset + (1 - i) * num_rows + t)
        x_side = tl.load(
            column_offset + (1 - j) * num_columns + u, is_target, 0.0
        )
        blend += x * ((y_side * x_side + area) / total)[:, None]

    for k in range(num_outputs):
        weight = tl.load(last + k * size + channel).to(tl.float32)
        answer = tl.sum(blend * weight[None, :], 1)
        answer += tl.load(last_bias + k).to(tl.float32)
        place = ((b * num_outputs + k) * num_rows + t) * num_columns + u
        tl.store(out + place, answer, is_target)


INTERPRETED = not isinstance(_ensemble_kernel, triton.JITFunction)
"""Whether kernels run on the host, as TRITON_INTERPRET=1 has it."""


def fits(dtype: torch.dtype, layers: Sequence[tuple[Tensor, Tensor]]) -> bool:
    """Whether the kernel has room for a perceptron.

    Args:
        dtype (torch.dtype): That of the codes.
        layers (Sequence[tuple[Tensor, Tensor]]): Weight (D, n) and bias (D,)
            of each layer.

    Returns:
        bool: False for double precision, wide layers and too many of them.
    """
    *hidden, outputs = (weight.shape[0] for weight, _ in layers)
    # Single precision is kept in two parts.
    value = 8 if dtype == torch.float32 else 2
    taken = (len(hidden) - 1) * _padded(max(hidden)) ** 2 * value
    return (
        dtype in DTYPES
        and max(*hidden, outputs) <= _WIDEST
        and taken <= _ON_CHIP
    )


def _padded(width: int) -> int:
    """The power of two that a matrix product takes it for."""
    return max(_NARROWEST, 1 << (width - 1).bit_length())


def probe(device: torch.device, dtype: torch.dtype) -> None:
    """Launch the kernel on next to nothing; fail where it cannot run."""
    if torch.cuda.get_device_capability(device) < (8, 0):
        raise RuntimeError(f'{device} has no tensor cores for tf32')

    def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    local_ensemble(
        zeros(1, 1, 1, 16, dtype=dtype),
        *(zeros(2, 1, 16) for _ in range(2)),
        *(zeros(2, 1, dtype=torch.int32) for _ in range(2)),
        *(zeros(2, 1) for _ in range(2)),
        zeros(1, 16, 16),
        zeros(1, 16),
        zeros(1, 16),
        zeros(1),
        1,
    )


def pack_layers(
    layers: Sequence[tuple[Tensor, Tensor]], width: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Layers behind the first as the kernel reads them.

    Args:
        layers (Sequence[tuple[Tensor, Tensor]]): Weight (n', n) and bias (n',)
            of each of them.
        width (int): Values D of the first hidden layer.

    Returns:
        tuple[Tensor, Tensor, Tensor, Tensor]: Weights (L, P, P), inputs first,
        and biases (L, P) of the layers between hidden ones, those of the last,
        (K, P) and (K,); zeros where layers are narrower.
    """
    *between, (last, last_bias) = layers
    size = _padded(max(width, *(weight.shape[1] for weight, _ in layers)))
    last = F.pad(last, (0, size - last.shape[1]))
    if not between:
        hidden, bias = last.new_zeros(0, size, size), last.new_zeros(0, size)
        return hidden, bias, last, last_bias
    weights = [
        F.pad(
            weight.mT,
            (0, size - weight.shape[0], 0, size - weight.shape[1]),
        )
        for weight, _ in between
    ]
    biases = [F.pad(bias, (0, size - bias.shape[0])) for _, bias in between]
    return torch.stack(weights), torch.stack(biases), last, last_bias


def _local_ensemble(
    codes: Tensor,
    of_rows: Tensor,
    of_columns: Tensor,
    row_index: Tensor,
    column_index: Tensor,
    row_offset: Tensor,
    column_offset: Tensor,
    hidden: Tensor,
    hidden_bias: Tensor,
    last: Tensor,
    last_bias: Tensor,
    step: int,
) -> Tensor:
    """Answers of the four codes around each target, blended.

    Args:
        codes (Tensor): The first layer's products with the codes,
            (B, h, w, D), one of :data:`DTYPES`, in which layers multiply.
        of_rows (Tensor): What it adds in each row, (2, T, D), float32.
        of_columns (Tensor): What it adds in each column, (2, U, D), float32.
        row_index (Tensor): Rows of codes before and behind, (2, T), int32.
        column_index (Tensor): Columns of codes, (2, U), int32.
        row_offset (Tensor): Distances from them, (2, T), float32.
        column_offset (Tensor): Distances from them, (2, U), float32.
        hidden (Tensor): As of :func:`pack_layers`, (L, P, P).
        hidden_bias (Tensor): (L, P).
        last (Tensor): (K, P).
        last_bias (Tensor): (K,).
        step (int): Rows of targets that a backward pass takes at once.

    Returns:
        Tensor: Blended answers, (B, K, T, U), float32.
    """
    out = _empty_answers(codes, of_rows, of_columns, last, last_bias, step)
    B, h, w, D = codes.shape
    K, T, U = out.shape[1:]
    block = min(_BLOCK, _padded(U))
    # Triton launches on the current GPU.
    with torch.cuda.device_of(codes):
        _ensemble_kernel[(T, triton.cdiv(U, block), B)](
            *(
                tensor.contiguous()
                for tensor in (
                    codes,
                    of_rows,
                    of_columns,
                    row_index,
                    column_index,
                    row_offset,
                    column_offset,
                    hidden,
                    hidden_bias,
                    last,
                    last_bias,
                )
            ),
            out,
            h,
            w,
            T,
            U,
            K,
            width=D,
            size=last.shape[1],
            num_layers=hidden.shape[0],
            area=AREA,
            factor=_factor(codes.dtype),
            # Single precision on tensor cores: three products of its parts.
            precision='ieee' if torch.version.hip else 'tf32x3',
            block=block,
            num_warps=4,
            # Other programs hide the latency; a pipeline takes shared memory.
            num_stages=1,
        )
    return out


def _factor(dtype: torch.dtype) -> tl.dtype:
    """The type that layers multiply in, for values of a type."""
    if INTERPRETED and dtype == torch.bfloat16:
        # Triton's interpreter would multiply their bits as integers; in
        # single precision the products are the same.
        return tl.float32
    return getattr(tl, str(dtype).removeprefix('torch.'))


def _empty_answers(
    codes: Tensor, of_rows: Tensor, of_columns: Tensor, *others: Tensor | int
) -> Tensor:
    last = others[-3]
    rows, columns = of_rows.shape[1], of_columns.shape[1]
    return codes.new_empty(
        (len(codes), len(last), rows, columns), dtype=torch.float32
    )


def _local_ensemble_backward(
    grad: Tensor,
    codes: Tensor,
    of_rows: Tensor,
    of_columns: Tensor,
    row_index: Tensor,
    column_index: Tensor,
    row_offset: Tensor,
    column_offset: Tensor,
    hidden: Tensor,
    hidden_bias: Tensor,
    last: Tensor,
    last_bias: Tensor,
    step: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of all that is differentiable, in bands of rows.

    Layers multiply in the type of the codes, sums are in float32 at least.
    """
    with torch.autocast(codes.device.type, enabled=False):
        inputs = (
            codes,
            of_rows,
            of_columns,
            hidden,
            hidden_bias,
            last,
            last_bias,
        )
        dtype, sums = codes.dtype, of_rows.dtype
        D = codes.shape[-1]
        # Nothing comes into the channels that are padding.
        weights = [weight.to(dtype) for weight in hidden]
        weights[:1] = [weight[:D] for weight in weights[:1]]
        biases = [bias.to(dtype) for bias in hidden_bias]
        final = last.to(dtype) if weights else last[:, :D].to(dtype)
        g_codes, g_rows, g_columns, g_hidden, g_bias, g_last, _ = grads = [
            torch.zeros_like(x, dtype=sums) for x in inputs
        ]
        shares = _shares(row_offset, column_offset)
        for begin in range(0, of_rows.shape[1], step):
            part = slice(begin, begin + step)
            g = grad[:, :, part].permute(0, 2, 3, 1).to(dtype)  # (B, t, U, K)
            g_blend = g @ final  # (B, t, U, P)
            blend = 0
            for i in (0, 1):
                band = codes.index_select(1, row_index[i, part])
                band = band + of_rows[i, part, None]  # (B, t, w, D)
                g_band = torch.zeros_like(band)
                for j in (0, 1):
                    share = shares[i][j][part, :, None]
                    x = band.index_select(2, column_index[j]) + of_columns[j]
                    values = [x.to(dtype).relu()]  # (B, t, U, D)
                    for weight, bias in zip(weights, biases):
                        x = F.linear(values[-1], weight.mT, bias)
                        values.append(x.relu())
                    blend = blend + values[-1] * share
                    g_x = g_blend * share.to(dtype)
                    for k in reversed(range(len(weights))):
                        g_x = g_x * (values[k + 1] > 0)
                        n = values[k].shape[-1]
                        g_hidden[k, :n] += _outer(values[k], g_x)
                        g_bias[k] += g_x.sum((0, 1, 2), dtype=sums)
                        g_x = g_x @ weights[k].mT
                    g_x = (g_x * (values[0] > 0)).to(sums)
                    g_rows[i, part] += g_x.sum((0, 2))
                    g_columns[j] += g_x.sum((0, 1))
                    g_band.index_add_(2, column_index[j], g_x)
                g_codes.index_add_(1, row_index[i, part], g_band)
            g_last[:, : blend.shape[-1]] += _outer(g, blend.to(dtype))
        grads[-1] = grad.sum((0, 2, 3), dtype=sums)
        return tuple(g.to(x.dtype) for g, x in zip(grads, inputs))


def _outer(x: Tensor, g: Tensor) -> Tensor:
    """Gradient of a product's weight, (n, n')."""
    return x.flatten(0, -2).mT @ g.flatten(0, -2)


def _shares(row_offset: Tensor, column_offset: Tensor) -> list[list[Tensor]]:
    """Share of each of the 2 x 2 codes: the opposite area, (T, U)."""
    total = torch.outer(row_offset.sum(0), column_offset.sum(0)) + 4 * AREA
    return [
        [
            (torch.outer(row_offset[1 - i], column_offset[1 - j]) + AREA)
            / total
            for j in (0, 1)
        ]
        for i in (0, 1)
    ]


def _empty_gradients(
    grad: Tensor, *args: Tensor | int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return tuple(map(torch.empty_like, (*args[:3], *args[7:11])))


def _formula(
    codes: Tensor,
    of_rows: Tensor,
    of_columns: Tensor,
    row_index: Tensor,
    column_index: Tensor,
    row_offset: Tensor,
    column_offset: Tensor,
    hidden: Tensor,
    hidden_bias: Tensor,
    last: Tensor,
    last_bias: Tensor,
) -> Tensor:
    """The same in torch, for derivatives of any order."""
    dtype = codes.dtype
    shares = _shares(row_offset, column_offset)
    blend = 0
    with torch.autocast(codes.device.type, enabled=False):
        for i in (0, 1):
            band = codes.index_select(1, row_index[i]) + of_rows[i][:, None]
            for j in (0, 1):
                x = band.index_select(2, column_index[j]) + of_columns[j]
                x = F.pad(x.to(dtype).relu(), (0, last.shape[1] - x.shape[3]))
                for weight, bias in zip(hidden, hidden_bias):
                    x = F.linear(x, weight.mT.to(dtype), bias.to(dtype)).relu()
                blend = blend + x * shares[i][j][..., None]
        out = F.linear(blend, last.to(blend), last_bias.to(blend))
    return out.permute(0, 3, 1, 2)


def _of_ensemble(
    grad: Tensor, needs: Sequence[bool], *args: Tensor | int
) -> Sequence[Tensor | None]:
    *tensors, _ = args
    if torch.is_grad_enabled():
        # For gradients of gradients torch follows the formula itself.
        moving = (*tensors[:3], *tensors[7:])
        _, pull = func.vjp(
            lambda *new: _formula(*new[:3], *tensors[3:7], *new[3:]), *moving
        )
        grads = pull(grad)
    else:
        grads = local_ensemble_backward(grad, *args)
    return *grads[:3], *[None] * 4, *grads[3:]


def _tangent_of_ensemble(
    tangents: Sequence[Tensor], *args: Tensor | int
) -> Tensor:
    *tensors, _ = args
    _, tangent = func.jvp(
        lambda *new: _formula(*new[:3], *tensors[3:7], *new[3:]),
        (*tensors[:3], *tensors[7:]),
        (*tangents[:3], *tangents[7:11]),
    )
    return tangent


local_ensemble_backward = register(_local_ensemble_backward, _empty_gradients)
local_ensemble = Operator(_local_ensemble, _empty_answers)
local_ensemble.differentiate(_of_ensemble, _tangent_of_ensemble)
