"""The similarity search and extraction network: a reference, aligned.

B batch, C channels, H x W map, G groups of channels that share offsets.
"""

import torch
from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn

from mmplugins.ops.deform_conv import ModulatedDeformConv2d
from mmplugins.registry import MODELS
from mmplugins.typing import OptConfigType, OptMultiConfig

from .offsets import Sampling, check_maps, is_pretrained

# Stacks deeper than three are said to be hard to train.
MAX_LAYERS = 5


@MODELS.register_module()
class SSEN(BaseModule):
    """Aligns a reference's map to that of the input (SSEN, CVPR 2020).

    A stack of 3x3 modulated deformable convolutions, each of which takes the
    result of the one before and has an estimator of its own that compares this
    with the input: alignment proceeds from layer to layer, without skips and
    activations between them. The masks weigh down what does not belong, so
    that an unrelated reference does no harm. At the start, the output is the
    reference itself.

    Args:
        mid_channels (int): Channels C. Defaults to 64.
        num_layers (int): Number of deformable convolutions, 0 to 5; with 0,
            the reference is taken as it is. Defaults to 3.
        non_local (bool): As in :class:`DynamicOffsetEstimator`. Defaults to
            True.
        deform_groups (int): Groups G. Defaults to 1.
        skip (str): As in :class:`DynamicOffsetEstimator`. Defaults to
            ``'concat'``.
        offsets (dict, optional): Further arguments of the estimators, or
            another ``type``. Defaults to None.
        backend (str): As in
            :func:`mmplugins.ops.deform_conv.modulated_deform_conv2d`. Defaults
            to ``'auto'``.
        init_cfg (dict, optional): Weight initialisation. Defaults to None.

    Raises:
        ValueError: If there is no such number of layers.
    """

    def __init__(
        self,
        mid_channels: int = 64,
        num_layers: int = 3,
        non_local: bool = True,
        deform_groups: int = 1,
        skip: str = 'concat',
        offsets: OptConfigType = None,
        backend: str = 'auto',
        init_cfg: OptMultiConfig = None,
    ) -> None:
        super().__init__(init_cfg)
        if not 0 <= num_layers <= MAX_LAYERS:
            raise ValueError(
                f'num_layers of SSEN must be 0 to {MAX_LAYERS}, got '
                f'{num_layers}'
            )
        self.mid_channels = mid_channels
        cfg = dict(
            type='mmplugins.DynamicOffsetEstimator',
            mid_channels=mid_channels,
            non_local=non_local,
            deform_groups=deform_groups,
            skip=skip,
        )
        cfg.update(offsets or {})
        self.estimators = ModuleList(
            MODELS.build(dict(cfg)) for _ in range(num_layers)
        )
        self.convs = nn.ModuleList(
            ModulatedDeformConv2d(
                mid_channels,
                mid_channels,
                3,
                padding=1,
                deform_groups=deform_groups,
                bias=False,
                backend=backend,
            )
            for _ in range(num_layers)
        )
        self._init_convs()

    def init_weights(self) -> None:
        """Initialise; the layers pass on what they get whatever else does."""
        first = not self.is_init
        super().init_weights()
        if first and not is_pretrained(self.init_cfg):
            self._init_convs()

    def _init_convs(self) -> None:
        # Random weights would let through a fortieth after three layers.
        for conv in self.convs:
            nn.init.dirac_(conv.weight)

    def forward(
        self, feat: Tensor, ref_feat: Tensor, return_aux: bool = False
    ) -> Tensor | tuple[Tensor, list[Sampling]]:
        """Align the reference.

        Args:
            feat (Tensor): Map of the input, (B, C, H, W).
            ref_feat (Tensor): Map of the reference, (B, C, H, W).
            return_aux (bool): Return the offsets and masks of each layer as
                well. Defaults to False.

        Returns:
            Tensor | tuple[Tensor, list[Sampling]]: Aligned map, (B, C, H, W),
            and with ``return_aux`` pairs of offsets (B, 18 G, H, W), in
            pixels, and masks (B, 9 G, H, W), from the first layer to the last.

        Raises:
            ValueError: If the maps do not fit.
        """
        check_maps('SSEN', self.mid_channels, feat, ref_feat)
        aux = []
        if len(self.convs) and ref_feat.device.type == 'cpu':
            # As the layers read it there, and leave it, without a copy each.
            ref_feat = ref_feat.contiguous(memory_format=torch.channels_last)
        for estimator, conv in zip(self.estimators, self.convs):
            sampling = estimator(feat, ref_feat)
            ref_feat = conv(ref_feat, *sampling)
            if return_aux:
                aux.append(sampling)
            del sampling  # else it would wait for the next one
        return (ref_feat, aux) if return_aux else ref_feat
