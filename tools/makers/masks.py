"""One object drawn over a photograph, with its exact mask, up to 4K.

Shapes: image (H, W, 3) uint8 RGB, mask (H, W) uint8, 255 where the pixel's
centre is in the object, else 0. Coordinates: units of the image HEIGHT, x
right and y down from the top left corner; the centre of pixel (row i, column
j) is at x = (j + 0.5) / H, y = (i + 0.5) / H. Angles are radians from x
towards y. A scene is the same at any resolution.

An object is a wavy body with holes and strands that taper to a pixel or two,
or a thicket of leaves all over the image, of a colour near that of its
background. Others like it, which are no foreground, lie behind.
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
    photograph,
    resized_crop,
    sample_crop,
    split_photographs,
)

# Height at which the grain of a surface has the pixels of its photograph.
GRAIN_HEIGHT = 2160
JPEG_QUALITY = 95
# What is drawn: one body, or plants all over the image.
KINDS = ('objects', 'thickets')
PHOTOS = {'train': TRAIN_PHOTOS, 'val': VAL_PHOTOS}


@dataclass(frozen=True)
class Blob:
    """Points within r(t) = radius (1 + sum a cos(k t + p)) of the centre.

    `waves` are triples (k, a, p), the amplitudes a of a sum below 1.
    """

    x: float
    y: float
    radius: float
    waves: tuple = ()

    def distance(self, x, y):
        """About the distance to the outline, of exact sign; see `Part`."""
        u, v = x - self.x, y - self.y
        centre = np.sqrt(u * u + v * v)
        angle = np.arctan2(v, u)
        edge, slope = np.ones_like(centre), np.zeros_like(centre)
        for k, amplitude, phase in self.waves:
            edge += amplitude * np.cos(k * angle + phase)
            slope -= k * amplitude * np.sin(k * angle + phase)
        return (centre - self.radius * edge) / np.hypot(1, slope / edge)

    def box(self):
        """Bounds (top, bottom, left, right)."""
        extent = self.radius * (1 + sum(abs(a) for _, a, _ in self.waves))
        return (
            self.y - extent,
            self.y + extent,
            self.x - extent,
            self.x + extent,
        )


@dataclass(frozen=True)
class Strand:
    """An arc that starts at (x, y) towards `angle`, `width` thick there.

    It is `length` long, turns by `bend` radians in (0, pi) on the way,
    towards larger angles, and thins evenly to `tip` times its width.
    """

    x: float
    y: float
    angle: float
    length: float
    width: float
    bend: float = 0.5
    tip: float = 0.3

    def distance(self, x, y):
        """About the distance to the outline, of exact sign; see `Part`."""
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        x, y = x - self.x, y - self.y
        u, v = x * cos + y * sin, y * cos - x * sin
        radius = self.length / self.bend
        # Angle at the arc's centre (0, radius), 0 at the start.
        turn = np.arctan2(u, radius - v)
        # Behind the middle of the gap the end is nearer than the start.
        turn = np.where(turn < self.bend / 2 - math.pi, self.bend, turn)
        turn = np.clip(turn, 0, self.bend)
        distance = np.hypot(
            u - radius * np.sin(turn), v - radius * (1 - np.cos(turn))
        )
        thickness = 1 - (1 - self.tip) * turn / self.bend
        return distance - self.width / 2 * thickness

    def box(self):
        """Bounds (top, bottom, left, right)."""
        radius = self.length / self.bend
        turn = np.linspace(0, self.bend, 33)
        u, v = radius * np.sin(turn), radius * (1 - np.cos(turn))
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        x, y = self.x + u * cos - v * sin, self.y + u * sin + v * cos
        # Between two of the points the arc bulges by less than this.
        margin = self.width / 2 + self.length / 500
        return (
            y.min() - margin,
            y.max() + margin,
            x.min() - margin,
            x.max() + margin,
        )


@dataclass(frozen=True)
class Part:
    """A figure that is added to an object, or cut out of those before.

    A figure's `distance(x, y)` is negative inside; `x` and `y` are float64
    arrays that broadcast, all in image heights.
    """

    figure: Blob | Strand
    hole: bool = False


@dataclass(frozen=True)
class Surface:
    """Window of a photograph over the object, less its mean colour.

    The result is `tint` (RGB, 0 to 255) plus `contrast` times it, and
    `grain`, a fine texture's name, of `roughness` levels.
    """

    crop: Crop
    tint: tuple
    contrast: float
    grain: str
    roughness: float


@dataclass(frozen=True)
class MaskScene:
    """Objects, the last one in front, over a photograph.

    Each is a pair of its parts and its `Surface`. An edge is `softness`
    pixels wide in the image. `noise` seeds the sensor's.
    """

    background: Surface
    objects: tuple
    softness: float = 1.0
    noise: int = 0


def object_distance(parts, height, box):
    """About the distance to an object's outline, negative inside.

    Its sign is exact.

    Args:
        parts: Sequence of `Part`.
        height: Of the image in pixels.
        box: Pixels (top, bottom, left, right), the ends excluded.

    Returns:
        float64 array of these pixels, in pixels; infinite away from all
        parts.
    """
    top, bottom, left, right = box
    distance = np.full((bottom - top, right - left), np.inf)
    for part in parts:
        y0, y1, x0, x1 = _pixel_box(part.figure, height)
        y0, y1 = max(y0, top), min(y1, bottom)
        x0, x1 = max(x0, left), min(x1, right)
        if y0 >= y1 or x0 >= x1:
            continue
        x = (np.arange(x0, x1) + 0.5) / height
        y = (np.arange(y0, y1)[:, None] + 0.5) / height
        own = part.figure.distance(x, y) * height
        view = distance[y0 - top : y1 - top, x0 - left : x1 - left]
        if part.hole:
            np.maximum(view, -own, out=view)
        else:
            np.minimum(view, own, out=view)
    return distance


def _pixel_box(figure, height):
    """Pixel box (top, bottom, left, right), not clipped to the image."""
    top, bottom, left, right = (side * height for side in figure.box())
    # Two pixels more for the soft edge.
    return (
        math.floor(top) - 2,
        math.ceil(bottom) + 2,
        math.floor(left) - 2,
        math.ceil(right) + 2,
    )


def render_mask(scene, height, width):
    """Draws a scene; its mask is exact, its image has soft edges.

    Args:
        scene: A `MaskScene`; objects beyond the image are cut.
        height: In pixels, >= 16.
        width: In pixels, >= 16, the scene's aspect ratio times `height`.

    Returns:
        image (height, width, 3) uint8 RGB and mask (height, width) uint8 of
        the last object, 255 where it holds the pixel's centre, else 0.
    """
    check_size((height, width))
    whole = (0, height, 0, width)
    image = _surface(scene.background, height, whole, whole)
    mask = np.zeros((height, width), np.uint8)
    for parts, surface in scene.objects:
        boxes = np.array([_pixel_box(part.figure, height) for part in parts])
        outer = (*_spread(boxes[:, :2]), *_spread(boxes[:, 2:]))
        top, bottom = max(outer[0], 0), min(outer[1], height)
        left, right = max(outer[2], 0), min(outer[3], width)
        mask[:] = 0
        if top >= bottom or left >= right:
            continue
        inner = (top, bottom, left, right)
        distance = object_distance(parts, height, inner)
        box = np.s_[top:bottom, left:right]
        mask[box][distance <= 0] = 255
        alpha = np.clip(0.5 - distance / scene.softness, 0, 1)
        alpha = alpha.astype(np.float32)[..., None]
        fill = _surface(surface, height, outer, inner)
        image[box] += alpha * (fill - image[box])
    rng = np.random.default_rng(scene.noise)
    image += 2 * rng.standard_normal(image.shape, np.float32)
    return np.rint(np.clip(image, 0, 255)).astype(np.uint8), mask


def _spread(bounds):
    return int(bounds[:, 0].min()), int(bounds[:, 1].max())


def _surface(surface, height, outer, inner):
    """Colours (h, w, 3) float32 of the box `inner` of the box `outer`."""
    top, bottom, left, right = outer
    picture = resized_crop(surface.crop, bottom - top, right - left)
    mean = np.float32(picture.reshape(-1, 3).mean(0))
    y0, y1, x0, x1 = inner
    picture = picture[y0 - top : y1 - top, x0 - left : x1 - left]
    colours = np.float32(surface.contrast) * (picture - mean)
    colours += np.float32(surface.tint)
    grain = _grain(surface.grain, height)
    rows = np.arange(y0 - top, y1 - top) % len(grain)
    cols = np.arange(x0 - left, x1 - left) % grain.shape[1]
    colours += surface.roughness * grain[np.ix_(rows, cols)][..., None]
    return colours


def _grain(name, height):
    """Tile of a fine texture, (h, w) float32 of mean 0 and deviation 1."""
    grey = cv2.cvtColor(photograph(name), cv2.COLOR_RGB2GRAY)
    grey = np.hstack([grey, grey[:, ::-1]])
    grey = np.vstack([grey, grey[::-1]]).astype(np.float32)
    grey = (grey - grey.mean()) / grey.std()
    scale = height / GRAIN_HEIGHT
    if scale >= 1:
        return grey
    size = [max(round(side * scale), 1) for side in grey.shape[::-1]]
    return cv2.resize(grey, size, interpolation=cv2.INTER_AREA)


def mask_scene(seed, split, index, aspect_ratio, photos=None, kind='objects'):
    """Scene `index` >= 0 of a split, whatever the split's length.

    Args:
        seed: Seed of the set, >= 0.
        split: 'train' or 'val', which have different backgrounds.
        index: Number of the image, >= 0.
        aspect_ratio: Width over height, > 0.
        photos: Photographs of each split. Defaults to None, scikit-image's.
        kind: Of `KINDS`. Defaults to 'objects'.
    """
    rng = split_rng(seed, split, index)
    photos = (photos or PHOTOS)[split]
    crop = sample_crop(rng, photos, 0.5, 1.0)
    mean = photograph(crop.name).reshape(-1, 3).mean(0)
    background = Surface(
        crop,
        tint=tuple(mean.tolist()),
        contrast=rng.uniform(0.6, 1.0),
        grain=str(rng.choice(TEXTURES)),
        roughness=rng.uniform(2, 8),
    )
    sample, softness = {
        'objects': (_sample_object, (1.0, 3.0)),
        'thickets': (_sample_thicket, (1.0, 6.0)),
    }[kind]
    objects = [
        (
            sample(rng, aspect_ratio),
            _sample_surface(rng, photos, mean),
        )
        for _ in range(rng.integers(1, 4))
    ]
    return MaskScene(
        background,
        tuple(objects),
        softness=rng.uniform(*softness),
        noise=int(rng.integers(2**31)),
    )


def _sample_surface(rng, photos, mean):
    """A colour 30 to 80 levels from the background's mean."""
    step = rng.standard_normal(3) + 1.5 * rng.standard_normal()
    step *= rng.uniform(30, 80) / np.linalg.norm(step)
    tint = np.where((mean + step < 0) | (mean + step > 255), -step, step)
    tint += mean
    return Surface(
        sample_crop(rng, (*photos, *TEXTURES), 0.3, 0.9),
        tint=tuple(tint.tolist()),
        contrast=rng.uniform(0.3, 0.7),
        grain=str(rng.choice(TEXTURES)),
        roughness=rng.uniform(3, 12),
    )


