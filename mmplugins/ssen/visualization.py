"""What aligned references are made of: samples, relevance, displacement.

H x W map of features, K taps of a kernel, G groups, n deformable layers. A
point is (y, x) in pixels of the map, pixel centres at whole numbers, so that
[-0.5, H - 0.5] is inside. ``aux`` holds of every layer, first to last, the
offsets (B, 2 K G, H, W), (dy, dx) of one tap after the other, and the masks
(B, K G, H, W) in [0, 2]. Pictures are RGB in [0, 1], (3, h, w).
"""

from collections.abc import Sequence
from itertools import product
from math import isqrt, pi

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmplugins.visualization import Panel, contact_sheet, sheet_width

Aux = Sequence[tuple[Tensor, Tensor]]

# Of a sheet: pictures in a row and the narrowest of them, in pixels.
_COLUMNS = 4
_LEAST_COLUMN = 200
# Of samples on a picture: red, green and blue.
_COLOUR = (1.0, 0.35, 0.0)


def trace_samples(
    aux: Aux, point: Sequence[float], group: int = 0, index: int = 0
) -> tuple[Tensor, Tensor]:
    """Points of the reference feature that one aligned pixel is made of.

    Starts at the point in the last layer. Every tap k of it reads the output
    of the layer before at ``p + p_k + offset_k(p)`` with weight
    ``mask_k(p)``, there the taps start anew, and so to the first layer, whose
    taps read the reference. Between pixels offsets and masks are
    interpolated. What a tap reads outside of the map is zero, so its weight
    fades to 0 there. A search before the layers repeats the border instead:
    what it sends beyond is on it, at full weight.

    Args:
        aux (Aux): Offsets and masks of every layer, first to last.
        point (Sequence[float]): Point (y, x) of the aligned map.
        group (int): Group of channels. Defaults to 0.
        index (int): Which of the batch. Defaults to 0.

    Returns:
        tuple[Tensor, Tensor]: Points (K^n, 2), and the products of the masks
        on the way to each, (K^n,), in double precision; the taps of the last
        layer change slowest.

    Raises:
        ValueError: If there is no layer or no such group, or a layer has
            offsets and masks that do not fit each other.
    """
    layers = [
        _layer(offset, mask, index) for offset, mask in _checked(aux, group)
    ]
    device = layers[0][0].device
    points = torch.tensor([[*point]], dtype=torch.float64, device=device)
    weights = points.new_ones(1)
    for offset, mask in reversed(layers):
        one = min(group, len(mask) - 1)  # of a search there is a single one
        offset, mask = offset[one], mask[one]  # (K, 2, H, W), (K, H, W)
        taps = _taps(len(mask)).to(points)
        shift = _read(offset.flatten(0, 1), points, 'border')  # (P, 2 K)
        share = _read(mask, points, 'zeros')  # (P, K)
        points = (points[:, None] + taps + shift.unflatten(1, (-1, 2))).view(
            -1, 2
        )
        weights = (weights[:, None] * share).flatten()
    first = layers[0][1]
    if _is_search(first):
        edge = points.new_tensor(first.shape[-2:]) - 0.5
        return points.clamp(torch.full_like(edge, -0.5), edge), weights
    inside = torch.ones_like(first[0, :1])
    return points, weights * _read(inside, points, 'zeros')[:, 0]


def relevance_maps(aux: Aux, index: int = 0) -> Tensor:
    """How much of what it reads every layer lets pass.

    Args:
        aux (Aux): Offsets and masks of every layer, first to last.
        index (int): Which of the batch. Defaults to 0.

    Returns:
        Tensor: Mean over taps and groups of each layer's masks, (n, H, W), in
        [0, 2]: 1 where training has not begun.

    Raises:
        ValueError: If there is no layer.
    """
    layers = [_layer(*one, index) for one in _checked(aux)]
    return torch.stack([mask.mean((0, 1)) for _, mask in layers])


def displacement(aux: Aux, index: int = 0) -> Tensor:
    """From where, on average, every aligned pixel comes.

    Of each layer the centre of what its taps read, weighted by their masks;
    the layers are followed from the last to the first.

    Args:
        aux (Aux): Offsets and masks of every layer, first to last.
        index (int): Which of the batch. Defaults to 0.

    Returns:
        Tensor: (dy, dx) in pixels of the map, (2, H, W), in double precision:
        pixel p shows the reference at p + displacement.

    Raises:
        ValueError: If there is no layer.
    """
    layers = [_layer(*one, index) for one in _checked(aux)]
    H, W = layers[0][1].shape[-2:]
    axes = [torch.arange(n).to(layers[0][0]) for n in (H, W)]
    start = torch.stack(torch.meshgrid(*axes, indexing='ij'), -1).view(-1, 2)
    points = start
    for offset, mask in reversed(layers):
        taps = _taps(mask.shape[1]).to(offset)[..., None, None]
        share = mask[:, :, None] + 1e-12  # of no mask at all the plain mean
        mean = (share * (taps + offset)).sum((0, 1)) / share.sum((0, 1))
        points = points + _read(mean, points, 'border')
    return (points - start).T.view(2, H, W)


