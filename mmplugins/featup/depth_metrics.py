"""Metrics of depth that is known up to scale and shift.

H x W pixels of an image. Depth is in the unit of the data, 0 or not finite
where there is none.
"""

import logging
from collections.abc import Sequence

import torch
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from torch import Tensor

from mmplugins.registry import METRICS

from .depth import check_space, fit_scale_shift, to_space, valid_depth


@METRICS.register_module()
class AlignedDepthMetric(BaseMetric):
    """Errors of depth after the best scale and shift of each image.

    The prediction is brought to the truth by least squares over the image's
    pixels, in the space that it was trained in, and limited to the range of
    depth; the errors are those of depth whatever the space: ``rmse`` in the
    unit of the data, ``abs_rel``, and the shares ``d1``, ``d2``, ``d3`` of
    pixels with max(p / g, g / p) below 1.25, 1.25^2 and 1.25^3. All are means
    over images of the errors of an image, as in mmseg's ``DepthMetric``.

    An image of fewer than two pixels of depth in the range is left out, and a
    warning counts them. The scale may be negative, as least squares give it.

    Args:
        space (str): What the model predicts, ``'disparity'`` (one over the
            depth) or ``'depth'``. Defaults to ``'disparity'``.
        align (bool): Fit scale and shift; without it the prediction counts as
            it is. Defaults to True.
        min_depth (float): Pixels count whose true depth is above this, and
            predictions are no less. Defaults to 1e-3.
        max_depth (float): Pixels count whose true depth is below this, and
            predictions are no more. Defaults to 10.0.
        crop (Sequence[int], optional): First row, end row, first column and
            end column of the pixels that count, such as the usual
            ``(45, 471, 41, 601)`` on NYU. Defaults to None, all.
        collect_device (str): As in mmengine. Defaults to ``'cpu'``.
        prefix (str, optional): As in mmengine. Defaults to None.

    Raises:
        ValueError: If an argument is not valid.
    """

    def __init__(
        self,
        space: str = 'disparity',
        align: bool = True,
        min_depth: float = 1e-3,
        max_depth: float = 10.0,
        crop: Sequence[int] | None = None,
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        name = type(self).__name__
        check_space(name, space)
        if not 0 < min_depth < max_depth < float('inf'):
            raise ValueError(
                f'min_depth and max_depth of {name} must be '
                f'0 < min_depth < max_depth < inf, got {min_depth} and '
                f'{max_depth}'
            )
        if crop is not None and not (
            len(crop) == 4
            and 0 <= crop[0] < crop[1]
            and 0 <= crop[2] < crop[3]
        ):
            raise ValueError(
                f'crop of {name} must be (first row, end row, first column, '
                f'end column), got {crop}'
            )
        self.space = space
        self.align = align
        self.min_depth = min_depth
        self.max_depth = max_depth
        self.crop = crop

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Errors of a batch's images.

        Args:
            data_batch (dict): The batch, not used.
            data_samples (Sequence[dict]): Results with maps (1, H, W)
                ``pred_depth_map`` and ``gt_depth_map``.

        Raises:
            ValueError: If the two maps of an image differ in size.
        """
        for sample in data_samples:
            pred = sample['pred_depth_map']['data'].squeeze(0)
            depth = sample['gt_depth_map']['data'].squeeze(0)
            if pred.shape != depth.shape:
                raise ValueError(
                    f'pred_depth_map is {tuple(pred.shape)}, gt_depth_map '
                    f'{tuple(depth.shape)}: load the depth after resizing'
                )
            self.results.append(self._errors(pred, depth.to(pred.device)))

    def compute_metrics(self, results: list[dict | None]) -> dict[str, float]:
        """Means over images.

        Args:
            results (list[dict | None]): Errors of each image, None for one
                left out.

        Returns:
            dict[str, float]: ``rmse``, ``abs_rel``, ``d1``, ``d2``, ``d3``.

        Raises:
            ValueError: If all images are left out.
        """
        rows = [row for row in results if row is not None]
        if not rows:
            raise ValueError(
                f'none of {len(results)} images has two pixels of depth '
                f'between min_depth={self.min_depth} and '
                f'max_depth={self.max_depth}'
                + (f' in crop={self.crop}' if self.crop else '')
                + ': check the unit, depth_rescale_factor'
            )
        if len(rows) < len(results):
            print_log(
                f'{len(results) - len(rows)} of {len(results)} images have '
                'fewer than two pixels of depth in the range: left out',
                logger='current',
                level=logging.WARNING,
            )
        return {
            key: sum(row[key] for row in rows) / len(rows) for key in rows[0]
        }

    def _errors(self, pred: Tensor, depth: Tensor) -> dict | None:
        """Errors of an image, None if it has too little depth."""
        if self.crop:
            top, bottom, left, right = self.crop
            pred, depth = (x[top:bottom, left:right] for x in (pred, depth))
        inside = (depth > self.min_depth) & (depth < self.max_depth)
        valid = valid_depth(depth) & inside
        if valid.sum() < 2:
            return None
        # (1, 1, M) maps of the pixels that count.
        pred, depth = (x[valid].double()[None, None] for x in (pred, depth))
        valid = torch.ones_like(depth, dtype=torch.bool)
        if self.align:
            target = to_space(depth, valid, self.space)
            scale, shift = fit_scale_shift(pred, target, valid)
            pred = scale * pred + shift
        if self.space == 'disparity':
            pred = 1 / pred.clamp(1 / self.max_depth, 1 / self.min_depth)
        pred = pred.clamp(self.min_depth, self.max_depth)
        error = pred - depth
        ratio = torch.maximum(pred / depth, depth / pred)
        errors = dict(rmse=error.square().mean().sqrt())
        errors['abs_rel'] = (error.abs() / depth).mean()
        for power in (1, 2, 3):
            errors[f'd{power}'] = (ratio < 1.25**power).double().mean()
        return {key: value.item() for key, value in errors.items()}
