"""Masks and label maps of single images, refined by one call.

H x W image, N masks of it. A probability is that of the foreground, float32,
in [0, 1].
"""

from collections.abc import Iterator, Sequence
from os import PathLike

import numpy as np
import torch
from mmengine.config import Config
from torch import Tensor

from mmplugins.crm import CRM
from mmplugins.crm.loading import IGNORE_INDEX
from mmplugins.crm.merging import boundary_band, merge_labels
from mmplugins.crm.refiner import BaseRefiner, network_inputs

from .checkpoints import require_fit
from .inference import as_image, build_model, load_weights
from .masks import as_probability, read_labels, read_probability


class MaskRefiner:
    """Refines masks of images, of any size and from anywhere.

    >>> refiner = MaskRefiner('configs/crm/crm.py', 'crm.pth', device='cuda')
    >>> probability = refiner.refine(cv2.imread('a.jpg'), mask)

    Args:
        config (str | Config): Config, or its file, of
            :class:`mmplugins.crm.CRM` or another refiner.
        checkpoint (str, optional): Checkpoint file. Defaults to None, which
            only refiners without weights allow.
        device (str): Where to compute. Defaults to ``'cpu'``.
        scales (Sequence[float], optional): Scales of CRM's stages. Defaults
            to None, those of the config.
        tile (int, optional): Pixels across that CRM works on at once; fewer
            need less memory and give the same. Defaults to None, that of the
            config.
        band (int, optional): Whole pixels, in rows and columns; what is
            farther than this from the boundary of the coarse mask stays
            exactly as it is. Defaults to None, any may change.

    Raises:
        ValueError: If the config holds no refiner, the checkpoint does not
            fit it or an option is not valid.
    """

    def __init__(
        self,
        config: str | Config,
        checkpoint: str | None = None,
        device: str = 'cpu',
        scales: Sequence[float] | None = None,
        tile: int | None = None,
        band: int | None = None,
    ) -> None:
        model = build_model(config)
        if not isinstance(model, BaseRefiner):
            raise ValueError(
                'the config has to be of a refiner such as mmplugins.CRM, '
                f'its model is {type(model).__name__}'
            )
        if checkpoint is not None:
            held = load_weights(model, checkpoint)
            try:
                require_fit(model, held)
            except ValueError as error:
                raise ValueError(
                    f'checkpoint {checkpoint} does not fit the config: {error}'
                ) from error
        elif any(True for _ in model.parameters()):
            raise ValueError(
                f'{type(model).__name__} needs a checkpoint: its weights are '
                'random without'
            )
        _override(model, scales, tile)
        if band is not None and (band < 0 or band != int(band)):
            raise ValueError(
                f'band must be 0 or more whole pixels, got {band}'
            )
        self.model = model.requires_grad_(False).to(device).eval()
        self.band = None if band is None else int(band)

    @property
    def scales(self) -> tuple[float, ...]:
        """Scales of the stages; none if the refiner has no stages."""
        return tuple(getattr(self.model, 'scales', ()))

    def stage_scales(self, image: np.ndarray) -> tuple[float, ...]:
        """Scales of the stages of an image (H, W, ...), the small ones left.

        Scales that were asked for are all there; none if the refiner has no
        stages.
        """
        if not self.scales:
            return ()
        return self.model.stage_scales(image.shape[:2])

    def refine(
        self,
        image: str | PathLike | np.ndarray,
        mask: str | PathLike | np.ndarray,
        channel_order: str = 'bgr',
        stages: bool = False,
    ) -> np.ndarray | tuple[np.ndarray, list[np.ndarray]]:
        """Refine one mask of an image, or several.

        Args:
            image (str | PathLike | np.ndarray): Image or its file: (H, W, 3),
                or grey (H, W), of 8 or 16 bits; what is more than three
                channels is left out.
            mask (str | PathLike | np.ndarray): Mask or its file, (H, W), or
                several, (N, H, W), soft ones too, as
                :func:`~mmplugins.apis.masks.as_probability` takes them.
            channel_order (str): ``'bgr'``, as OpenCV reads, or ``'rgb'``, as
                Pillow does. Files are read as they need to be. Defaults to
                ``'bgr'``.
            stages (bool): Return the masks behind each stage as well.
                Defaults to False.

        Returns:
            np.ndarray | tuple[np.ndarray, list[np.ndarray]]: Probabilities,
            (H, W) or (N, H, W), and with ``stages`` those of each stage.

        Raises:
            ValueError: If image or mask are not such, or do not fit each
                other.
        """
        image = as_image(image, channel_order)
        if isinstance(mask, (str, PathLike)):
            mask = read_probability(str(mask))
        _check_array('mask', mask)
        mask = as_probability(mask)
        _check_mask(image, mask, (2, 3))
        if mask.ndim == 2:
            prob, probs = self._refine(image, mask)
        elif not len(mask):
            scales = self.stage_scales(image)
            prob, probs = mask.copy(), [mask.copy() for _ in scales]
        else:
            prob, probs = zip(*(self._refine(image, one) for one in mask))
            prob, probs = np.stack(prob), [np.stack(x) for x in zip(*probs)]
        return (prob, probs) if stages else prob

    def refine_labels(
        self,
        image: str | PathLike | np.ndarray,
        labels: str | PathLike | np.ndarray,
        classes: Sequence[int] | None = None,
        channel_order: str = 'bgr',
    ) -> np.ndarray:
        """Refine a label map, class by class.

        Each pixel takes the class of the greatest probability above a half,
        as in :func:`~mmplugins.crm.merging.merge_labels`.

        Args:
            image (str | PathLike | np.ndarray): Image or its file, as of
                :meth:`refine`.
            labels (str | PathLike | np.ndarray): Label map or its file,
                integers of 0 to 65535, (H, W), in which 255 is ignored.
            classes (Sequence[int], optional): Labels to refine; those that
                the map lacks are left out. Defaults to None, all in the map;
                of two labels not 0, the background.
            channel_order (str): As of :meth:`refine`.

        Returns:
            np.ndarray: Label map, (H, W), of the type of ``labels``.

        Raises:
            ValueError: If image or map are not such, or do not fit each
                other.
        """
        image = as_image(image, channel_order)
        if isinstance(labels, (str, PathLike)):
            labels = read_labels(str(labels))
        _check_array('label map', labels)
        if labels.dtype.kind not in 'ui':
            raise ValueError(
                f'a label map must hold integers, got {labels.dtype}'
            )
        _check_mask(image, labels, (2,))
        present = np.unique(labels)
        present = present[present != IGNORE_INDEX].tolist()
        if classes is None:
            classes = [x for x in present if x or len(present) > 2]
        if len(present) < 2:
            return labels.copy()
        chosen = [index for index in classes if index in present]
        merged = merge_labels(
            torch.from_numpy(labels.astype(np.int32)),
            self._refined(image, labels, chosen),
            self.band,
            IGNORE_INDEX,
        )
        return merged.numpy().astype(labels.dtype)

    def _refined(
        self, image: np.ndarray, labels: np.ndarray, classes: Sequence[int]
    ) -> Iterator[tuple[int, Tensor]]:
        """Class and probability (H, W) of one class after the other."""
        for index in classes:
            mask = (labels == index).astype(np.float32)
            yield index, torch.from_numpy(self._refine(image, mask)[0])

    @torch.no_grad()
    def _refine(
        self, image: np.ndarray, mask: np.ndarray
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Probabilities (H, W) of one mask, and of each stage."""
        inputs = network_inputs(
            self.model,
            torch.from_numpy(image).permute(2, 0, 1),
            torch.from_numpy(mask),
        )
        if self.scales:
            prob, probs = self.model.refine(*inputs, stages=True)
        else:
            prob, probs = self.model.refine(*inputs), []
        prob, *probs = (
            x[0, 0].float().clamp(0, 1).cpu().numpy() for x in (prob, *probs)
        )
        if self.band is not None:
            near = boundary_band(torch.from_numpy(mask > 0.5), self.band)
            prob = np.where(near.numpy(), prob, mask)
        return prob, probs


def _override(
    model: BaseRefiner, scales: Sequence[float] | None, tile: int | None
) -> None:
    """Set options of CRM instead of its config's, or raise."""
    for name, value in (('scales', scales), ('tile', tile)):
        if value is None:
            continue
        if not isinstance(model, CRM):
            raise ValueError(
                f'{name} is an option of CRM, not of {type(model).__name__}'
            )
        values = [value] if name == 'tile' else value
        if not values or not min(values) > 0:
            raise ValueError(f'{name} must be above 0, got {value}')
        setattr(model, name, value)
        if name == 'scales':
            model.min_size = 0  # what was asked for is done


def _check_array(what: str, value: object) -> None:
    if not isinstance(value, np.ndarray):
        raise ValueError(
            f'a {what} must be a file or an array, got {type(value).__name__}'
        )


def _check_mask(
    image: np.ndarray, mask: np.ndarray, dims: Sequence[int]
) -> None:
    if mask.ndim not in dims or mask.shape[-2:] != image.shape[:2]:
        raise ValueError(
            f'the mask must have the size of its image, {image.shape[:2]}, '
            f'got {mask.shape}: resize it before'
        )
