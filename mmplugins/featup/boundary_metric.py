"""How well a segmentation follows the boundaries of its classes."""

from collections.abc import Sequence
from math import hypot

import torch
from mmengine.evaluator import BaseMetric
from torch import Tensor

from mmplugins.ops.boundary import boundary_scores
from mmplugins.registry import METRICS


@METRICS.register_module()
class BoundaryFScore(BaseMetric):
    """F-score of the boundaries, per class, in per cent.

    In an image, the boundary of a class are its pixels beside, above or below
    one of another class. With P the share of predicted boundary pixels that
    have a true one of the class within the tolerance, and R the share of true
    ones that have a predicted one, ``F = 2 P R / (P + R)``, 0 if nothing
    matches (:func:`mmplugins.ops.boundary.boundary_scores`). ``BF.<class>`` is
    the mean of F over the images whose ground truth holds the class, ``mBF``
    the mean over the classes. A class that is only predicted counts through
    the classes it takes the place of; one in no ground truth is NaN and left
    out of the mean.

    The tolerance is that of Csurka et al., BMVC 2013; DAVIS takes 0.008 and
    rounds up to pixels.

    Args:
        tolerance (float): Farthest match as a share of the image's diagonal.
            Defaults to 0.0075.
        ignore_index (int): Label of pixels without ground truth: they are no
            boundary, they match none, and what borders on them is no boundary
            for that. Defaults to 255.
        collect_device (str): ``'cpu'`` or ``'gpu'``, where the results of
            several processes are gathered. Defaults to ``'cpu'``.
        prefix (str, optional): Prefix of the names. Defaults to None.

    Raises:
        ValueError: If ``tolerance`` is not in [0, 1).
    """

    def __init__(
        self,
        tolerance: float = 0.0075,
        ignore_index: int = 255,
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device, prefix)
        if not 0 <= tolerance < 1:
            raise ValueError(
                'tolerance of BoundaryFScore is a share of the diagonal, 0 '
                f'to 1, got {tolerance}'
            )
        self.tolerance = tolerance
        self.ignore_index = ignore_index

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Score a batch.

        Args:
            data_batch (dict): Not used.
            data_samples (Sequence[dict]): Samples with ``pred_sem_seg`` and
                ``gt_sem_seg``, each with ``data`` of (1, H, W).
        """
        for sample in data_samples:
            pred = _label_map(sample, 'pred_sem_seg')
            scores = boundary_scores(
                pred,
                _label_map(sample, 'gt_sem_seg').to(pred.device),
                len(self.dataset_meta['classes']),
                self.tolerance * hypot(*pred.shape),
                self.ignore_index,
            )
            self.results.append(scores.f_score.cpu())

    def compute_metrics(self, results: list[Tensor]) -> dict[str, float]:
        """Average over images, then over classes.

        Args:
            results (list[Tensor]): F of each image, (C,).

        Returns:
            dict[str, float]: ``mBF`` and ``BF.<class>``, 0 to 100 or NaN.
        """
        scores = 100 * torch.stack(results).nanmean(0)  # (C,)
        figures = dict(mBF=round(scores.nanmean().item(), 2))
        for name, score in zip(self.dataset_meta['classes'], scores.tolist()):
            figures[f'BF.{name}'] = round(score, 2)
        return figures


def _label_map(sample: dict, key: str) -> Tensor:
    """Labels of a sample, (H, W)."""
    data = sample[key]['data']
    return data.reshape(data.shape[-2:])