def _sample_object(rng, aspect_ratio):
    waves = tuple(
        (k, rng.uniform(-0.35, 0.35) / k, rng.uniform(0, 2 * math.pi))
        for k in range(2, 8)
    )
    body = Blob(
        x=rng.uniform(0.15, 0.85) * aspect_ratio,
        y=rng.uniform(0.2, 0.8),
        radius=rng.uniform(0.12, 0.28),
        waves=waves,
    )
    parts = [Part(body)]
    for _ in range(rng.integers(0, 4)):
        away, angle = rng.uniform(0, 0.6), rng.uniform(0, 2 * math.pi)
        hole = Blob(
            x=body.x + away * body.radius * math.cos(angle),
            y=body.y + away * body.radius * math.sin(angle),
            radius=body.radius * rng.uniform(0.05, 0.25),
            waves=((2, rng.uniform(0, 0.4), rng.uniform(0, 2 * math.pi)),),
        )
        parts.append(Part(hole, hole=True))
    # At 2160 rows the tips are 1 to 10 pixels wide.
    for _ in range(rng.integers(3, 11)):
        angle = rng.uniform(0, 2 * math.pi)
        start = 0.6 * body.radius
        parts.append(
            Part(
                Strand(
                    x=body.x + start * math.cos(angle),
                    y=body.y + start * math.sin(angle),
                    angle=angle + rng.uniform(-0.6, 0.6),
                    length=body.radius * rng.uniform(0.8, 2.2),
                    width=math.exp(rng.uniform(*np.log([0.0015, 0.03]))),
                    bend=rng.uniform(0.1, 2.0),
                    tip=rng.uniform(0.3, 1.0),
                )
            )
        )
    return tuple(parts)


