"""How well fine features explain unseen views, beside interpolation."""

from collections.abc import Sequence

from mmengine.evaluator import BaseMetric

from mmplugins.registry import METRICS


@METRICS.register_module()
class ViewReconstruction(BaseMetric):
    """Error of reconstructed views as a share of their features' variance.

    Reads ``view_errors`` of :class:`mmplugins.featup.FeatUp`. Of each map
    (``upsampler``, ``bilinear``, ``nearest``, and with ``_mean`` those shrunk
    by the plain mean instead of the learned downsampler) the squared errors
    of all images are summed and divided by the summed variance: 0 is perfect,
    1 as good as the mean of the view's features.
    """

    default_prefix = 'view'

    def process(self, data_batch: object, data_samples: Sequence) -> None:
        """Take the errors of a batch."""
        self.results.extend(sample['view_errors'] for sample in data_samples)

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Ratios over all images."""
        variance = sum(result['variance'] for result in results)
        return {
            key: sum(result[key] for result in results) / max(variance, 1e-12)
            for key in results[0]
            if key != 'variance'
        }