def flow_image(flow: Tensor, largest: float | None = None) -> Tensor:
    """Displacements as colours: the hue is the direction, white is none.

    Args:
        flow (Tensor): (dy, dx), (2, H, W).
        largest (float, optional): Length with the full colour. Defaults to
            None, the greatest there is, at least one pixel.

    Returns:
        Tensor: Picture, (3, H, W).
    """
    dy, dx = flow.detach().cpu().float()
    length = torch.hypot(dy, dx)
    if largest is None:
        largest = max(1.0, length.max().item())
    hue = torch.atan2(dy, dx) * (180 / pi) % 360
    parts = [hue, (length / largest).clamp(0, 1), torch.ones_like(hue)]
    hsv = torch.stack(parts, -1).numpy()
    picture = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    return torch.from_numpy(picture).permute(2, 0, 1)


def colour_wheel(size: int) -> Tensor:
    """Legend of :func:`flow_image`: displacement from the middle.

    Args:
        size (int): Rows and columns of the picture.

    Returns:
        Tensor: Picture, (3, size, size), white outside of the circle.
    """
    axis = (2 * torch.arange(size) + 1.0) / size - 1
    flow = torch.stack(torch.meshgrid(axis, axis, indexing='ij'))
    flow = flow * (flow.norm(dim=0) <= 1)
    return flow_image(flow, 1)


def sample_image(
    picture: Tensor, points: Tensor, weights: Tensor, radius: int = 2
) -> Tensor:
    """A dimmed picture with the samples of :func:`trace_samples` on it.

    Args:
        picture (Tensor): Picture, (3, h, w).
        points (Tensor): Points (y, x) in pixels of the picture, (P, 2).
        weights (Tensor): Their weights, 0 or more, (P,); the greatest that
            falls on a pixel shows at full strength, and nothing of 0.
        radius (int): Of a spot, in pixels. Defaults to 2.

    Returns:
        Tensor: Picture, (3, h, w).
    """
    h, w = picture.shape[-2:]
    heat = torch.zeros(h, w)
    y, x = points.detach().cpu().round().long().unbind(-1)
    weights = weights.detach().cpu().float()
    seen = (y >= 0) & (y < h) & (x >= 0) & (x < w)
    heat.index_put_((y[seen], x[seen]), weights[seen], accumulate=True)
    spots = F.max_pool2d(heat[None], 2 * radius + 1, 1, radius)
    # The square root, else one heavy sample hides all the others.
    spots = (spots / spots.max().clamp_min(1e-12)).sqrt()
    grey = picture.detach().cpu().mean(0, keepdim=True) * 0.6
    colour = torch.tensor(_COLOUR).view(3, 1, 1)
    return grey + spots * (colour - grey)


