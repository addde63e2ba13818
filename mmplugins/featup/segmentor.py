"""Segmentors of mmsegmentation whose neck and head also see the image."""

from collections.abc import Iterable

from mmseg.models import CascadeEncoderDecoder, EncoderDecoder, FCNHead
from mmseg.utils import add_prefix
from torch import Tensor, nn

from mmplugins.registry import MODELS
from mmplugins.typing import OptSampleList, SampleList

from .neck import FeatUpNeck


class GuidedMaps(tuple):
    """Maps that carry the image they were made of, for heads that ask for it.

    To all others they are the tuple of maps that the host hands around; the
    image belongs to one call and nothing is kept in a module.

    Args:
        maps (Iterable[Tensor]): Maps, each (B, C, h, w).
        guidance (Tensor): Normalised images, (B, 3, H, W).
    """

    guidance: Tensor

    def __new__(cls, maps: Iterable[Tensor], guidance: Tensor) -> 'GuidedMaps':
        """Make a tuple of the maps and add the image."""
        self = super().__new__(cls, maps)
        self.guidance = guidance
        return self


class GuidedMixin:
    """Hands the image to the neck, and to heads that are guided.

    All else is the host's. Modules keep their names, so checkpoints of the
    host load unchanged and layer-wise learning rates still find the backbone.
    A head with a true attribute ``guided`` gets :class:`GuidedMaps`; with such
    a head the neck may be another one, or none.
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
        self._guided = any(
            getattr(head, 'guided', False) for _, head in self._heads()
        )
        if isinstance(getattr(self, 'neck', None), FeatUpNeck):
            self.neck.measure(self.backbone)
            self._check_levels()
            self._check_channels()
        elif not self._guided:
            neck = type(getattr(self, 'neck', None)).__name__
            heads = ', '.join(type(head).__name__ for _, head in self._heads())
            raise ValueError(
                f'neck of {type(self).__name__} must be dict(type='
                "'mmplugins.FeatUpNeck', in_channels=...), or its decode_head "
                'a guided one such as mmplugins.GuidedSegformerHead, got '
                f'{neck} and {heads}'
            )

    def _heads(self) -> list[tuple[str, nn.Module]]:
        """Heads, each with the key of the config it comes from."""
        return [
            (name, head)
            for name in ('decode_head', 'auxiliary_head')
            for head in _as_list(getattr(self, name, None))
        ]

    def _check_levels(self) -> None:
        """Raise if a level is upsampled that no head reads."""
        count = self.neck.num_maps
        levels = [_levels_of(head, count) for _, head in self._heads()]
        if count is None or None in levels:
            return  # heads of another kind may read anything
        read = set().union(*levels)
        unread = [i for i in self.neck.levels if i % count not in read]
        if unread:
            raise ValueError(
                f'levels of FeatUpNeck: no head reads {unread}, their '
                f'in_index are {sorted(read)} of {count} maps'
            )

    def _check_channels(self) -> None:
        """Raise if a head takes another number of channels than the neck."""
        count = self.neck.num_maps
        for name, head in self._heads():
            indices, channels = (
                _as_list(getattr(head, key, None))
                for key in ('in_index', 'in_channels')
            )
            if count is None or len(indices) != len(channels):
                continue  # levels that a head concatenates have but a sum
            given = {i % count: c for i, c in zip(indices, channels)}
            for level, width in zip(self.neck.levels, self.neck.out_channels):
                wanted = given.get(level % count, width)
                if wanted != width:
                    raise ValueError(
                        f'{name}.in_channels is {wanted} for level {level}, '
                        f'of which FeatUpNeck makes {width} channels: set '
                        f'{name}.in_channels={width}, or out_channels of the '
                        'neck'
                    )

    def extract_feat(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Features of images, upsampled with the images as guidance.

        Args:
            inputs (Tensor): Normalised images, (B, 3, H, W).

        Returns:
            tuple[Tensor, ...]: Maps of the neck, each (B, C, h, w).
        """
        feats = self.backbone(inputs)
        neck = getattr(self, 'neck', None)
        if isinstance(neck, FeatUpNeck):
            feats = neck(feats, inputs)
        elif neck is not None:
            feats = neck(feats)
        return GuidedMaps(feats, inputs) if self._guided else feats


def _as_list(value: object) -> list:
    if isinstance(value, (list, tuple, nn.ModuleList)):
        return list(value)
    return [] if value is None else [value]


def _levels_of(head: nn.Module, count: int | None) -> set[int] | None:
    """Which of so many maps a head reads; None if that cannot be told."""
    indices = _as_list(getattr(head, 'in_index', None))
    if not indices or count is None:
        return None
    if getattr(head, 'c1_bottleneck', None) is not None:
        indices.append(0)  # DeepLabV3+ reads it without naming it
    return {index % count for index in indices}


