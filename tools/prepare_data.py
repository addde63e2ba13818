"""Small data sets in the layout of mmseg's ``BaseSegDataset``.

Shapes: image (H, W, 3) uint8 RGB, label (H, W) uint8 class ids 0..C-1,
depth (H, W) uint16 in millimetres, 0 where unknown.
Coordinates: units of the image HEIGHT, x right and y down from the top
left corner; the centre of pixel (row i, column j) is at
x = (j + 0.5) / H, y = (i + 0.5) / H. Angles are radians from x towards y.

    python tools/prepare_data.py shapes OUT --num-train 48 --num-val 16
    python tools/prepare_data.py depth OUT
"""

import argparse
import functools
import importlib.resources
import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

CLASSES = ('background', 'disc', 'ring', 'triangle', 'star', 'bar')
PALETTE = [
    [0, 0, 0],
    [225, 55, 55],
    [225, 195, 40],
    [60, 190, 75],
    [60, 110, 230],
    [205, 70, 210],
]
SPLITS = ('train', 'val')
# Files in scikit-image's wheel, read from disk so nothing is downloaded.
TRAIN_PHOTOS = (
    'astronaut.png',
    'camera.png',
    'coffee.png',
    'hubble_deep_field.jpg',
    'ihc.png',
)
VAL_PHOTOS = ('chelsea.png', 'motorcycle_left.png', 'rocket.jpg')
TEXTURES = ('brick.png', 'grass.png', 'gravel.png')
# Ranges of a kind's radius and width, in image heights.
EXTENTS = {
    'disc': ((0.10, 0.22), (0.0, 0.0)),
    'ring': ((0.10, 0.25), (0.02, 0.03)),
    'triangle': ((0.14, 0.26), (0.18, 0.36)),
    'star': ((0.16, 0.28), (0.06, 0.10)),
    'bar': ((0.20, 0.55), (0.02, 0.03)),
}
SPIKES = 5
MIN_SIZE = 16
# The photograph of scikit-image that has a disparity for each of its pixels,
# and its camera: focal length and offset of the principal points in pixels,
# baseline in millimetres (text of skimage.data.stereo_motorcycle).
STEREO_PHOTO, STEREO_DISPARITY = 'motorcycle_left.png', 'motorcycle_disp.npz'
FOCAL, OFFSET, BASELINE = 994.978, 31.086, 193.001
SIDES = ('left', 'right')


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


def _sample_crop(rng, names, low, high):
    name = names[rng.integers(len(names))]
    return Crop(name, rng.uniform(low, high), rng.random(), rng.random())


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
        texture=_sample_crop(rng, TEXTURES, 0.3, 0.8),
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
    background = _sample_crop(rng, photos, 0.4, 1.0)
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


@functools.cache
def _photograph(name):
    """Bundled photograph, (h, w, 3) uint8 RGB; not to be written to."""
    path = importlib.resources.files('skimage') / 'data' / name
    data = np.frombuffer(path.read_bytes(), np.uint8)
    return cv2.cvtColor(
        cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB
    )


def _resized_crop(crop, height, width):
    """The window of a `Crop` as (height, width, 3) uint8 RGB."""
    photo = _photograph(crop.name)
    rows, cols = photo.shape[:2]
    scale = crop.zoom * min(rows / height, cols / width)
    h, w = (max(round(side * scale), 1) for side in (height, width))
    top, left = round(crop.top * (rows - h)), round(crop.left * (cols - w))
    window = photo[top : top + h, left : left + w]
    method = cv2.INTER_AREA if scale > 1 else cv2.INTER_CUBIC
    return cv2.resize(window, (width, height), interpolation=method)


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
    grain = _resized_crop(shape.texture, y1 - y0, x1 - x0)
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
    _check_size((height, width))
    image = _resized_crop(scene.background, height, width)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    grey = cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB)
    keep = scene.saturation
    image = cv2.addWeighted(image, keep, grey, 1 - keep, 0)
    label = np.zeros((height, width), np.uint8)
    for shape in scene.shapes:
        _draw(shape, image, label)
    return image, label


def _check_size(size):
    if min(size) < MIN_SIZE:
        raise ValueError(
            f'size (height width) must be at least {MIN_SIZE} {MIN_SIZE}, '
            f'got {size[0]} {size[1]}'
        )


def shapes_scene(seed, split, index, aspect_ratio):
    """Scene `index` >= 0 of a split, whatever the split's length.

    Args:
        seed: Seed of the set, >= 0.
        split: 'train' or 'val', which have different backgrounds.
        index: Number of the image, >= 0.
        aspect_ratio: Width over height, > 0.
    """
    if split not in SPLITS:
        raise ValueError(f'split must be one of {SPLITS}, got {split!r}')
    # The same as SeedSequence(seed).spawn()[split].spawn()[index].
    key = (SPLITS.index(split), index)
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
    photos = TRAIN_PHOTOS if split == 'train' else VAL_PHOTOS
    return sample_scene(rng, aspect_ratio, photos)


def _write_png(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), array):
        raise OSError(f'cannot write {path}')


def _write_item(root, seed, split, index, size):
    scene = shapes_scene(seed, split, index, size[1] / size[0])
    image, label = render(scene, *size)
    name = f'{split}/{index:06d}.png'
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    _write_png(root / 'images' / name, bgr)
    _write_png(root / 'labels' / name, label)


