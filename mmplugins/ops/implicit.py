"""Implicit functions over a map of latent codes: the local ensemble.

B batch, C channels of the codes, D hidden and K output channels, h x w codes,
H x W targets over the same area, T targets of a window along one axis.
Coordinates are those of :mod:`mmplugins.ops.coordinates`: (y, x) in [-1, 1],
cell centres (align_corners=False).

Each target asks the four codes around it. Of code k the perceptron gets the
code, the offset of the target from the code's centre in units of half a cell,
the coordinate of the target, and twice the size of a target in cells; the four
answers are blended by the areas opposite to them (Chen et al., LIIF,
arXiv 2012.09161, section 3; Shen et al., CRM, arXiv 2111.14482, section 3).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .backends import check_backend, choose_backend, has_tangent

# Keeps targets off the border between two codes, and inside the map.
_SHIFT = 1e-6
# What every area is larger by, as published.
AREA = 1e-9
# Targets at once: hidden values that stay in the cache of a core.
_CHUNK = 16384
# On other devices, where one large product is better than many.
_CHUNK_DEVICE = 1 << 19

# The module with kernels of Triton.
_KERNELS = 'implicit_triton'


class Window(NamedTuple):
    """Part of a grid: first row and column, number of rows and columns."""

    top: int
    left: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Its rows and columns."""
        return (
            slice(self.top, self.top + self.height),
            slice(self.left, self.left + self.width),
        )


class Neighbours(NamedTuple):
    """The two codes next to each target along one axis."""

    index: Tensor
    """Indices of the codes, (2, T), int64."""
    offset: Tensor
    """Offset of the target in half cells, in (-2, 2), (2, T), float64."""
    coord: Tensor
    """Coordinate of the target, (T,), float64."""


def neighbours(
    num: int, num_targets: int, start: int = 0, stop: int | None = None
) -> Neighbours:
    """Find the codes before and behind each target of a window, on one axis.

    Args:
        num (int): Number of codes on this axis.
        num_targets (int): Number of targets over the same extent.
        start (int): First target of the window. Defaults to 0.
        stop (int, optional): Target behind its last. Defaults to None, all.

    Returns:
        Neighbours: Indices, offsets and coordinates, on the CPU.
    """
    stop = num_targets if stop is None else stop
    target = torch.arange(start, stop, dtype=torch.float64)
    coord = (2 * target + 1) / num_targets - 1
    side = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    asked = (coord + side / num + _SHIFT).clamp(-1 + _SHIFT, 1 - _SHIFT)
    index = (((asked + 1) * num - 1) / 2).round().clamp(0, num - 1)
    centre = (2 * index + 1) / num - 1
    return Neighbours(index.long(), (coord - centre) * num, coord)


