"""Shapes drawn over photographs, with their classes.

Shapes: image (H, W, 3) uint8 RGB, label (H, W) uint8 class ids 0..C-1.
Coordinates: units of the image HEIGHT, x right and y down from the top
left corner; the centre of pixel (row i, column j) is at
x = (j + 0.5) / H, y = (i + 0.5) / H. Angles are radians from x towards y.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from .files import (
    SPLITS,
    check_counts,
    check_size,
    split_rng,
    write_image,
    write_set,
)
from .photographs import (
    TEXTURES,
    TRAIN_PHOTOS,
    VAL_PHOTOS,
    Crop,
    resized_crop,
    sample_crop,
)

CLASSES = ('background', 'disc', 'ring', 'triangle', 'star', 'bar')
PALETTE = [
    [0, 0, 0],
    [225, 55, 55],
    [225, 195, 40],
    [60, 190, 75],
    [60, 110, 230],
    [205, 70, 210],
]
# Ranges of a kind's radius and width, in image heights.
EXTENTS = {
    'disc': ((0.10, 0.22), (0.0, 0.0)),
    'ring': ((0.10, 0.25), (0.02, 0.03)),
    'triangle': ((0.14, 0.26), (0.18, 0.36)),
    'star': ((0.16, 0.28), (0.06, 0.10)),
    'bar': ((0.20, 0.55), (0.02, 0.03)),
}
SPIKES = 5


@dataclass(frozen=True)
class Shape:
    """A filled shape; u runs along `angle` from the centre (x, y).

    disc: radius. ring: `width` thick about the circle of `radius`.
    triangle: corners (radius, 0), (-radius, +-width / 2) in (u, v).
    star: five spikes to `radius`, notches at width / 2, one spike along u.
    bar: |u| <= radius, |v| <= width / 2.
    The fill is `texture` over the bounding box with mean colour `tint`
    (RGB, 0 to 255); `contrast` and `opacity` are 0 to 1.
    """

    kind: str
    x: float
    y: float
    radius: float
    width: float
    angle: float
    tint: tuple
    texture: Crop
    contrast: float = 0.5
    opacity: float = 1.0

    def __post_init__(self):
        """Refuses an unknown kind."""
        if self.kind not in CLASSES[1:]:
            raise ValueError(
                f'kind must be one of {CLASSES[1:]}, got {self.kind!r}'
            )


@dataclass(frozen=True)
class Scene:
    """Shapes, later ones in front, over a photograph.

    `saturation` is the colour kept in it, 0 (grey) to 1 (all).
    """

    background: Crop
    saturation: float
    shapes: tuple


def _sample_shape(rng, kind, aspect_ratio):
    radius, width = EXTENTS[kind]
    # Brightness, and a little of each channel on its own, so that the
    # exact colour does not give the class away.
    gain = rng.uniform(0.6, 1.1) * rng.uniform(0.9, 1.1, 3)
    tint = np.clip(PALETTE[CLASSES.index(kind)] * gain, 0, 255)
    return Shape(
        kind,
        x=rng.random() * aspect_ratio,
        y=rng.random(),
        radius=rng.uniform(*radius),
        width=rng.uniform(*width),
        angle=rng.uniform(0, 2 * math.pi),
        tint=tuple(tint.tolist()),
        texture=sample_crop(rng, TEXTURES, 0.3, 0.8),
        contrast=rng.uniform(0.4, 0.9),
        opacity=rng.uniform(0.8, 1.0),
    )


def sample_scene(rng, aspect_ratio, photos=TRAIN_PHOTOS):
    """Draws a scene, which no resolution enters.

    Args:
        rng: ``np.random.Generator``, advanced by the call.
        aspect_ratio: Width over height, > 0.
        photos: File names of the photographs to choose from.

    Returns:
        `Scene` of 2 or 3 solid shapes under 3 to 5 thin ones.
    """
    if not 0 < aspect_ratio < math.inf:
        raise ValueError(f'aspect_ratio must be > 0, got {aspect_ratio}')
    background = sample_crop(rng, photos, 0.4, 1.0)
    saturation = rng.uniform(0.2, 0.6)
    # The solid ones go first, or they would hide the thin ones.
    kinds = [
        *rng.choice(['disc', 'triangle'], rng.integers(2, 4)),
        *rng.choice(['ring', 'star', 'bar'], rng.integers(3, 6)),
    ]
    shapes = (_sample_shape(rng, str(kind), aspect_ratio) for kind in kinds)
    return Scene(background, saturation, tuple(shapes))


def _segment_distance(u, v, start, end):
    """Distance to a segment, negative on the side of cross product < 0."""
    du, dv = end[0] - start[0], end[1] - start[1]
    pu, pv = u - start[0], v - start[1]
    t = np.clip((pu * du + pv * dv) / (du * du + dv * dv), 0, 1)
    distance = np.sqrt((pu - t * du) ** 2 + (pv - t * dv) ** 2)
    return np.copysign(distance, pu * dv - pv * du)


def _triangle_distance(u, v, radius, width):
    corner = (-radius, width / 2)
    v = np.abs(v)  # by symmetry one leg and half the base are enough
    leg = _segment_distance(u, v, (radius, 0.0), corner)
    return np.maximum(leg, _segment_distance(u, v, corner, (-radius, 0.0)))


def _star_distance(u, v, radius, width):
    step = 2 * math.pi / SPIKES
    spike = np.rint(np.arctan2(v, u) / step).astype(np.intp)
    turns = np.arange(SPIKES) * step  # index -k is the turn by -k steps
    cos, sin = np.cos(turns)[spike], np.sin(turns)[spike]
    u, v = u * cos + v * sin, np.abs(v * cos - u * sin)
    notch = (width / 2 * math.cos(step / 2), width / 2 * math.sin(step / 2))
    return _segment_distance(u, v, (radius, 0.0), notch)


def _bar_distance(u, v, radius, width):
    u, v = np.abs(u) - radius, np.abs(v) - width / 2
    outside = np.sqrt(np.maximum(u, 0) ** 2 + np.maximum(v, 0) ** 2)
    return outside + np.minimum(np.maximum(u, v), 0)


def signed_distance(shape, x, y):
    """Euclidean distance to a shape's outline, negative inside.

    Args:
        shape: A `Shape`.
        x: float64 array of coordinates in image heights.
        y: Likewise, broadcastable with `x`.

    Returns:
        float64 array of the broadcast shape, in image heights.
    """
    cos, sin = math.cos(shape.angle), math.sin(shape.angle)
    x, y = x - shape.x, y - shape.y
    u, v = x * cos + y * sin, y * cos - x * sin
    if shape.kind == 'triangle':
        return _triangle_distance(u, v, shape.radius, shape.width)
    if shape.kind == 'star':
        return _star_distance(u, v, shape.radius, shape.width)
    if shape.kind == 'bar':
        return _bar_distance(u, v, shape.radius, shape.width)
    distance = np.sqrt(u * u + v * v) - shape.radius
    if shape.kind == 'ring':
        return np.abs(distance) - shape.width / 2
    return distance


def _bounding_box(shape, height):
    """Pixel box (top, bottom, left, right), not clipped to the image."""
    ex = ey = shape.radius + shape.width / 2
    if shape.kind in ('triangle', 'bar'):  # much tighter when thin
        cos, sin = abs(math.cos(shape.angle)), abs(math.sin(shape.angle))
        ex = shape.radius * cos + shape.width / 2 * sin
        ey = shape.radius * sin + shape.width / 2 * cos
    # One pixel more, for the soft edge reaches half a pixel outside.
    return (
        math.floor((shape.y - ey) * height) - 1,
        math.ceil((shape.y + ey) * height) + 1,
        math.floor((shape.x - ex) * height) - 1,
        math.ceil((shape.x + ex) * height) + 1,
    )


def _draw(shape, image, label):
    """Draws a shape into `image` and `label` in place, in its box only."""
    height, width = label.shape
    y0, y1, x0, x1 = _bounding_box(shape, height)
    top, bottom = max(y0, 0), min(y1, height)
    left, right = max(x0, 0), min(x1, width)
    if top >= bottom or left >= right:
        return
    box = np.s_[top:bottom, left:right]
    x = (np.arange(left, right) + 0.5) / height
    y = (np.arange(top, bottom)[:, None] + 0.5) / height
    distance = signed_distance(shape, x, y)
    label[box][distance <= 0] = CLASSES.index(shape.kind)

    alpha = np.clip(0.5 - distance * height, 0, 1) * shape.opacity
    alpha = alpha.astype(np.float32)[..., None]
    # The texture spans the unclipped box, to lie alike at any resolution.
    grain = resized_crop(shape.texture, y1 - y0, x1 - x0)
    grain = cv2.cvtColor(grain, cv2.COLOR_RGB2GRAY)
    mean = max(float(grain.mean()), 1.0)
    grain = grain[top - y0 : bottom - y0, left - x0 : right - x0]
    gain = 1 + shape.contrast * (grain.astype(np.float32) / mean - 1)
    fill = np.clip(gain[..., None] * np.float32(shape.tint), 0, 255)
    image[box] = np.rint(fill * alpha + image[box] * (1 - alpha))


def render(scene, height, width):
    """Draws a scene; its labels are exact, its image has soft edges.

    Args:
        scene: A `Scene`; shapes beyond the image are cut.
        height: In pixels, >= 16.
        width: In pixels, >= 16, the scene's aspect ratio times `height`.

    Returns:
        image (height, width, 3) uint8 RGB and label (height, width) uint8,
        the class of the last shape that holds the pixel's centre, or 0.
    """
    check_size((height, width))
    image = resized_crop(scene.background, height, width)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    grey = cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB)
    keep = scene.saturation
    image = cv2.addWeighted(image, keep, grey, 1 - keep, 0)
    label = np.zeros((height, width), np.uint8)
    for shape in scene.shapes:
        _draw(shape, image, label)
    return image, label


def shapes_scene(seed, split, index, aspect_ratio):
    """Scene `index` >= 0 of a split, whatever the split's length.

    Args:
        seed: Seed of the set, >= 0.
        split: 'train' or 'val', which have different backgrounds.
        index: Number of the image, >= 0.
        aspect_ratio: Width over height, > 0.
    """
    rng = split_rng(seed, split, index)
    photos = TRAIN_PHOTOS if split == 'train' else VAL_PHOTOS
    return sample_scene(rng, aspect_ratio, photos)


def _write_item(root, seed, split, index, size):
    scene = shapes_scene(seed, split, index, size[1] / size[0])
    image, label = render(scene, *size)
    name = f'{split}/{index:06d}.png'
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    write_image(root / 'images' / name, bgr)
    write_image(root / 'labels' / name, label)


def write_shapes(out, counts, size, seed, overwrite=False):
    """Writes ``{images,labels}/{train,val}/*.png`` and, last, meta.json.

    Args:
        out: Folder, made if missing.
        counts: Dict of the number of images, >= 1, of 'train' and 'val'.
        size: (height, width) in pixels, each >= 16.
        seed: >= 0.
        overwrite: Whether to replace a different set in `out`.

    Returns:
        True if the set was written, False if it was there already.
    """
    check_counts(counts, seed)
    check_size(size)
    meta = {'kind': 'shapes', 'classes': list(CLASSES), 'palette': PALETTE}
    meta |= {'size': list(size), 'seed': seed, 'counts': dict(counts)}

    def write(root):
        for split in SPLITS:
            for index in range(counts[split]):
                _write_item(root, seed, split, index, size)

    return write_set(Path(out), meta, ('images', 'labels'), overwrite, write)
