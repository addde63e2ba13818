"""Predictions and figures of a test run as plain files."""

import json
import math
from collections.abc import Sequence
from numbers import Number
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.dist import barrier, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement


class SavePredictionsHook(Hook):
    """Write each prediction of a test run in its field's plain format.

    Class maps (mmseg) become PNG of class ids as the dataset's annotations
    count them, depth maps become ``.npy`` in the model's unit, restored images
    (mmagic) become PNG, classes (mmpretrain) become lines of
    ``predictions.jsonl``, their activation maps in [0, 1]
    (``mmplugins.GuidedImageClassifier``) ``.npy`` of the network's input.
    Of several test sets (mmagic) each has a numbered folder.

    Args:
        out_dir (str): Folder to write to.
    """

    priority = 'LOW'

    def __init__(self, out_dir: str) -> None:
        self.out_dir = Path(out_dir)
        self._folder = self.out_dir
        self._sources: dict[Path, str] = {}

    def before_test(self, runner: Runner) -> None:
        """Make the folder; lines of an earlier run go."""
        self._sources.clear()
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
        loop = getattr(runner, 'test_loop', None)
        loaders = getattr(loop, 'dataloaders', ())
        if len(loaders) > 1:
            sets = [loader is loop.dataloader for loader in loaders]
            self._folder = self.out_dir / str(sets.index(True))
            self._folder.mkdir(exist_ok=True)
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
        """File of a prediction, named after its image alone."""
        source = _source(sample)
        # Not with_suffix: a stem may hold dots of its own.
        path = self._folder / (Path(source).stem + suffix)
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
    for key in ('img_path', 'gt_path', 'key'):
        name = sample.get(key)
        if name:
            return str(name[0] if isinstance(name, list) else name)
    raise ValueError('--out names files after img_path, gt_path or key')


def _imwrite(path: Path, image: np.ndarray) -> None:
    if not cv2.imwrite(str(path), image):
        raise OSError(f'cannot write {path}')
