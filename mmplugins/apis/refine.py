"""Masks and label maps of single images, refined.

``tools/infer.py refine`` is the command line of it,
:class:`~mmplugins.apis.refiner.MaskRefiner` what Python calls.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from time import perf_counter

import cv2
import numpy as np

from mmplugins.crm import boundary_accuracy
from mmplugins.crm.loading import IGNORE_INDEX
from mmplugins.crm.visualization import label_sheet, refinement_sheet

from .inference import (
    add_model_arguments,
    check_model_arguments,
    read_image,
    times,
    write_pictures,
)
from .masks import (
    Files,
    find_files,
    fit_mask,
    read_labels,
    read_probability,
    read_truth,
)
from .refiner import MaskRefiner

__all__ = ['MaskRefiner', 'add_arguments', 'run']

# What to make smaller where memory runs out.
MEMORY_OPTION = '--tile'

_Scores = tuple[float, float]
# Labels of a map that an error lists.
_SHOWN = 20


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of ``tools/infer.py refine``.

    Args:
        parser (ArgumentParser): Parser to extend.
    """
    parser.add_argument(
        'paths',
        nargs='+',
        metavar='IMAGE MASK',
        help='images and their masks in turns, or a folder of images and one '
        'of masks of the same names; with --masks images or folders of them',
    )
    parser.add_argument(
        '--masks',
        metavar='DIR',
        help='folder of the masks, named as their images',
    )
    parser.add_argument(
        '--truth',
        metavar='FILE|DIR',
        help='true mask, or the folder of them, named as their images: shows '
        'errors and prints IoU and mBA before and after',
    )
    add_model_arguments(
        parser,
        config='config of mmplugins.CRM or another refiner',
        checkpoint='its weights',
    )
    parser.add_argument(
        '--label-map',
        action='store_true',
        help='masks are label maps: refine each class and merge them',
    )
    parser.add_argument(
        '--classes',
        nargs='+',
        type=int,
        metavar='LABEL',
        help='refine only these classes of label maps; says which of them a '
        'map lacks',
    )
    parser.add_argument(
        '--scales',
        nargs='+',
        type=float,
        metavar='S',
        help='scales of the stages; those of the config by default',
    )
    parser.add_argument(
        '--band',
        type=int,
        metavar='PIXELS',
        help='leave alone what is farther from the boundary of the mask',
    )
    parser.add_argument(
        '--tile',
        type=int,
        metavar='N',
        help='work on N pixels across at once; that of the config by default',
    )
    parser.add_argument(
        '--resize-mask',
        action='store_true',
        help='resize masks that are not of the size of their images',
    )
    parser.add_argument(
        '--save-stages',
        action='store_true',
        help='also write the mask of each stage',
    )


def run(args: Namespace) -> None:
    """Refine the masks that a command line names.

    All that can be wrong with the arguments shows before the first file.

    Args:
        args (Namespace): Arguments of :func:`add_arguments`.

    Raises:
        OSError: If a file cannot be written.
        ValueError: If an argument is not valid.
    """
    check_model_arguments(args)
    labels = args.label_map or args.classes is not None
    if labels and args.save_stages:
        raise ValueError('--save-stages is for masks, not for label maps')
    found = find_files(args.paths, args.masks, args.truth)
    refiner = MaskRefiner(
        args.config,
        args.checkpoint,
        args.device,
        args.scales,
        args.tile,
        args.band,
    )
    _check_targets(found, args.out_dir, len(refiner.scales) * args.save_stages)
    held = {}
    for files in found:
        _, mask, _ = _read(files, labels, args.resize_mask)
        if not labels and mask.max(initial=0) < 0.5:
            print(
                f'{files.mask} has no foreground, its highest share is '
                f'{mask.max(initial=0):.2f}: of a label map say --label-map'
            )
        if args.classes is not None:
            present = np.unique(mask[mask != IGNORE_INDEX])
            held[files.mask] = present.tolist()
    if args.classes is not None:
        _tell_classes(held, args.classes)
    Path(args.out_dir).mkdir(parents=True, exist_ok=True)
    scores = [_refine_files(refiner, files, labels, args) for files in found]
    if len(scores) > 1 and args.truth:
        print(f'mean of {len(scores)} images: {_describe(scores)}')


