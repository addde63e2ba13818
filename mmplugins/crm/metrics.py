"""What a refinement of masks is worth: figures before and after it.

H x W image, C classes, K of them scored, R radii.
"""

from collections.abc import Iterable, Sequence
from math import hypot, isnan
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from torch import Tensor

from mmplugins.ops.boundary import boundary_scores
from mmplugins.registry import METRICS

_NUM_RADII = 5
# Columns of the table of images.
_COLUMNS = ('IoU', 'mBA', 'BF')


def boundary_accuracy(
    gt: np.ndarray | Tensor,
    pred: np.ndarray | Tensor,
    valid: np.ndarray | Tensor | None = None,
) -> float:
    """Share of right pixels near the true boundary, the mBA of a mask.

    Mean over five bands of the share of their pixels where the masks agree.
    Band i = 0 to 4 has the radius ``r = 1 + int(((W + H) / 300 - 1) / 5 * i)``
    and holds the pixels for which OpenCV's ellipse of ``2 r + 1`` pixels finds
    both true foreground and background: where the morphological gradient of
    the true mask is not 0 (Cheng et al., CVPR 2020, arXiv 2005.02551; used by
    CRM, arXiv 2111.14482). The border of the image is no boundary.

    Published figures of a data set are the mean over its images. They are of
    masks cut above 128 of 255, and not defined for an image without boundary.

    Args:
        gt (np.ndarray | Tensor): True mask, (H, W), of one value besides 0:
            bool, 0 and 1, or 0 and 255.
        pred (np.ndarray | Tensor): Mask to be judged, (H, W), likewise.
        valid (np.ndarray | Tensor, optional): Pixels with ground truth, bool,
            (H, W). The others are in no band and make no boundary of those
            beside them. Defaults to None, all.

    Returns:
        float: In [0, 1]. Bands without a pixel are left out; NaN if all are,
        as for a true mask that is empty or full, whatever ``pred`` is.

    Raises:
        ValueError: If the shapes differ or are not (H, W), or if a mask is
            not binary.
    """
    gt, pred = _binary('gt', gt), _binary('pred', pred)
    valid = np.ones_like(gt) if valid is None else _array(valid).astype(bool)
    if gt.ndim != 2 or not gt.shape == pred.shape == valid.shape:
        raise ValueError(
            'boundary_accuracy needs gt, pred and valid (H, W) of one size, '
            f'got {gt.shape}, {pred.shape} and {valid.shape}'
        )
    foreground, background = gt & valid, ~gt & valid
    radii = _band_radii(*gt.shape)
    window = _window(foreground, radii[-1])
    if window is None:
        return float('nan')
    foreground, background, right, valid = (
        x[window].view(np.uint8)
        for x in (foreground, background, gt == pred, valid)
    )
    shares = {}
    for radius in dict.fromkeys(radii):
        size = (2 * radius + 1, 2 * radius + 1)
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, size)
        band = cv2.dilate(foreground, kernel)
        band &= cv2.dilate(background, kernel)
        band &= valid
        count = cv2.countNonZero(band)
        if count:
            shares[radius] = cv2.countNonZero(band & right) / count
    values = [shares[radius] for radius in radii if radius in shares]
    return sum(values) / len(values) if values else float('nan')


def _array(x: np.ndarray | Tensor) -> np.ndarray:
    """Array of an array or of a tensor of any device."""
    return x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)


def _binary(name: str, mask: np.ndarray | Tensor) -> np.ndarray:
    """Mask as bool."""
    mask = _array(mask)
    binary = mask != 0
    if mask.dtype != bool and not (mask[binary] == mask.max(initial=0)).all():
        raise ValueError(
            f'{name} of boundary_accuracy must be binary, 0 and one other '
            f'value above it, got {np.unique(mask)[:5].tolist()}...: cut a '
            'soft mask first'
        )
    return binary


def _band_radii(height: int, width: int) -> list[int]:
    """Radii of the bands in pixels, ascending, (R,); small ones repeat."""
    step = ((width + height) / 300 - 1) / _NUM_RADII
    return [1 + int(step * i) for i in range(_NUM_RADII)]


def _window(mask: np.ndarray, margin: int) -> tuple[slice, slice] | None:
    """Rectangle around a mask with a margin; None if there is no mask."""
    slices = []
    for axis in (1, 0):
        places = np.flatnonzero(mask.any(axis))
        if not len(places):
            return None
        slices.append(
            slice(max(places[0] - margin, 0), places[-1] + margin + 1)
        )
    return tuple(slices)


