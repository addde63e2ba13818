"""Super-resolution with references: one network from images to image.

B batch, C channels of the maps, h x w small image, s scale: s h x s w result.
Images are RGB in [0, 1]; maps have the small image's resolution, that of a
reference too.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn

from mmplugins.ops.implicit import Window
from mmplugins.ops.tiling import crop, tiles
from mmplugins.registry import MODELS
from mmplugins.typing import OptConfigType, OptMultiConfig

from .blocks import ResidualBlock, ResidualTrunk, init_linear
from .offsets import Sampling
from .rcan import DIV2K_MEAN, RCANTrunk, Upsampler
from .references import (
    ReferenceStem,
    blend_references,
    fit_reference,
    move_reference,
)

TRUNKS = ('residual', 'rcan')
# One for each image or several, each a batch or a list of images.
References = Tensor | Sequence[Tensor | Sequence[Tensor]]


@MODELS.register_module()
class SSENNet(BaseModule):
    """Super-resolution with references (Shim et al., CVPR 2020).

    Small image and reference pass the same blocks, the reference behind a
    strided stem of its own; :class:`~mmplugins.ssen.SSEN` aligns its map,
    which is joined to that of the image before the trunk. The trunk's long
    skip adds the image's map. Without a reference, the image is its own.
    Beyond the paper, a ``search`` may move the reference to the image first.

    Args:
        in_channels (int): Channels of the images. Defaults to 3.
        out_channels (int): Channels of the result. Defaults to 3.
        mid_channels (int): Channels C. Defaults to 64.
        num_blocks (int): Blocks of the trunk; of each group with
            ``trunk='rcan'``. Defaults to 16.
        num_extract_blocks (int): Blocks that image and reference share.
            Defaults to 5.
        trunk (str): ``'residual'`` or ``'rcan'``. Defaults to ``'residual'``.
        num_layers (int): Deformable layers, as in
            :class:`~mmplugins.ssen.SSEN`. Defaults to 3.
        non_local (bool): As there. Defaults to True.
        upscale_factor (int): Scale s, 2, 3, 4 or 8. Defaults to 4.
        deform_groups (int): As in :class:`~mmplugins.ssen.SSEN`. Defaults to
            1.
        num_groups (int): Groups of ``trunk='rcan'``. Defaults to 10.
        align (dict, optional): Further arguments of the
            :class:`~mmplugins.ssen.SSEN`, or another ``type``. Defaults to
            None.
        search (dict, optional): Arguments of a
            :class:`~mmplugins.ssen.LocalSearch`, or another ``type``, that
            finds where the reference shows what the image does; it is read
            there, pixel by pixel, before its stem. It has no weights, so
            checkpoints load with and without it, with a warning where they
            differ. Only with ``reference=True``. Defaults to None, none, as
            published.
        reference (bool | str): True for references, and the image itself
            without one; ``'self'`` for the image itself only, then there is no
            stem for references; False for neither, the plain network to
            compare with. The last two ignore references. Defaults to True.
        mean (Sequence[float], optional): Mean of each channel in [0, 1], which
            the layers do not see. Defaults to None, DIV2K's for three channels
            and zero for others.
        init_cfg (dict, optional): Weight initialisation. Defaults to None.

    Raises:
        ValueError: If an argument is not one of those.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        mid_channels: int = 64,
        num_blocks: int = 16,
        num_extract_blocks: int = 5,
        trunk: str = 'residual',
        num_layers: int = 3,
        non_local: bool = True,
        upscale_factor: int = 4,
        deform_groups: int = 1,
        num_groups: int = 10,
        align: OptConfigType = None,
        search: OptConfigType = None,
        reference: bool | str = True,
        mean: Sequence[float] | None = None,
        init_cfg: OptMultiConfig = None,
    ) -> None:
        super().__init__(init_cfg)
        if trunk not in TRUNKS:
            raise ValueError(
                f'trunk of SSENNet must be one of {TRUNKS}, got {trunk!r}'
            )
        if reference not in (True, False, 'self'):
            raise ValueError(
                "reference of SSENNet must be True, False or 'self', got "
                f'{reference!r}'
            )
        if search is not None and reference is not True:
            raise ValueError(
                'search of SSENNet needs reference=True, for it searches '
                f'references, got search={search} and reference={reference!r}'
            )
        if in_channels != out_channels:
            # What is taken off the image is added to the result.
            raise ValueError(
                'in_channels and out_channels of SSENNet must be equal, got '
                f'{in_channels} and {out_channels}'
            )
        if mean is None:
            mean = DIV2K_MEAN if in_channels == 3 else [0.0] * in_channels
        if len(mean) != in_channels:
            raise ValueError(
                f'mean of SSENNet needs {in_channels} values, got {mean}'
            )
        self.in_channels = in_channels
        self.upscale_factor = upscale_factor
        self.reference = reference
        mean = torch.tensor(mean).view(1, -1, 1, 1)
        self.register_buffer('mean', mean, persistent=False)
        # Refuses scales that the other parts do not have.
        self.upsampler = Upsampler(mid_channels, out_channels, upscale_factor)
        self.stem = nn.Conv2d(in_channels, mid_channels, 3, padding=1)
        init_linear(self.stem)
        self.extractor = ModuleList(
            ResidualBlock(mid_channels) for _ in range(num_extract_blocks)
        )
        self.ref_stem = self.search = self.ssen = self.fusion = None
        if reference:
            cfg = dict(
                type='mmplugins.SSEN',
                mid_channels=mid_channels,
                num_layers=num_layers,
                non_local=non_local,
                deform_groups=deform_groups,
            )
            cfg.update(align or {})
            self.ssen = MODELS.build(cfg)
            self.fusion = nn.Conv2d(2 * mid_channels, mid_channels, 1)
            self._init_fusion()
        if reference is True:
            self.ref_stem = ReferenceStem(
                in_channels, mid_channels, upscale_factor
            )
            if search is not None:
                cfg = dict(type='mmplugins.LocalSearch')
                self.search = MODELS.build({**cfg, **search})
        if trunk == 'residual':
            self.trunk = ResidualTrunk(mid_channels, num_blocks)
        else:
            self.trunk = RCANTrunk(mid_channels, num_groups, num_blocks)
        # Convolutions are faster so, on a CPU and in half precision.
        self.to(memory_format=torch.channels_last)

    def check_search(self, state_dict: Mapping, prefix: str = '') -> None:
        """Warn if weights are of a network with a search and this has none.

        Or the reverse. Nothing but the list of modules that torch keeps beside
        the weights tells; of weights without the list nothing is known.

        Args:
            state_dict (Mapping): Weights, of a whole model, as they are
                loaded.
            prefix (str): What their names begin with here. Defaults to
                ``''``.
        """
        modules = getattr(state_dict, '_metadata', None) or {}
        if self.ref_stem is None or f'{prefix}ref_stem' not in modules:
            return
        trained = f'{prefix}search' in modules
        if trained == (self.search is not None):
            return
        had, has = ('a search', 'none') if trained else ('none', 'a search')
        print_log(
            f'the checkpoint is of an SSENNet with {had}, this one has {has}, '
            'so its results differ: set search as in its training',
            'current',
            logging.WARNING,
        )

    def _load_from_state_dict(
        self, state_dict: Mapping, prefix: str, *args
    ) -> None:
        self.check_search(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _init_fusion(self) -> None:
        """Nearly pass the image's map alone.

        What is read from references before they are found is noise; a network
        that has it from the start learns to shut it out.
        """
        init_linear(self.fusion)
        with torch.no_grad():
            own, other = self.fusion.weight.chunk(2, 1)
            nn.init.dirac_(own)
            other.mul_(0.1)

    @property
    def radius(self) -> int | None:
        """Pixels of the maps around a window that its result depends on.

        None with ``trunk='rcan'``, which depends on all of them.
        """
        if self.trunk.radius is None:
            return None
        return self.trunk.radius + self.upsampler.radius

    def extract(self, lr: Tensor) -> Tensor:
        """Map of small images.

        Args:
            lr (Tensor): RGB in [0, 1], (B, 3, h, w).

        Returns:
            Tensor: (B, C, h, w).

        Raises:
            ValueError: If they are no images of the network's channels.
        """
        self._check_images('images', lr)
        return self._extract(self.stem(lr - self.mean))

    def find_reference(self, feat: Tensor, ref: Tensor) -> Tensor | None:
        """Where a reference shows what the image does, by the search.

        Image and reference, made as small, pass the same layers, so that what
        is alike in them is alike before any training.

        Args:
            feat (Tensor): Map of the image, (B, C, h, w).
            ref (Tensor): As of :meth:`extract_reference`.

        Returns:
            Tensor | None: Displacement (dy, dx) in pixels of the maps,
            (B, 2, h, w), without gradients; None without a search.
        """
        if self.search is None:
            return None
        with torch.no_grad():
            size = feat.shape[-2:]
            dtype = torch.promote_types(ref.dtype, torch.float32)
            small = F.interpolate(
                self._fit(ref, size).to(dtype),
                size,
                mode='bicubic',
                antialias=True,
            )
            return self.search(feat, self.extract(small.to(ref.dtype)))

    def extract_reference(
        self, ref: Tensor, size: Sequence[int], shift: Tensor | None = None
    ) -> Tensor:
        """Map of a reference.

        Args:
            ref (Tensor): RGB in [0, 1] of any size, (B, 3, H, W); what does
                not fit, see :func:`fit_reference`.
            size (Sequence[int]): Rows h and columns w of the small image.
            shift (Tensor, optional): Where it is read, as of
                :meth:`find_reference`. Defaults to None, as it lies.

        Returns:
            Tensor: (B, C, h, w).

        Raises:
            ValueError: If they are no images of the network's channels, or the
                network has no stem for references.
        """
        if self.ref_stem is None:
            raise ValueError(
                f'SSENNet with reference={self.reference!r} takes no '
                'references'
            )
        self._check_images('references', ref)
        ref = self._fit(ref, size)
        if shift is not None:
            ref = move_reference(ref, shift)
        return self._extract(self.ref_stem(ref - self.mean))

    def align(
        self,
        feat: Tensor,
        ref_feats: Tensor | Sequence[Tensor] | None = None,
        return_aux: bool = False,
    ) -> Tensor | tuple[Tensor, list[list[Sampling]]]:
        """Join what the references have to add.

        Args:
            feat (Tensor): Map of the image, (B, C, h, w).
            ref_feats (Tensor | Sequence[Tensor], optional): Maps of the
                references, each (B, C, h, w). Defaults to None, the image's.
            return_aux (bool): Return offsets and masks as well. Defaults to
                False.

        Returns:
            Tensor | tuple: Joint map, (B, C, h, w), and with ``return_aux``
            a list of the layers' offsets and masks, as of
            :class:`~mmplugins.ssen.SSEN`, for each reference.
        """
        if self.ssen is None:
            return (feat, []) if return_aux else feat
        if isinstance(ref_feats, Tensor):
            ref_feats = [ref_feats]
        ref_feats = ref_feats or [feat]
        aligned, aux = [], []
        for ref_feat in ref_feats:
            out = self.ssen(feat, ref_feat, return_aux)
            if return_aux:
                out, samplings = out
                aux.append(samplings)
            aligned.append(out)
        out = blend_references(feat, aligned)
        fused = self.fusion(torch.cat([feat, out], 1))
        return (fused, aux) if return_aux else fused

    def reconstruct(
        self,
        feat: Tensor,
        fused: Tensor,
        window: Sequence[int] | None = None,
    ) -> Tensor:
        """Large images of maps, or a window of them.

        A window is what there is in the whole result, to rounding. With
        ``trunk='residual'`` only :attr:`radius` pixels around it are worked
        on; the other trunk works on all. See :meth:`reconstruct_tiles`.

        Args:
            feat (Tensor): Map of the images, (B, C, h, w).
            fused (Tensor): Joint map, (B, C, h, w).
            window (Sequence[int], optional): Top, left, height and width, in
                pixels of the small images. Defaults to None, all.

        Returns:
            Tensor: RGB, about [0, 1], (B, 3, s h, s w) or s times the window.

        Raises:
            ValueError: If the window does not lie inside of the map.
        """
        if window is not None and self.radius is not None:
            size = window[2:]
            feat, _, _ = crop(feat, window, self.radius)
            fused, top, left = crop(fused, window, self.radius)
            window = (top, left, *size)
        return self.upsampler(self.trunk(fused, feat), window) + self.mean

    def reconstruct_tiles(
        self, feat: Tensor, fused: Tensor, tile: int | None = None
    ) -> Iterator[tuple[Window, Tensor]]:
        """Large images window by window, in little memory.

        Args:
            feat (Tensor): Map of the images, (B, C, h, w).
            fused (Tensor): Joint map, (B, C, h, w).
            tile (int, optional): Rows and columns of a window, in pixels of
                the small images. Defaults to None, all.

        Yields:
            tuple[Window, Tensor]: Window, in pixels of the result, and what
            there is in the whole result, to rounding, (B, 3, *window).
        """
        # A trunk that needs the whole map has it once, see RCANTrunk.
        deep = self.trunk(fused, feat) if self.radius is None else None
        for window in tiles(feat.shape[-2:], tile):
            if deep is None:
                out = self.reconstruct(feat, fused, window)
            else:
                out = self.upsampler(deep, window) + self.mean
            yield Window(*(self.upscale_factor * n for n in window)), out

    def encode(
        self, lr: Tensor, ref: References | None = None
    ) -> tuple[Tensor, Tensor, list[list[Sampling]]]:
        """What :meth:`reconstruct` needs, of images and references.

        Args:
            lr (Tensor): RGB in [0, 1], (B, 3, h, w).
            ref (Tensor | Sequence, optional): As in :meth:`forward`. Defaults
                to None.

        Returns:
            tuple: Map of the images and joint map, both (B, C, h, w), and
            offsets and masks, as of :meth:`align`; with a search, what it
            found is of each reference the first, a layer of a single tap.

        Raises:
            ValueError: As in :meth:`forward`.
        """
        feat = self.extract(lr)
        size = lr.shape[-2:]
        refs = [ref] if isinstance(ref, Tensor) else list(ref or [])
        if self.ref_stem is None:
            refs = []
        for each in refs:
            if len(each) != len(lr):
                raise ValueError(
                    f'SSENNet needs a reference for each of {len(lr)} images, '
                    f'got {len(each)}'
                )
        shifts, ref_feats = [], []
        for each in refs:
            fitting = self._fit_all(each, size)
            shifts.append(self.find_reference(feat, fitting))
            ref_feats.append(self.extract_reference(fitting, size, shifts[-1]))
        fused, aux = self.align(feat, ref_feats or None, True)
        if self.search is not None:
            # What is found before the layers is one more, of a single tap.
            moves = [Sampling(x, torch.ones_like(x[:, :1])) for x in shifts]
            aux = [[move, *each] for move, each in zip(moves, aux)] or aux
        return feat, fused, aux

    def forward(
        self,
        lr: Tensor,
        ref: References | None = None,
        return_aux: bool = False,
    ) -> Tensor | tuple[Tensor, list[list[Sampling]]]:
        """Enlarge images with what references show.

        Args:
            lr (Tensor): RGB in [0, 1], (B, 3, h, w).
            ref (Tensor | Sequence, optional): A reference or several for each
                image, RGB in [0, 1], of any sizes, each (B, 3, H, W), or B of
                (3, H, W). Defaults to None, the image itself.
            return_aux (bool): Return offsets and masks as well. Defaults to
                False.

        Returns:
            Tensor | tuple: RGB, about [0, 1], (B, 3, s h, s w), and with
            ``return_aux`` offsets and masks, as of :meth:`encode`.

        Raises:
            ValueError: If they are no images of the network's channels, or
                batches differ.
        """
        feat, fused, aux = self.encode(lr, ref)
        sr = self.reconstruct(feat, fused)
        return (sr, aux) if return_aux else sr

    def _extract(self, x: Tensor) -> Tensor:
        for block in self.extractor:
            x = block(x)
        return x

    def _fit_all(
        self, ref: Tensor | Sequence[Tensor], size: Sequence[int]
    ) -> Tensor:
        """Fit a reference of each image; those of several sizes in turn."""
        if isinstance(ref, Tensor):
            self._check_images('references', ref)
            return self._fit(ref, size)
        return torch.cat([self._fit_all(x[None], size) for x in ref])

    def _fit(self, ref: Tensor, size: Sequence[int]) -> Tensor:
        return fit_reference(ref, [self.upscale_factor * n for n in size])

    def _check_images(self, what: str, x: Tensor) -> None:
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f'SSENNet needs {what} (B, {self.in_channels}, H, W), got '
                f'{tuple(x.shape)}'
            )
