"""Ways to a modulated deformable convolution, and their derivatives.

B images, C input and O output channels, H x W input, H' x W' output, K taps
of the kernel row by row, G deformable groups of C / G channels each, and
P = B H' W' outputs. Pixel (0, 0) is the centre of the first one; outside of
the map there are zeros.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, func

from .operators import Operator

# Pixels of the images that are convolved at once.
_PIXELS = 2**16
# Outputs whose samples stay in the cache of a core until their product.
_ROWS = 2**11


class Geometry(NamedTuple):
    """What there is besides tensors."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    deform_groups: int

    def flat(self) -> list[int]:
        """All of its numbers."""
        return [
            *self.kernel,
            *self.stride,
            *self.padding,
            *self.dilation,
            *self[4:],
        ]

    @classmethod
    def of(cls, flat: Sequence[int]) -> 'Geometry':
        """From all of its numbers."""
        pairs = (tuple(flat[i : i + 2]) for i in range(0, 8, 2))
        return cls(*pairs, *flat[8:])


def formula(
    x: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
) -> Tensor:
    """The formula as it stands: every sample from its four pixels."""
    B, C, H, W = x.shape
    G, size = geometry.deform_groups, offset.shape[-2:]
    flat = x.reshape(B, G, C // G, H * W)
    masks = mask.unflatten(1, (G, -1))
    columns = []
    for k in range(masks.shape[2]):
        y, z = _positions(offset, k, geometry)
        inside = (y > -1) & (y < H) & (z > -1) & (z < W)
        y, z = y.where(inside, -2), z.where(inside, -2)
        top, left = y.detach().floor(), z.detach().floor()
        down, right = y - top, z - left
        sample = 0
        for i in (0, 1):
            for j in (0, 1):
                row, column = top + i, left + j
                share = (down if i else 1 - down) * (right if j else 1 - right)
                there = (row >= 0) & (row < H) & (column >= 0) & (column < W)
                index = row.clamp(0, H - 1) * W + column.clamp(0, W - 1)
                index = index.long().view(B, G, 1, -1)
                pixel = flat.gather(3, index.expand(-1, -1, C // G, -1))
                pixel = pixel.view(B, G, C // G, *size)
                sample = sample + pixel * (share * there)[:, :, None]
        columns.append(sample * masks[:, :, k, None])  # (B, G, C / G, H', W')
    columns = torch.stack(columns, 3).flatten(1, 2)  # (B, C, K, H', W')
    columns = columns.unflatten(1, (geometry.groups, -1))
    kernels = weight.flatten(2).unflatten(0, (geometry.groups, -1))
    out = torch.einsum('bgckyx,gock->bgoyx', columns, kernels).flatten(1, 2)
    return out if bias is None else out + bias.view(-1, 1, 1)


def _positions(
    offset: Tensor, tap: int, geometry: Geometry
) -> tuple[Tensor, Tensor]:
    """Rows and columns that a tap samples, (B, G, H', W') each."""
    size = offset.shape[-2:]
    moved = offset.unflatten(1, (geometry.deform_groups, -1, 2))[:, :, tap]
    where = []
    columns = geometry.kernel[1]
    for axis, index in enumerate((tap // columns, tap % columns)):
        start = index * geometry.dilation[axis] - geometry.padding[axis]
        grid = torch.arange(size[axis], device=offset.device)
        grid = (grid * geometry.stride[axis] + start).to(offset.dtype)
        grid = grid[:, None] if axis == 0 else grid
        where.append(moved[:, :, axis] + grid)
    return where[0], where[1]


def _deform_conv_by_tap(
    x: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    flat: list[int],
) -> Tensor:
    """One tap after another: its samples, then its product.

    Never more than the samples of one tap are kept, and none for backward.
    """
    geometry = Geometry.of(flat)
    size = offset.shape[-2:]
    out = x.new_zeros(len(x), *size, len(weight))
    if bias is not None:
        out += bias
    for part in _parts(x, size):
        rows = out[part].view(-1, len(weight))
        tensors = (x[part], offset[part], mask[part], weight)
        _add_by_tap(rows, *tensors, geometry)
    return _like(x, out.permute(0, 3, 1, 2))


def _add_by_tap(
    rows: Tensor,
    x: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    geometry: Geometry,
) -> None:
    """Add the products of some images to the rows of their outputs, (P, O)."""
    G = geometry.deform_groups
    table = _table(x, G)
    for k, tap in enumerate(_taps(weight)):
        index, share = _corners(
            *_positions(offset, k, geometry),
            mask.unflatten(1, (G, -1))[:, :, k],
            x.shape[-2:],
        )
        for row, *corners in zip(
            rows.split(_ROWS), index.split(_ROWS * G), share.split(_ROWS * G)
        ):
            _add_products(row, _sample(table, *corners), tap, geometry.groups)


def _add_products(
    rows: Tensor, sample: Tensor, tap: Tensor, groups: int
) -> None:
    """Add samples, (P * G, C / G), times a tap's kernel, (O, C / groups).

    A function of its own, so that no samples wait for the next ones.
    """
    sample = sample.view(len(rows), -1)
    for o, c, kernel in _chunks(groups, rows, sample, tap):
        o.addmm_(c, kernel.T)


def _gradients_by_tap(
    grad: Tensor,
    needs: Sequence[bool],
    x: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    flat: list[int],
) -> tuple[Tensor | None, ...]:
    geometry = Geometry.of(flat)
    groups, G = geometry.groups, geometry.deform_groups
    size = offset.shape[-2:]
    B, C, H, W = x.shape
    taps = _taps(weight)
    grad_taps = torch.zeros_like(taps)
    grad_x = x.new_zeros(B, H, W, C)
    # (B, G, K, 2, H', W') and (B, G, K, H', W')
    grad_offset = offset.new_empty(B, G, len(taps), 2, *size)
    grad_mask = mask.new_empty(B, G, len(taps), *size)
    for part in _parts(x, size):
        table = _table(x[part], G)
        grad_table = torch.zeros_like(table) if needs[0] else None
        rows = grad[part].permute(0, 2, 3, 1).reshape(-1, len(weight))
        of_sample = rows.new_empty(len(rows), C)
        for k, tap in enumerate(taps):
            for c, o, kernel in _chunks(groups, of_sample, rows, tap):
                torch.mm(o, kernel, out=c)
            # The way from positions to samples again, with its graph.
            y, z = _positions(offset[part], k, geometry)
            m = mask[part].unflatten(1, (G, -1))[:, :, k]
            wanted = [t.detach().requires_grad_() for t in (y, z, m)]
            of_rows = of_sample.view(-1, C // G)
            with torch.enable_grad():
                index, share = _corners(*wanted, (H, W))
                sample = _sample(table, index, share)
            if needs[1] or needs[2]:
                y, z, m = torch.autograd.grad(sample, wanted, of_rows)
                grad_offset[part, :, k] = torch.stack([y, z], 2)
                grad_mask[part, :, k] = m
            if needs[0]:
                grad_table += _spread(
                    of_rows, index, share.detach(), len(table)
                )
            sample = sample.detach().view(len(rows), C)
            for g, o, c in zip(
                grad_taps[k].chunk(groups),
                rows.chunk(groups, 1),
                sample.chunk(groups, 1),
            ):
                g.addmm_(o.T, c)
        if needs[0]:
            grad_x[part] = grad_table.view(-1, H, W, C)
    grads = (
        _like(x, grad_x.permute(0, 3, 1, 2)),
        grad_offset.view(offset.shape),
        grad_mask.view(mask.shape),
        grad_taps.permute(1, 2, 0).reshape(weight.shape),
        grad.sum((0, 2, 3)),
    )
    return tuple(g if need else None for g, need in zip(grads, needs))


def _corners(
    y: Tensor, x: Tensor, mask: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Rows of the table, and their weights, that make one sample.

    The table has the pixels of all images, each with its G groups. Pixels
    beyond the border weigh nothing; one at the border stands in their place.

    Args:
        y (Tensor): Rows sampled, (B, G, H', W').
        x (Tensor): Columns sampled, (B, G, H', W').
        mask (Tensor): Factor of the sample, (B, G, H', W').
        size (tuple[int, int]): H and W of the map.

    Returns:
        tuple[Tensor, Tensor]: Indices and weights, (P * G, 4).
    """
    H, W = size
    B, G = y.shape[:2]
    # Comparisons are false for what is not a number.
    inside = (y > -1) & (y < H) & (x > -1) & (x < W)
    y = torch.where(inside, y, -1)
    x = torch.where(inside, x, -1)
    (top, down), (up, below) = _between(y, H)
    (left, right), (before, behind) = _between(x, W)
    up, below = mask * up, mask * below
    weight = [up * before, up * behind, below * before, below * behind]
    # Half the size of int64, and faster to sort.
    image = torch.arange(B, device=y.device, dtype=torch.int32)
    group = torch.arange(G, device=y.device, dtype=torch.int32)
    first = image.view(-1, 1, 1, 1) * H
    top, down = (first + top) * W, (first + down) * W
    index = [top + left, top + right, down + left, down + right]
    index = torch.stack(index, -1).mul_(G).add_(group.view(-1, 1, 1, 1))
    return (
        index.permute(0, 2, 3, 1, 4).reshape(-1, 4),
        torch.stack(weight, -1).permute(0, 2, 3, 1, 4).reshape(-1, 4),
    )


def _between(
    place: Tensor, num: int
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The two pixels around places on an axis of so many, and their shares."""
    before = place.detach().floor()
    share = place - before
    index = before.int()
    shares = (1 - share) * (index >= 0), share * (index < num - 1)
    return (index.clamp(min=0), (index + 1).clamp_(max=num - 1)), shares


def _table(x: Tensor, deform_groups: int) -> Tensor:
    """Pixels with their channels together, (B * H * W * G, C / G)."""
    last = x.permute(0, 2, 3, 1).contiguous()
    return last.view(-1, x.shape[1] // deform_groups)


def _taps(weight: Tensor) -> Tensor:
    """Kernels tap by tap, (K, O, C / groups)."""
    return weight.flatten(2).permute(2, 0, 1).contiguous()


def _sample(table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """Weighted sums of four rows of the table each, (P * G, C / G)."""
    return F.embedding_bag(index, table, per_sample_weights=weight, mode='sum')


def _spread(grad: Tensor, index: Tensor, weight: Tensor, rows: int) -> Tensor:
    """What all samples give back to each row of the table, (rows, C / G).

    The transpose of :func:`_sample`, as a sum per row: no two of them write
    to one place, and the result does not depend on any order.
    """
    index, order = index.flatten().sort(stable=True)
    begin = torch.arange(rows, device=index.device, dtype=index.dtype)
    begin = torch.searchsorted(index, begin, out_int32=True)
    return F.embedding_bag(
        order.int() // 4,
        grad,
        begin,
        per_sample_weights=weight.flatten()[order],
        mode='sum',
    )


def _parts(x: Tensor, size: Sequence[int]) -> Iterator[slice]:
    """Images that are convolved at once."""
    pixels = max(x.shape[2] * x.shape[3], size[0] * size[1])
    step = max(1, _PIXELS // pixels)
    for start in range(0, len(x), step):
        yield slice(start, start + step)


def _chunks(
    groups: int, first: Tensor, second: Tensor, tap: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Columns of two tables and rows of the kernels, group by group."""
    return zip(
        first.chunk(groups, 1), second.chunk(groups, 1), tap.chunk(groups)
    )


def _like(x: Tensor, out: Tensor) -> Tensor:
    """Result in the memory format of the input."""
    last = x.is_contiguous(memory_format=torch.channels_last)
    return out if last and not x.is_contiguous() else out.contiguous()


def _like_by_tap(x, offset, mask, weight, bias, flat):
    shape = (len(x), len(weight), *offset.shape[-2:])
    return _like(x, x.new_empty(shape))


def _deform_conv_by_mmcv(
    x: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    flat: list[int],
) -> Tensor:
    from mmcv.ops import modulated_deform_conv2d

    # Its kernels read the memory as if it were in the usual order.
    args = [t.contiguous() for t in (x, offset, mask, weight)]
    return modulated_deform_conv2d(*args, bias, *Geometry.of(flat)[1:])


def _gradients_by_mmcv(
    grad: Tensor, needs: Sequence[bool], *args: Tensor | list[int] | None
) -> tuple[Tensor | None, ...]:
    """Its own, from the inputs alone: it samples them again anyway."""
    *tensors, flat = args
    leaves = [
        t if t is None else t.detach().requires_grad_(need)
        for t, need in zip(tensors, needs)
    ]
    with torch.enable_grad():
        out = _deform_conv_by_mmcv(*leaves, flat)
    wanted = [t for t, need in zip(leaves, needs) if need]
    found = iter(torch.autograd.grad(out, wanted, grad.contiguous()))
    return tuple(next(found) if need else None for need in needs[:5])


def _like_by_mmcv(x, offset, mask, weight, bias, flat):
    return x.new_empty((len(x), len(weight), *offset.shape[-2:]))


def _once_by(gradients: Callable) -> Callable:
    """Gradients whose own derivatives are the formula's."""

    def function(grad, needs, *args):
        if not torch.is_grad_enabled():
            return gradients(grad, needs, *args)
        *tensors, _, flat = args
        _, pull = func.vjp(_of_tensors(flat), *tensors)
        return *pull(grad), grad.sum((0, 2, 3)) if needs[4] else None

    return function


def _tangent(tangents, *args):
    *tensors, bias, flat = args
    _, tangent = func.jvp(_of_tensors(flat), tuple(tensors), tangents[:4])
    return tangent if bias is None else tangent + tangents[4].view(-1, 1, 1)


def _of_tensors(flat: list[int]) -> Callable[..., Tensor]:
    """The formula without a bias."""
    return lambda *tensors: formula(*tensors, None, Geometry.of(flat))


by_tap = Operator(_deform_conv_by_tap, _like_by_tap)
by_tap.differentiate(_once_by(_gradients_by_tap), _tangent)
by_mmcv = Operator(_deform_conv_by_mmcv, _like_by_mmcv)
by_mmcv.differentiate(_once_by(_gradients_by_mmcv), _tangent)
