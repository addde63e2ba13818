"""A mask before and after its refinement, as pictures.

H x W image, h x w picture of it. Images and pictures are RGB, (H, W, 3),
uint8; masks are probabilities of the foreground, (H, W), and foreground above
a half; a true mask is (H, W), uint8: 1 foreground, 0 background, 255 ignored.
A smaller picture averages, a larger one keeps the pixels.
"""

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch

from mmplugins.visualization import Panel, contact_sheet, sheet_width

# Colours of outlines and errors, RGB.
COARSE = (255, 150, 0)
REFINED = (0, 230, 110)
TOO_MUCH = (220, 30, 40)
MISSING = (40, 90, 255)
_LEGEND = 'red too much, blue missing'
# Of a sheet: pictures in a row, and the least width that a caption needs.
_COLUMNS = 4
_LEAST_COLUMN = 200


def outline_image(
    image: np.ndarray,
    outlines: Sequence[tuple[np.ndarray, Sequence[int]]],
    size: Sequence[int] | None = None,
    thickness: int = 2,
) -> np.ndarray:
    """An image with outlines of masks, the last one on top.

    An outline lies within its mask, along the pixels' edges where the picture
    enlarges them; the border of the image has none.

    Args:
        image (np.ndarray): Image, (H, W, 3).
        outlines (Sequence[tuple[np.ndarray, Sequence[int]]]): Masks, or label
            maps of integers, (H, W), and their colours.
        size (Sequence[int], optional): Rows h and columns w of the picture.
            Defaults to None, those of the image.
        thickness (int): Pixels of a line. Defaults to 2.

    Returns:
        np.ndarray: Picture, (h, w, 3).
    """
    picture = _resize(image, size).copy()
    kernel = np.ones((2 * thickness + 1,) * 2, np.uint8)
    for mask, colour in outlines:
        labels = _labels(mask, size)
        picture[labels != cv2.erode(labels, kernel)] = colour
    return picture


def mask_image(
    mask: np.ndarray, size: Sequence[int] | None = None
) -> np.ndarray:
    """A mask in grey: black 0, white 1.

    Args:
        mask (np.ndarray): Mask, (H, W).
        size (Sequence[int], optional): Rows h and columns w of the picture.
            Defaults to None, those of the mask.

    Returns:
        np.ndarray: Picture, (h, w, 3).
    """
    shares = np.clip(_resize(mask, size), 0, 1)
    levels = np.rint(255 * shares).astype(np.uint8)
    return cv2.cvtColor(levels, cv2.COLOR_GRAY2RGB)


def error_image(
    image: np.ndarray,
    mask: np.ndarray,
    truth: np.ndarray,
    size: Sequence[int] | None = None,
) -> np.ndarray:
    """Errors of a mask over the greyed image: red too much, blue missing.

    A smaller picture shows every error, however small, in the colour of the
    greater share of its pixel. What is ignored is no error.

    Args:
        image (np.ndarray): Image, (H, W, 3).
        mask (np.ndarray): Mask, (H, W).
        truth (np.ndarray): True mask, (H, W).
        size (Sequence[int], optional): Rows h and columns w of the picture.
            Defaults to None, those of the image.

    Returns:
        np.ndarray: Picture, (h, w, 3).
    """
    found = mask > 0.5
    return _paint_errors(
        image,
        [
            (found & (truth == 0), TOO_MUCH),
            (~found & (truth == 1), MISSING),
        ],
        size,
    )