def _sample_thicket(rng, aspect_ratio):
    """Plants: of each, stems from one point, and leaves along the stems."""
    parts = []
    for _ in range(rng.integers(4, 13)):
        x, y = rng.random() * aspect_ratio, rng.random()
        size = math.exp(rng.uniform(*np.log([0.08, 0.4])))
        width = size * math.exp(rng.uniform(*np.log([0.04, 0.25])))
        num_leaves = rng.integers(0, 9)
        for _ in range(rng.integers(3, 10)):
            stem = Strand(
                x=x,
                y=y,
                angle=rng.uniform(0, 2 * math.pi),
                length=size * rng.uniform(0.5, 1.0),
                width=width * rng.uniform(0.5, 1.0),
                bend=rng.uniform(0.1, 1.5),
                tip=rng.uniform(0.1, 0.8),
            )
            parts.append(Part(stem))
            for along in rng.random(num_leaves):
                turn = along * stem.bend
                radius = stem.length / stem.bend
                u, v = radius * math.sin(turn), radius * (1 - math.cos(turn))
                cos, sin = math.cos(stem.angle), math.sin(stem.angle)
                leaf = Strand(
                    x=x + u * cos - v * sin,
                    y=y + u * sin + v * cos,
                    angle=stem.angle + turn + rng.choice((-1, 1)) * 0.9,
                    length=stem.length * rng.uniform(0.1, 0.35),
                    width=stem.width * rng.uniform(0.5, 1.5),
                    bend=rng.uniform(0.1, 1.0),
                    tip=rng.uniform(0.1, 0.6),
                )
                parts.append(Part(leaf))
    return tuple(parts)