def _refine_files(
    refiner: MaskRefiner, files: Files, labels: bool, args: Namespace
) -> tuple[_Scores, _Scores] | None:
    """Write what becomes of one mask, and give its scores before and after."""
    image, mask, truth = _read(files, labels, args.resize_mask)
    picture = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    start = perf_counter()
    if labels:
        result = refiner.refine_labels(image, mask, args.classes)
        seconds = perf_counter() - start
        small = max(mask.max(), result.max()) < 256
        pictures = dict(
            labels=result.astype(np.uint8 if small else np.uint16),
            sheet=label_sheet(picture, mask, result, truth),
        )
    else:
        result, probs = refiner.refine(image, mask, stages=True)
        seconds = perf_counter() - start
        stages = [*zip(refiner.stage_scales(image), probs, strict=True)]
        pictures = dict(
            refined=_levels(result),
            mask=np.where(result > 0.5, 255, 0).astype(np.uint8),
            sheet=refinement_sheet(picture, mask, result, stages, truth),
        )
        if args.save_stages:
            for k, prob in enumerate(probs, 1):
                pictures[f'stage{k}'] = _levels(prob)
    targets = {
        Path(args.out_dir, f'{Path(files.image).stem}_{name}.png'): x
        for name, x in pictures.items()
    }
    write_pictures(targets)
    line = f'{next(iter(targets))}: image {times(mask.shape)}, {seconds:.2f} s'
    if truth is None:
        print(line)
        return None
    scores = _score(mask, truth), _score(result, truth)
    print(f'{line}, {_describe([scores])}')
    return scores


def _read(
    files: Files, labels: bool, resize: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Image, mask or label map, and true one of files."""
    image = read_image(files.image)
    mask = (read_labels if labels else read_probability)(files.mask)
    mask = fit_mask('mask', files.mask, mask, files.image, image, resize)
    if files.truth is None:
        return image, mask, None
    truth = (read_labels if labels else read_truth)(files.truth)
    fit_mask('--truth', files.truth, truth, files.image, image)
    return image, mask, truth


def _tell_classes(held: dict[str, list[int]], classes: Sequence[int]) -> None:
    """Say which classes label maps lack; raise if they lack all of them."""
    lines = []
    for path, labels in held.items():
        lacks = [x for x in classes if x not in labels]
        if not lacks:
            continue
        shown = ', '.join(map(str, labels[:_SHOWN])) or 'none'
        if len(labels) > _SHOWN:
            shown += f' and {len(labels) - _SHOWN} more'
        if IGNORE_INDEX in lacks:
            shown += f'; {IGNORE_INDEX} is ignored'
        lines.append(
            f'--classes {" ".join(map(str, lacks))}: the label map {path} has '
            f'{shown}'
        )
    if not any(x in labels for labels in held.values() for x in classes):
        others = len(held) - 1
        raise ValueError(
            lines[0] + (f', and {others} more lack them' if others else '')
        )
    for line in lines:
        print(line)


def _check_targets(
    found: Sequence[Files], folder: str, num_stages: int
) -> None:
    """Raise where files would have one name, or that of what is read."""
    names = ['refined', 'mask', 'labels', 'sheet']
    names += [f'stage{k}' for k in range(1, num_stages + 1)]
    sources = {}
    inputs = {Path(x).resolve() for files in found for x in files if x}
    for files in found:
        stem = Path(files.image).stem
        other = sources.setdefault(stem, files)
        if other is not files:
            raise ValueError(
                f'files are named after images: {other.image} and '
                f'{files.image} would have the same'
            )
        for name in names:
            target = Path(folder, f'{stem}_{name}.png')
            if target.resolve() in inputs:
                raise ValueError(
                    f'--out-dir {folder}: {target} would be written over what '
                    'is read'
                )


def _score(mask: np.ndarray, truth: np.ndarray) -> _Scores:
    """IoU and mBA, 0 to 1 or NaN: of labels the means of the true classes."""
    valid = truth != IGNORE_INDEX
    if mask.dtype.kind == 'f':
        mask, classes = mask > 0.5, [1]
    else:
        classes = np.unique(truth[valid])
    scores = []
    for index in classes:
        true, found = (x == index for x in (truth, mask))
        union = np.count_nonzero((true | found) & valid)
        both = np.count_nonzero(true & found & valid)
        iou = both / union if union else 1.0
        scores.append((iou, boundary_accuracy(true, found, valid)))
    return tuple(_mean(x) for x in zip(*scores)) or (np.nan, np.nan)


def _describe(scores: Sequence[tuple[_Scores, _Scores]]) -> str:
    """Mean scores before and after, in per cent."""
    before, after = (
        [100 * _mean(x) for x in zip(*part)] for part in zip(*scores)
    )
    return ', '.join(
        f'{name} {b:.2f} to {a:.2f}'
        for name, b, a in zip(('IoU', 'mBA'), before, after)
    )


def _mean(values: Sequence[float]) -> float:
    """Mean of what is not NaN; NaN if all is."""
    values = [x for x in values if not np.isnan(x)]
    return fmean(values) if values else float('nan')


def _levels(prob: np.ndarray) -> np.ndarray:
    """A probability in 8 bits, rounded."""
    return np.rint(255 * prob).astype(np.uint8)
