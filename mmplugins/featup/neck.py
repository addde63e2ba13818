"""The neck that a config adds: upsampled features from features and image.

B batch, C channels, h x w grid of cells, H x W image. Cell (i, j) of stride s
covers the pixels [s i, s (i + 1)) x [s j, s (j + 1)).
"""

from collections.abc import Sequence
from math import ceil

import torch.nn.functional as F
from mmcv.cnn import ConvModule, build_norm_layer
from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn

from mmplugins.registry import MODELS
from mmplugins.typing import MultiConfig, OptConfigType, OptMultiConfig


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
    image covers, where a ViT drops a remainder) and the result is cropped to
    the image, so that nothing shifts towards the edges.

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
            levels. Defaults to None: inferred from the two sizes, which is
            certain from a few cells on (powers of two win where it is not).
        reduction (dict, optional): Keys of mmcv's ConvModule for that
            convolution, such as ``dict(kernel_size=3, padding=1,
            norm_cfg=dict(type='BN'))``. Defaults to None: 1x1 without
            normalisation and activation.

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
    ) -> None:
        super().__init__(init_cfg)
        if isinstance(levels, int) or not levels:
            raise ValueError(
                f'levels of FeatUpNeck must be indices such as (-1,), got '
                f'{levels}'
            )
        if reduction and not out_channels:
            raise ValueError(
                f'reduction={reduction} of FeatUpNeck needs out_channels'
            )
        reduction = reduction or dict(kernel_size=1, act_cfg=None)
        self.levels = tuple(levels)
        self.in_channels = self._per_level('in_channels', in_channels)
        self.strides = self._per_level('strides', strides)
        self.frozen = frozen
        self.norms, self.reductions = nn.ModuleList(), nn.ModuleList()
        # mmengine's list, for torch's hides the upsamplers' init_cfg.
        self.upsamplers = ModuleList()
        configs = self._per_level('upsampler', upsampler)
        for channels, cfg in zip(self.in_channels, configs, strict=True):
            width = out_channels or channels
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

    def train(self, mode: bool = True) -> 'FeatUpNeck':
        """Set the mode; frozen upsamplers stay in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.upsamplers.eval()
        return self

    def forward(
        self, feats: Sequence[Tensor], guidance: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Upsample the named levels.

        Args:
            feats (Sequence[Tensor]): Maps of the backbone, each (B, C, h, w).
            guidance (Tensor): The backbone's input image, (B, 3, H, W).

        Returns:
            tuple[Tensor, ...]: The maps, the named ones upsampled.

        Raises:
            ValueError: If there is no guidance, or a level does not exist or
                is not a map of ``in_channels`` channels.
        """
        if guidance is None:
            raise ValueError(
                'FeatUpNeck needs the image as guidance, which the host does '
                "not give a neck: set model type='mmplugins."
                "GuidedEncoderDecoder' instead of 'EncoderDecoder'"
            )
        outs = list(feats)
        for index, level in enumerate(self._resolve(len(outs))):
            outs[level] = self._upsample(index, outs[level], guidance)
        return tuple(outs)

    def _per_level(self, key: str, value: object) -> list:
        """One value per level, from one for all or one each."""
        if isinstance(value, dict) or not isinstance(value, Sequence):
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

    def _upsample(self, index: int, x: Tensor, guidance: Tensor) -> Tensor:
        level, channels = self.levels[index], self.in_channels[index]
        if not isinstance(x, Tensor) or x.ndim != 4:
            shape = getattr(x, 'shape', type(x).__name__)
            raise ValueError(
                f'FeatUpNeck needs maps (B, C, h, w), level {level} is '
                f"{shape}: set out_type='featmap' in the backbone"
            )
        if x.shape[1] != channels:
            raise ValueError(
                f'in_channels={channels} of FeatUpNeck does not match level '
                f'{level} of the backbone, which has {x.shape[1]} channels'
            )
        x = self.reductions[index](self.norms[index](x))
        size = guidance.shape[-2:]
        stride = self.strides[index] or infer_stride(size, x.shape[-2:])
        x, guidance = cover(x, guidance, stride)
        cells = x.shape[-2:]
        x = self.upsamplers[index](x, guidance)
        scales = [out // cell for out, cell in zip(x.shape[-2:], cells)]
        height, width = (
            ceil(n * scale / stride) for n, scale in zip(size, scales)
        )
        return x[..., :height, :width]


def infer_stride(image: Sequence[int], grid: Sequence[int]) -> float:
    """Pixels per cell of a grid that a backbone made of an image.

    A convolution with padding gives ``ceil(n / s)`` cells, one without gives
    ``floor(n / s)``.

    Args:
        image (Sequence[int]): Height and width in pixels.
        grid (Sequence[int]): Rows and columns of cells.

    Returns:
        float: The stride that explains both; a power of two where several
        do, else the one that covers the image best. The plain ratio of the
        heights where none does.
    """
    candidates = [
        stride
        for stride in range(1, max(image) + 1)
        if all(-(-n // stride) == g for n, g in zip(image, grid))
        or all(n // stride == g for n, g in zip(image, grid))
    ]
    if not candidates:
        return image[0] / grid[0]
    powers = [s for s in candidates if s & (s - 1) == 0]
    return min(
        powers or candidates,
        key=lambda s: sum(abs(n - s * g) for n, g in zip(image, grid)),
    )


def cover(
    feats: Tensor, guidance: Tensor, stride: float
) -> tuple[Tensor, Tensor]:
    """Make features and guidance cover the same area, the image at least.

    Both are continued at the bottom and at the right by their last values.

    Args:
        feats (Tensor): Map of stride s, (B, C, h, w).
        guidance (Tensor): Image, (B, 3, H, W).
        stride (float): Pixels per cell s.

    Returns:
        tuple[Tensor, Tensor]: Map (B, C, h', w') and image
        (B, 3, s h', s w') with s h' >= H and s w' >= W.
    """
    missing = [
        max(0, ceil(n / stride) - cells)
        for n, cells in zip(guidance.shape[-2:], feats.shape[-2:])
    ]
    feats = _extend(feats, missing)
    missing = [
        max(0, round(stride * cells) - n)
        for n, cells in zip(guidance.shape[-2:], feats.shape[-2:])
    ]
    return feats, _extend(guidance, missing)


def _extend(x: Tensor, missing: Sequence[int]) -> Tensor:
    """Repeat the last row and column so many times."""
    rows, columns = missing
    if not (rows or columns):
        return x
    return F.pad(x, (0, columns, 0, rows), mode='replicate')
