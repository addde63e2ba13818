"""The neck that a config adds: upsampled features from features and image.

B batch, C channels, h x w grid of cells, H x W image. Cell (i, j) of stride s
and offset o covers the pixels [o + s i, o + s (i + 1)) x [o + s j,
o + s (j + 1)).
"""

import logging
from collections.abc import Sequence

import torch
from mmcv.cnn import ConvModule, build_norm_layer
from mmengine.logging import print_log
from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn

from mmplugins.registry import MODELS
from mmplugins.typing import MultiConfig, OptConfigType, OptMultiConfig

from .grids import check_offset, over_image
from .strides import fits, infer_stride, measure_maps
from .upsamplers import check_finite


@MODELS.register_module()
class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each cell of (B, C, h, w)."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, h, w) over C."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


@MODELS.register_module()
class FeatUpNeck(BaseModule):
    """Upsample levels of a backbone under the guidance of its image.

    The levels that are not named pass as they are, so that an auxiliary head
    on another level sees what it always saw. The grid of a level rarely
    covers the image exactly: four rows of stride 32 cover 128 pixels of 97.
    Guidance is continued to what the grid covers (or the grid to what the
    image covers, where a ViT drops a remainder), and the result is cropped and
    resampled to cells that cover the image exactly, so that nothing shifts
    towards the edges.

    Args:
        in_channels (int | Sequence[int]): Channels of the named levels, one
            for all or one each.
        levels (Sequence[int]): Indices of the backbone's outputs to upsample.
            Defaults to ``(-1,)``.
        upsampler (dict | Sequence[dict]): Upsampler of the named levels, one
            config for all or one each; ``num_stages`` says how far. Defaults
            to ``dict(type='mmplugins.JBUStack')``.
        out_channels (int, optional): Reduce to so many channels by a
            convolution before upsampling, which is that much cheaper.
            Defaults to None, no reduction.
        norm (dict, optional): Normalisation before everything else, such as
            ``dict(type='mmplugins.ChannelNorm')``. Defaults to None.
        frozen (bool): Keep the upsamplers as they are: no gradient, no
            dropout. Defaults to False.
        init_cfg (dict, optional): Weight initialisation. Defaults to None.
        strides (int | Sequence[int], optional): Pixels per cell of the named
            levels. Defaults to None: measured on the backbone by the
            segmentors that hold the neck, else inferred from the two sizes.
        reduction (dict, optional): Keys of mmcv's ConvModule for that
            convolution, such as ``dict(kernel_size=3, padding=1,
            norm_cfg=dict(type='BN'))``. Defaults to None: 1x1 without
            normalisation and activation.
        offsets (float | Sequence[float]): Pixel where the first cell begins,
            0 or less, of the named levels; rounded to whole pixels.
            :func:`~mmplugins.featup.strides.measure_offset` tells. Defaults
            to 0.

    Raises:
        ValueError: If the arguments do not fit each other.
    """

    def __init__(
        self,
        in_channels: int | Sequence[int],
        levels: Sequence[int] = (-1,),
        upsampler: MultiConfig = dict(type='mmplugins.JBUStack'),  # noqa: B006
        out_channels: int | None = None,
        norm: OptConfigType = None,
        frozen: bool = False,
        init_cfg: OptMultiConfig = None,
        strides: int | Sequence[int] | None = None,
        reduction: OptConfigType = None,
        offsets: float | Sequence[float] = 0,
    ) -> None:
        super().__init__(init_cfg)
        if isinstance(levels, (int, str)) or not levels:
            raise ValueError(
                f'levels of FeatUpNeck must be indices such as (-1,), got '
                f'{levels}'
            )
        if out_channels is not None and out_channels < 1:
            raise ValueError(
                f'out_channels of FeatUpNeck must be 1 or more, or None, got '
                f'{out_channels}'
            )
        if reduction and not out_channels:
            raise ValueError(
                f'reduction={reduction} of FeatUpNeck needs out_channels'
            )
        reduction = reduction or dict(kernel_size=1, act_cfg=None)
        self.levels = tuple(levels)
        self.in_channels = self._per_level('in_channels', in_channels)
        # Of the named levels, as the heads see them.
        self.out_channels = [out_channels or c for c in self.in_channels]
        self.strides = self._per_level('strides', strides)
        if any(stride is not None and stride <= 0 for stride in self.strides):
            raise ValueError(
                f'strides of FeatUpNeck must be above 0, got {strides}'
            )
        self.offsets = [
            check_offset('FeatUpNeck', offset, stride)
            for offset, stride in zip(
                self._per_level('offsets', offsets), self.strides
            )
        ]
        self.frozen = frozen
        self.num_maps: int | None = None
        self.norms, self.reductions = nn.ModuleList(), nn.ModuleList()
        # mmengine's list, for torch's hides the upsamplers' init_cfg.
        self.upsamplers = ModuleList()
        configs = self._per_level('upsampler', upsampler)
        for channels, width, cfg in zip(
            self.in_channels, self.out_channels, configs, strict=True
        ):
            if not isinstance(cfg, dict):
                raise ValueError(
                    f'upsampler of FeatUpNeck must be dict(type=...), got '
                    f'{cfg!r}'
                )
            if cfg.get('in_channels', width) != width:
                raise ValueError(
                    f'upsampler in_channels={cfg["in_channels"]} of '
                    f'FeatUpNeck does not match its input of {width} channels:'
                    ' leave the key out'
                )
            self.norms.append(
                build_norm_layer(norm, channels)[1] if norm else nn.Identity()
            )
            self.reductions.append(
                ConvModule(channels, out_channels, **reduction)
                if out_channels
                else nn.Identity()
            )
            self.upsamplers.append(MODELS.build({**cfg, 'in_channels': width}))
        if frozen:
            self.upsamplers.requires_grad_(False)

    def measure(self, backbone: nn.Module) -> None:
        """Take the number of maps, and strides not given, from a backbone.

        Warns of cells smaller than a pixel.

        Args:
            backbone (nn.Module): The backbone that feeds this neck.

        Raises:
            ValueError: If a level does not exist or has other channels.
        """
        measured = measure_maps(backbone)
        if measured is not None:
            self.num_maps = len(measured)
            maps = [measured[level] for level in self._resolve(len(measured))]
            for index, found in enumerate(maps):
                if found:
                    self._check_channels(index, found.channels)
            self.strides = [
                given or (found and found.stride)
                for given, found in zip(self.strides, maps)
            ]
            for offset, stride in zip(self.offsets, self.strides):
                check_offset('FeatUpNeck', offset, stride)
        for level, stride, upsampler in zip(
            self.levels, self.strides, self.upsamplers
        ):
            scale = getattr(upsampler, 'scale', None)
            if scale is None:
                scale = 2 ** getattr(upsampler, 'num_stages', 0)
            # Sixteen times stride 14 is as published.
            if stride and scale != 'image' and scale >= 2 * stride:
                print_log(
                    f'FeatUpNeck: level {level} of stride {stride:g} '
                    f'upsampled {scale} times has cells of '
                    f'{stride / scale:g} pixels, at the cost of whole ones '
                    "and more: set fewer num_stages, or scale='image', in its "
                    'upsampler',
                    'current',
                    logging.WARNING,
                )

    def train(self, mode: bool = True) -> 'FeatUpNeck':
        """Set the mode; frozen upsamplers stay in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.upsamplers.eval()
        return self

    def forward(
        self,
        feats: Sequence[Tensor],
        guidance: Tensor | None = None,
        skip: int | None = None,
    ) -> tuple[Tensor, ...]:
        """Upsample the named levels.

        Args:
            feats (Sequence[Tensor]): Maps of the backbone, each (B, C, h, w).
            guidance (Tensor): The backbone's input image, (B, 3, H, W).
            skip (int, optional): A level to pass as it is, though named.
                Defaults to None.

        Returns:
            tuple[Tensor, ...]: The maps, the named ones upsampled.

        Raises:
            ValueError: If there is no guidance, or a level does not exist or
                is not a map of ``in_channels`` channels.
        """
        outs = list(feats)
        for index, level in enumerate(self._resolve(len(outs))):
            if skip is None or level != skip % len(outs):
                outs[level] = self._upsample(index, outs[level], guidance)
        return tuple(outs)

    def linear(
        self,
        feats: Sequence[Tensor],
        guidance: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        level: int = -1,
    ) -> Tensor:
        """1x1 convolution of one upsampled level.

        What :meth:`forward` followed by the convolution gives, but convolved
        before the upsampling where the upsampler allows (``linear`` of the
        upsamplers): K channels are upsampled instead of C.

        Args:
            feats (Sequence[Tensor]): Maps of the backbone, each (B, C, h, w).
            guidance (Tensor): The backbone's input image, (B, 3, H, W).
            weight (Tensor): Weights, (K, C), or of each sample, (B, K, C).
            bias (Tensor, optional): Biases, (K,). Defaults to None.
            level (int): Which output of the backbone. Defaults to -1.

        Returns:
            Tensor: (B, K, h', w').

        Raises:
            ValueError: As in :meth:`forward`, or if the level is not named.
        """
        named = self._resolve(len(feats))
        if level % len(feats) not in named:
            raise ValueError(
                f'levels of FeatUpNeck: {self.levels} of {len(feats)} maps '
                f'do not name {level}'
            )
        index = named.index(level % len(feats))
        return self._upsample(index, feats[level], guidance, weight, bias)

    def _per_level(self, key: str, value: object) -> list:
        """One value per level, from one for all or one each."""
        if not isinstance(value, Sequence) or isinstance(value, str):
            return [value] * len(self.levels)
        if len(value) != len(self.levels):
            raise ValueError(
                f'{key} of FeatUpNeck has {len(value)} entries for '
                f'{len(self.levels)} levels {self.levels}: give one for all '
                'or one each'
            )
        return list(value)

    def _resolve(self, count: int) -> list[int]:
        """Levels as indices from zero, given the number of maps."""
        for level in self.levels:
            if not -count <= level < count:
                raise ValueError(
                    f'levels of FeatUpNeck: {level} does not exist, the '
                    f'backbone gives {count} maps: use {-count} to {count - 1}'
                )
        indices = [level % count for level in self.levels]
        if len(set(indices)) < len(indices):
            raise ValueError(
                f'levels of FeatUpNeck name a map twice: {self.levels} of '
                f'{count} maps'
            )
        return indices

    def _upsample(
        self,
        index: int,
        x: Tensor,
        guidance: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Upsample one map and convolve it by weights, if there are any."""
        if guidance is None:
            raise ValueError(
                'FeatUpNeck needs the image as guidance, which the host does '
                "not give a neck: set model type='mmplugins."
                "GuidedEncoderDecoder' instead of 'EncoderDecoder'"
            )
        self._check(index, x)
        size, grid = guidance.shape[-2:], x.shape[-2:]
        stride = self.strides[index] or infer_stride(size, grid)
        if not fits(stride, size, grid, slack=1):
            raise ValueError(
                f'strides of FeatUpNeck: {stride} does not make '
                f'{grid[0]} x {grid[1]} cells of {size[0]} x {size[1]} pixels'
            )
        x = self.reductions[index](self.norms[index](x))
        upsampler = self.upsamplers[index]

        def upsample(x: Tensor, guidance: Tensor) -> Tensor:
            if weight is None:
                return upsampler(x, guidance)
            if weight.ndim == 2:
                return upsampler.linear(x, guidance, weight)
            samples = zip(x.split(1), guidance.split(1), weight)
            return torch.cat([upsampler.linear(*each) for each in samples])

        x = over_image(upsample, x, guidance, stride, self.offsets[index])
        return x if bias is None else x + bias.view(-1, 1, 1)

    def _check(self, index: int, x: Tensor) -> None:
        """Raise unless a level is a map of the channels it should have."""
        level = self.levels[index]
        if not isinstance(x, Tensor) or x.ndim != 4:
            shape = tuple(getattr(x, 'shape', ())) or type(x).__name__
            raise ValueError(
                f'FeatUpNeck needs maps (B, C, h, w), level {level} is '
                f"{shape}: set out_type='featmap' in a transformer backbone, "
                'gap_before_final_norm=False in a ConvNeXt'
            )
        self._check_channels(index, x.shape[1])
        # Before a norm or a convolution spreads it.
        check_finite(f'FeatUpNeck level {level}', x)

    def _check_channels(self, index: int, given: int) -> None:
        """Raise unless the backbone gives the channels that are expected."""
        channels = self.in_channels[index]
        if given != channels:
            raise ValueError(
                f'in_channels={channels} of FeatUpNeck does not match level '
                f'{self.levels[index]} of the backbone, which has {given} '
                f'channels: set in_channels={given}'
            )
