"""Bilinear resampling of a part of a map as if the whole were there.

B batch, C channels, h x w the whole map, H x W the whole result.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def resize_window(
    x: Tensor,
    size: Sequence[int],
    window: Sequence[int],
    grid: Sequence[int],
    origin: Sequence[int],
    align_corners: bool = False,
) -> Tensor:
    """Window of a resized map, from the part of the map that it needs.

    What ``F.interpolate(whole, size, mode='bilinear')`` has in the window,
    wherever the part reaches one cell beyond it.

    Args:
        x (Tensor): Part of the map, (B, C, h', w').
        size (Sequence[int]): Rows H and columns W of the whole result.
        window (Sequence[int]): Top, left, height and width wanted of it.
        grid (Sequence[int]): Rows h and columns w of the whole map.
        origin (Sequence[int]): Row and column of the map that ``x`` begins at.
        align_corners (bool): Map corners to corners instead of edges to
            edges. Defaults to False.

    Returns:
        Tensor: Window of the result, (B, C, height, width).
    """
    for axis in (0, 1):
        start, length = window[axis], window[2 + axis]
        before, behind, share = _corners(
            torch.arange(start, start + length, dtype=torch.float64),
            grid[axis],
            size[axis],
            align_corners,
        )
        last = x.shape[2 + axis] - 1
        low, high = (
            x.index_select(
                2 + axis,
                # Cells that are not there: see the docstring.
                (index - origin[axis]).clamp(0, last).to(x.device),
            )
            for index in (before, behind)
        )
        share = share.to(x).view([-1, 1] if axis == 0 else [-1])
        x = low + (high - low) * share
    return x


def _corners(
    target: Tensor, num: int, num_targets: int, align_corners: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Cells before and behind targets of one axis, and the second's share."""
    if align_corners:
        place = target * ((num - 1) / max(num_targets - 1, 1))
    else:
        place = (target + 0.5) * (num / num_targets) - 0.5
    place = place.clamp(0, num - 1)
    before = place.floor().clamp(max=max(num - 2, 0))
    behind = (before + 1).clamp(max=num - 1)
    return before.long(), behind.long(), place - before
