"""Pictures side by side with captions, as one sheet.

h x w picture. Pictures are RGB in [0, 1], (3, h, w).
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from torch import Tensor

# Of a sheet, in pixels: between the pictures, and of a caption.
_GAP = 8
_CAPTION = 24


class Panel(NamedTuple):
    """One picture of a sheet.

    Attributes:
        caption (str): Line above it, ASCII.
        image (Tensor): Picture in [0, 1], (3, h, w).
        point (tuple[float, float], optional): Point (y, x) to mark, as shares
            of height and width in [0, 1].
    """

    caption: str
    image: Tensor
    point: tuple[float, float] | None = None


def contact_sheet(
    rows: Sequence[Sequence[Panel | None]], width: int = 1440
) -> np.ndarray:
    """Pictures in rows, with a caption above each.

    A row shares the width among its panels; an enlarged picture keeps its
    cells as they are.

    Args:
        rows (Sequence[Sequence[Panel | None]]): Panels, None for a blank.
        width (int): Width of the sheet in pixels. Defaults to 1440.

    Returns:
        np.ndarray: RGB sheet, (H, W, 3), uint8.
    """
    strips = []
    for row in rows:
        column = (width - _GAP) // len(row) - _GAP
        drawn = [panel and _draw(panel, column) for panel in row]
        height = max(len(x) for x in drawn if x is not None)
        strip = np.full((height + _GAP, width, 3), 255, np.uint8)
        for index, picture in enumerate(drawn):
            if picture is not None:
                left = _GAP + index * (column + _GAP)
                strip[: len(picture), left : left + column] = picture
        strips.append(strip)
    return np.concatenate(strips)


def sheet_width(column: int, count: int) -> int:
    """Width of a sheet whose rows have pictures of one width.

    Args:
        column (int): Width of a picture in pixels.
        count (int): Pictures in a row.

    Returns:
        int: Width in pixels.
    """
    return _GAP + count * (column + _GAP)


def _draw(panel: Panel, width: int) -> np.ndarray:
    """A panel with its caption, (H, width, 3)."""
    pixels = (255 * panel.image.detach().cpu()).round().byte()
    image = pixels.permute(1, 2, 0).contiguous().numpy()
    shrinks = image.shape[1] > width
    image = cv2.resize(
        image,
        (width, max(1, round(image.shape[0] * width / image.shape[1]))),
        interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST,
    )
    if panel.point is not None:
        y, x = (int(p * n) for p, n in zip(panel.point, image.shape))
        for colour, thickness in (((0, 0, 0), 3), ((255, 255, 255), 1)):
            cv2.drawMarker(
                image, (x, y), colour, cv2.MARKER_CROSS, 15, thickness
            )
    caption = np.full((_CAPTION, width, 3), 255, np.uint8)
    font, size = cv2.FONT_HERSHEY_SIMPLEX, 0.5
    wanted = cv2.getTextSize(panel.caption, font, size, 1)[0][0]
    size *= min(1, (width - 2) / max(wanted, 1))
    cv2.putText(
        caption, panel.caption, (0, 17), font, size, (0, 0, 0), 1, cv2.LINE_AA
    )
    return np.concatenate([caption, image])
