"""Data sets as folders of files, written whole or not at all."""

import json
import shutil

import cv2
import numpy as np

SPLITS = ('train', 'val')
MIN_SIZE = 16


def check_size(size):
    """Refuses a (height, width) below 16 pixels."""
    if min(size) < MIN_SIZE:
        raise ValueError(
            f'size (height width) must be at least {MIN_SIZE} {MIN_SIZE}, '
            f'got {size[0]} {size[1]}'
        )


def check_counts(counts, seed):
    """Refuses a split without images and a negative seed."""
    for split in SPLITS:
        if counts[split] < 1:
            raise ValueError(
                f'num-{split} must be at least 1, got {counts[split]}'
            )
    if seed < 0:
        raise ValueError(f'seed must be at least 0, got {seed}')


def split_rng(seed, split, index):
    """Generator of image `index` of a split, whatever the split's length."""
    if split not in SPLITS:
        raise ValueError(f'split must be one of {SPLITS}, got {split!r}')
    # The same as SeedSequence(seed).spawn()[split].spawn()[index].
    key = (SPLITS.index(split), index)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def write_image(path, array, params=()):
    """Writes an array by OpenCV, `params` its own, and makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), array, params):
        raise OSError(f'cannot write {path}')


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


def write_set(out, meta, parts, overwrite, write):
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
