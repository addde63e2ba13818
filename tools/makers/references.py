"""Pairs of a target and a reference that shows the same things.

Images (H, W, 3) uint8. Points are (x, y) in pixels, (0, 0) the centre of the
top left one. Every set has ``images/<scene>/``, ``train.json`` and
``val.json``; the two share no scene, or no frames of the only one.
"""

import hashlib
import importlib.resources
import os
import shutil
from pathlib import Path

import cv2
import numpy as np

from mmplugins.ssen.pairs import (
    CUFED5_NAME,
    frame_pairs,
    split_scenes,
    write_pairs,
)
from mmplugins.ssen.views import sample_view

from .files import check_counts, check_size, split_rng, write_image, write_set
from .photographs import TRAIN_PHOTOS, VAL_PHOTOS, photograph

SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff', '.ppm', '.webp')
FILES = {'train': 'train.json', 'val': 'val.json'}
STEREO = ('motorcycle_left.png', 'motorcycle_right.png', 'motorcycle_disp.npz')
# Of CUFED as it was published.
CUFED_COUNTS = {'train.json': 11871, 'test.json': 126}


def stereo_disparity():
    """How far pixels of the left photograph lie further left in the right one.

    Returns:
        (500, 741) float32, pixels; not finite where unknown.
    """
    path = importlib.resources.files('skimage') / 'data' / STEREO[2]
    with path.open('rb') as file, np.load(file) as arrays:
        return arrays['arr_0'].astype(np.float32)


def write_demo(out, counts, size, seed, overwrite=False):
    """Writes views of scikit-image's photographs and a real stereo pair.

    The pair is the first for validation; its disparity is in
    ``disparity/motorcycle.npy``. Pairs of views have the ``matrix`` of
    `sample_view`.

    Args:
        out: Folder, made if missing.
        counts: Dict of the number of views, >= 1, of 'train' and 'val'.
        size: (height, width) in pixels of a view.
        seed: >= 0.
        overwrite: Whether to replace a different set in `out`.

    Returns:
        True if the set was written, False if it was there already.
    """
    check_counts(counts, seed)
    check_size(size)
    names = {
        'train': TRAIN_PHOTOS,
        'val': tuple(x for x in VAL_PHOTOS if x not in STEREO),
    }
    least = np.min([photograph(x).shape[:2] for x in sum(names.values(), ())])
    if max(size) > least:
        raise ValueError(
            f'size (height width) must be at most {least} {least}, got '
            f'{size[0]} {size[1]}'
        )
    meta = {'kind': 'reference views', 'size': list(size), 'seed': seed}
    meta |= {'counts': dict(counts)}

    def write(root):
        for split, file in FILES.items():
            pairs = [_write_stereo(root)] if split == 'val' else []
            for index in range(counts[split]):
                # Every photograph has its turn, whatever the count.
                name = names[split][index % len(names[split])]
                rng = split_rng(seed, split, index)
                target, view, matrix = sample_view(rng, photograph(name), size)
                scene = Path(name).stem
                pair = {
                    'gt': f'{scene}/{split}_{index:04d}.png',
                    'refs': [f'{scene}/{split}_{index:04d}_view.png'],
                    'scene': scene,
                    'matrix': matrix.round(6).tolist(),
                }
                _write_rgb(root, pair['gt'], target)
                _write_rgb(root, pair['refs'][0], view)
                pairs.append(pair)
            write_pairs(str(root / file), pairs, split=split)

    parts = ('images', 'disparity', *FILES.values())
    return write_set(Path(out), meta, parts, overwrite, write)


def _write_stereo(root):
    pair = {
        'gt': 'motorcycle/left.png',
        'refs': ['motorcycle/right.png'],
        'scene': 'motorcycle',
    }
    for file, name in zip(STEREO, (pair['gt'], *pair['refs'])):
        _write_rgb(root, name, photograph(file))
    (root / 'disparity').mkdir()
    np.save(root / 'disparity' / 'motorcycle.npy', stereo_disparity())
    return pair


def _write_rgb(root, name, image):
    bgr = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2BGR)
    write_image(root / 'images' / name, bgr)