@METRICS.register_module()
class MaskRefinementMetric(BaseMetric):
    """IoU, boundary accuracy and boundary F-score before and after refinement.

    Figures of ``pred_sem_seg`` stand under ``refined/``, those of
    ``coarse_sem_seg``, where the samples have one, under ``coarse/``, and
    refined less coarse under ``gain/``:

    - ``IoU``: sum of the intersections over the sum of the unions of all
      images, as published for BIG (arXiv 2005.02551);
    - ``image_IoU``: mean IoU of the images. A mask that is rightly empty has
      1;
    - ``mBA``: mean :func:`boundary_accuracy` of the images whose ground truth
      has a boundary;
    - ``BF``: mean boundary F-score
      (:func:`mmplugins.ops.boundary.boundary_scores`) of the images whose
      ground truth has the foreground;
    - ``worse``, without a prefix: images whose IoU falls.

    Up to two classes are background and foreground: the foreground, label 1,
    is scored alone. Of more classes, which ``dataset_meta`` names, each is
    scored as a mask: ``mIoU`` stands for ``IoU``, the mean over the classes
    that are there or predicted, with ``IoU.<class>`` beside it; the IoU of an
    image is the mean over the classes in its ground truth; ``mBA`` and ``BF``
    are means over all pairs of an image and a class in its ground truth.

    All names but ``mIoU`` are unknown to mmengine's ``CheckpointHook``: with
    ``save_best`` say ``rule='greater'``.

    Args:
        threshold (float): Soft coarse masks are foreground above it; the
            publications cut at 128 / 255. Defaults to 0.5.
        tolerance (float): Farthest match of the boundary F-score as a share
            of the image's diagonal. Defaults to 0.0075.
        worse_tolerance (float): Fall of an image's IoU, 0 to 1, that does not
            make it worse yet. Defaults to 0.0.
        ignore_index (int): Label of pixels without ground truth, which count
            nowhere. Defaults to 255.
        per_image (bool): Whether to log a table of the images too. Defaults
            to False.
        collect_device (str): ``'cpu'`` or ``'gpu'``, where the results of
            several processes are gathered. Defaults to ``'cpu'``.
        prefix (str, optional): Prefix of the names. Defaults to None.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        threshold: float = 0.5,
        tolerance: float = 0.0075,
        worse_tolerance: float = 0.0,
        ignore_index: int = 255,
        per_image: bool = False,
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device, prefix)
        shares = dict(
            threshold=threshold,
            tolerance=tolerance,
            worse_tolerance=worse_tolerance,
        )
        for name, share in shares.items():
            if not 0 <= share < 1:
                raise ValueError(
                    f'{name} of MaskRefinementMetric must be in [0, 1), got '
                    f'{share}'
                )
        self.threshold = threshold
        self.tolerance = tolerance
        self.worse_tolerance = worse_tolerance
        self.ignore_index = ignore_index
        self.per_image = per_image

    @property
    def classes(self) -> Sequence[str]:
        """Names of the scored classes, (K,)."""
        classes = (self.dataset_meta or {}).get('classes') or ()
        return classes if len(classes) > 2 else ('foreground',)

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Score a batch.

        Args:
            data_batch (dict): Not used.
            data_samples (Sequence[dict]): Samples with ``gt_sem_seg`` and
                ``pred_sem_seg``, labels (1, H, W), and maybe
                ``coarse_sem_seg``: labels (1, H, W) or, floating,
                probabilities of the foreground (1, H, W) or of all classes
                (C, H, W). ``img_path`` names the rows of the table.

        Raises:
            ValueError: If maps of a sample differ in size, a soft mask is not
                in [0, 1], or only some samples have a coarse mask.
        """
        for sample in data_samples:
            gt = self._labels(sample, 'gt_sem_seg')
            result = {}
            if 'coarse_sem_seg' in sample:
                coarse = self._labels(sample, 'coarse_sem_seg')
                result['coarse'] = self._score(coarse, gt)
            pred = self._labels(sample, 'pred_sem_seg')
            result['refined'] = self._score(pred, gt)
            result['name'] = Path(sample.get('img_path') or '-').name
            self.results.append(result)

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Figures of the data set.

        Args:
            results (list[dict]): Of each image its ``name`` and the scores
                of ``refined`` and maybe of ``coarse``.

        Returns:
            dict[str, float]: Figures in per cent, rounded to two places, NaN
            where there is nothing to average.

        Raises:
            ValueError: If only some images have a coarse mask.
        """
        stages = [key for key in ('coarse', 'refined') if key in results[0]]
        if any(('coarse' in one) != ('coarse' in stages) for one in results):
            raise ValueError(
                'MaskRefinementMetric needs coarse_sem_seg of all samples or '
                'of none'
            )
        figures = {
            key: self._figures([one[key] for one in results]) for key in stages
        }
        if 'coarse' in figures:
            figures['gain'] = {
                name: figures['refined'][name] - value
                for name, value in figures['coarse'].items()
            }
        out = {
            f'{key}/{name}': round(100 * float(value), 2)
            for key, values in figures.items()
            for name, value in values.items()
        }
        if 'coarse' in figures:
            worse = _mean(self._is_worse(one) for one in results)
            out['worse'] = round(100 * worse, 2)
        if self.per_image:
            self._log_table(results, stages)
        return out

    def _labels(self, sample: dict, key: str) -> Tensor:
        """Labels of a sample, (H, W), on the CPU."""
        data = sample[key]['data'].cpu()
        data = data.reshape(-1, *data.shape[-2:])
        soft = data.is_floating_point()
        channels = len(self.classes) if soft else 1
        if len(data) != channels:
            kind = 'probabilities' if soft else 'labels'
            raise ValueError(
                f'{key} of MaskRefinementMetric must hold {kind} '
                f'({channels}, H, W), got {tuple(data.shape)}'
            )
        if not soft:
            return data[0].int()
        low, high = (x.item() for x in data.aminmax())
        if not 0 <= low <= high <= 1:
            raise ValueError(
                f'{key} of MaskRefinementMetric must be labels or '
                f'probabilities in [0, 1], got {low:.4g} to {high:.4g}'
            )
        if channels == 1:
            return (data[0] > self.threshold).int()
        return data.argmax(0).int()

    def _score(self, pred: Tensor, gt: Tensor) -> dict[str, np.ndarray]:
        """Scores of a label map (H, W), each (K,) in double precision.

        ``intersection`` and ``union`` in pixels; ``iou`` of the image, NaN
        where it does not count, ``mba`` and ``bf``, 0 to 1 or NaN.
        """
        if pred.shape != gt.shape:
            raise ValueError(
                'MaskRefinementMetric needs maps of one size, got '
                f'{tuple(pred.shape)} for a ground truth of {tuple(gt.shape)}'
            )
        binary = len(self.classes) == 1
        count = 2 if binary else len(self.classes)
        scored = slice(1, None) if binary else slice(None)
        radius = self.tolerance * hypot(*gt.shape)
        bf = boundary_scores(pred, gt, count, radius, self.ignore_index)[2]
        valid = gt != self.ignore_index
        intersection, predicted, true = _areas(pred[valid], gt[valid], count)
        union = predicted + true - intersection
        with np.errstate(invalid='ignore'):
            iou = intersection / union
        if binary:  # an empty mask is right or wrong, too
            iou[union == 0] = 1 if valid.any() else np.nan
        else:
            iou[true == 0] = np.nan
        mba = np.full(count, np.nan)
        for index in range(count)[scored]:
            if true[index]:
                masks = (gt == index, pred == index, valid)
                mba[index] = boundary_accuracy(*masks)
        scores = dict(
            intersection=intersection,
            union=union,
            iou=iou,
            mba=mba,
            bf=bf.numpy(),
        )
        return {name: score[scored] for name, score in scores.items()}

    def _figures(
        self, scores: list[dict[str, np.ndarray]]
    ) -> dict[str, float]:
        """Figures of one kind of maps, 0 to 1."""
        stacked = {  # each (images, K)
            name: np.stack([one[name] for one in scores]) for name in scores[0]
        }
        with np.errstate(invalid='ignore'):
            iou = stacked['intersection'].sum(0) / stacked['union'].sum(0)
        many = len(self.classes) > 1
        figures = {
            'mIoU' if many else 'IoU': _mean(iou),
            'image_IoU': _mean(map(_mean, stacked['iou'])),
            'mBA': _mean(stacked['mba']),
            'BF': _mean(stacked['bf']),
        }
        if many:
            names = (f'IoU.{name}' for name in self.classes)
            figures.update(zip(names, iou))
        return figures

    def _is_worse(self, result: dict) -> float:
        """1 for an image whose IoU falls, 0 for another, NaN without one."""
        fall = _mean(result['coarse']['iou']) - _mean(result['refined']['iou'])
        return fall if isnan(fall) else float(fall > self.worse_tolerance)

    def _log_table(self, results: list[dict], stages: list[str]) -> None:
        """Log a row per image: IoU, mBA and BF of each kind, in per cent."""
        names = [one['name'] for one in results]
        width = max(map(len, ['image', *names]))
        heads = [f'{key}/{name}' for key in stages for name in _COLUMNS]
        lines = ['  '.join([f'{"image":{width}}', *heads])]
        for one in results:
            values = [
                100 * _mean(one[key][name.lower()])
                for key in stages
                for name in _COLUMNS
            ]
            cells = [f'{v:{len(h)}.2f}' for v, h in zip(values, heads)]
            lines.append('  '.join([f'{one["name"]:{width}}', *cells]))
        print_log('Per image:\n' + '\n'.join(lines), logger='current')


def _areas(pred: Tensor, gt: Tensor, count: int) -> np.ndarray:
    """Pixels of each class in both, in pred and in gt, (3, C), in double.

    Labels beyond the classes are in no class.
    """
    pred, gt = (
        torch.where((x >= 0) & (x < count), x, count).long()
        for x in (pred, gt)
    )
    side = count + 1
    pairs = torch.bincount(gt * side + pred, minlength=side**2)
    pairs = pairs.reshape(side, side).double()
    areas = torch.stack([pairs.diagonal(), pairs.sum(0), pairs.sum(1)])
    return areas[:, :count].numpy()


def _mean(values: np.ndarray | Iterable[float]) -> float:
    """Mean of what is not NaN; NaN if all is."""
    values = np.array([*values])
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float('nan')