def local_ensemble(
    feats: Tensor,
    size: Sequence[int],
    layers: Sequence[tuple[Tensor, Tensor]],
    *,
    offset: bool = True,
    coord: bool = True,
    ratio: bool = True,
    window: Sequence[int] | None = None,
    grid: Sequence[int] | None = None,
    origin: Sequence[int] = (0, 0),
    chunk: int | None = None,
    backend: str = 'auto',
) -> Tensor:
    """Decode a map of codes at every target of a grid of any size.

    The input of the perceptron is, in this order, the code (C), the offset
    (2), the coordinate (2) and the ratio (2), as far as they are asked for;
    between its layers there are ReLUs. ``'torch'`` applies the first layer to
    the codes themselves, where it is linear, and never builds the input:
    offsets and coordinates of a row or a column are one vector each.
    ``'triton'`` does all that follows in one kernel, without hidden values in
    memory; its gradients compute them again.

    Args:
        feats (Tensor): Codes, (B, C, h, w).
        size (Sequence[int]): Rows H and columns W of targets over the area.
        layers (Sequence[tuple[Tensor, Tensor]]): Weight (D, n) and bias (D,)
            of each layer of the perceptron, at least two.
        offset (bool): Give the perceptron the offset. Defaults to True.
        coord (bool): Give it the coordinate. Defaults to True.
        ratio (bool): Give it the ratio of the grids. Defaults to True.
        window (Sequence[int], optional): Top, left, height and width of the
            targets wanted. Defaults to None, all.
        grid (Sequence[int], optional): Rows and columns of the whole map, of
            which ``feats`` are a part. Defaults to None, those of ``feats``.
        origin (Sequence[int]): Row and column of the whole map that ``feats``
            begin at. Defaults to (0, 0).
        chunk (int, optional): Targets decoded at once; with ``'triton'`` those
            of a backward pass. Defaults to None, what suits the device.
        backend (str): ``'torch'``, ``'reference'`` (the plain formula),
            ``'triton'`` (``'torch'`` where layers are too wide or too many, or
            in double precision) or ``'auto'``: ``'triton'`` on a GPU where it
            works, else ``'torch'``. Defaults to ``'auto'``.

    Returns:
        Tensor: Blended answers, (B, K, H, W) or those of the window.

    Raises:
        ValueError: If shapes do not fit, the window needs codes that are not
            there, or the backend does not run on their device.
    """
    inputs = 2 * (offset + coord + ratio)
    _check_layers(feats, layers, inputs)
    decode = _decoder(backend, feats, layers)
    grid = tuple(grid or feats.shape[-2:])
    window = Window(*(window or (0, 0, *size)))
    for start, length, count in zip(window, window[2:], size):
        if start < 0 or length < 1 or start + length > count:
            raise ValueError(
                f'window of local_ensemble must lie inside of {tuple(size)} '
                f'targets, got {tuple(window)}'
            )
    axes = []
    for n, count, start, length, begin, given in zip(
        grid, size, window, window[2:], origin, feats.shape[-2:]
    ):
        first = _nearest(n, count, start, -1)
        last = _nearest(n, count, start + length - 1, 1)
        if first < begin or last >= begin + given:
            raise ValueError(
                f'window {tuple(window)} of local_ensemble needs codes '
                f'{first} to {last}, given are {begin} to '
                f'{begin + given - 1}'
            )
        axis = neighbours(n, count, start, start + length)
        axes.append(Neighbours(axis.index - begin, axis.offset, axis.coord))
    spec = _Spec(
        offset, coord, [2 * n / m for n, m in zip(grid, size)] * ratio
    )
    if chunk is None:
        chunk = _CHUNK if feats.device.type == 'cpu' else _CHUNK_DEVICE
    step = max(1, chunk // max(1, len(feats) * window.width))
    return decode(feats, *axes, layers, spec, step)


def _nearest(num: int, num_targets: int, target: int, side: int) -> int:
    """An index of :func:`neighbours`, without a look into a tensor."""
    coord = (2 * target + 1) / num_targets - 1
    asked = min(max(coord + side / num + _SHIFT, -1 + _SHIFT), 1 - _SHIFT)
    return min(max(round(((asked + 1) * num - 1) / 2), 0), num - 1)


class _Spec(NamedTuple):
    """What the perceptron gets beside the code."""

    offset: bool
    coord: bool
    ratio: list[float]
    """Twice the size of a target in cells, (y, x); empty without."""


def _check_layers(
    feats: Tensor, layers: Sequence[tuple[Tensor, Tensor]], inputs: int
) -> None:
    if feats.ndim != 4:
        raise ValueError(
            'local_ensemble needs codes (B, C, h, w), got '
            f'{tuple(feats.shape)}'
        )
    width = feats.shape[1] + inputs
    if len(layers) < 2 or layers[0][0].shape[1] != width:
        raise ValueError(
            f'layers of local_ensemble must be two or more, the first of '
            f'{feats.shape[1]} + {inputs} inputs, got weights '
            f'{[tuple(weight.shape) for weight, _ in layers]}'
        )


def _decoder(
    backend: str, feats: Tensor, layers: Sequence[tuple[Tensor, Tensor]]
) -> Callable[..., Tensor]:
    """What decodes, by a backend and where the codes are."""
    check_backend('local_ensemble', backend)
    if backend == 'reference':
        return _reference
    if has_tangent(feats, *(t for layer in layers for t in layer)):
        return _factored
    backend = choose_backend('local_ensemble', backend, _KERNELS, feats)
    if backend == 'torch':
        return _factored
    from .implicit_triton import fits

    return _fused if fits(feats.dtype, layers) else _factored


def _areas(
    rows: Neighbours, columns: Neighbours, feats: Tensor
) -> list[list[Tensor]]:
    """Share of each of the 2 x 2 codes: the opposite area, (T, T', 1)."""
    dtype = torch.promote_types(feats.dtype, torch.float32)
    y, x = rows.offset.abs(), columns.offset.abs()
    areas = [
        [torch.outer(y[1 - i], x[1 - j]).add_(AREA) for j in (0, 1)]
        for i in (0, 1)
    ]
    total = sum(areas[0]) + sum(areas[1])
    return [
        [(area / total)[..., None].to(feats.device, dtype) for area in pair]
        for pair in areas
    ]


def _split(axis: Neighbours, step: int) -> list[Neighbours]:
    """Runs of so many targets."""
    return [
        Neighbours(*parts)
        for parts in zip(
            axis.index.split(step, 1),
            axis.offset.split(step, 1),
            axis.coord.split(step),
        )
    ]


def _factored(
    feats: Tensor,
    rows: Neighbours,
    columns: Neighbours,
    layers: Sequence[tuple[Tensor, Tensor]],
    spec: _Spec,
    step: int,
) -> Tensor:
    """First layer at the resolution of the codes, then gathered."""
    first, *others = layers
    codes, of_rows, of_columns = _first_layer(
        feats, rows, columns, first, spec
    )
    column_index = columns.index.to(feats.device)
    parts = []
    for some, of_some in zip(_split(rows, step), of_rows.split(step, 1)):
        areas = _areas(some, columns, feats)
        row_index = some.index.to(feats.device)
        blend = 0
        for i in (0, 1):
            band = codes.index_select(1, row_index[i])
            band = band + of_some[i, :, None]  # (B, T, w, D)
            for j in (0, 1):
                x = band.index_select(2, column_index[j]) + of_columns[j]
                x = x.to(codes.dtype)  # (B, T, T', D)
                for layer in others:
                    x = F.linear(x.relu_(), *layer)
                blend = blend + x * areas[i][j]
        parts.append(blend)
    return torch.cat(parts, 1).permute(0, 3, 1, 2)


def _fused(
    feats: Tensor,
    rows: Neighbours,
    columns: Neighbours,
    layers: Sequence[tuple[Tensor, Tensor]],
    spec: _Spec,
    step: int,
) -> Tensor:
    """As ``_factored``, with one kernel for all behind the first layer."""
    from .implicit_triton import local_ensemble as ensemble
    from .implicit_triton import pack_layers

    first, *others = layers
    codes, of_rows, of_columns = _first_layer(
        feats, rows, columns, first, spec
    )
    axes = (rows, columns)
    return ensemble(
        codes,
        of_rows,
        # One value for all channels where nothing depends on the column.
        of_columns.expand(-1, -1, codes.shape[-1]),
        *(axis.index.to(feats.device, torch.int32) for axis in axes),
        *(axis.offset.abs().to(feats.device, torch.float32) for axis in axes),
        *pack_layers(others, codes.shape[-1]),
        step,
    )


def _first_layer(
    feats: Tensor,
    rows: Neighbours,
    columns: Neighbours,
    layer: tuple[Tensor, Tensor],
    spec: _Spec,
) -> tuple[Tensor, Tensor, Tensor]:
    """Its parts: of each code (B, h, w, D), row and column (2, T, D)."""
    weight, bias = layer
    of_codes, of_position = weight.split(
        [feats.shape[1], weight.shape[1] - feats.shape[1]], 1
    )
    codes = F.linear(feats.permute(0, 2, 3, 1), of_codes)
    # Half precision would misplace the targets of a large grid.
    with torch.autocast(feats.device.type, enabled=False):
        of_rows, of_columns = _position_terms(
            rows, columns, of_position, bias, spec
        )
    return codes, of_rows, of_columns


def _position_terms(
    rows: Neighbours,
    columns: Neighbours,
    weight: Tensor,
    bias: Tensor,
    spec: _Spec,
) -> tuple[Tensor, Tensor]:
    """What the first layer adds in each row and column, (2, T, D) each."""
    dtype = torch.promote_types(weight.dtype, torch.float32)
    terms = []
    for axis, targets in enumerate((rows, columns)):
        values = [targets.offset] * spec.offset + [targets.coord] * spec.coord
        values += spec.ratio[axis : axis + 1]
        # Inputs are pairs (y, x): this axis has every other one of them.
        columns_of = weight[:, axis::2].to(dtype).unbind(1)
        term = weight.new_zeros(2, targets.coord.numel(), 1, dtype=dtype)
        for value, column in zip(values, columns_of, strict=True):
            if not isinstance(value, Tensor):
                value = torch.tensor([value], dtype=torch.float64)
            value = value.to(term)
            value = value.expand(term.shape[:2])
            term = term + value[..., None] * column
        terms.append(term)
    return terms[0] + bias.to(dtype), terms[1]


def _reference(
    feats: Tensor,
    rows: Neighbours,
    columns: Neighbours,
    layers: Sequence[tuple[Tensor, Tensor]],
    spec: _Spec,
    step: int,
) -> Tensor:
    """The formula as it stands: one input per target and code."""
    parts = []
    for some in _split(rows, step):
        areas = _areas(some, columns, feats)
        shape = (some.coord.numel(), columns.coord.numel())
        blend = 0
        for i in (0, 1):
            for j in (0, 1):
                code = feats[:, :, some.index[i]][..., columns.index[j]]
                values = [(some.offset[i], columns.offset[j])] * spec.offset
                values += [(some.coord, columns.coord)] * spec.coord
                x = code.permute(0, 2, 3, 1)  # (B, T, T', C)
                extra = [
                    torch.stack(torch.meshgrid(*pair, indexing='ij'), -1)
                    for pair in values
                ]
                if spec.ratio:
                    pair = torch.tensor(spec.ratio, dtype=torch.float64)
                    extra.append(pair.expand(*shape, 2))
                extra = [
                    value.to(x).expand(len(x), -1, -1, -1) for value in extra
                ]
                x = torch.cat([x, *extra], -1)  # (B, T, T', C + 6)
                for k, layer in enumerate(layers):
                    x = F.linear(x.relu() if k else x, *layer)
                blend = blend + x * areas[i][j]
        parts.append(blend)
    return torch.cat(parts, 1).permute(0, 3, 1, 2)
