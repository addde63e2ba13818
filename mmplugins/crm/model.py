"""CRM: continuous refinement of any mask at any resolution.

B batch, H x W image, H' x W' targets, C channels of the fused map. Masks are
in [-1, 1] where they enter the network, probabilities elsewhere.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import ceil

import torch
import torch.nn.functional as F
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from mmplugins.ops.implicit import Window, neighbours
from mmplugins.ops.resample import resize_window
from mmplugins.registry import MODELS
from mmplugins.typing import (
    ConfigType,
    OptConfigType,
    OptMultiConfig,
    OptSampleList,
    SampleList,
)

from .refiner import BaseRefiner, coarse_masks

_SCALES = (0.125, 0.25, 0.5, 1.0)


@MODELS.register_module()
class CRM(BaseRefiner):
    """Refines coarse masks (Shen et al., CVPR 2022, arXiv 2111.14482).

    A mask is refined at a small scale first, where the network sees much of
    the image, and that result again at the next; each stage decodes the mask
    at the image's own resolution. Large images are worked off in tiles with
    the same result as at once.

    Args:
        backbone (dict): Backbone. Defaults to
            ``dict(type='mmplugins.CRMBackbone')``, a ResNet-50.
        decode_head (dict): Head. Defaults to
            ``dict(type='mmplugins.CRMHead')``.
        scales (Sequence[float]): Scales of the stages. Defaults to (0.125,
            0.25, 0.5, 1.0).
        padding (int): Pixels by which images are continued by reflection
            before the first stage. Defaults to 32.
        tile (int, optional): Pixels of a stage's image across that are worked
            on at once, without what surrounds them; None is all. Defaults to
            1024.
        antialias (bool): Average what a smaller image leaves out, instead of
            picking, as published. Defaults to False.
        residual (float, optional): Weight at the start, then learned, of the
            coarse mask itself, at the resolution of the targets, among the
            logits: training begins with the mask as it is, and small scales
            need not find again what they do not see. Defaults to None,
            without, as published.
        min_size (int): Scales at which an image's shorter side has fewer
            pixels than this are left out, but for the last. Defaults to 0.
        min_pixels (float): Stages at whose scale a mask has less foreground
            than this leave it as it is. Defaults to 0.
        trust (float): Log-odds that every stage of :meth:`refine` adds for
            the coarse mask. Masks in use have fewer wrong pixels than crops
            around their boundaries in training; this makes up for it.
            Defaults to 0.
        data_preprocessor (dict, optional): Normalises images, such as
            ``ImgDataPreprocessor``. Defaults to None, they come normalised.
        init_cfg (dict, optional): Weight initialisation. Defaults to None.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(
        self,
        backbone: ConfigType = dict(  # noqa: B006
            type='mmplugins.CRMBackbone'
        ),
        decode_head: ConfigType = dict(  # noqa: B006
            type='mmplugins.CRMHead'
        ),
        scales: Sequence[float] = _SCALES,
        padding: int = 32,
        tile: int | None = 1024,
        antialias: bool = False,
        residual: float | None = None,
        min_size: int = 0,
        min_pixels: float = 0,
        trust: float = 0,
        data_preprocessor: OptConfigType = None,
        init_cfg: OptMultiConfig = None,
    ) -> None:
        super().__init__(data_preprocessor, init_cfg)
        if padding < 0 or (tile is not None and tile < 1):
            raise ValueError(
                'CRM needs padding of 0 or more and tile of 1 or more, or '
                f'None, got {padding} and {tile}'
            )
        if trust < 0:
            raise ValueError(f'trust of CRM must be 0 or more, got {trust}')
        self.backbone = MODELS.build(backbone)
        self.decode_head = MODELS.build(decode_head)
        self.scales = _checked(scales)
        self.padding = padding
        self.tile = tile
        self.antialias = antialias
        self.residual = None
        if residual is not None:
            self.residual = nn.Parameter(torch.tensor(float(residual)))
        self.min_size = min_size
        self.min_pixels = min_pixels
        self.trust = trust
        # Convolutions are faster so, on a CPU and in half precision.
        self.to(memory_format=torch.channels_last)

    def init_weights(self) -> None:
        """Initialise; with a residual, the network begins with nothing."""
        super().init_weights()
        if self.residual is not None:
            last = self.decode_head.decoder.layers[-1]
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(
        self,
        inputs: Tensor,
        data_samples: OptSampleList = None,
        mode: str = 'tensor',
    ) -> Tensor | dict | list[BaseDataElement]:
        """Logits, losses or refined masks, as mmengine's runner asks.

        Args:
            inputs (Tensor): Normalised images, (B, 3, H, W).
            data_samples (list): Samples with ``coarse_sem_seg``, in
                [0, 1], (1, H, W).
            mode (str): ``'tensor'`` for the logits of one stage, ``'loss'``
                for :meth:`loss`, ``'predict'`` for :meth:`predict`. Defaults
                to ``'tensor'``.

        Returns:
            Tensor | dict | list: What the mode gives.

        Raises:
            ValueError: If there is no such mode, or a sample has no coarse
                mask.
        """
        if mode == 'loss':
            return self.loss(inputs, data_samples)
        if mode == 'predict':
            return self.predict(inputs, data_samples)
        if mode == 'tensor':
            return self.forward_stage(
                inputs, coarse_masks(inputs, data_samples)
            )
        raise ValueError(
            f"mode must be 'tensor', 'loss' or 'predict', got {mode!r}"
        )

    def encode(self, image: Tensor, mask: Tensor) -> Tensor:
        """Fused map of images and masks, (B, C, H / s_1, W / s_1).

        Args:
            image (Tensor): Normalised images, (B, 3, H, W).
            mask (Tensor): Masks in [-1, 1], (B, 1, H, W).

        Raises:
            ValueError: If the two do not fit each other.
        """
        if (
            image.ndim != 4
            or image.shape[1] != 3
            or mask.shape != image[:, :1].shape
        ):
            raise ValueError(
                'CRM needs images (B, 3, H, W) and masks (B, 1, H, W), got '
                f'{tuple(image.shape)} and {tuple(mask.shape)}'
            )
        return self.decode_head(self.backbone(torch.cat([image, mask], 1)))

    def forward_stage(
        self,
        image: Tensor,
        mask: Tensor,
        size: Sequence[int] | None = None,
    ) -> Tensor:
        """Logits of one stage at any resolution.

        Args:
            image (Tensor): Normalised images, (B, 3, H, W).
            mask (Tensor): Masks in [-1, 1], (B, 1, H, W).
            size (Sequence[int], optional): Rows H' and columns W' wanted.
                Defaults to None, those of the images.

        Returns:
            Tensor: Logits, (B, 1, H', W').
        """
        feats = self.encode(image, mask)
        return self.decode(feats, mask, size or image.shape[-2:])

    def decode(
        self,
        feats: Tensor,
        mask: Tensor,
        size: Sequence[int],
        window: Sequence[int] | None = None,
        grid: Sequence[int] | None = None,
        origin: Sequence[int] = (0, 0),
    ) -> Tensor:
        """Logits of a fused map, at all targets or at a window of them.

        Args:
            feats (Tensor): Map of :meth:`encode` or a part of it,
                (B, C, h, w).
            mask (Tensor): Whole masks in [-1, 1] of any size, (B, 1, H, W).
            size (Sequence[int]): Rows H' and columns W' of the targets.
            window (Sequence[int], optional): Top, left, height and width.
                Defaults to None, all.
            grid (Sequence[int], optional): Cells of the whole map. Defaults to
                None, those of ``feats``.
            origin (Sequence[int]): Cell of the whole map that ``feats`` begin
                at. Defaults to (0, 0).

        Returns:
            Tensor: Logits, (B, 1, H', W') or of the window.
        """
        logits = self.decode_head.decoder(feats, size, window, grid, origin)
        if self.residual is None:
            return logits
        window = Window(*(window or (0, 0, *size)))
        if tuple(mask.shape[-2:]) == tuple(size):
            mask = mask[(..., *window.slices)]
        else:
            mask = resize_window(
                mask,
                size,
                window,
                mask.shape[-2:],
                (0, 0),
                self.decode_head.align_corners,
            )
        return logits + self.residual * mask

    def loss(
        self, inputs: Tensor, data_samples: SampleList
    ) -> dict[str, Tensor]:
        """Losses of a batch.

        A sample may have ``target_size`` and ``query_window`` among its meta
        information: its ground truth is then that window of a grid of that
        size over the area of its image, and ``coarse_query`` that of the
        coarse mask, for the residual.

        Args:
            inputs (Tensor): Normalised images, (B, 3, H, W).
            data_samples (SampleList): Samples with ``coarse_sem_seg`` in
                [0, 1], (1, H, W), and ``gt_sem_seg`` of 0, 1 and 255,
                (1, H', W'), of one size in all samples.

        Returns:
            dict[str, Tensor]: Losses by their names.
        """
        masks = coarse_masks(inputs, data_samples)
        feats = self.encode(inputs, masks)
        logits = [
            self._decode_queries(*pair, sample)
            for *pair, sample in zip(
                feats.split(1), masks.split(1), data_samples, strict=True
            )
        ]
        truth = torch.stack(
            [sample.gt_sem_seg.data for sample in data_samples]
        ).to(inputs.device)
        valid = truth != 255
        return self.decode_head.loss(
            torch.cat(logits), (truth == 1).to(inputs.dtype), valid
        )

    def _decode_queries(
        self, feats: Tensor, mask: Tensor, sample: BaseDataElement
    ) -> Tensor:
        """Logits (1, 1, H', W') of what a sample asks for."""
        size = sample.get('target_size', mask.shape[-2:])
        window = sample.get('query_window')
        if self.residual is None or 'coarse_query' not in sample:
            return self.decode(feats, mask, size, window)
        logits = self.decode_head.decoder(feats, size, window)
        query = 2 * sample.coarse_query.data[None].to(mask) - 1
        return logits + self.residual * query

    def stage_scales(self, size: Sequence[int]) -> tuple[float, ...]:
        """Scales of the stages of images of a size, without the small ones.

        Args:
            size (Sequence[int]): Rows H and columns W.
        """
        large = [s for s in self.scales if s * min(size) >= self.min_size]
        return tuple(large or self.scales[-1:])

    @torch.no_grad()
    def refine(
        self,
        image: Tensor,
        mask: Tensor,
        scales: Sequence[float] | None = None,
        stages: bool = False,
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Refine masks from scale to scale.

        Args:
            image (Tensor): Normalised images of any size, (B, 3, H, W).
            mask (Tensor): Masks in [-1, 1], soft ones too, (B, 1, H, W). An
                empty one stays empty.
            scales (Sequence[float], optional): Scales of the stages. Defaults
                to None, :meth:`stage_scales`.
            stages (bool): Return the result of every stage as well. Defaults
                to False.

        Returns:
            Tensor | tuple[Tensor, list[Tensor]]: Probabilities,
            (B, 1, H, W), and with ``stages`` those behind each of them.
        """
        size = image.shape[-2:]
        if scales is None:
            scales = self.stage_scales(size)
        scales = _checked(scales)
        image, mask = (_pad(x, self.padding) for x in (image, mask))
        prior = self.trust * mask
        inside = (
            ...,
            slice(self.padding, self.padding + size[0]),
            slice(self.padding, self.padding + size[1]),
        )
        probs = []
        for scale in scales:
            # A mask with less than one pixel of foreground has nothing to
            # refine, and what is not there cannot be found.
            empty = (mask + 1).sum((1, 2, 3), keepdim=True) < 2
            prob = self._refine_once(image, mask, prior, scale)
            mask = (2 * prob - 1).masked_fill_(empty, -1)
            if stages:
                probs.append((mask[inside] + 1) / 2)
        prob = (mask[inside] + 1) / 2
        return (prob, probs) if stages else prob

    def _refine_once(
        self, image: Tensor, mask: Tensor, prior: Tensor, scale: float
    ) -> Tensor:
        """Probabilities behind one stage."""
        size = image.shape[-2:]
        small = [max(1, round(n * scale)) for n in size]
        image, seen = (self._resize(x, small) for x in (image, mask))
        # Tensors of all targets are few: they are the size of the image.
        prob = torch.empty_like(mask)
        for window, feats, grid, origin in self._tiles(image, seen, size):
            logits = self.decode(feats, mask, size, window, grid, origin)
            logits += prior[(..., *window.slices)]
            prob[(..., *window.slices)] = logits.sigmoid()
        foreground = (seen + 1).sum((1, 2, 3), keepdim=True) / 2
        return torch.where(foreground < self.min_pixels, (mask + 1) / 2, prob)

    def _resize(self, x: Tensor, size: Sequence[int]) -> Tensor:
        if tuple(size) == tuple(x.shape[-2:]):
            return x
        return F.interpolate(
            x,
            tuple(size),
            mode='bilinear',
            align_corners=self.decode_head.align_corners,
            antialias=self.antialias,
        )

    def _tiles(
        self, image: Tensor, mask: Tensor, size: Sequence[int]
    ) -> Iterator[tuple[Window, Tensor, Sequence[int], Sequence[int]]]:
        """Windows of the targets, and the fused cells that they need.

        Yields:
            tuple: Window, map (B, C, h, w), cells of the whole map, and the
            cell of it that the map begins at.
        """
        extent = image.shape[-2:]
        halo = 0
        if self.tile is not None and max(extent) > self.tile:
            radius, strides = self.backbone.reach()
            first, largest = strides[0], max(strides)
            # Beyond it: one cell of each level to interpolate, one of the
            # first for the 3x3 convolution; and what align_corners displaces.
            corners = 2 if self.decode_head.align_corners else 1
            halo = radius + first + corners * largest
        # Nothing surrounds a tile at the border, which may be wider for it.
        inner = [n - 2 * halo for n in extent]
        if self.tile is None or max(inner) <= self.tile:
            feats = self.encode(image, mask)
            yield Window(0, 0, *size), feats, feats.shape[-2:], (0, 0)
            return
        grids = [[ceil(n / s) for n in extent] for s in strides]
        parts = []
        for n, rest, cells, targets in zip(extent, inner, grids[0], size):
            count = max(1, ceil(rest / self.tile))
            cuts = [halo + rest * k / count for k in range(1, count)]
            edges = {0, *(int(targets * cut / n) for cut in cuts), targets}
            edges = sorted(edges)
            spans = []
            for start, stop in pairwise(edges):
                index = neighbours(cells, targets, start, stop).index
                before = index[0, 0].item() * first - halo
                behind = (index[1, -1].item() + 1) * first + halo
                spans.append(
                    (
                        start,
                        stop,
                        max(0, before // largest * largest),
                        min(n, ceil(behind / largest) * largest),
                    )
                )
            parts.append(spans)
        for top, bottom, y0, y1 in parts[0]:
            for left, right, x0, x1 in parts[1]:
                maps = self.backbone(
                    torch.cat([x[..., y0:y1, x0:x1] for x in (image, mask)], 1)
                )
                origins = [(y0 // s, x0 // s) for s in strides]
                yield (
                    Window(top, left, bottom - top, right - left),
                    self.decode_head(maps, origins, grids),
                    grids[0],
                    origins[0],
                )


def _checked(scales: Sequence[float]) -> tuple[float, ...]:
    """Scales of the stages, or an error."""
    if not scales or min(scales) <= 0:
        raise ValueError(
            f'scales of CRM must be one or more numbers above 0, got {scales}'
        )
    return tuple(scales)


def _pad(x: Tensor, padding: int) -> Tensor:
    """Continue by reflection; by the edge where an image is too small."""
    reflected = min(padding, min(x.shape[-2:]) - 1)
    x = F.pad(x, [reflected] * 4, mode='reflect') if reflected else x
    rest = padding - reflected
    return F.pad(x, [rest] * 4, mode='replicate') if rest else x
