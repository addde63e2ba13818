"""Windows of a map, with what lies around them.

B batch, C channels, h x w map, in pixels.
"""

from collections.abc import Iterator, Sequence

from torch import Tensor

from .implicit import Window


def tiles(size: Sequence[int], tile: int | None) -> Iterator[Window]:
    """Windows that cover a map, each pixel once.

    Args:
        size (Sequence[int]): Rows and columns of the map.
        tile (int, optional): Rows and columns of the largest window. None is
            all.

    Yields:
        Window: Row by row.
    """
    height, width = (n if tile is None else min(tile, n) for n in size)
    for top in range(0, size[0], height):
        for left in range(0, size[1], width):
            yield Window(
                top,
                left,
                min(height, size[0] - top),
                min(width, size[1] - left),
            )


def crop(x: Tensor, window: Sequence[int], radius: int) -> tuple[Tensor, ...]:
    """Window of a map with what lies around it, and where it begins there.

    Args:
        x (Tensor): Map, (B, C, h, w).
        window (Sequence[int]): Top, left, height and width, in pixels.
        radius (int): Pixels to take beyond each side; the map's own border is
            where they end.

    Returns:
        tuple: The part of the map, and the row and the column of it that the
        window begins at.

    Raises:
        ValueError: If the window does not lie inside of the map.
    """
    spans, origin = [], []
    for start, length, count in zip(window, window[2:], x.shape[-2:]):
        if start < 0 or length < 1 or start + length > count:
            raise ValueError(
                f'window {tuple(window)} must lie inside of the map of '
                f'{tuple(x.shape[-2:])} pixels'
            )
        first = max(start - radius, 0)
        spans.append(slice(first, min(start + length + radius, count)))
        origin.append(start - first)
    return x[(..., *spans)], *origin
