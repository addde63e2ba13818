"""Segmentors of mmsegmentation whose neck also sees the image."""

from mmseg.models import CascadeEncoderDecoder, EncoderDecoder
from torch import Tensor

from mmplugins.registry import MODELS

from .neck import FeatUpNeck


class GuidedMixin:
    """Hands the image to the neck; all else is the host's.

    Modules keep their names, so checkpoints of the host load unchanged and
    layer-wise learning rates still find the backbone.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if not isinstance(getattr(self, 'neck', None), FeatUpNeck):
            raise ValueError(
                f'neck of {type(self).__name__} must be dict(type='
                "'mmplugins.FeatUpNeck', in_channels=...), got "
                f'{type(getattr(self, "neck", None)).__name__}'
            )
        self.neck.measure(self.backbone)

    def extract_feat(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Features of images, upsampled with the images as guidance.

        Args:
            inputs (Tensor): Normalised images, (B, 3, H, W).

        Returns:
            tuple[Tensor, ...]: Maps of the neck, each (B, C, h, w).
        """
        return self.neck(self.backbone(inputs), inputs)


@MODELS.register_module()
class GuidedEncoderDecoder(GuidedMixin, EncoderDecoder):
    """mmseg's EncoderDecoder with a :class:`FeatUpNeck`."""


@MODELS.register_module()
class GuidedCascadeEncoderDecoder(GuidedMixin, CascadeEncoderDecoder):
    """mmseg's CascadeEncoderDecoder with a :class:`FeatUpNeck`."""
