"""Classifier of mmpretrain that shows where it sees the class."""

import torch
from mmpretrain.models import (
    GlobalAveragePooling,
    ImageClassifier,
    LinearClsHead,
)
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from mmplugins.registry import MODELS
from mmplugins.typing import OptConfigType

from .cam import (
    RESIZE_MODES,
    grad_cam_weight,
    mask_image,
    normalize_map,
    weighted_map,
)
from .neck import FeatUpNeck

METHODS = ('auto', 'cam', 'grad_cam')
MASKINGS = ('normalized', 'image', None)


@MODELS.register_module()
class GuidedImageClassifier(ImageClassifier):
    """mmpretrain's ImageClassifier with class activation maps.

    What it classifies and learns is the host's: logits come from the
    backbone's features as they are. A prediction also carries the map of the
    class that scores best, through features upsampled with the image as
    guidance, and what ``mmplugins.CAMMetric`` needs to say what the map is
    worth:

    - ``cam``: map in [0, 1] at the resolution of the network's input, (H, W);
    - ``masked_score``: scores of the image masked by it, (K,);
    - ``masked_cam``: map of that masked image for the same class, (H, W).

    Modules keep their names, so checkpoints of the host load unchanged.

    Args:
        featup (dict, optional): ``dict(type='mmplugins.FeatUpNeck',
            in_channels=...)``, neither ``norm`` nor ``out_channels``, for the
            classifier's weights fit the backbone's features alone. Its
            weights are read when the model is built, from an ``init_cfg`` of
            type Pretrained, for a test initialises nothing. Defaults to None:
            the map of the features as they are, resized, as usual.
        method (str): ``'cam'``, the classifier's weights, for global average
            pooling and a linear head; ``'grad_cam'``, gradients of the score,
            for any head that reads the last map; ``'auto'``, the former where
            it applies. Defaults to ``'auto'``.
        resize (str): How a map becomes as large as the image, ``'bilinear'``
            or ``'nearest'``. Defaults to ``'bilinear'``.
        masking (str, optional): What the map is multiplied with.
            ``'normalized'``, the network's input, as published code does:
            what the map leaves out becomes the mean colour. ``'image'``, the
            pixels before normalisation: it becomes black. None skips the
            masked image, and with it ``masked_score``, ``masked_cam`` and
            half of the time. Defaults to ``'normalized'``.
        **kwargs: Arguments of mmpretrain's ImageClassifier.

    Raises:
        ValueError: If an argument is not valid or does not fit the others.
    """

    def __init__(
        self,
        *args,
        featup: OptConfigType = None,
        method: str = 'auto',
        resize: str = 'bilinear',
        masking: str | None = 'normalized',
        **kwargs,
    ) -> None:
        for key, value, valid in (
            ('method', method, METHODS),
            ('resize', resize, tuple(RESIZE_MODES)),
            ('masking', masking, MASKINGS),
        ):
            if value not in valid:
                raise ValueError(
                    f'{key} of GuidedImageClassifier must be one of {valid}, '
                    f'got {value!r}'
                )
        preprocessor = kwargs.get('data_preprocessor')
        if isinstance(preprocessor, dict):
            # The host adds keys to it.
            kwargs['data_preprocessor'] = preprocessor.copy()
        super().__init__(*args, **kwargs)
        linear = self._is_linear()
        if method == 'cam' and not linear:
            raise ValueError(
                "method='cam' of GuidedImageClassifier needs "
                'GlobalAveragePooling and LinearClsHead, got '
                f'{type(self.neck).__name__} and {type(self.head).__name__}: '
                "use method='grad_cam'"
            )
        self.linear = linear and method != 'grad_cam'
        self.resize = resize
        self.masking = masking
        self.featup = None
        if featup is not None:
            self.featup = MODELS.build(featup)
            _check_featup(self.featup)
            self.featup.measure(self.backbone)
            # A runner initialises a model that it trains, not one that it
            # tests, and no checkpoint of the host holds these weights.
            modules = self.featup.modules()
            if any(getattr(module, 'init_cfg', None) for module in modules):
                self.featup.init_weights()

    def predict(
        self,
        inputs: Tensor,
        data_samples: list[DataSample] | None = None,
        **kwargs,
    ) -> list[DataSample]:
        """Predict classes and the maps of those that score best.

        Args:
            inputs (Tensor): Normalised images, (B, 3, H, W).
            data_samples (list[DataSample], optional): Samples to write to.
                Defaults to None, new ones.
            **kwargs: Arguments of the head's ``predict``.

        Returns:
            list[DataSample]: The host's predictions with ``cam`` and, unless
            ``masking`` is None, ``masked_score`` and ``masked_cam``.

        Raises:
            ValueError: If the backbone's last output is not a map.
        """
        feats = self.backbone(inputs)
        samples = self.head.predict(self._pool(feats), data_samples, **kwargs)
        scores = torch.stack([sample.pred_score for sample in samples])
        labels = scores.argmax(1)
        cams = self.class_maps(inputs, feats, labels)
        for sample, cam in zip(samples, cams):
            sample.cam = cam
        if self.masking is None:
            return samples
        masked = mask_image(inputs, cams, self._background())
        feats = self.backbone(masked)
        masked_samples = self.head.predict(self._pool(feats), **kwargs)
        masked_cams = self.class_maps(masked, feats, labels)
        for sample, other, cam in zip(samples, masked_samples, masked_cams):
            sample.masked_score = other.pred_score
            sample.masked_cam = cam
        return samples

    def class_maps(
        self, inputs: Tensor, feats: tuple[Tensor, ...], labels: Tensor
    ) -> Tensor:
        """Where the images show a class.

        Args:
            inputs (Tensor): Normalised images, (B, 3, H, W).
            feats (tuple[Tensor, ...]): The backbone's outputs for them.
            labels (Tensor): A class of each image, (B,).

        Returns:
            Tensor: Maps in [0, 1], (B, H, W).

        Raises:
            ValueError: If the last output is not a map, or the head does not
                read it.
        """
        last = feats[-1]
        if not isinstance(last, Tensor) or last.ndim != 4:
            shape = tuple(getattr(last, 'shape', ())) or type(last).__name__
            raise ValueError(
                'GuidedImageClassifier needs a map (B, C, h, w) as the '
                f"backbone's last output, got {shape}: set "
                "out_type='featmap' in a transformer backbone, "
                'gap_before_final_norm=False in a ConvNeXt'
            )
        if self.linear:
            weight = self.head.fc.weight[labels]  # (B, C)
        else:
            weight = grad_cam_weight(
                lambda x: (
                    self.head(self._pool((*feats[:-1], x)))
                    .gather(1, labels[:, None])
                    .squeeze(1)
                ),
                last,
            )
        if self.featup is None:
            maps = weighted_map(last, weight)
        else:
            # One channel to upsample where it had to be C: (B, 1, h', w').
            maps = self.featup.linear(feats, inputs, weight[:, None])[:, 0]
        return normalize_map(maps, inputs.shape[-2:], self.resize)

    def _pool(self, feats: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """What the head reads, as the host computes it."""
        return self.neck(feats) if self.with_neck else feats

    def _background(self) -> Tensor | float:
        """What takes the place of what a map leaves out, normalised."""
        mean = getattr(self.data_preprocessor, 'mean', None)
        if self.masking == 'normalized' or mean is None:
            return 0.0
        return -mean / self.data_preprocessor.std

    def _is_linear(self) -> bool:
        """Whether logits are the mean over cells of a linear map."""
        head = self.head
        return (
            isinstance(self.neck, GlobalAveragePooling)
            and isinstance(head, LinearClsHead)
            and type(head).forward is LinearClsHead.forward
            and type(head).pre_logits is LinearClsHead.pre_logits
        )


def _check_featup(neck: nn.Module) -> None:
    """Raise unless a classifier's weights fit what a neck upsamples."""
    if not isinstance(neck, FeatUpNeck):
        raise ValueError(
            'featup of GuidedImageClassifier must be dict(type='
            "'mmplugins.FeatUpNeck', in_channels=...), got "
            f'{type(neck).__name__}'
        )
    if neck.levels != (-1,):
        raise ValueError(
            'levels of FeatUpNeck in a GuidedImageClassifier must be (-1,), '
            f'the one that the head reads, got {neck.levels}'
        )
    for key, module in (
        ('norm', neck.norms[0]),
        ('out_channels', neck.reductions[0]),
    ):
        if not isinstance(module, nn.Identity):
            raise ValueError(
                f'{key} of FeatUpNeck in a GuidedImageClassifier must be '
                "None: the classifier's weights fit the backbone's features "
                'alone'
            )
