"""Pictures of masks before and after their refinement, while it is judged."""

import cv2
import numpy as np
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from mmplugins.registry import HOOKS
from mmplugins.visualization import SampleSheetHook, unwrap

from .loading import IGNORE_INDEX
from .model import CRM
from .refiner import network_inputs
from .visualization import label_sheet, refinement_sheet


@HOOKS.register_module()
class RefinementVisualizationHook(SampleSheetHook):
    """Show refined masks in validation and testing.

    A sheet of image, coarse and refined mask, every stage, errors against the
    truth where there is one and the place that changed most goes to the
    runner's visualizer, so to files (``val_<index>_<name>_<iteration>.png``)
    or TensorBoard. The stages are refined anew for it. Label maps before and
    after a ``RefinedSegmentor`` have a sheet of their own.

    Args:
        interval (int): Images from one that is shown to the next; the first
            always is. Defaults to 50.
        size (int): Longer side of a picture in pixels. Defaults to 480.
        ignore_index (int): Label of the truth that is no error. Defaults to
            255.

    Raises:
        ValueError: If an argument is not valid.
    """

    def __init__(
        self, interval: int = 50, size: int = 480, ignore_index: int = 255
    ) -> None:
        super().__init__(interval, size)
        self.ignore_index = ignore_index

    def before_run(self, runner: Runner) -> None:
        """Check that there is something to draw, before hours have passed.

        Raises:
            ValueError: If the model refines nothing.
        """
        model = unwrap(runner.model)
        if not any(hasattr(model, name) for name in ('refine', 'refiner')):
            raise ValueError(
                'RefinementVisualizationHook shows what a model such as '
                'mmplugins.CRM or mmplugins.RefinedSegmentor refines, got '
                f'{type(model).__name__}'
            )

    def draw(
        self,
        model: nn.Module,
        data_batch: dict,
        index: int,
        sample: BaseDataElement,
    ) -> np.ndarray:
        """Sheet of one sample; its image is as mmcv loads it."""
        image = data_batch['inputs'][index]
        coarse = sample.coarse_sem_seg.data
        height, width = coarse.shape[-2:]
        truth = None
        if 'gt_sem_seg' in sample:
            truth = _map(sample.gt_sem_seg.data)
            ignored = truth == self.ignore_index
            truth = np.where(ignored, IGNORE_INDEX, truth)
        if 'refined_prob' not in sample:
            # Of the image's original size, the input need not be.
            picture = cv2.resize(_picture(image), (width, height))
            labels = (coarse, sample.pred_sem_seg.data)
            return label_sheet(picture, *map(_map, labels), truth, self.size)
        image = image[:, :height, :width]
        stages = ()
        if isinstance(model, CRM):
            inputs = network_inputs(model, image, coarse[0])
            probs = model.refine(*inputs, stages=True)[1]
            scales = model.stage_scales(image.shape[-2:])
            stages = [*zip(scales, map(_map, probs), strict=True)]
        return refinement_sheet(
            _picture(image),
            _map(coarse),
            _map(sample.refined_prob.data),
            stages,
            truth,
            self.size,
        )


def _picture(image: Tensor) -> np.ndarray:
    """Image (3, H, W) as RGB (H, W, 3), uint8: mmcv loads BGR."""
    return image.byte().flip(0).permute(1, 2, 0).contiguous().cpu().numpy()


def _map(x: Tensor) -> np.ndarray:
    """Mask or label map, (1, H, W) or (H, W), as an array (H, W)."""
    return x.reshape(x.shape[-2:]).cpu().numpy()
