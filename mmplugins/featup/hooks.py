"""Pictures of what an upsampler learns and of what a classifier sees."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from mmplugins.registry import HOOKS
from mmplugins.visualization import Panel, contact_sheet

from .inspection import (
    component_rows,
    find_neck,
    inspect_image,
    kernel_rows,
)
from .model import FeatUp
from .visualization import heat_image


@HOOKS.register_module()
class FeatUpVisualizationHook(Hook):
    """Show features of the same few images again and again in training.

    Principal components before and after upsampling, uncertainty, saliency,
    and kernels of the pixel in the middle go to the runner's visualizer, so
    to files (``featup_<image>_<iteration>.png``) or TensorBoard. Random
    numbers and the modes of all modules are afterwards what they were.

    Args:
        interval (int, optional): Iterations between two sheets. Defaults to
            None: one sheet after each validation.
        indices (Sequence[int]): Images of the validation set to show.
            Defaults to ``(0, 1)``.
        max_size (int): Longer side in pixels that larger images are reduced
            to. Defaults to 512.

    Raises:
        ValueError: If an argument is not valid.
    """

    priority = 'LOW'

    def __init__(
        self,
        interval: int | None = None,
        indices: Sequence[int] = (0, 1),
        max_size: int = 512,
    ) -> None:
        if interval is not None and interval < 1:
            raise ValueError(
                'interval of FeatUpVisualizationHook must be 1 or more, or '
                f'None, got {interval}'
            )
        if isinstance(indices, (int, str)) or not indices:
            raise ValueError(
                'indices of FeatUpVisualizationHook must be indices such as '
                f'(0, 1), got {indices!r}'
            )
        if max_size < 1:
            raise ValueError(
                'max_size of FeatUpVisualizationHook must be 1 or more, got '
                f'{max_size}'
            )
        self.interval = interval
        self.indices = tuple(indices)
        self.max_size = max_size

    def before_train(self, runner: Runner) -> None:
        """Check that there is something to draw, before hours have passed.

        Raises:
            ValueError: If there is no validation set, it is too small, or the
                model holds no upsampler.
        """
        model = runner.model
        model = model.module if is_model_wrapper(model) else model
        if not isinstance(model, FeatUp):
            find_neck(model)
        if runner.val_loop is None:
            raise ValueError(
                'FeatUpVisualizationHook shows images of the validation set: '
                'set val_dataloader, val_cfg and val_evaluator'
            )
        count = len(runner.val_loop.dataloader.dataset)
        if not all(-count <= index < count for index in self.indices):
            valid = tuple(range(count))[: len(self.indices)]
            raise ValueError(
                f'indices={self.indices} of FeatUpVisualizationHook: the '
                f'validation set has {count} images, set for example '
                f'indices={valid}'
            )

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: dict | None = None,
    ) -> None:
        """Draw every ``interval`` iterations."""
        if self.interval and self.every_n_train_iters(runner, self.interval):
            self._draw(runner, runner.iter + 1)

    def after_val_epoch(
        self, runner: Runner, metrics: dict | None = None
    ) -> None:
        """Draw after a validation, where there is no interval."""
        if not self.interval:
            self._draw(runner, runner.iter)

    @master_only
    def _draw(self, runner: Runner, step: int) -> None:
        model = runner.model
        if is_model_wrapper(model):
            model = model.module
        dataset = runner.val_loop.dataloader.dataset
        with undisturbed(model), torch.no_grad():
            for index in self.indices:
                image = _shrink(dataset[index]['inputs'], self.max_size)
                inspection = inspect_image(model, image)
                picture = _picture(image)
                middle = tuple(n // 2 for n in inspection.size)
                sheet = contact_sheet(
                    component_rows(inspection, picture)
                    + kernel_rows(inspection, picture, middle)
                )
                runner.visualizer.add_image(f'featup_{index}', sheet, step)


@HOOKS.register_module()
class CAMVisualizationHook(Hook):
    """Show each image of a test beside its class activation map.

    Of ``mmplugins.GuidedImageClassifier``: the image as the network sees it,
    and over it the map of the class that scores best. Sheets go to the
    runner's visualizer, so to files (``<image>_<number>.png``) or TensorBoard.
    """

    priority = 'LOW'

    def before_test(self, runner: Runner) -> None:
        """Count images anew."""
        self.count = 0

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: Sequence[BaseDataElement] | None = None,
    ) -> None:
        """Draw the images of one batch.

        Raises:
            ValueError: If a prediction has no map.
        """
        classes = (runner.visualizer.dataset_meta or {}).get('classes')
        for image, sample in zip(data_batch['inputs'], outputs):
            if 'cam' not in sample:
                raise ValueError(
                    'CAMVisualizationHook draws cam of '
                    'mmplugins.GuidedImageClassifier, this prediction has '
                    f'{sample.keys()}'
                )
            label = int(sample.pred_score.argmax())
            score = float(sample.pred_score[label])
            name = classes[label] if classes else f'class {label}'
            picture = _picture(image)
            # Without what the preprocessor padded.
            cam = sample.cam[: picture.shape[1], : picture.shape[2]]
            over = (picture + heat_image(cam, 0, 1)) / 2
            caption = f'{name}, score {score:.2f}'
            sheet = contact_sheet(
                [[Panel('image', picture), Panel(caption, over)]], 960
            )
            stem = Path(sample.get('img_path') or 'cam').stem
            runner.visualizer.add_image(stem, sheet, self.count)
            self.count += 1


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, after which modes and random numbers are as before.

    Args:
        model (nn.Module): Model to set to evaluation mode meanwhile.
    """
    modes = {module: module.training for module in model.modules()}
    states = random.getstate(), np.random.get_state()
    devices = (
        [torch.cuda.current_device()] if torch.cuda.is_available() else []
    )
    try:
        with torch.random.fork_rng(devices):
            model.eval()
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        random.setstate(states[0])
        np.random.set_state(states[1])


def _shrink(image: Tensor, max_size: int) -> Tensor:
    """Reduce an image (3, H, W) to a longer side, in its own type."""
    size = image.shape[-2:]
    if max(size) <= max_size:
        return image
    size = [max(1, round(n * max_size / max(size))) for n in size]
    small = F.interpolate(image[None].float(), size, mode='area')[0]
    return small if image.is_floating_point() else small.round().to(image)


def _picture(image: Tensor) -> Tensor:
    """A dataset's image as RGB in [0, 1]: mmcv loads BGR in [0, 255]."""
    return (image.flip(0).float() / 255).clamp(0, 1)
