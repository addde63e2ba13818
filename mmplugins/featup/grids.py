"""Maps over images that are no multiple of their cells.

B batch, C channels, h x w grid of cells, H x W image. Cell (i, j) of stride s
and offset o covers the pixels [o + s i, o + s (i + 1)) x [o + s j,
o + s (j + 1)).
"""

from collections.abc import Callable, Sequence
from math import ceil, isfinite

import torch
import torch.nn.functional as F
from torch import Tensor


def over_image(
    upsample: Callable[[Tensor, Tensor], Tensor],
    feats: Tensor,
    image: Tensor,
    stride: float,
    offset: int = 0,
) -> Tensor:
    """Upsample cells so that the result covers the image exactly.

    The image is continued to what the cells cover, or the cells to what the
    image covers; what reaches beyond the image is cut off.

    Args:
        upsample (Callable): Takes features (B, C, h', w') and guidance
            (B, 3, H', W') over the same area, gives a map over it.
        feats (Tensor): Features, (B, C, h, w).
        image (Tensor): Image, (B, 3, H, W).
        stride (float): Pixels per cell.
        offset (int): Pixel where the first cell begins, 0 or less. Defaults
            to 0.

    Returns:
        Tensor: Map over the image, (B, K, ceil(H / step), ceil(W / step)).
    """
    size = image.shape[-2:]
    if offset:
        image = F.pad(image, (-offset, 0, -offset, 0), mode='replicate')
    feats, guidance = cover(feats, image, stride)
    out = upsample(feats, guidance)
    # Rounded to whole pixels by cover(), hence not the stride's own.
    steps = [n / k for n, k in zip(guidance.shape[-2:], out.shape[-2:])]
    return fit(out, steps, size, offset)


def check_offset(name: str, offset: float, stride: float | None = None) -> int:
    """Raise unless an offset leaves the image's corner in the first cell.

    Args:
        name (str): Who takes the offset.
        offset (float): Pixel where the first cell begins.
        stride (float, optional): Pixels per cell. Defaults to None, unknown.

    Returns:
        int: The offset, rounded to a whole pixel.

    Raises:
        ValueError: If that is above 0, or a cell or more below.
    """
    number = isinstance(offset, (int, float)) and isfinite(offset)
    if not number or not -(stride or 1e9) < round(offset) <= 0:
        raise ValueError(
            f'offset of {name} must be a number of pixels from '
            f'-{stride or "stride"} (excluded) to 0, got {offset}'
        )
    return round(offset)


def cover(
    feats: Tensor, guidance: Tensor, stride: float
) -> tuple[Tensor, Tensor]:
    """Make features and guidance cover the same area, the image at least.

    Both are continued at the bottom and at the right by their last values.

    Args:
        feats (Tensor): Map of stride s, (B, C, h, w).
        guidance (Tensor): Image, (B, 3, H, W).
        stride (float): Pixels per cell s.

    Returns:
        tuple[Tensor, Tensor]: Map (B, C, h', w') and image
        (B, 3, s h', s w') with s h' >= H and s w' >= W.
    """
    missing = [
        max(0, ceil(n / stride) - cells)
        for n, cells in zip(guidance.shape[-2:], feats.shape[-2:])
    ]
    feats = _extend(feats, missing)
    missing = [
        max(0, round(stride * cells) - n)
        for n, cells in zip(guidance.shape[-2:], feats.shape[-2:])
    ]
    return feats, _extend(guidance, missing)


def fit(
    x: Tensor,
    step: float | Sequence[float],
    image: Sequence[int],
    offset: int = 0,
) -> Tensor:
    """Make cells cover an image exactly, where it is not a multiple of them.

    A head takes the map for the whole image: cells that reach beyond it would
    shift everything when the head resizes them to the image.

    Args:
        x (Tensor): Map that covers the image or more, (B, C, h, w).
        step (float | Sequence[float]): Pixels per cell, or rows and columns
            of them.
        image (Sequence[int]): Height and width in pixels.
        offset (int): Pixel where the map begins, 0 or less. Defaults to 0.

    Returns:
        Tensor: Map (B, C, ceil(H / step), ceil(W / step)) over the image.
    """
    steps = step if isinstance(step, Sequence) else (step, step)
    cells = [n / s for n, s in zip(image, steps)]
    before = [-offset / s for s in steps]
    # A third of a pixel times three is not a pixel in floating point.
    rows, columns = (ceil(n - 1e-6) for n in cells)
    whole = max(rows - cells[0], columns - cells[1]) < 1e-6
    if whole and all(n.is_integer() for n in before):
        top, left = map(int, before)
        return x[..., top : top + rows, left : left + columns]
    # The image's share of the map and where it begins, (y, x).
    (v, u), (top, left) = (
        [n / extent for n, extent in zip(values, x.shape[-2:])]
        for values in (cells, before)
    )
    dtype = torch.promote_types(x.dtype, torch.float32)
    theta = torch.tensor(
        [[u, 0, u - 1 + 2 * left], [0, v, v - 1 + 2 * top]],
        dtype=dtype,
        device=x.device,
    )
    # Autocast would make coordinates of half precision.
    with torch.autocast(x.device.type, enabled=False):
        grid = F.affine_grid(
            theta.expand(len(x), -1, -1),
            [len(x), 1, rows, columns],
            align_corners=False,
        )  # (B, rows, columns, 2)
        out = F.grid_sample(
            x.to(dtype), grid, padding_mode='border', align_corners=False
        )
    return out.to(x.dtype)


def _extend(x: Tensor, missing: Sequence[int]) -> Tensor:
    """Repeat the last row and column so many times."""
    rows, columns = missing
    if not (rows or columns):
        return x
    return F.pad(x, (0, columns, 0, rows), mode='replicate')
