"""Segmentors of mmsegmentation whose neck also sees the image."""

from mmseg.models import CascadeEncoderDecoder, EncoderDecoder
from torch import Tensor, nn

from mmplugins.registry import MODELS

from .neck import FeatUpNeck


class GuidedMixin:
    """Hands the image to the neck; all else is the host's.

    Modules keep their names, so checkpoints of the host load unchanged and
    layer-wise learning rates still find the backbone.
    """

    def __init__(self, *args, **kwargs) -> None:
        cascade = isinstance(self, CascadeEncoderDecoder)
        if cascade != ('num_stages' in kwargs):
            raise ValueError(
                f'{type(self).__name__} takes {"" if cascade else "no "}'
                'num_stages: a cascade is mmplugins.'
                'GuidedCascadeEncoderDecoder, all else '
                'mmplugins.GuidedEncoderDecoder'
            )
        super().__init__(*args, **kwargs)
        if not isinstance(getattr(self, 'neck', None), FeatUpNeck):
            raise ValueError(
                f'neck of {type(self).__name__} must be dict(type='
                "'mmplugins.FeatUpNeck', in_channels=...), got "
                f'{type(getattr(self, "neck", None)).__name__}'
            )
        self.neck.measure(self.backbone)
        self._check_levels()

    def _check_levels(self) -> None:
        """Raise if a level is upsampled that no head reads."""
        heads = [
            head
            for name in ('decode_head', 'auxiliary_head')
            for head in _as_list(getattr(self, name, None))
        ]
        if not all(hasattr(head, 'in_index') for head in heads):
            return  # heads of another kind may read anything
        read = {i for head in heads for i in _as_list(head.in_index)}
        count = self.neck.num_maps
        if count:
            read = {i % count for i in read}
            unread = [i for i in self.neck.levels if i % count not in read]
            if unread:
                raise ValueError(
                    f'levels of FeatUpNeck: no head reads {unread}, their '
                    f'in_index are {sorted(read)} of {count} maps'
                )

    def extract_feat(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Features of images, upsampled with the images as guidance.

        Args:
            inputs (Tensor): Normalised images, (B, 3, H, W).

        Returns:
            tuple[Tensor, ...]: Maps of the neck, each (B, C, h, w).
        """
        return self.neck(self.backbone(inputs), inputs)


def _as_list(value: object) -> list:
    if isinstance(value, (list, tuple, nn.ModuleList)):
        return list(value)
    return [] if value is None else [value]


@MODELS.register_module()
class GuidedEncoderDecoder(GuidedMixin, EncoderDecoder):
    """mmseg's EncoderDecoder with a :class:`FeatUpNeck`."""


@MODELS.register_module()
class GuidedCascadeEncoderDecoder(GuidedMixin, CascadeEncoderDecoder):
    """mmseg's CascadeEncoderDecoder with a :class:`FeatUpNeck`."""
