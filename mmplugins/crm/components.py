"""Connected components of a mask, each in the box that shows it.

H x W mask, h x w box, in pixels.
"""

from collections.abc import Iterator
from math import ceil

import cv2
import numpy as np

Slices = tuple[slice, slice]
"""Rows and columns of a box."""


def components(
    mask: np.ndarray, expand: float, min_area: int
) -> Iterator[tuple[Slices, np.ndarray]]:
    """Connected components of a mask, each in its box and what is around it.

    Args:
        mask (np.ndarray): Mask, uint8, (H, W); corners connect.
        expand (float): Growth of a box as a share of its sides.
        min_area (int): Pixels of the smallest component.

    Yields:
        tuple: The window, and the component in it, bool, (h, w).
    """
    _, ids, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    for index, row in enumerate(stats.tolist()):
        left, top, width, height, area = row
        if index == 0 or area < min_area:
            continue
        window = _grow(top, height, expand), _grow(left, width, expand)
        yield window, ids[window] == index


def _grow(start: int, length: int, expand: float) -> slice:
    """Span that grows on both sides; beyond the image there is no pixel."""
    margin = ceil(length * expand / 2)
    return slice(max(start - margin, 0), start + length + margin)
