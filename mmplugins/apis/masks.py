"""Masks of any kind as arrays, and the files of images and their masks.

H x W image. A probability is that of the foreground, (H, W), float32, in
[0, 1].
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from mmplugins.crm.loading import IGNORE_INDEX, read_mask

from .inference import times
from .launch import require_file

_SUFFIXES = {'.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp'}
_EXIF_ORIENTATION = 0x0112


class Files(NamedTuple):
    """Files that belong together."""

    image: str
    mask: str
    truth: str | None = None


def as_probability(mask: np.ndarray) -> np.ndarray:
    """A mask of any type as a probability.

    Args:
        mask (np.ndarray): Mask, (..., H, W): bool; floating in [0, 1]; or
            integers, soft ones too, of which the full value is the least of
            1, 255 and 65535 that no value exceeds.

    Returns:
        np.ndarray: Probability, (..., H, W).

    Raises:
        ValueError: If it holds other values.
    """
    low, high = mask.min(initial=0), mask.max(initial=0)
    if mask.dtype.kind == 'f':
        if not 0 <= low <= high <= 1:  # nor what is not a number
            raise ValueError(
                f'a floating mask must be in [0, 1], got {low:g} to {high:g}'
            )
        return mask.astype(np.float32)
    full = next((x for x in (1, 255, 65535) if high <= x), None)
    if mask.dtype.kind not in 'bui' or low < 0 or full is None:
        raise ValueError(
            'a mask must be bool, floating in [0, 1] or integers of 0 to 255 '
            f'or to 65535, got {mask.dtype} of {low} to {high}'
        )
    if full == 255 and {*np.unique(mask).tolist()} == {0, 1, 255}:
        raise ValueError(
            'a mask of 0, 1 and 255 alone is a label map, of which 255 is '
            'ignored: refine it as such, or only where it is 1'
        )
    return mask.astype(np.float32) / np.float32(full)


def read_probability(path: str) -> np.ndarray:
    """Read a mask, binary or soft; of a palette every index above 0 counts.

    Args:
        path (str): File.

    Returns:
        np.ndarray: Probability, (H, W).

    Raises:
        ValueError: If there is no such file or it is no mask.
    """
    return _probability(path, *_read(path))


def read_truth(path: str) -> np.ndarray:
    """Read a true mask.

    Args:
        path (str): File as of :func:`read_probability`; one of 0, 1 and 255
            ignores what is 255.

    Returns:
        np.ndarray: 1 foreground, 0 background, 255 ignored, (H, W), uint8.

    Raises:
        ValueError: If there is no such file or it is no mask.
    """
    values, indexed = _read(path)
    if (values == 1).any() and np.isin(values, (0, 1, IGNORE_INDEX)).all():
        return values.astype(np.uint8)
    return (_probability(path, values, indexed) > 0.5).astype(np.uint8)


def read_labels(path: str) -> np.ndarray:
    """Read a label map, of a palette or grey.

    Args:
        path (str): File.

    Returns:
        np.ndarray: Labels of 0 to 65535, (H, W), int32.

    Raises:
        ValueError: If there is no such file or it is no label map.
    """
    values, _ = _read(path)
    if values.dtype.kind not in 'ui' or not 0 <= values.max() < 2**16:
        raise ValueError(
            f'{path} is no map of labels 0 to 65535, it has {values.dtype} '
            f'up to {values.max()}'
        )
    return values.astype(np.int32)


def fit_mask(
    what: str,
    path: str,
    mask: np.ndarray,
    image_path: str,
    image: np.ndarray,
    resize: bool = False,
) -> np.ndarray:
    """A mask of the size of its image, or an error.

    Args:
        what (str): What the mask is to the user.
        path (str): Its file.
        mask (np.ndarray): Probability or, integers, labels, (h, w).
        image_path (str): File of the image.
        image (np.ndarray): Image, (H, W, 3).
        resize (bool): Resize a mask of another size. Defaults to False.

    Returns:
        np.ndarray: Mask, (H, W).

    Raises:
        ValueError: If it has another size and is not to be resized.
    """
    size = image.shape[:2]
    if mask.shape == size:
        return mask
    if resize:
        mode = cv2.INTER_NEAREST
        if mask.dtype.kind == 'f':
            shrinks = mask.size > size[0] * size[1]
            mode = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        return cv2.resize(mask, size[::-1], interpolation=mode)
    text = (
        f'{what} {path} is of {times(mask.shape)} pixels, its image '
        f'{image_path} of {times(size)}'
    )
    if mask.shape == size[::-1] and _is_turned(image_path):
        text += ', for EXIF turns it: turn the mask alike'
    elif what == 'mask':
        text += ': --resize-mask resizes it'
    raise ValueError(text)


def find_files(
    paths: Sequence[str], masks: str | None = None, truth: str | None = None
) -> list[Files]:
    """Files that belong together.

    Args:
        paths (Sequence[str]): Image and mask in turns, each a file or both a
            folder; with ``masks`` images and folders of them.
        masks (str, optional): Folder of masks, or the mask of the one image.
            Defaults to None.
        truth (str, optional): The same of true masks. Defaults to None.

    Returns:
        list[Files]: Of each image. What is in folders goes together by the
        names without suffix.

    Raises:
        ValueError: If something is missing or not clear.
    """
    if masks is None:
        if len(paths) % 2:
            raise ValueError(
                f'IMAGE and MASK come in pairs, got {len(paths)} paths: give '
                'a folder of masks by --masks'
            )
        pairs = [*zip(paths[::2], paths[1::2])]
    else:
        pairs = [(path, masks) for path in paths]
    found = []
    for path, mask in pairs:
        if not Path(path).is_dir():
            require_file('image', path)
            found.append((path, mask))
            continue
        if not Path(mask).is_dir():
            raise ValueError(
                f'images of the folder {path} need a folder of masks, got '
                f'{mask}'
            )
        if Path(path).samefile(mask):
            raise ValueError(
                f'images and masks are in one folder, {path}: name the files'
            )
        images = [x for x in sorted(Path(path).iterdir()) if _is_picture(x)]
        if not images:
            raise ValueError(f'no image in {path}')
        found += [(str(image), mask) for image in images]
    single = len(found) == 1
    if not single and masks is not None and not Path(masks).is_dir():
        raise ValueError(f'--masks {masks} is one file for several images')
    if not single and truth is not None and not Path(truth).is_dir():
        raise ValueError(f'--truth {truth} is no folder: there are several')
    return [
        Files(
            image,
            _match('mask', mask, image),
            truth and _match('--truth', truth, image),
        )
        for image, mask in found
    ]


def _match(what: str, path: str, image: str) -> str:
    """A file itself, or the file of a folder that is named as an image."""
    if not Path(path).is_dir():
        require_file(what, path)
        return path
    stem = Path(image).stem
    found = [
        x
        for x in sorted(Path(path).iterdir())
        if x.stem == stem and _is_picture(x)
    ]
    if len(found) != 1:
        names = ' and '.join(x.name for x in found) or 'none'
        raise ValueError(
            f'{what} of {image}: one file {stem}.* has to be in {path}, '
            f'there is {names}'
        )
    return str(found[0])


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES and not path.name.startswith('.')


def _is_turned(path: str) -> bool:
    """Whether EXIF says that rows of a file are columns of the image."""
    with Image.open(path) as image:
        return image.getexif().get(_EXIF_ORIENTATION, 1) > 4


def _read(path: str) -> tuple[np.ndarray, bool]:
    """Values (H, W) of a file, and whether they index a palette."""
    require_file('mask', path)
    return read_mask(path)


def _probability(path: str, values: np.ndarray, indexed: bool) -> np.ndarray:
    """Values of a file as a probability."""
    try:
        return as_probability(values > 0 if indexed else values)
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from error
