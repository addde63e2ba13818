"""SegFormer's head with upsampling that follows the image.

B batch, C channels of the head, h x w finest level, H x W image. As in the
host, every level is taken to cover the image.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from mmengine.model import ModuleList
from mmseg.models import SegformerHead
from torch import Tensor

from mmplugins.registry import MODELS
from mmplugins.typing import MultiConfig


@MODELS.register_module()
class GuidedSegformerHead(SegformerHead):
    """mmseg's SegformerHead that upsamples its levels guided by the image.

    It needs ``mmplugins.GuidedEncoderDecoder``, with or without a neck. The
    host resizes every level to the finest and convolves all of them together;
    that convolution is linear, so each level's share of it comes before the
    upsampling, where it is cheaper, and the results are added. Modules of the
    host keep their names: its checkpoints load, only ``upsamplers`` are new.

    Args:
        upsampler (dict | Sequence[dict]): Upsampler of the coarser levels, one
            config for all or one each, finest first. Where it does not say,
            ``num_stages`` is 1, 2, 3 ... for levels of twice, four times,
            eight times ... the finest stride. Defaults to
            ``dict(type='mmplugins.JBUStack', channel_fixup=False)``: the
            convolutions around it mix the channels.
        shared (bool): Upsample each level to the next finer one, add and
            upsample the sum, so that levels share their way: half the weights
            and a third of the cost for four levels. Defaults to False.
        **kwargs: As in the host, without ``interpolate_mode``.

    Raises:
        ValueError: If the arguments do not fit each other.
    """

    guided = True

    def __init__(
        self,
        upsampler: MultiConfig = dict(  # noqa: B006
            type='mmplugins.JBUStack', channel_fixup=False
        ),
        shared: bool = False,
        **kwargs,
    ) -> None:
        for key in ('interpolate_mode', 'align_corners'):
            if kwargs.get(key, 'bilinear') not in ('bilinear', False):
                raise ValueError(
                    f'{key}={kwargs[key]!r} of GuidedSegformerHead: its '
                    'upsampler interpolates, without align_corners'
                )
        super().__init__(**kwargs)
        coarser = len(self.in_channels) - 1
        if not isinstance(upsampler, Sequence):
            upsampler = [upsampler] * coarser
        if len(upsampler) != coarser or coarser < 1:
            raise ValueError(
                f'upsampler of GuidedSegformerHead has {len(upsampler)} '
                f'entries for {coarser} levels coarser than the first of '
                f'in_index={self.in_index}: give one for all or one each'
            )
        self.shared = shared
        # mmengine's list, for torch's hides the upsamplers' init_cfg.
        self.upsamplers = ModuleList(
            MODELS.build(
                {
                    'num_stages': 1 if shared else stages,
                    **cfg,
                    'in_channels': self.channels,
                    'scale': 'image',
                }
            )
            for stages, cfg in enumerate(upsampler, 1)
        )

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Logits.

        Args:
            inputs (Sequence[Tensor]): Maps that carry the image as
                ``guidance``, each (B, C_i, h_i, w_i), finest first.

        Returns:
            Tensor: Logits, (B, K, h, w).

        Raises:
            ValueError: If there is no image.
        """
        image = getattr(inputs, 'guidance', None)
        if image is None:
            raise ValueError(
                'GuidedSegformerHead needs the image, which the host does not '
                "give a head: set model type='mmplugins.GuidedEncoderDecoder' "
                "instead of 'EncoderDecoder'"
            )
        maps = [
            conv(x)
            for conv, x in zip(self.convs, self._transform_inputs(inputs))
        ]
        fusion = self.fusion_conv
        weights = fusion.conv.weight.split(self.channels, 1)  # (C, C, 1, 1)
        if self.shared:
            out = self._chain(maps, weights, image)
        else:
            out = self._sum(maps, weights, image)
        if fusion.conv.bias is not None:
            out = out + fusion.conv.bias.view(-1, 1, 1)
        if fusion.with_norm:
            out = fusion.norm(out)
        return self.cls_seg(fusion.activate(out))

    def _sum(
        self, maps: list[Tensor], weights: Sequence[Tensor], image: Tensor
    ) -> Tensor:
        """Every level on its own way to the finest."""
        out = F.conv2d(maps[0], weights[0])
        guidance = F.adaptive_avg_pool2d(image, out.shape[-2:])
        for x, weight, upsampler in zip(
            maps[1:], weights[1:], self.upsamplers
        ):
            out = out + upsampler.linear(x, guidance, weight.flatten(1))
        return out

    def _chain(
        self, maps: list[Tensor], weights: Sequence[Tensor], image: Tensor
    ) -> Tensor:
        """From level to level, adding up."""
        *finer, out = (F.conv2d(x, w) for x, w in zip(maps, weights))
        for x, upsampler in zip(finer[::-1], list(self.upsamplers)[::-1]):
            guidance = F.adaptive_avg_pool2d(image, x.shape[-2:])
            out = x + upsampler(out, guidance)
        return out
