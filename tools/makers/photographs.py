"""Photographs, whole or in windows: scikit-image's or a folder's.

Image (H, W, 3) uint8 RGB.
"""

import functools
import importlib.resources
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

# Files in scikit-image's wheel, read from disk so nothing is downloaded.
TRAIN_PHOTOS = (
    'astronaut.png',
    'camera.png',
    'coffee.png',
    'hubble_deep_field.jpg',
    'ihc.png',
)
VAL_PHOTOS = ('chelsea.png', 'motorcycle_left.png', 'rocket.jpg')
SUFFIXES = ('.jpg', '.jpeg', '.png')
TEXTURES = ('brick.png', 'grass.png', 'gravel.png')


@dataclass(frozen=True)
class Crop:
    """A window of photograph `name`, of any aspect ratio asked for.

    `zoom` in (0, 1] is its side over that of the largest that fits;
    `top` and `left` in [0, 1] place it between the photograph's edges.
    """

    name: str
    zoom: float
    top: float
    left: float


def sample_crop(rng, names, low, high):
    """Draws a `Crop` of one of the photographs, `zoom` in [low, high)."""
    name = names[rng.integers(len(names))]
    return Crop(name, rng.uniform(low, high), rng.random(), rng.random())


def split_photographs(folder):
    """Paths of a folder's photographs by split, every tenth for 'val'.

    Raises:
        ValueError: If there are no two of them.
    """
    found = sorted(
        str(path.resolve())
        for path in Path(folder).rglob('*')
        if path.suffix.lower() in SUFFIXES
    )
    if len(found) < 2:
        raise ValueError(
            f'photographs must be a folder of two images or more, of '
            f'{", ".join(SUFFIXES)}; {folder} has {len(found)}'
        )
    val = tuple(found[::10])
    return {'train': tuple(x for x in found if x not in val), 'val': val}


@functools.lru_cache(maxsize=256)
def photograph(name):
    """Photograph, (h, w, 3) uint8 RGB, not to be written to.

    Args:
        name: Of a file of scikit-image's wheel, or an absolute path.
    """
    path = Path(name)
    if not path.is_absolute():
        path = importlib.resources.files('skimage') / 'data' / name
    image = cv2.imdecode(
        np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR
    )
    if image is None:
        raise ValueError(f'{name} is no image that OpenCV reads')
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def resized_crop(crop, height, width):
    """The window of a `Crop` as (height, width, 3) uint8 RGB."""
    photo = photograph(crop.name)
    rows, cols = photo.shape[:2]
    scale = crop.zoom * min(rows / height, cols / width)
    h, w = (max(round(side * scale), 1) for side in (height, width))
    top, left = round(crop.top * (rows - h)), round(crop.left * (cols - w))
    window = photo[top : top + h, left : left + w]
    method = cv2.INTER_AREA if scale > 1 else cv2.INTER_CUBIC
    return cv2.resize(window, (width, height), interpolation=method)