def label_image(
    labels: np.ndarray, size: Sequence[int] | None = None
) -> np.ndarray:
    """A label map in colours, the same for the same label; 0 is black.

    Args:
        labels (np.ndarray): Labels, integers of 0 or more, (H, W).
        size (Sequence[int], optional): Rows h and columns w of the picture.
            Defaults to None, those of the map.

    Returns:
        np.ndarray: Picture, (h, w, 3).
    """
    labels = _labels(labels, size)
    # Hues a golden section apart: the first few differ most.
    index = np.arange(labels.max(initial=0) + 1)
    hue = np.rint(180 * (index * 0.618034 % 1)).astype(np.uint8) % 180
    value = np.where(index > 0, 230 - 40 * (index // 8 % 3), 0)
    table = np.stack([hue, np.full_like(hue, 170), value.astype(np.uint8)], -1)
    return cv2.cvtColor(table[None], cv2.COLOR_HSV2RGB)[0][labels]


def find_change(
    before: np.ndarray, after: np.ndarray, size: Sequence[int]
) -> tuple[slice, slice]:
    """Window of an image in which two masks differ most.

    Args:
        before (np.ndarray): Mask, (H, W).
        after (np.ndarray): Mask, (H, W); around its outline where the two do
            not differ, and in the middle where it has none.
        size (Sequence[int]): Rows and columns of the window, at most those of
            the masks.

    Returns:
        tuple[slice, slice]: Its rows and columns.
    """
    change = np.rint(255 * np.abs(after - before)).astype(np.uint8)
    if not change.any():
        labels = (after > 0.5).astype(np.uint8)
        change = labels - cv2.erode(labels, np.ones((3, 3), np.uint8))
    rows, columns = size
    spots = [n - k + 1 for n, k in zip(change.shape, size)]
    if not change.any():
        top, left = (n // 2 for n in spots)
    else:
        total = cv2.boxFilter(
            change,
            cv2.CV_32F,
            (columns, rows),
            anchor=(0, 0),
            normalize=False,
            borderType=cv2.BORDER_CONSTANT,
        )[: spots[0], : spots[1]]
        # The middle of those that hold as much.
        best = np.argwhere(total == total.max())
        top, left = best[len(best) // 2]
    return slice(top, top + rows), slice(left, left + columns)


def refinement_sheet(
    image: np.ndarray,
    coarse: np.ndarray,
    refined: np.ndarray,
    stages: Sequence[tuple[float, np.ndarray]] = (),
    truth: np.ndarray | None = None,
    size: int = 480,
) -> np.ndarray:
    """All there is to see of a refined mask.

    Rows: image with both outlines, coarse and refined and true mask; the
    stages; errors before and after; the place that changed most.

    Args:
        image (np.ndarray): Image, (H, W, 3).
        coarse (np.ndarray): Coarse mask, (H, W).
        refined (np.ndarray): Refined mask, (H, W).
        stages (Sequence[tuple[float, np.ndarray]]): Scale and mask (H, W) of
            each stage. Defaults to none.
        truth (np.ndarray, optional): True mask, (H, W). Defaults to None.
        size (int): Longer side of a picture in pixels. Defaults to 480.

    Returns:
        np.ndarray: Sheet, (H', W', 3).

    Raises:
        ValueError: If a mask is not of the image's size.
    """
    masks = dict(coarse=coarse, refined=refined)
    masks |= {f'stage {k + 1}': x for k, (_, x) in enumerate(stages)}
    if truth is not None:
        masks['true'] = truth
    _check_sizes(image, masks)
    outlines = [(coarse, COARSE), (refined, REFINED)]
    sheet = _Sheet(image.shape[:2], size)
    true = None if truth is None else (truth == 1).astype(np.float32)
    sheet.add_row(
        ('orange coarse, green refined', outline_image, image, outlines),
        ('coarse mask', mask_image, coarse),
        ('refined mask', mask_image, refined),
        truth is not None and ('true mask', mask_image, true),
    )
    shown = [
        (f'stage {k + 1}, scale {scale:g}', mask_image, mask)
        for k, (scale, mask) in enumerate(stages)
    ]
    for start in range(0, len(shown), _COLUMNS):
        sheet.add_row(*shown[start : start + _COLUMNS])
    if truth is not None:
        sheet.add_row(
            (f'before: {_LEGEND}', error_image, image, coarse, truth),
            (f'after: {_LEGEND}', error_image, image, refined, truth),
        )
    window = find_change(coarse, refined, sheet.window)
    crops = [(mask[window], colour) for mask, colour in outlines]
    sheet.add_row(
        (_place(window), _resize, image[window]),
        ('orange coarse, green refined', outline_image, image[window], crops),
        ('refined mask', mask_image, refined[window]),
        truth is not None
        and (
            f'after: {_LEGEND}',
            error_image,
            *(x[window] for x in (image, refined, truth)),
        ),
    )
    return sheet.draw()


def label_sheet(
    image: np.ndarray,
    before: np.ndarray,
    after: np.ndarray,
    truth: np.ndarray | None = None,
    size: int = 480,
) -> np.ndarray:
    """All there is to see of a refined label map.

    Args:
        image (np.ndarray): Image, (H, W, 3).
        before (np.ndarray): Label map, integers of 0 or more, (H, W).
        after (np.ndarray): Refined label map, likewise.
        truth (np.ndarray, optional): True label map, likewise, in which 255
            is ignored. Defaults to None.
        size (int): Longer side of a picture in pixels. Defaults to 480.

    Returns:
        np.ndarray: Sheet, (H', W', 3).

    Raises:
        ValueError: If a map is not of the image's size.
    """
    maps = {'coarse': before, 'refined': after}
    if truth is not None:
        maps['true'] = truth
    _check_sizes(image, maps)
    outlines = [(before, COARSE), (after, REFINED)]
    sheet = _Sheet(image.shape[:2], size)
    sheet.add_row(
        ('orange coarse, green refined', outline_image, image, outlines),
        ('coarse labels', label_image, before),
        ('refined labels', label_image, after),
        truth is not None and ('true labels', label_image, truth),
    )
    if truth is not None:
        sheet.add_row(
            *(
                (
                    f'{name}: red wrong',
                    _paint_errors,
                    image,
                    [((x != truth) & (truth != 255), TOO_MUCH)],
                )
                for name, x in (('before', before), ('after', after))
            )
        )
    changed = (before != after).astype(np.float32)
    window = find_change(np.zeros_like(changed), changed, sheet.window)
    crops = [(x[window], colour) for x, colour in outlines]
    sheet.add_row(
        (_place(window), _resize, image[window]),
        ('orange coarse, green refined', outline_image, image[window], crops),
        ('coarse labels', label_image, before[window]),
        ('refined labels', label_image, after[window]),
    )
    return sheet.draw()


class _Sheet:
    """Rows of pictures that are drawn at the size they are shown at.

    Args:
        extent (Sequence[int]): Rows and columns of the image.
        size (int): Longer side of a picture in pixels.
    """

    def __init__(self, extent: Sequence[int], size: int) -> None:
        longer = max(extent)
        self.size = [max(1, round(n * size / longer)) for n in extent]
        # Enlarged six times, less where that would be a speck of the image.
        factor = min(6, max(2, round(24 * size / longer)))
        side = min(max(1, size // factor), max(1, longer // 2))
        self.window = [max(1, round(n * side / longer)) for n in extent]
        self.rows = []

    def add_row(self, *pictures: tuple | bool) -> None:
        """Add captions, functions and what to draw by them; or a blank."""
        row = [picture and self._panel(*picture) for picture in pictures]
        row = [panel or None for panel in row]
        self.rows.append(row + [None] * (_COLUMNS - len(row)))

    def draw(self) -> np.ndarray:
        """The sheet."""
        column = max(self.size[1], _LEAST_COLUMN)
        return contact_sheet(self.rows, sheet_width(column, _COLUMNS))

    def _panel(self, caption: str, draw: Callable, *args: object) -> Panel:
        picture = draw(*args, size=self.size)
        beside = max(0, _LEAST_COLUMN - picture.shape[1])
        picture = cv2.copyMakeBorder(
            picture, 0, 0, 0, beside, cv2.BORDER_CONSTANT, value=(255,) * 3
        )
        return Panel(caption, torch.from_numpy(picture).movedim(-1, 0) / 255)


def _resize(x: np.ndarray, size: Sequence[int] | None) -> np.ndarray:
    """Resize an image or mask; each axis averages or keeps the pixels."""
    for axis, n in enumerate(size or ()):
        shape = list(x.shape[1::-1])  # as OpenCV counts: columns, rows
        shape[1 - axis] = n
        shrinks = n < x.shape[axis]
        x = cv2.resize(
            x,
            shape,
            interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST,
        )
    return x


def _labels(x: np.ndarray, size: Sequence[int] | None) -> np.ndarray:
    """A mask or label map as labels, (h, w), uint16."""
    if x.dtype.kind == 'f':
        return (_resize(x, size) > 0.5).astype(np.uint16)
    labels = x.astype(np.uint16)
    if size is None:
        return labels
    return cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST)


def _paint_errors(
    image: np.ndarray,
    errors: Sequence[tuple[np.ndarray, Sequence[int]]],
    size: Sequence[int] | None,
) -> np.ndarray:
    """Kinds of errors, bool (H, W), in their colours."""
    grey = cv2.cvtColor(_resize(image, size), cv2.COLOR_RGB2GRAY)
    picture = cv2.cvtColor(96 + grey // 2, cv2.COLOR_GRAY2RGB)
    most = np.zeros(grey.shape, np.float32)
    for wrong, colour in errors:
        share = _resize(wrong.astype(np.float32), size)
        picture[share > most] = colour
        most = np.maximum(most, share)
    return picture


def _place(window: tuple[slice, slice]) -> str:
    """Caption of an enlarged window."""
    rows, columns = window
    return f'enlarged, from row {rows.start}, column {columns.start}'


def _check_sizes(image: np.ndarray, masks: dict[str, np.ndarray]) -> None:
    for name, mask in masks.items():
        if mask.shape != image.shape[:2]:
            raise ValueError(
                f'the {name} mask must have the size of its image, '
                f'{image.shape[:2]}, got {mask.shape}'
            )