def _is_there(out, meta, parts, overwrite):
    """Whether `out` holds the set of `meta`; refuses if it holds another."""
    try:
        if json.loads((out / 'meta.json').read_text()) == meta:
            return True
    except (FileNotFoundError, ValueError):
        pass  # no set, or none that was finished
    held = {p.name for p in out.iterdir()} if out.exists() else set()
    if held - {'.partial'} and not overwrite:
        raise FileExistsError(
            f'{out} holds something else; pass --overwrite to replace its '
            f'{", ".join(parts)} and meta.json, or name another folder'
        )
    return False


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
    for split in SPLITS:
        if counts[split] < 1:
            raise ValueError(
                f'num-{split} must be at least 1, got {counts[split]}'
            )
    if seed < 0:
        raise ValueError(f'seed must be at least 0, got {seed}')
    _check_size(size)
    meta = {'kind': 'shapes', 'classes': list(CLASSES), 'palette': PALETTE}
    meta |= {'size': list(size), 'seed': seed, 'counts': dict(counts)}

    def write(root):
        for split in SPLITS:
            for index in range(counts[split]):
                _write_item(root, seed, split, index, size)

    return _write_set(Path(out), meta, ('images', 'labels'), overwrite, write)


def _write_set(out, meta, parts, overwrite, write):
    """Fills the folders `parts` of `out` by `write(folder)`, all or none."""
    if _is_there(out, meta, parts, overwrite):
        return False
    new = out / '.partial'
    shutil.rmtree(new, ignore_errors=True)  # of a run that was cut off
    new.mkdir(parents=True)
    write(new)
    (new / 'meta.json').write_text(json.dumps(meta, indent=1) + '\n')
    # meta.json goes first and comes last, so that a folder cut off on the
    # way is not taken for a whole set.
    (out / 'meta.json').unlink(missing_ok=True)
    for part in parts:
        shutil.rmtree(out / part, ignore_errors=True)
    for part in (*parts, 'meta.json'):
        (new / part).rename(out / part)
    new.rmdir()
    return True


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
    _check_size(size)
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
    bgr = cv2.cvtColor(_photograph(STEREO_PHOTO), cv2.COLOR_RGB2BGR)

    def write(root):
        for split in SPLITS:
            for index, (top, left) in enumerate(windows[split]):
                box = np.s_[top : top + size[0], left : left + size[1]]
                name = f'{split}/motorcycle_{index:03d}.png'
                _write_png(root / 'images' / name, bgr[box])
                _write_png(root / 'depth' / name, stereo_depth()[box])

    return _write_set(Path(out), meta, ('images', 'depth'), overwrite, write)


def _run_shapes(args):
    counts = {'train': args.num_train, 'val': args.num_val}
    size = tuple(args.size)
    if write_shapes(args.out, counts, size, args.seed, args.overwrite):
        print(f'{args.out}: wrote {counts["train"]} + {counts["val"]} images')
    else:
        print(f'{args.out}: holds this set already, nothing to do')


def _add_shapes(commands):
    parser = commands.add_parser(
        'shapes',
        help='exact shapes drawn over photographs',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.set_defaults(run=_run_shapes)
    add = parser.add_argument
    add('out', metavar='OUT', help='folder to write')
    add('--num-train', type=int, default=48, help='training images')
    add('--num-val', type=int, default=16, help='validation images')
    add(
        '--size',
        type=int,
        nargs=2,
        default=(128, 192),
        metavar=('HEIGHT', 'WIDTH'),
        help=f'in pixels, each at least {MIN_SIZE}',
    )
    add('--seed', type=int, default=0, help='at least 0')
    add('--overwrite', action='store_true', help='replace another set')


def _run_depth(args):
    size = tuple(args.size)
    if write_depth(
        args.out,
        size,
        args.seed,
        args.num_train,
        args.held_out,
        args.overwrite,
    ):
        tiles = len(depth_windows('val', size, held_out=args.held_out))
        print(f'{args.out}: wrote {args.num_train} + {tiles} images')
    else:
        print(f'{args.out}: holds this set already, nothing to do')


def _add_depth(commands):
    parser = commands.add_parser(
        'depth',
        help='crops of a photograph and its depth, one half for training',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.set_defaults(run=_run_depth)
    add = parser.add_argument
    add('out', metavar='OUT', help='folder to write')
    add('--num-train', type=int, default=24, help='training crops')
    add(
        '--size',
        type=int,
        nargs=2,
        default=(160, 352),
        metavar=('HEIGHT', 'WIDTH'),
        help=f'of the crops in pixels, {MIN_SIZE} {MIN_SIZE} to 500 370',
    )
    add('--seed', type=int, default=0, help='at least 0')
    add(
        '--held-out',
        choices=SIDES,
        default='right',
        help='half of the photograph for validation',
    )
    add('--overwrite', action='store_true', help='replace another set')


def main(argv=None):
    """Runs a command line, by default the process's own."""
    parser = argparse.ArgumentParser(description='Prepares small data sets.')
    commands = parser.add_subparsers(metavar='COMMAND', required=True)
    _add_shapes(commands)
    _add_depth(commands)
    args = parser.parse_args(argv)
    try:
        args.run(args)
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        parser.exit(1, f'{parser.prog}: error: {error}\n')


if __name__ == '__main__':
    main()
