"""CRM's head: one map of several levels, decoded at any resolution.

B batch, C_k channels of level k at stride s_k, L levels, h x w cells of the
finest, H x W targets.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule, build_norm_layer
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmplugins.ops.resample import resize_window
from mmplugins.registry import MODELS
from mmplugins.typing import ConfigType, OptMultiConfig

from .decoders import ImplicitDecoder

_LOSSES = (
    dict(type='mmplugins.MaskCrossEntropyLoss', loss_weight=1.0),
    dict(type='mmplugins.MaskL1Loss', loss_weight=0.5),
    dict(type='mmplugins.MaskL2Loss', loss_weight=0.5),
    dict(type='mmplugins.MaskGradientLoss', loss_weight=2.0),
)


@MODELS.register_module()
class CRMHead(BaseModule):
    """Fuses levels to one map and decodes a mask from it.

    Each level passes a 1x1 convolution; all but the first are resized to it;
    a 3x3 convolution fuses them (CRM, arXiv 2111.14482; widths and
    normalisation as in dvlab-research/Entity @ c4939b6).

    Args:
        in_channels (Sequence[int]): Channels C_k of the levels. Defaults to
            (64, 256, 1024), a ResNet-50.
        channels (Sequence[int]): Channels of each level before the fusion;
            their sum is the map's. Defaults to (64, 64, 128).
        hidden_channels (Sequence[int]): Hidden layers of the
            :class:`ImplicitDecoder`. Defaults to (32, 32, 32, 32).
        offset (bool): Give the decoder the offset C_r. Defaults to True.
        coord (bool): Give it the coordinate C_t. Defaults to True.
        ratio (bool): Give it the ratio r. Defaults to True.
        dropout_ratio (float): Dropout after each convolution. Defaults to
            0.5.
        align_corners (bool): Resize levels from corner to corner, as published
            weights need it; else their cells stay over the same pixels.
            Defaults to False.
        norm_cfg (dict): Normalisation. Defaults to ``dict(type='BN')``.
        loss_decode (dict | Sequence[dict], optional): Losses of logits, target
            and valid pixels. Defaults to None, the four published ones.
        backend (str): As in :func:`mmplugins.ops.local_ensemble`. Defaults to
            ``'auto'``.
        init_cfg (dict, optional): Weight initialisation. Defaults to None.

    Raises:
        ValueError: If ``channels`` are not as many as ``in_channels``.
    """

    def __init__(
        self,
        in_channels: Sequence[int] = (64, 256, 1024),
        channels: Sequence[int] = (64, 64, 128),
        hidden_channels: Sequence[int] = (32, 32, 32, 32),
        offset: bool = True,
        coord: bool = True,
        ratio: bool = True,
        dropout_ratio: float = 0.5,
        align_corners: bool = False,
        norm_cfg: ConfigType = dict(type='BN'),  # noqa: B006
        loss_decode: ConfigType | Sequence[ConfigType] | None = None,
        backend: str = 'auto',
        init_cfg: OptMultiConfig = None,
    ) -> None:
        super().__init__(init_cfg)
        if len(channels) != len(in_channels):
            raise ValueError(
                'channels of CRMHead must be as many as in_channels, got '
                f'{tuple(channels)} for {tuple(in_channels)}'
            )
        self.in_channels = tuple(in_channels)
        self.align_corners = align_corners
        self.levels = nn.ModuleList(
            FusionLevel(*pair, dropout_ratio, norm_cfg)
            for pair in zip(in_channels, channels)
        )
        width = sum(channels)
        self.fusion = ConvModule(width, width, 3, padding=1, norm_cfg=norm_cfg)
        self.dropout = nn.Dropout(dropout_ratio)
        self.decoder = ImplicitDecoder(
            width,
            hidden_channels,
            offset=offset,
            coord=coord,
            ratio=ratio,
            backend=backend,
        )
        for module in self.modules():
            if hasattr(module, 'turn_on_efficient_conv_bn_eval'):
                # Fixed statistics go into the weights: a pass less.
                module.turn_on_efficient_conv_bn_eval()
        losses = _LOSSES if loss_decode is None else loss_decode
        if isinstance(losses, dict):
            losses = [losses]
        self.loss_decode = nn.ModuleList(MODELS.build(cfg) for cfg in losses)

    def forward(
        self,
        feats: Sequence[Tensor],
        origins: Sequence[Sequence[int]] | None = None,
        grids: Sequence[Sequence[int]] | None = None,
    ) -> Tensor:
        """Fuse the levels.

        Args:
            feats (Sequence[Tensor]): L levels, each (B, C_k, h_k, w_k), over
                one area.
            origins (Sequence[Sequence[int]], optional): Row and column of each
                whole level that ``feats`` begin at. Defaults to None, they are
                whole.
            grids (Sequence[Sequence[int]], optional): Rows and columns of the
                whole levels. Defaults to None, those of ``feats``.

        Returns:
            Tensor: Map, (B, C, h, w).

        Raises:
            ValueError: If the levels are not those of ``in_channels``.
        """
        given = tuple(level.shape[1] for level in feats)
        if given != self.in_channels:
            raise ValueError(
                f'in_channels of CRMHead are {self.in_channels}, the backbone '
                f'gives maps of {given}'
            )
        size = feats[0].shape[-2:]
        maps = [level(x) for level, x in zip(self.levels, feats)]
        for k, x in enumerate(maps[1:], 1):
            if origins is None:
                maps[k] = F.interpolate(
                    x, size, mode='bilinear', align_corners=self.align_corners
                )
            else:
                maps[k] = resize_window(
                    x,
                    grids[0],
                    (*origins[0], *size),
                    grids[k],
                    origins[k],
                    self.align_corners,
                )
        return self.dropout(self.fusion(torch.cat(maps, 1)))

    def loss(
        self, logits: Tensor, target: Tensor, valid: Tensor
    ) -> dict[str, Tensor]:
        """Losses by their names.

        Args:
            logits (Tensor): Decoded masks, (B, 1, H, W).
            target (Tensor): True masks in [0, 1], (B, 1, H, W).
            valid (Tensor): Pixels that are not ignored, bool, (B, 1, H, W).

        Returns:
            dict[str, Tensor]: Scalars; losses of one name are added.
        """
        losses = {}
        for loss in self.loss_decode:
            value = loss(logits, target, valid)
            losses[loss.loss_name] = losses.get(loss.loss_name, 0) + value
        return losses


class FusionLevel(nn.Sequential):
    """1x1 convolution, normalised twice, of one level.

    Args:
        in_channels (int): Channels of the level.
        out_channels (int): Channels of the result.
        dropout_ratio (float): Dropout behind it.
        norm_cfg (dict): Normalisation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        dropout_ratio: float,
        norm_cfg: ConfigType,
    ) -> None:
        super().__init__(
            ConvModule(in_channels, out_channels, 1, norm_cfg=norm_cfg),
            build_norm_layer(norm_cfg, out_channels)[1],
            nn.ReLU(inplace=True),
            nn.Dropout(dropout_ratio),
        )
