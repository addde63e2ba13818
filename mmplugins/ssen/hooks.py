"""What references give, as pictures and as one table of all data sets."""

from collections.abc import Mapping

import numpy as np
import torch
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from mmplugins.registry import HOOKS
from mmplugins.visualization import SampleSheetHook, unwrap

from .generator import SSENNet
from .references import fit_reference
from .tiling import as_references
from .visualization import alignment_sheet


@HOOKS.register_module()
class ReferenceVisualizationHook(SampleSheetHook):
    """Show what upscaled images take from their references.

    A sheet of the small image, the result, the true one and of every reference
    what it gives goes to the runner's visualizer, so to files
    (``val_<index>_<name>_<iteration>.png``) or TensorBoard. The alignment is
    computed anew for it.

    Args:
        interval (int): Images from one that is shown to the next; the first
            always is. Defaults to 50.
        size (int): Longer side of a picture in pixels. Defaults to 480.

    Raises:
        ValueError: If an argument is not valid.
    """

    path_key = 'gt_path'

    def before_run(self, runner: Runner) -> None:
        """Check that there is something to draw, before hours have passed.

        Raises:
            ValueError: If the model aligns nothing.
        """
        generator = _generator(runner)
        if not isinstance(generator, SSENNet):
            raise ValueError(
                'ReferenceVisualizationHook shows what a model with '
                "generator=dict(type='mmplugins.SSENNet') aligns, got "
                f'{type(generator).__name__}'
            )

    @torch.no_grad()
    def draw(
        self,
        model: nn.Module,
        data_batch: dict,
        index: int,
        sample: BaseDataElement,
    ) -> np.ndarray:
        """Sheet of one image of a batch and its prediction."""
        inputs = data_batch['inputs']
        if isinstance(inputs, Mapping):
            one = {key: value[index] for key, value in inputs.items()}
        else:
            one = inputs[index]
        given = data_batch['data_samples'][index]
        inputs = model.data_preprocessor(
            dict(inputs=[one], data_samples=[given])
        )['inputs']
        image, references = inputs, None
        if isinstance(inputs, Mapping):
            image, references = inputs['img'], as_references(inputs.get('ref'))
        generator = unwrap(model.generator)
        _, _, aux = generator.encode(image, references)
        result = _picture(sample.output.pred_img)
        shown = [image]
        if references is not None and generator.reference is True:
            shown = [fit_reference(x, result.shape[-2:]) for x in references]
        truth = _picture(sample.gt_img) if 'gt_img' in sample else None
        return alignment_sheet(
            image[0],
            result,
            [(x[0], layers) for x, layers in zip(shown, aux)],
            truth,
            size=self.size,
        )


@HOOKS.register_module()
class RobustnessTableHook(Hook):
    """One table of the figures of all data sets of a test.

    Metrics of several data sets have prefixes: those before the first slash
    are the rows, what follows is the columns, in the order of the config. With
    CUFED5's levels of similarity as the rows, it shows how much the figures
    owe to the reference, and what an unrelated one does to them.
    """

    priority = 'LOW'

    @master_only
    def after_test_epoch(
        self, runner: Runner, metrics: dict[str, float] | None = None
    ) -> None:
        """Log the table of a test."""
        self._log(runner, metrics)

    @master_only
    def after_val_epoch(
        self, runner: Runner, metrics: dict[str, float] | None = None
    ) -> None:
        """Log the table of a validation."""
        self._log(runner, metrics)

    def _log(self, runner: Runner, metrics: dict[str, float] | None) -> None:
        table = metric_table(metrics or {})
        if table:
            runner.logger.info(f'\n{table}')


def metric_table(metrics: Mapping[str, float]) -> str:
    """Figures of several data sets as the text of a table.

    Args:
        metrics (Mapping[str, float]): Figures by their names,
            ``<row>/<column>``; others are left out.

    Returns:
        str: Lines of equal length; ``''`` if there are no two rows.
    """
    rows: dict[str, dict[str, str]] = {}
    for key, value in metrics.items():
        row, slash, column = key.partition('/')
        if slash:
            rows.setdefault(row, {})[column] = f'{value:.4f}'
    if len(rows) < 2:
        return ''
    columns = list(dict.fromkeys(c for row in rows.values() for c in row))
    lines = [['', *columns]]
    lines += [
        [k, *(row.get(c, '') for c in columns)] for k, row in rows.items()
    ]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return '\n'.join(
        '  '.join(
            cell.rjust(width) if k else cell.ljust(width)
            for k, (cell, width) in enumerate(zip(line, widths))
        )
        for line in lines
    )


def _generator(runner: Runner) -> nn.Module | None:
    generator = getattr(unwrap(runner.model), 'generator', None)
    return None if generator is None else unwrap(generator)


def _picture(image: Tensor) -> Tensor:
    """Image (3, H, W) in RGB, [0, 1]: mmagic gives BGR, [0, 255]."""
    return image.detach().cpu().float().flip(0) / 255