def find_scenes(source):
    """Images below a folder, by the folder they lie in.

    Args:
        source: Folder.

    Returns:
        Dict of scene, a path below `source` (its own name for what lies there
        itself), to the names of its images, both in order.
    """
    source = Path(source)
    if not source.is_dir():
        raise ValueError(f'source {source} must be a folder of images')
    scenes = {}
    for folder, folders, names in os.walk(source):
        folders.sort()
        images = [x for x in sorted(names) if x.lower().endswith(SUFFIXES)]
        if images:
            scene = Path(folder).relative_to(source).as_posix()
            scenes[scene] = images
    if not scenes:
        raise ValueError(
            f'source {source} has no images, files that end in '
            f'{", ".join(SUFFIXES)}'
        )
    return dict(sorted(scenes.items()))


def write_frames(
    out, source, steps=(1,), share=0.2, seed=0, link=False, overwrite=False
):
    """Writes pairs of the images of each folder, in the order of their names.

    Frame t has the references t + k, `steps` k, or t - k at the end. A
    reference that shows the very pixels of its target is left out. Scenes are
    held out for validation; of a single one, the last frames.

    Args:
        out: Folder, made if missing.
        source: Folder of images, or of folders of images, one a scene.
        steps: Steps k other than 0.
        share: Part for validation, above 0 and at most 1, all: then there is
            no ``train.json``.
        seed: Of the scenes held out.
        link: Whether to link to the images instead of copying them.
        overwrite: Whether to replace a different set in `out`.

    Returns:
        Counts of the pairs {'train': n, 'val': n} and of identical references
        left out, or None if the set was there already.
    """
    out, source = Path(out), Path(source).resolve()
    if out.resolve().is_relative_to(source):
        raise ValueError(f'OUT {out} must not lie in the source {source}')
    scenes = find_scenes(source)
    files = {s: [source / s / x for x in names] for s, names in scenes.items()}
    blocks = _split_frames(scenes, share, seed)
    places = {scene: scene for scene in scenes}
    if '.' in scenes:
        places['.'] = source.name + '_' * (source.name in scenes)
    meta = {
        'kind': 'references',
        'source': _digest(source, files),
        'steps': list(steps),
        'share': share,
        'seed': seed,
        'link': link,
    }
    counts, same = dict.fromkeys(FILES, 0), 0
    known = {}

    def pixels(scene, name):
        """What stands for an image as OpenCV reads it, turned by its EXIF."""
        path = source / scene / name
        if path not in known:
            image = cv2.imread(str(path), cv2.IMREAD_COLOR)
            if image is None:
                raise ValueError(f'{path} is no image')
            data = repr(image.shape).encode() + image.tobytes()
            known[path] = hashlib.sha256(data).digest()
        return known[path]

    def write(root):
        nonlocal same
        for split, frames in blocks.items():
            pairs, used = [], {}
            for scene, names in frames.items():
                place = places[scene]
                for pair in frame_pairs(names, steps):
                    gt = pair['gt']
                    refs = [
                        ref
                        for ref in pair['refs']
                        if pixels(scene, ref) != pixels(scene, gt)
                    ]
                    same += len(pair['refs']) - len(refs)
                    if not refs:
                        continue
                    for name in (gt, *refs):
                        used[f'{place}/{name}'] = source / scene / name
                    refs = [f'{place}/{ref}' for ref in refs]
                    pairs.append(
                        {'gt': f'{place}/{gt}', 'refs': refs, 'scene': place}
                    )
            if not pairs:
                raise ValueError(
                    f'source {source} leaves no pairs for {split}: it has '
                    f'{sum(map(len, scenes.values()))} images in '
                    f'{len(scenes)} folders'
                )
            counts[split] = len(pairs)
            for name, path in used.items():
                _place(path, root / 'images' / name, link)
            write_pairs(str(root / FILES[split]), pairs, split=split)

    parts = ('images', *(FILES[split] for split in blocks))
    if not write_set(out, meta, parts, overwrite, write):
        return None
    return counts, same


def _split_frames(scenes, share, seed):
    """Names of the frames of each scene, of either split."""
    if not 0 < share <= 1:
        raise ValueError(
            f'share of validation must be above 0 and at most 1, got {share}'
        )
    if share == 1:
        return {'val': scenes}
    if len(scenes) > 1:
        held = split_scenes(scenes, share, seed)
        return {
            split: {scene: scenes[scene] for scene in names}
            for split, names in zip(FILES, held)
        }
    ((scene, names),) = scenes.items()
    count = max(round(share * len(names)), min(2, len(names)))
    cut = len(names) - count
    return {'train': {scene: names[:cut]}, 'val': {scene: names[cut:]}}