def alignment_sheet(
    image: Tensor,
    result: Tensor,
    references: Sequence[tuple[Tensor, Aux]],
    truth: Tensor | None = None,
    point: Sequence[int] | None = None,
    size: int = 480,
) -> np.ndarray:
    """All there is to see of an image upscaled with references.

    Rows: the image, the result and the truth; then of every reference what
    one point takes from it, how much of it passes the layers, and from where
    it is taken.

    Args:
        image (Tensor): Low-resolution image, (3, H, W).
        result (Tensor): Upscaled image, (3, s H, s W).
        references (Sequence[tuple[Tensor, Aux]]): Each as the network sees
            it, of the size of the result, or of the image's if it is its own
            reference; and the offsets and masks of its layers.
        truth (Tensor, optional): True image, (3, s H, s W). Defaults to None.
        point (Sequence[int], optional): Pixel (y, x) of the low-resolution
            image. Defaults to None, the middle.
        size (int): Longer side of a picture in pixels. Defaults to 480.

    Returns:
        np.ndarray: RGB sheet, (H', W', 3), uint8.

    Raises:
        ValueError: If the point is not in the image.
    """
    H, W = image.shape[-2:]
    point = (H // 2, W // 2) if point is None else tuple(point)
    check_point(point, (H, W))
    rows, columns = (max(1, round(n * size / max(H, W))) for n in (H, W))
    mark = tuple((p + 0.5) / n for p, n in zip(point, (H, W)))

    def panel(caption: str, picture: Tensor, mark: tuple | None = None):
        picture = _fit(picture, (rows, columns))
        picture = F.pad(picture, (0, max(0, _LEAST_COLUMN - columns)), value=1)
        if mark is not None:
            mark = mark[0], mark[1] * columns / picture.shape[-1]
        return Panel(caption, picture, mark)

    sheet = [
        [
            panel(f'low resolution, {H} x {W}', image, mark),
            panel(_sized('upscaled', result), result),
            None if truth is None else panel(_sized('truth', truth), truth),
            None,
        ]
    ]
    for k, (reference, aux) in enumerate(references):
        name = f'reference {k + 1}' if len(references) > 1 else 'reference'
        drawn = _fit(reference, (rows, columns))
        if not aux:
            sheet.append([panel(f'{name}, not aligned', drawn)])
            sheet[-1] += [None] * (_COLUMNS - 1)
            continue
        points, weights = trace_samples(aux, point)
        ratio = points.new_tensor([rows / H, columns / W])
        # What is read at the border is of the last pixels of the picture.
        last = ratio.new_tensor([rows - 1, columns - 1])
        spots = (points + 0.5) * ratio - 0.5
        spots = spots.clamp(torch.zeros_like(last), last)
        flow = displacement(aux)
        length = flow.norm(dim=0).max().item()
        # A search lets everything pass.
        masked = [one for one in aux if not _is_search(one[1])] or aux
        passed = relevance_maps(masked).mean(0)
        sheet.append(
            [
                panel(name, drawn),
                panel(
                    f'read for ({point[0]}, {point[1]}): '
                    f'{len(weights)} samples',
                    sample_image(drawn, spots, weights),
                ),
                panel(
                    f'passes, black 0, white 2, mean {passed.mean():.2f}',
                    (passed.float().cpu() / 2).clamp(0, 1).expand(3, -1, -1),
                ),
                panel(
                    f'taken from afar: at most {length:.1f} pixels',
                    _with_wheel(_fit(flow_image(flow), (rows, columns))),
                ),
            ]
        )
    column = max(columns, _LEAST_COLUMN)
    return contact_sheet(sheet, sheet_width(column, _COLUMNS))


def check_point(point: Sequence[int], size: Sequence[int]) -> None:
    """Check that a pixel is one of an image.

    Args:
        point (Sequence[int]): Pixel (y, x).
        size (Sequence[int]): Height and width of the image.

    Raises:
        ValueError: If it is not.
    """
    if len(point) != 2 or not all(0 <= p < n for p, n in zip(point, size)):
        raise ValueError(
            f'point must be a pixel (y, x) of the low-resolution image, which '
            f'has {size[0]} x {size[1]} of them, got {tuple(point)}'
        )


def _checked(aux: Aux, group: int = 0) -> Aux:
    if not aux:
        raise ValueError('aux must be of one deformable layer or more, got 0')
    for offset, mask in aux:
        count = mask.shape[1]
        taps = offset.shape[1] // 2
        if taps != count or offset.shape[-2:] != mask.shape[-2:]:
            raise ValueError(
                'aux needs offsets (B, 2 K G, H, W) and masks (B, K G, H, W), '
                f'got {tuple(offset.shape)} and {tuple(mask.shape)}'
            )
    most = max(_groups(mask.shape[1]) for _, mask in aux)
    if not 0 <= group < most:
        raise ValueError(f'group must be 0 to {most - 1}, got {group}')
    return aux


def _groups(count: int) -> int:
    """Groups of a layer of so many masks: kernels are 3x3, else one group."""
    return count // 9 if count % 9 == 0 else 1


def _is_search(mask: Tensor) -> bool:
    """Whether masks (., K, H, W) are of a search, which has a single tap."""
    return mask.shape[1] == 1


def _layer(offset: Tensor, mask: Tensor, index: int) -> tuple[Tensor, Tensor]:
    """Offsets (G, K, 2, H, W) and masks (G, K, H, W), in double precision."""
    groups = _groups(mask.shape[1])
    offset = offset[index].detach().double()
    mask = mask[index].detach().double()
    return (
        offset.unflatten(0, (groups, -1, 2)),
        mask.unflatten(0, (groups, -1)),
    )


def _taps(count: int) -> Tensor:
    """Where the taps of a square kernel are, row by row, (K, 2)."""
    side = isqrt(count)
    reach = range(-(side // 2), side - side // 2)
    return torch.tensor([*product(reach, reach)], dtype=torch.float64)


def _read(x: Tensor, points: Tensor, outside: str) -> Tensor:
    """A map (C, H, W) at points (P, 2), bilinear: (P, C)."""
    size = points.new_tensor(x.shape[-2:])
    grid = ((2 * points + 1) / size - 1).flip(-1)[None, None]
    found = F.grid_sample(
        x[None], grid, padding_mode=outside, align_corners=False
    )
    return found[0, :, 0].T


def _fit(picture: Tensor, size: Sequence[int]) -> Tensor:
    """A picture at another size; pixels stay pixels where it grows."""
    picture = picture.detach().cpu().float().clamp(0, 1)
    array = np.ascontiguousarray(picture.permute(1, 2, 0).numpy())
    shrinks = array.shape[1] > size[1]
    array = cv2.resize(
        array,
        tuple(size[::-1]),
        interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST,
    )
    return torch.from_numpy(array).permute(2, 0, 1)


def _with_wheel(picture: Tensor) -> Tensor:
    """A picture with the legend of its colours in a corner."""
    side = min(64, *(n // 3 for n in picture.shape[-2:]))
    if side >= 16:
        picture = picture.clone()
        picture[:, -side:, -side:] = colour_wheel(side)
    return picture


def _sized(name: str, picture: Tensor) -> str:
    return f'{name}, {picture.shape[-2]} x {picture.shape[-1]}'