def write_masks(
    out,
    counts,
    size,
    seed,
    overwrite=False,
    photographs=None,
    kind='objects',
):
    """Writes ``{images,masks}/{train,val}`` and, last, meta.json.

    Images are JPEG files, masks PNG files of 0 and 255.

    Args:
        out: Folder, made if missing.
        counts: Dict of the number of images, >= 1, of 'train' and 'val'.
        size: (height, width) in pixels, each >= 16.
        seed: >= 0.
        overwrite: Whether to replace a different set in `out`.
        photographs: Folder of photographs to draw over. Defaults to None,
            those of scikit-image.
        kind: Of `KINDS`. Defaults to 'objects'.

    Returns:
        True if the set was written, False if it was there already.
    """
    check_counts(counts, seed)
    check_size(size)
    photos = split_photographs(photographs) if photographs else None
    meta = {'kind': 'masks', 'size': list(size), 'seed': seed}
    meta |= {'counts': dict(counts)}
    if photos:
        meta['photographs'] = {k: [*v] for k, v in photos.items()}
    if kind != 'objects':
        meta['contents'] = kind

    def write(root):
        for split in SPLITS:
            for index in range(counts[split]):
                scene = mask_scene(
                    seed, split, index, size[1] / size[0], photos, kind
                )
                image, mask = render_mask(scene, *size)
                name = f'{split}/{index:06d}'
                write_image(
                    root / f'images/{name}.jpg',
                    cv2.cvtColor(image, cv2.COLOR_RGB2BGR),
                    [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY],
                )
                write_image(root / f'masks/{name}.png', mask)

    return write_set(Path(out), meta, ('images', 'masks'), overwrite, write)
