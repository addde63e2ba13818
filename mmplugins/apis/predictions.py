"""Predictions and figures of a test run as plain files."""

import json
import math
import os
from collections.abc import Iterable, Sequence
from numbers import Number
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.dist import barrier, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch.utils.data import DataLoader, Dataset


class SavePredictionsHook(Hook):
    """Write each prediction of a test run in its field's plain format.

    Class maps (mmseg) become PNG of class ids as the dataset's annotations
    count them, depth maps become ``.npy`` in the model's unit, restored images
    (mmagic) become PNG, classes (mmpretrain) become lines of
    ``predictions.jsonl``, their activation maps in [0, 1]
    (``mmplugins.GuidedImageClassifier``) ``.npy`` of the network's input.
    Of several test sets (mmagic) each has a numbered folder.

    Files are named after their images; where images of a set have equal names,
    as frames of videos do, their folders are kept as well.

    Args:
        out_dir (str): Folder to write to.
    """

    priority = 'LOW'

    def __init__(self, out_dir: str) -> None:
        self.out_dir = Path(out_dir)
        self._folder = self.out_dir
        self._sources: dict[Path, str] = {}
        self._sets: list[dict[str, str]] = []
        self._names: dict[str, str] = {}

    def before_test(self, runner: Runner) -> None:
        """Make the folder; lines of an earlier run go."""
        self._sources.clear()
        self._sets = [
            _choose_names(_images(x.dataset)) for x in _loaders(runner)
        ]
        self._names = self._sets[0] if len(self._sets) == 1 else {}
        self.out_dir.mkdir(parents=True, exist_ok=True)
        if is_main_process():
            (self.out_dir / 'predictions.jsonl').unlink(missing_ok=True)
        barrier()  # else this could remove another process's first lines

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: Sequence[BaseDataElement] | None = None,
    ) -> None:
        """Write the predictions of one batch."""
        loaders = _loaders(runner)
        if len(loaders) > 1:
            sets = [x is runner.test_loop.dataloader for x in loaders]
            index = sets.index(True)
            self._folder = self.out_dir / str(index)
            self._names = self._sets[index]
        for sample in outputs or ():
            self._write(sample)

    def _write(self, sample: BaseDataElement) -> None:
        if 'pred_sem_seg' in sample:
            classes = sample.pred_sem_seg.data[0].cpu().numpy()
            if sample.get('reduce_zero_label'):
                classes = classes + 1
            dtype = np.uint8 if classes.max() < 256 else np.uint16
            _imwrite(self._target(sample, '.png'), classes.astype(dtype))
        elif 'pred_depth_map' in sample:
            depth = sample.pred_depth_map.data[0].cpu().numpy()
            np.save(self._target(sample, '.npy'), depth)
        elif 'pred_label' in sample:
            if 'cam' in sample:
                cam = sample.cam.cpu().numpy()
                np.save(self._target(sample, '.npy'), cam)
            with (self.out_dir / 'predictions.jsonl').open('a') as file:
                file.write(json.dumps(_classes(sample)) + '\n')
        elif 'output' in sample and 'pred_img' in sample.output:
            image = sample.output.pred_img.cpu().numpy()
            if image.ndim != 3:
                raise ValueError(
                    '--out writes output.pred_img of one image (C, H, W), '
                    f'got {image.shape}'
                )
            # In OpenCV's order: mmagic turns every output to BGR.
            image = image.transpose(1, 2, 0).clip(0, 255).round()
            _imwrite(self._target(sample, '.png'), image.astype(np.uint8))
        else:
            raise ValueError(
                '--out writes pred_sem_seg, pred_depth_map, pred_label or '
                f'output.pred_img, this prediction has {sample.keys()}'
            )

    def _target(self, sample: BaseDataElement, suffix: str) -> Path:
        """File of a prediction, named after its image."""
        source = _source(sample)
        name = self._names.get(os.path.abspath(source)) or Path(source).stem
        # Not with_suffix: a stem may hold dots of its own.
        path = self._folder / (name + suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        other = self._sources.setdefault(path, source)
        if other != source:
            raise ValueError(
                f'--out names files after images: {other} and {source} would '
                f'both be {path}'
            )
        return path


class SaveMetricsHook(Hook):
    """Write the figures of a test run as JSON.

    A hook, for the test loops of mmagic return nothing.

    Args:
        path (str): File to write.
    """

    priority = 'LOW'

    def __init__(self, path: str) -> None:
        self.path = path

    def after_test_epoch(
        self, runner: Runner, metrics: dict | None = None
    ) -> None:
        """Write what the evaluators say."""
        if is_main_process():
            write_metrics(metrics or {}, self.path)


def write_metrics(metrics: dict, path: str) -> None:
    """Write figures as JSON.

    Args:
        metrics (dict): Names and values; per-class values may be lists,
            arrays or tensors.
        path (str): File to write; a number that is not finite becomes null.
    """
    text = json.dumps(_plain(metrics), indent=2, allow_nan=False) + '\n'
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)


def _plain(value: object) -> object:
    """A value in JSON's own types; as text where it has none."""
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return _plain(value.tolist())
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, Number):
        return float(value) if math.isfinite(value) else None
    return None if value is None else str(value)


def _classes(sample: BaseDataElement) -> dict:
    labels, scores = sample.pred_label, sample.pred_score
    if labels.numel() == 1:
        # --tta averages the scores but leaves the first view's label.
        labels = scores.argmax().reshape(labels.shape)
    return dict(
        image=_source(sample), label=labels.tolist(), score=scores.tolist()
    )


def _source(sample: BaseDataElement) -> str:
    source = _find_source(sample)
    if source is None:
        raise ValueError('--out names files after img_path, gt_path or key')
    return source


def _find_source(sample: BaseDataElement | dict) -> str | None:
    for key in ('img_path', 'gt_path', 'key'):
        name = sample.get(key)
        if name:
            return str(name[0] if isinstance(name, list) else name)
    return None


def _loaders(runner: Runner) -> Sequence[DataLoader]:
    """Data loaders of a test; mmagic's has several."""
    loop = getattr(runner, 'test_loop', None)
    if hasattr(loop, 'dataloaders'):
        return loop.dataloaders
    return [loop.dataloader] if loop else []


def _images(dataset: Dataset) -> list[str]:
    """What predictions of a data set will be named after, where it tells."""
    if not hasattr(dataset, 'get_data_info'):
        return []
    infos = map(dataset.get_data_info, range(len(dataset)))
    return [x for x in map(_find_source, infos) if x is not None]


def _choose_names(images: Iterable[str]) -> dict[str, str]:
    """A name for each image, by its absolute path, without a suffix.

    The shortest that tells all apart: its own, that in its folder below the
    one that all share, or that with the image's suffix.
    """
    paths = {Path(os.path.abspath(x)) for x in images}
    if not paths:
        return {}
    root = os.path.commonpath([x.parent for x in paths])
    for name in (
        lambda x: x.stem,
        lambda x: str(x.relative_to(root).with_suffix('')),
        lambda x: str(x.relative_to(root)),
    ):
        names = {str(x): name(x) for x in paths}
        if len({*names.values()}) == len(names):
            break
    return names


def _imwrite(path: Path, image: np.ndarray) -> None:
    if not cv2.imwrite(str(path), image):
        raise OSError(f'cannot write {path}')
