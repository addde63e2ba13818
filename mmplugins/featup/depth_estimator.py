"""Depth estimation in mmsegmentation: a guided neck and a linear probe."""

import torch
from mmseg.models import DepthEstimator
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.utils import resize
from mmseg.utils import add_prefix
from torch import Tensor, nn

from mmplugins.registry import MODELS
from mmplugins.typing import (
    MultiConfig,
    OptMultiConfig,
    OptSampleList,
    SampleList,
)

from .neck import FeatUpNeck
from .segmentor import GuidedMixin


@MODELS.register_module()
class GuidedDepthEstimator(GuidedMixin, DepthEstimator):
    """mmseg's DepthEstimator with a :class:`FeatUpNeck`.

    Args:
        linear_head (bool): Apply a :class:`LinearDepthHead` before the
            upsampling: the same prediction, losses and gradients, but one
            channel is upsampled instead of all. Defaults to False.
        *args: As in the host.
        **kwargs: As in the host.

    Raises:
        ValueError: If the parts do not fit each other.
    """

    def __init__(self, *args, linear_head: bool = False, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.linear_head = linear_head
        if getattr(self.backbone, 'class_embed_select', False):
            raise ValueError(
                'backbone of GuidedDepthEstimator takes images alone: set '
                'class_embed_select=False'
            )
        if linear_head:
            self._check_linear()

    def _check_linear(self) -> None:
        """Raise unless the head may come before the upsampling."""
        head, neck = self.decode_head, getattr(self, 'neck', None)
        if type(head) is not LinearDepthHead or head.dropout is not None:
            raise ValueError(
                "linear_head=True needs decode_head=dict(type='mmplugins."
                "LinearDepthHead', dropout_ratio=0), got "
                f'{type(head).__name__} with {getattr(head, "dropout", None)}'
            )
        if not isinstance(neck, FeatUpNeck) or self.with_auxiliary_head:
            raise ValueError(
                'linear_head=True needs a FeatUpNeck and no auxiliary_head'
            )

    def extract_feat(
        self, inputs: Tensor, batch_img_metas: list[dict] | None = None
    ) -> tuple[Tensor, ...]:
        """Features of images, upsampled with the images as guidance.

        Args:
            inputs (Tensor): Normalised images, (B, 3, H, W).
            batch_img_metas (list[dict], optional): What the host knows of the
                images, not used. Defaults to None.

        Returns:
            tuple[Tensor, ...]: Maps of the neck, each (B, C, h, w).
        """
        return super().extract_feat(inputs)

    def loss(self, inputs: Tensor, data_samples: SampleList) -> dict:
        """Losses of a batch.

        Args:
            inputs (Tensor): Normalised images, (B, 3, H, W).
            data_samples (SampleList): Samples with their depth.

        Returns:
            dict[str, Tensor]: Losses by their names.
        """
        if not self.linear_head:
            return super().loss(inputs, data_samples)
        pred = self._forward(inputs)
        losses = self.decode_head.loss_by_feat(pred, data_samples)
        return add_prefix(losses, 'decode')

    def encode_decode(
        self, inputs: Tensor, batch_img_metas: list[dict]
    ) -> Tensor:
        """Prediction at the size of the images.

        Args:
            inputs (Tensor): Normalised images, (B, 3, H, W).
            batch_img_metas (list[dict]): What the host knows of the images.

        Returns:
            Tensor: Prediction, (B, 1, H, W).
        """
        if not self.linear_head:
            return super().encode_decode(inputs, batch_img_metas)
        pred = self._forward(inputs)
        return self.decode_head.predict_by_feat(pred, batch_img_metas)

    def _forward(
        self, inputs: Tensor, data_samples: OptSampleList = None
    ) -> Tensor:
        if not self.linear_head:
            return super()._forward(inputs, data_samples)
        head = self.decode_head
        out = self.neck.linear(
            self.backbone(inputs),
            inputs,
            head.conv_seg.weight.flatten(1),
            head.conv_seg.bias,
            head.in_index,
        )
        return head.activate(out)


@MODELS.register_module()
class LinearDepthHead(BaseDecodeHead):
    """Depth, or disparity, as a 1x1 convolution of one map: a linear probe.

    Args:
        in_channels (int): Channels of the map.
        in_index (int): Index of the map. Defaults to -1.
        max_depth (float, optional): Predict depth itself, ``max_depth`` times
            a sigmoid, for mmseg's ``SiLogLoss`` and ``DepthMetric``. Defaults
            to None: any value, right up to scale and shift.
        dropout_ratio (float): Share of channels dropped in training. Defaults
            to 0.0.
        loss_decode (dict | Sequence[dict]): Losses of prediction and depth,
            each (B, 1, H, W). Defaults to
            ``dict(type='mmplugins.ScaleShiftInvariantLoss')``.
        align_corners (bool): As in the host. Defaults to False.
        init_cfg (dict, optional): Weight initialisation. Defaults to the
            host's.

    Raises:
        ValueError: If ``max_depth`` is not above 0.
    """

    def __init__(
        self,
        in_channels: int,
        in_index: int = -1,
        max_depth: float | None = None,
        dropout_ratio: float = 0.0,
        loss_decode: MultiConfig = dict(  # noqa: B006
            type='mmplugins.ScaleShiftInvariantLoss'
        ),
        align_corners: bool = False,
        init_cfg: OptMultiConfig = dict(  # noqa: B006
            type='Normal', std=0.01, override=dict(name='conv_seg')
        ),
    ) -> None:
        if max_depth is not None and max_depth <= 0:
            raise ValueError(
                f'max_depth of LinearDepthHead must be above 0, got '
                f'{max_depth}'
            )
        super().__init__(
            in_channels,
            in_channels,
            num_classes=1,
            threshold=0.0,  # of masks; the host warns without one
            dropout_ratio=dropout_ratio,
            in_index=in_index,
            loss_decode=loss_decode,
            align_corners=align_corners,
            init_cfg=init_cfg,
        )
        self.max_depth = max_depth

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Predict.

        Args:
            inputs (tuple[Tensor, ...]): Maps, each (B, C, h, w).

        Returns:
            Tensor: Prediction, (B, 1, h, w).
        """
        return self.activate(self.cls_seg(self._transform_inputs(inputs)))

    def activate(self, out: Tensor) -> Tensor:
        """Bring the convolution's output to its range, if it has one."""
        if self.max_depth is None:
            return out
        return self.max_depth * out.sigmoid()

    def loss_by_feat(
        self, seg_logits: Tensor, batch_data_samples: SampleList
    ) -> dict[str, Tensor]:
        """Losses at the size of the depth maps.

        Args:
            seg_logits (Tensor): Prediction, (B, 1, h, w).
            batch_data_samples (SampleList): Samples with ``gt_depth_map``.

        Returns:
            dict[str, Tensor]: Losses by their names.
        """
        depth = self._stack_batch_gt(batch_data_samples)
        pred = resize(
            seg_logits,
            depth.shape[2:],
            mode='bilinear',
            align_corners=self.align_corners,
        )
        losses = self.loss_decode
        if not isinstance(losses, nn.ModuleList):
            losses = [losses]
        values = {}
        for loss in losses:
            value = loss(pred, depth)
            values[loss.loss_name] = values.get(loss.loss_name, 0) + value
        return values

    def _stack_batch_gt(self, batch_data_samples: SampleList) -> Tensor:
        """Depth, (B, 1, H, W), 0 where the host padded an image."""
        maps = []
        for sample in batch_data_samples:
            depth = sample.gt_depth_map.data
            # The host pads with seg_pad_val, a depth of 255 by default.
            height, width = sample.metainfo.get('img_shape', depth.shape[-2:])[
                :2
            ]
            inside = torch.zeros_like(depth)
            inside[..., :height, :width] = depth[..., :height, :width]
            maps.append(inside)
        return torch.stack(maps)
