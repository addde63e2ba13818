"""mmsegmentation's IoU with the classes' own values among the figures."""

from mmseg.evaluation import IoUMetric

from mmplugins.registry import METRICS


@METRICS.register_module()
class PerClassIoUMetric(IoUMetric):
    """mmseg's IoUMetric that also returns the IoU of each class.

    The host logs a table of them, from which no JSON is made. All arguments
    and figures are the host's; ``IoU.<class>`` in per cent come with them, NaN
    for a class that is neither there nor predicted.
    """

    def compute_metrics(self, results: list) -> dict[str, float]:
        """The host's figures and the IoU of each class.

        Args:
            results (list): Areas of each image as the host keeps them.

        Returns:
            dict[str, float]: Figures, 0 to 100.
        """
        figures = super().compute_metrics(results)
        if self.format_only:
            return figures
        areas = [sum(area) for area in zip(*results)]  # four, each (C,)
        values = self.total_area_to_metrics(
            *areas, metrics=['mIoU'], nan_to_num=self.nan_to_num
        )
        for name, value in zip(self.dataset_meta['classes'], values['IoU']):
            figures[f'IoU.{name}'] = round(100 * float(value), 2)
        return figures