def _place(source, target, link):
    target.parent.mkdir(parents=True, exist_ok=True)
    if link:
        target.symlink_to(source)
    else:
        shutil.copyfile(source, target)


def _digest(source, files):
    """What stands for the images of a source."""
    digest = hashlib.sha256()
    for paths in files.values():
        for path in paths:
            name = path.relative_to(source).as_posix()
            digest.update(f'{name}\0{path.stat().st_size}\n'.encode())
    return digest.hexdigest()


def find_cufed(source):
    """Pairs of CUFED's and CUFED5's folders, wherever they lie in a folder.

    Args:
        source: Folder that holds ``input`` and ``ref``, or files ``NNN_0`` to
            ``NNN_5``, at any depth.

    Returns:
        Dict of file, 'train.json' or 'test.json', to pairs with paths relative
        to `source`.
    """
    source = Path(source)
    if not source.is_dir():
        raise ValueError(f'source {source} must be a folder of CUFED')
    trains, tests = [], []
    for folder, folders, names in os.walk(source):
        folders.sort()
        if {'input', 'ref'} <= {*folders}:
            trains.append(Path(folder))
        groups = [CUFED5_NAME.fullmatch(Path(x).stem) for x in names]
        if any(group and group[2] == '0' for group in groups):
            tests.append(Path(folder))
    inner = {folder / x for folder in trains for x in ('input', 'ref')}
    tests = [folder for folder in tests if folder not in inner]
    if not trains and not tests:
        raise ValueError(
            f"source {source} has neither folders 'input' and 'ref' nor files "
            'NNN_0.png to NNN_5.png'
        )
    found = {}
    for file, folders, read in (
        ('train.json', trains, _train_pairs),
        ('test.json', tests, _test_pairs),
    ):
        if len(folders) > 1:
            raise ValueError(
                f'source {source} holds several sets, name one of '
                f'{", ".join(map(str, folders))}'
            )
        if folders:
            found[file] = read(folders[0], source)
    return found


def _images(folder):
    """Names of a folder's images by their stem."""
    return {
        path.stem: path
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in SUFFIXES
    }


def _train_pairs(folder, source):
    targets, refs = _images(folder / 'input'), _images(folder / 'ref')
    if not targets:
        raise ValueError(f'{folder / "input"} has no images')
    _require_all(folder / 'ref', [x for x in targets if x not in refs])
    return [
        {
            'gt': path.relative_to(source).as_posix(),
            'refs': [refs[name].relative_to(source).as_posix()],
            'scene': name,
        }
        for name, path in targets.items()
    ]


def _test_pairs(folder, source):
    files = _images(folder)
    groups = [x[:-2] for x in files if CUFED5_NAME.fullmatch(x)]
    groups = [x for x in dict.fromkeys(groups) if f'{x}_0' in files]
    wanted = [f'{group}_{k}' for group in groups for k in range(1, 6)]
    _require_all(folder, [x for x in wanted if x not in files])
    return [
        {
            'gt': files[f'{x}_0'].relative_to(source).as_posix(),
            'refs': [
                files[f'{x}_{k}'].relative_to(source).as_posix()
                for k in range(1, 6)
            ],
            'scene': x,
        }
        for x in groups
    ]


def _require_all(folder, missing):
    if missing:
        raise ValueError(
            f'{len(missing)} references are missing in {folder}, the first is '
            f'{missing[0]!r}'
        )


def write_cufed(out, source, overwrite=False):
    """Checks a copy of CUFED and writes annotation files for it.

    Args:
        out: Folder, made if missing.
        source: Folder of :func:`find_cufed`.
        overwrite: Whether to replace other files in `out`.

    Returns:
        Dict of file to the number of its pairs, or None if they were there
        already, with what is odd about them as lines.
    """
    found = find_cufed(source)
    meta = {'kind': 'cufed', 'counts': {k: len(v) for k, v in found.items()}}
    text = repr(found).encode()
    meta |= {'pairs': hashlib.sha256(text).hexdigest()}
    odd = [
        f'{file} has {len(pairs)} pairs, the set as published '
        f'{CUFED_COUNTS[file]}'
        for file, pairs in found.items()
        if len(pairs) != CUFED_COUNTS[file]
    ]

    def write(root):
        for file, pairs in found.items():
            write_pairs(str(root / file), pairs, dataset_type='cufed')

    done = write_set(Path(out), meta, tuple(found), overwrite, write)
    return (meta['counts'] if done else None), odd
