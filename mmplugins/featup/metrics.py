"""What a class activation map is worth: figures of a whole data set.

Scores are softmax probabilities in [0, 1] of the class that the model
predicts for the image: y of the image, o of the image masked by the map. Maps
are in [0, 1], (H, W).
"""

from collections.abc import Sequence

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from torch import Tensor

from mmplugins.registry import METRICS


def score_drop(score: float, masked: float) -> float:
    """``max(0, y - o) / y``, the part of the score that the mask costs.

    The mean is the Average Drop (A.D.) of arXiv 1710.11063.

    Args:
        score (float): Score y of the image, above 0.
        masked (float): Score o of the masked image, of the same class.

    Returns:
        float: In [0, 1]; 0 where masking raises the score.
    """
    return max(0.0, score - masked) / score


def score_gain(score: float, masked: float) -> float:
    """``max(0, o - y) / (1 - y)``, the part of the doubt that the mask lifts.

    The mean is the Average Gain (A.G.) of arXiv 2301.07002, the counterpart
    of :func:`score_drop`.

    Args:
        score (float): Score y of the image.
        masked (float): Score o of the masked image, of the same class.

    Returns:
        float: In [0, 1]; 0 where there is no doubt, y = 1.
    """
    return max(0.0, masked - score) / (1 - score) if score < 1 else 0.0


def coherency(cam: Tensor, masked_cam: Tensor) -> float:
    """Pearson's correlation r of two maps as ``(r + 1) / 2``.

    Args:
        cam (Tensor): Map of the image, (H, W).
        masked_cam (Tensor): Map of the image masked by it, for the same
            class, (H, W).

    Returns:
        float: In [0, 1]; 0 where a map is constant and r is not defined.
    """
    x, y = cam.double().flatten(), masked_cam.double().flatten()
    if x.min() == x.max() or y.min() == y.max():
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    r = x @ y / (x.norm() * y.norm())
    return float((r.clamp(-1, 1) + 1) / 2)


def complexity(cam: Tensor) -> float:
    """Mean of a map, how much of the image it keeps.

    Args:
        cam (Tensor): Map in [0, 1], (H, W).

    Returns:
        float: In [0, 1].
    """
    return float(cam.double().abs().mean())


def adcc(drop: float, coherency: float, complexity: float) -> float:
    """Harmonic mean of coherency, 1 - complexity and 1 - average drop.

    As defined by Poppi et al. (CVPRW 2021, arXiv 2104.10252); their published
    code (aimagelab/ADCC @ 280b48e, metrics/adcc.py) leaves out the inversion.

    Args:
        drop (float): Average drop in [0, 1].
        coherency (float): Coherency in [0, 1].
        complexity (float): Complexity in [0, 1].

    Returns:
        float: In [0, 1]; 0 where one of the three is 0.
    """
    terms = (coherency, 1 - complexity, 1 - drop)
    return 3 / sum(1 / term for term in terms) if min(terms) > 0 else 0.0


@METRICS.register_module()
class CAMMetric(BaseMetric):
    """Average Drop, Average Increase, Average Gain and ADCC, all in per cent.

    Reads of each sample ``pred_score`` (K,) and ``cam`` (H, W) of the image,
    ``masked_score`` (K,) and ``masked_cam`` (H, W) of the image masked by
    ``cam``, as ``mmplugins.GuidedImageClassifier`` gives them. No label is
    needed: the class is the predicted one. The figures are

    - ``average_drop`` (A.D., less is better): mean of :func:`score_drop`;
    - ``average_increase`` (A.I., more is better): images whose score the mask
      raises, o > y;
    - ``average_gain`` (A.G., more is better): mean of :func:`score_gain`;
    - ``coherency`` (more is better) and ``complexity`` (less is better);
    - ``adcc`` (more is better): mean of the images' :func:`adcc`;
      ``adcc_of_means`` is that of the three means, never below it.

    Args:
        collect_device (str): ``'cpu'`` or ``'gpu'``, where the results of
            several processes are gathered. Defaults to ``'cpu'``.
        prefix (str, optional): Before the names of the figures. Defaults to
            None, ``'cam'``.
    """

    default_prefix = 'cam'

    def __init__(
        self, collect_device: str = 'cpu', prefix: str | None = None
    ) -> None:
        super().__init__(collect_device, prefix)

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Keep the figures of each image.

        Args:
            data_batch (dict): Not used.
            data_samples (Sequence[dict]): Predictions.

        Raises:
            ValueError: If a prediction lacks a key.
        """
        for sample in data_samples:
            self.results.append(self._figures(sample))

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Average over the images.

        Args:
            results (list[dict]): Figures of each image in [0, 1].

        Returns:
            dict[str, float]: Figures in per cent.
        """
        means = {
            key: float(np.mean([one[key] for one in results]))
            for key in results[0]
        }
        means['adcc_of_means'] = adcc(
            means['average_drop'], means['coherency'], means['complexity']
        )
        return {key: 100 * value for key, value in means.items()}

    @staticmethod
    def _figures(sample: dict) -> dict[str, float]:
        keys = ('pred_score', 'cam', 'masked_score', 'masked_cam')
        missing = [key for key in keys if key not in sample]
        if missing:
            raise ValueError(
                f'CAMMetric needs {", ".join(missing)} of each prediction: '
                "test model type='mmplugins.GuidedImageClassifier' with "
                'masking set'
            )
        scores, cam, masked_scores, masked_cam = (
            torch.as_tensor(sample[key]).cpu().double() for key in keys
        )
        label = int(scores.argmax())
        score, masked = float(scores[label]), float(masked_scores[label])
        figures = dict(
            average_drop=score_drop(score, masked),
            average_increase=float(masked > score),
            average_gain=score_gain(score, masked),
            coherency=coherency(cam, masked_cam),
            complexity=complexity(cam),
        )
        figures['adcc'] = adcc(
            figures['average_drop'],
            figures['coherency'],
            figures['complexity'],
        )
        return figures
