"""Predictions and figures of a test run as plain files."""

import json
import math
from collections.abc import Sequence
from numbers import Number
from pathlib import Path

import cv2
import numpy as np
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement


class SavePredictionsHook(Hook):
    """Write each prediction of a test run in its field's plain format.

    Class maps (mmseg) become PNG of class ids as the dataset's annotations
    count them, depth maps become ``.npy`` in the model's unit, restored images
    (mmagic) become PNG, classes (mmpretrain) become lines of
    ``predictions.jsonl``.

    Args:
        out_dir (str): Folder to write to.
    """

    priority = 'LOW'

    def __init__(self, out_dir: str) -> None:
        self.out_dir = Path(out_dir)

    def before_test(self, runner: Runner) -> None:
        """Make the folder; lines of an earlier run go."""
        self.out_dir.mkdir(parents=True, exist_ok=True)
        if is_main_process():
            (self.out_dir / 'predictions.jsonl').unlink(missing_ok=True)

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: Sequence[BaseDataElement] | None = None,
    ) -> None:
        """Write the predictions of one batch."""
        for sample in outputs or ():
            self._write(sample)

    def _write(self, sample: BaseDataElement) -> None:
        target = self.out_dir / _stem(sample)
        if 'pred_sem_seg' in sample:
            classes = sample.pred_sem_seg.data[0].cpu().numpy()
            if sample.get('reduce_zero_label'):
                classes = classes + 1
            dtype = np.uint8 if classes.max() < 256 else np.uint16
            _imwrite(target, classes.astype(dtype))
        elif 'pred_depth_map' in sample:
            depth = sample.pred_depth_map.data[0].cpu().numpy()
            np.save(target.with_suffix('.npy'), depth)
        elif 'pred_label' in sample:
            line = dict(
                image=str(sample.get('img_path', target.name)),
                label=sample.pred_label.tolist(),
                score=sample.pred_score.tolist(),
            )
            with (self.out_dir / 'predictions.jsonl').open('a') as file:
                file.write(json.dumps(line) + '\n')
        elif 'output' in sample and 'pred_img' in sample.output:
            image = sample.output.pred_img.cpu().numpy().transpose(1, 2, 0)
            image = image.clip(0, 255).round().astype(np.uint8)
            _imwrite(target, image[..., ::-1])  # RGB to OpenCV's BGR
        else:
            raise ValueError(
                '--out writes pred_sem_seg, pred_depth_map, pred_label or '
                f'output.pred_img, this prediction has {sample.keys()}'
            )


def write_metrics(metrics: dict, path: str) -> None:
    """Write the figures of a test run as JSON.

    Args:
        metrics (dict): Names and values, as ``Runner.test`` returns them.
        path (str): File to write; what is not a finite number becomes null.
    """
    figures = {
        name: float(value)
        if isinstance(value, Number) and math.isfinite(value)
        else None
        for name, value in metrics.items()
    }
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(figures, indent=2) + '\n')


def _stem(sample: BaseDataElement) -> str:
    for key in ('img_path', 'gt_path', 'key'):
        name = sample.get(key)
        if name:
            return Path(name[0] if isinstance(name, list) else name).stem
    raise ValueError('--out names files after img_path, gt_path or key')


def _imwrite(target: Path, image: np.ndarray) -> None:
    # Not with_suffix: a stem may hold dots of its own.
    path = target.with_name(target.name + '.png')
    if not cv2.imwrite(str(path), image):
        raise OSError(f'cannot write {path}')
