"""Single images, upscaled by one call with what references show.

h x w image, s scale: s h x s w result; a reference is of any size.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from torch import Tensor, nn

from mmplugins.ssen import RCAN, SSENNet
from mmplugins.ssen.offsets import Sampling
from mmplugins.ssen.references import fit_reference
from mmplugins.ssen.tiling import check_tile, upscale_tiles
from mmplugins.ssen.visualization import alignment_sheet, check_point

from .checkpoints import require_fit
from .inference import as_image, build_model, load_weights

# Pixels of the low-resolution image across that are worked on at once.
DEFAULT_TILE = 256

Image = str | np.ndarray


class ReferenceUpscaler:
    """Upscales images, of any size and from anywhere, without ground truth.

    >>> upscaler = ReferenceUpscaler('config.py', 'ssen.pth')
    >>> large = upscaler.upscale('small.jpg', ['other-photo.jpg'])

    Args:
        config (str | Config): Config, or its file, of a model with a
            :class:`mmplugins.ssen.SSENNet` or :class:`mmplugins.ssen.RCAN` as
            ``generator``, or of one of these itself.
        checkpoint (str, optional): Checkpoint file of either. Defaults to
            None, which is an error, for no such network is without weights.
        device (str): Where to compute. Defaults to ``'cpu'``.
        tile (int, optional): Pixels of the image across that are worked on at
            once; fewer need less memory and give the same. Defaults to None,
            what ``test_cfg`` of the config says, else 256.

    Raises:
        ValueError: If the config holds no such network, the checkpoint does
            not fit it or an option is not valid.
    """

    def __init__(
        self,
        config: str | Config,
        checkpoint: str | None = None,
        device: str = 'cpu',
        tile: int | None = None,
    ) -> None:
        check_tile(tile)
        model = build_model(config)
        generator = getattr(model, 'generator', model)
        if not isinstance(generator, (SSENNet, RCAN)):
            raise ValueError(
                'the config has to be of a model with mmplugins.SSENNet or '
                f'mmplugins.RCAN, its is {type(generator).__name__}'
            )
        _check_range(model)
        if checkpoint is None:
            raise ValueError(
                f'{type(generator).__name__} needs a checkpoint: its weights '
                'are random without'
            )
        _load(model, generator, checkpoint)
        self.tile = tile or getattr(model, 'tile', None) or DEFAULT_TILE
        self.generator = generator.requires_grad_(False).to(device).eval()

    @property
    def scale(self) -> int:
        """How many times larger the result is."""
        return self.generator.upscale_factor

    @property
    def takes_references(self) -> bool:
        """Whether references are of use to the network."""
        return getattr(self.generator, 'reference', None) is True

    @property
    def aligns(self) -> bool:
        """Whether there is an alignment to show."""
        return bool(getattr(self.generator, 'reference', False))

    @torch.no_grad()
    def upscale(
        self,
        image: Image,
        references: Image | Sequence[Image] = (),
        channel_order: str = 'bgr',
    ) -> np.ndarray:
        """Upscale one image.

        Args:
            image (str | np.ndarray): Image or its file: (h, w, 3), or grey
                (h, w), of 8 or 16 bits; what is more than three channels is
                left out.
            references (str | np.ndarray | Sequence): Images that show the
                same, likewise, in any number and of any sizes. Defaults to
                none: the image is its own reference.
            channel_order (str): ``'bgr'``, as OpenCV reads, or ``'rgb'``, as
                Pillow does, of arrays and of the result. Defaults to
                ``'bgr'``.

        Returns:
            np.ndarray: Image, (s h, s w, 3), uint8.

        Raises:
            ValueError: If something is no image, or the network takes no
                references.
        """
        small, others = self._inputs(image, references, channel_order)
        height, width = (self.scale * n for n in small.shape[-2:])
        result = np.empty((height, width, 3), np.uint8)
        for window, part in upscale_tiles(
            self.generator, small, others, self.tile
        ):
            levels = (255 * part[0].float().clamp(0, 1)).round().byte()
            pixels = levels.permute(1, 2, 0).cpu().numpy()
            result[window.slices] = pixels
        if channel_order == 'bgr':
            result = np.ascontiguousarray(result[..., ::-1])
        return result

    @torch.no_grad()
    def show(
        self,
        image: Image,
        result: np.ndarray,
        references: Image | Sequence[Image] = (),
        point: Sequence[int] | None = None,
        channel_order: str = 'bgr',
        size: int = 480,
    ) -> np.ndarray:
        """Show what an upscaled image takes from its references.

        Args:
            image (str | np.ndarray): As of :meth:`upscale`.
            result (np.ndarray): What that gave.
            references (str | np.ndarray | Sequence): As of :meth:`upscale`.
                Defaults to none.
            point (Sequence[int], optional): Pixel (y, x) of the image whose
                samples are shown. Defaults to None, the middle.
            channel_order (str): As of :meth:`upscale`. Defaults to ``'bgr'``.
            size (int): Longer side of a picture in pixels. Defaults to 480.

        Returns:
            np.ndarray: Sheet, RGB, (H', W', 3), uint8.

        Raises:
            ValueError: If the network aligns nothing or the point is not in
                the image.
        """
        small, others = self._inputs(image, references, channel_order)
        if point is not None:
            check_point(point, small.shape[-2:])
        aux = self._align(small, others)
        return alignment_sheet(
            small[0],
            _tensor(as_image(result, channel_order), 'cpu')[0],
            [(x[0], layers) for x, layers in zip(others or [small], aux)],
            point=point,
            size=size,
        )

    @torch.no_grad()
    def align(
        self,
        image: Image,
        references: Image | Sequence[Image] = (),
        channel_order: str = 'bgr',
    ) -> list[list[Sampling]]:
        """Where the network looks.

        Args:
            image (str | np.ndarray): As of :meth:`upscale`.
            references (str | np.ndarray | Sequence): As of :meth:`upscale`.
                Defaults to none.
            channel_order (str): As of :meth:`upscale`. Defaults to ``'bgr'``.

        Returns:
            list[list[Sampling]]: Of each reference, or of the image itself,
            offsets and masks of every layer.

        Raises:
            ValueError: If the network aligns nothing.
        """
        return self._align(*self._inputs(image, references, channel_order))

    def _align(
        self, small: Tensor, others: list[Tensor] | None
    ) -> list[list[Sampling]]:
        if not self.aligns:
            raise ValueError(
                f'{type(self.generator).__name__} of the config aligns '
                'nothing that could be shown'
            )
        return self.generator.encode(small, others)[2]

    def _inputs(
        self,
        image: Image,
        references: Image | Sequence[Image],
        channel_order: str,
    ) -> tuple[Tensor, list[Tensor] | None]:
        """Image, and references that fit, each (1, 3, H, W), or None."""
        if isinstance(references, (str, np.ndarray)):
            references = [references]
        if len(references) and not self.takes_references:
            raise ValueError(
                f'{type(self.generator).__name__} of the config takes no '
                f'references, got {len(references)}'
            )
        device = next(self.generator.parameters()).device
        small = _tensor(as_image(image, channel_order), device)
        size = [self.scale * n for n in small.shape[-2:]]
        # One after the other, for before they fit they may be large.
        others = [
            fit_reference(_tensor(as_image(x, channel_order), device), size)
            for x in references
        ]
        return small, others or None


def _load(model: nn.Module, generator: nn.Module, path: str) -> None:
    """Load a checkpoint, of the model or of its generator alone, or raise."""
    _check_file(path)
    held = load_weights(model, path)
    if generator is not model:
        prefix = 'generator.'
        own = {
            key.removeprefix(prefix): value
            for key, value in held.items()
            if key.startswith(prefix)
        }
        held = own or load_weights(generator, path)
    try:
        require_fit(generator, held)
    except ValueError as error:
        raise ValueError(
            f'checkpoint {path} does not fit the config: {error}'
        ) from error


def _check_file(path: str) -> None:
    """Raise if a file is none of torch's, before mmengine prints that."""
    if not Path(path).is_file():  # an address, or for mmengine to miss
        return
    with open(path, 'rb') as file:
        start = file.read(2)
    if not start.startswith((b'PK', b'\x80')):  # zip, or a pickle
        raise ValueError(
            f'checkpoint {path} does not read: not a file of torch.save'
        )


def _check_range(model: nn.Module) -> None:
    """Raise if a model was trained on anything but RGB in [0, 1]."""
    own = getattr(model, 'data_preprocessor', None)
    mean, std = (getattr(own, name, None) for name in ('mean', 'std'))
    if mean is None or std is None:
        return
    order = getattr(own, 'output_channel_order', 'RGB')
    if mean.any() or (std != 255).any() or order != 'RGB':
        raise ValueError(
            'data_preprocessor of the config has to give RGB in [0, 1]: mean '
            "0, std 255 and output_channel_order='RGB'"
        )


def _tensor(image: np.ndarray, device: torch.device | str) -> Tensor:
    """BGR (H, W, 3), uint8, as RGB in [0, 1], (1, 3, H, W)."""
    pixels = torch.from_numpy(image[..., ::-1].copy()).to(device)
    return pixels.permute(2, 0, 1)[None].float() / 255
