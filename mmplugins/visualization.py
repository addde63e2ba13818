"""Pictures side by side with captions, as one sheet, and a hook for them.

h x w picture. Pictures are RGB in [0, 1], (3, h, w).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

# Of a sheet, in pixels: between the pictures, and of a caption.
_GAP = 8
_CAPTION = 24


class Panel(NamedTuple):
    """One picture of a sheet.

    Attributes:
        caption (str): Line above it, ASCII.
        image (Tensor): Picture in [0, 1], (3, h, w).
        point (tuple[float, float], optional): Point (y, x) to mark, as shares
            of height and width in [0, 1].
    """

    caption: str
    image: Tensor
    point: tuple[float, float] | None = None


def contact_sheet(
    rows: Sequence[Sequence[Panel | None]], width: int = 1440
) -> np.ndarray:
    """Pictures in rows, with a caption above each.

    A row shares the width among its panels; an enlarged picture keeps its
    cells as they are.

    Args:
        rows (Sequence[Sequence[Panel | None]]): Panels, None for a blank.
        width (int): Width of the sheet in pixels. Defaults to 1440.

    Returns:
        np.ndarray: RGB sheet, (H, W, 3), uint8.
    """
    strips = []
    for row in rows:
        column = (width - _GAP) // len(row) - _GAP
        drawn = [panel and _draw(panel, column) for panel in row]
        height = max(len(x) for x in drawn if x is not None)
        strip = np.full((height + _GAP, width, 3), 255, np.uint8)
        for index, picture in enumerate(drawn):
            if picture is not None:
                left = _GAP + index * (column + _GAP)
                strip[: len(picture), left : left + column] = picture
        strips.append(strip)
    return np.concatenate(strips)


def sheet_width(column: int, count: int) -> int:
    """Width of a sheet whose rows have pictures of one width.

    Args:
        column (int): Width of a picture in pixels.
        count (int): Pictures in a row.

    Returns:
        int: Width in pixels.
    """
    return _GAP + count * (column + _GAP)


def _draw(panel: Panel, width: int) -> np.ndarray:
    """A panel with its caption, (H, width, 3)."""
    pixels = (255 * panel.image.detach().cpu()).round().byte()
    image = pixels.permute(1, 2, 0).contiguous().numpy()
    shrinks = image.shape[1] > width
    image = cv2.resize(
        image,
        (width, max(1, round(image.shape[0] * width / image.shape[1]))),
        interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST,
    )
    if panel.point is not None:
        y, x = (int(p * n) for p, n in zip(panel.point, image.shape))
        for colour, thickness in (((0, 0, 0), 3), ((255, 255, 255), 1)):
            cv2.drawMarker(
                image, (x, y), colour, cv2.MARKER_CROSS, 15, thickness
            )
    caption = np.full((_CAPTION, width, 3), 255, np.uint8)
    font, size = cv2.FONT_HERSHEY_SIMPLEX, 0.5
    wanted = cv2.getTextSize(panel.caption, font, size, 1)[0][0]
    size *= min(1, (width - 2) / max(wanted, 1))
    cv2.putText(
        caption, panel.caption, (0, 17), font, size, (0, 0, 0), 1, cv2.LINE_AA
    )
    return np.concatenate([caption, image])


class SampleSheetHook(Hook):
    """Shows every so many samples of a validation or a test as a sheet.

    Sheets go to the runner's visualizer, so to files
    (``val_<index>_<name>_<iteration>.png``) or TensorBoard. Subclasses draw
    them in :meth:`draw`.

    Args:
        interval (int): Images from one that is shown to the next; the first
            always is. Defaults to 50.
        size (int): Longer side of a picture in pixels. Defaults to 480.

    Raises:
        ValueError: If an argument is not valid.
    """

    priority = 'LOW'
    # Meta information of a sample that names its image.
    path_key = 'img_path'

    def __init__(self, interval: int = 50, size: int = 480) -> None:
        for name, value in (('interval', interval), ('size', size)):
            if value < 1:
                raise ValueError(
                    f'{name} of {type(self).__name__} must be 1 or more, got '
                    f'{value}'
                )
        self.interval = interval
        self.size = size
        self._seen = 0

    def draw(
        self,
        model: nn.Module,
        data_batch: dict,
        index: int,
        sample: BaseDataElement,
    ) -> np.ndarray:
        """Draw one sample.

        Args:
            model (nn.Module): Model, without a wrapper.
            data_batch (dict): Batch of the data loader.
            index (int): Place of the sample in it.
            sample (BaseDataElement): What the model made of it.

        Returns:
            np.ndarray: Sheet, RGB, (H, W, 3) uint8.
        """
        raise NotImplementedError

    def before_val_epoch(self, runner: Runner) -> None:
        """Count images anew."""
        self._seen = 0

    def before_test_epoch(self, runner: Runner) -> None:
        """Count images anew."""
        self._seen = 0

    def after_val_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: Sequence[BaseDataElement] | None = None,
    ) -> None:
        """Draw every so many images."""
        self._show(runner, 'val', data_batch, outputs)

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: Sequence[BaseDataElement] | None = None,
    ) -> None:
        """Draw every so many images."""
        self._show(runner, 'test', data_batch, outputs)

    @master_only
    def _show(
        self,
        runner: Runner,
        mode: str,
        data_batch: dict,
        outputs: Sequence[BaseDataElement],
    ) -> None:
        for index, sample in enumerate(outputs):
            if self._seen % self.interval == 0:
                stem = Path(sample.get(self.path_key) or '').stem
                name = '_'.join(filter(None, [mode, str(self._seen), stem]))
                model = unwrap(runner.model)
                sheet = self.draw(model, data_batch, index, sample)
                runner.visualizer.add_image(name, sheet, runner.iter)
            self._seen += 1


def unwrap(module: nn.Module) -> nn.Module:
    """A module without what makes it parallel.

    Args:
        module (nn.Module): Module, wrapped or not.
    """
    return module.module if is_model_wrapper(module) else module
