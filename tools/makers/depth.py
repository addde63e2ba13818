"""Crops of a photograph and its depth, from its stereo disparity.

Shapes: image (H, W, 3) uint8 RGB, depth (H, W) uint16 in millimetres, 0 where
unknown.
"""

import functools
import importlib.resources
from pathlib import Path

import cv2
import numpy as np

from .files import SPLITS, check_size, write_image, write_set
from .photographs import photograph

# The photograph of scikit-image that has a disparity for each of its pixels,
# and its camera: focal length and offset of the principal points in pixels,
# baseline in millimetres (text of skimage.data.stereo_motorcycle).
STEREO_PHOTO, STEREO_DISPARITY = 'motorcycle_left.png', 'motorcycle_disp.npz'
FOCAL, OFFSET, BASELINE = 994.978, 31.086, 193.001
SIDES = ('left', 'right')


@functools.cache
def stereo_depth():
    """Depth of the photograph of a motorcycle, from its stereo disparity.

    Returns:
        (500, 741) uint16 depth in millimetres along the optical axis, 2110 to
        5017, and 0 at the 7 % of pixels without disparity; not to be written
        to.
    """
    path = importlib.resources.files('skimage') / 'data' / STEREO_DISPARITY
    with path.open('rb') as file, np.load(file) as arrays:
        disparity = arrays['arr_0'].astype(np.float64)
    depth = FOCAL * BASELINE / (disparity + OFFSET)
    depth[~np.isfinite(disparity)] = 0
    return np.rint(depth).astype(np.uint16)


def depth_windows(split, size, seed=0, count=24, held_out='right'):
    """Places of a split's crops; the two splits share no pixel.

    The photograph is halved by a vertical line. The training crops lie
    anywhere in one half and overlap each other, the validation crops tile
    the other half and do not.

    Args:
        split: 'train' or 'val'.
        size: (height, width) in pixels of a crop.
        seed: Of the places for training, >= 0.
        count: Number of crops for training, >= 1.
        held_out: Half for validation, 'left' or 'right'.

    Returns:
        List of (top, left) in pixels.
    """
    if split not in SPLITS:
        raise ValueError(f'split must be one of {SPLITS}, got {split!r}')
    if held_out not in SIDES:
        raise ValueError(f'held-out must be one of {SIDES}, got {held_out!r}')
    height, width = stereo_depth().shape
    half = width // 2
    check_size(size)
    if size[0] > height or size[1] > half:
        raise ValueError(
            f'size (height width) must be at most {height} {half}, got '
            f'{size[0]} {size[1]}'
        )
    on_right = (split == 'val') == (held_out == 'right')
    start = width - half if on_right else 0
    if split == 'train':
        ends = (height - size[0] + 1, half - size[1] + 1)
        places = np.random.default_rng(seed).integers(0, ends, (count, 2))
        return [(top, start + left) for top, left in places.tolist()]
    tops, lefts = _tiles(height, size[0]), _tiles(half, size[1])
    return [(top, start + left) for top in tops for left in lefts]


def _tiles(length, size):
    """Starts of as many stretches of `size` as fit in `length`, spread."""
    count = length // size
    return [((2 * i + 1) * length // count - size) // 2 for i in range(count)]


def write_depth(out, size, seed, count, held_out='right', overwrite=False):
    """Writes ``{images,depth}/{train,val}/*.png`` and, last, meta.json.

    Args:
        out: Folder, made if missing.
        size: (height, width) in pixels of a crop.
        seed: >= 0.
        count: Number of crops for training, >= 1.
        held_out: Half for validation, 'left' or 'right'.
        overwrite: Whether to replace a different set in `out`.

    Returns:
        True if the set was written, False if it was there already.
    """
    if count < 1:
        raise ValueError(f'num-train must be at least 1, got {count}')
    if seed < 0:
        raise ValueError(f'seed must be at least 0, got {seed}')
    windows = {
        split: depth_windows(split, size, seed, count, held_out)
        for split in SPLITS
    }
    meta = {'kind': 'depth', 'unit': 'mm', 'size': list(size), 'seed': seed}
    meta |= {'held_out': held_out}
    meta |= {'counts': {split: len(windows[split]) for split in SPLITS}}
    bgr = cv2.cvtColor(photograph(STEREO_PHOTO), cv2.COLOR_RGB2BGR)

    def write(root):
        for split in SPLITS:
            for index, (top, left) in enumerate(windows[split]):
                box = np.s_[top : top + size[0], left : left + size[1]]
                name = f'{split}/motorcycle_{index:03d}.png'
                write_image(root / 'images' / name, bgr[box])
                write_image(root / 'depth' / name, stereo_depth()[box])

    return write_set(Path(out), meta, ('images', 'depth'), overwrite, write)