@MODELS.register_module()
class GuidedEncoderDecoder(GuidedMixin, EncoderDecoder):
    """mmseg's EncoderDecoder with a :class:`FeatUpNeck` or a guided head.

    Args:
        linear_head (bool): Apply the decode head before the upsampling. For
            a head that is dropout and a 1x1 convolution and no more, mmseg's
            FCNHead with ``num_convs=0`` and ``concat_input=False``: logits,
            losses and gradients are the same, but as many channels are
            upsampled as there are classes. An auxiliary head that reads the
            same level needs its features in training, which then goes the
            usual way. Defaults to False.
        *args: As in the host.
        **kwargs: As in the host.

    Raises:
        ValueError: If the parts do not fit each other.
    """

    def __init__(self, *args, linear_head: bool = False, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.linear_head = linear_head
        if linear_head:
            _check_linear(self.decode_head)
            if not isinstance(getattr(self, 'neck', None), FeatUpNeck):
                raise ValueError('linear_head=True needs a FeatUpNeck')
            count, level = self.neck.num_maps, self.decode_head.in_index
            if count and level % count not in {
                i % count for i in self.neck.levels
            }:
                raise ValueError(
                    f'linear_head=True: decode_head.in_index={level} is not '
                    f'among levels={self.neck.levels} of FeatUpNeck'
                )

    def loss(self, inputs: Tensor, data_samples: SampleList) -> dict:
        """Losses of a batch.

        Args:
            inputs (Tensor): Normalised images, (B, 3, H, W).
            data_samples (SampleList): Samples with their labels.

        Returns:
            dict[str, Tensor]: Losses by their names.
        """
        if not self.linear_head or self._auxiliary_reads_it():
            return super().loss(inputs, data_samples)
        feats = self.backbone(inputs)
        head = self.decode_head
        losses = head.loss_by_feat(self._logits(feats, inputs), data_samples)
        losses = add_prefix(losses, 'decode')
        if self.with_auxiliary_head:
            maps = self.neck(feats, inputs, skip=head.in_index)
            losses.update(
                self._auxiliary_head_forward_train(maps, data_samples)
            )
        return losses

    def encode_decode(
        self, inputs: Tensor, batch_img_metas: list[dict]
    ) -> Tensor:
        """Logits at the size of the images.

        Args:
            inputs (Tensor): Normalised images, (B, 3, H, W).
            batch_img_metas (list[dict]): What the host knows of the images.

        Returns:
            Tensor: Logits, (B, K, H, W).
        """
        if not self.linear_head:
            return super().encode_decode(inputs, batch_img_metas)
        logits = self._logits(self.backbone(inputs), inputs)
        return self.decode_head.predict_by_feat(logits, batch_img_metas)

    def _forward(
        self, inputs: Tensor, data_samples: OptSampleList = None
    ) -> Tensor:
        if not self.linear_head:
            return super()._forward(inputs, data_samples)
        return self._logits(self.backbone(inputs), inputs)

    def _logits(self, feats: tuple[Tensor, ...], inputs: Tensor) -> Tensor:
        """Output of the decode head at the size of the neck's map."""
        head = self.decode_head
        weight = head.conv_seg.weight.flatten(1)  # (K, C)
        if head.dropout is not None and head.dropout.training:
            # Dropped channels are dropped weights, others in each sample.
            ones = weight.new_ones(len(inputs), weight.shape[1], 1, 1)
            weight = (
                weight * head.dropout(ones).flatten(1)[:, None]
            )  # (B, K, C)
        return self.neck.linear(
            feats, inputs, weight, head.conv_seg.bias, head.in_index
        )

    def _auxiliary_reads_it(self) -> bool:
        """Whether an auxiliary head reads the level of the decode head."""
        count = self.neck.num_maps
        levels = [
            _levels_of(head, count)
            for name, head in self._heads()
            if name == 'auxiliary_head'
        ]
        return any(
            read is None or self.decode_head.in_index % count in read
            for read in levels
        )


def _check_linear(head: nn.Module) -> None:
    """Raise unless a head is dropout and a 1x1 convolution and no more."""
    methods = ('forward', '_forward_feature', '_transform_inputs', 'cls_seg')
    methods += ('loss', 'predict')
    linear = all(
        getattr(type(head), name, None) is getattr(FCNHead, name)
        for name in methods
    )
    if linear and not (
        head.num_convs or head.concat_input or head.input_transform
    ):
        return
    keys = ('num_convs', 'concat_input', 'input_transform')
    given = {key: getattr(head, key) for key in keys if hasattr(head, key)}
    raise ValueError(
        "linear_head=True needs decode_head=dict(type='FCNHead', num_convs=0, "
        'concat_input=False) of one level, a 1x1 convolution, got '
        f'{type(head).__name__} {given}'
    )


@MODELS.register_module()
class GuidedCascadeEncoderDecoder(GuidedMixin, CascadeEncoderDecoder):
    """mmseg's CascadeEncoderDecoder with a :class:`FeatUpNeck`."""
