"""Any segmentor of mmsegmentation with its predictions refined.

H x W image of its original size, K classes. Boxes are in pixels.
"""

import logging
from collections.abc import Iterator, Sequence
from math import ceil, hypot

import mmcv
import numpy as np
import torch
import torch.nn.functional as F
from mmengine import fileio
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, ImgDataPreprocessor, PretrainedInit
from mmengine.runner import load_checkpoint
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from mmplugins.registry import MODELS
from mmplugins.typing import ConfigType, OptConfigType, SampleList

from .components import Slices, components
from .merging import RunningMerge, boundary_band

# Of ImageNet, in the order of red, green and blue.
_MEAN = (123.675, 116.28, 103.53)
_STD = (58.395, 57.12, 57.375)
_ALL = (slice(None), slice(None))


@MODELS.register_module()
class RefinedSegmentor(BaseTTAModel):
    """Refines what a segmentor predicts, class by class, on the image itself.

    Wraps any model of mmseg for testing; nothing of it changes. Each class of
    a prediction is a coarse mask, which a refiner such as
    :class:`mmplugins.crm.CRM` refines. A pixel gets the class of the highest
    refined probability above ``threshold``; where there is none, it keeps its
    label. But if its own class was refined and others never are, it becomes
    ``background`` or the one of those that the segmentor's logits prefer: a
    class refined alone may shrink. A prediction of one label alone has nothing
    to refine and stays as it is.

    The refiner sees the image file in its original size, or what the test
    pipeline made of it, resized, where there is no such file.

    Results have the refined ``pred_sem_seg`` and, as ``coarse_sem_seg``, the
    prediction before, both label maps (1, H, W); ``seg_logits`` stay those of
    the segmentor. A checkpoint that a runner loads goes to the segmentor, for
    mmengine unwraps its BaseTTAModel. The refiner's is loaded here, for a
    runner that tests applies no ``init_cfg``.

    Args:
        module (dict | nn.Module): The segmentor.
        refiner (dict | nn.Module): The refiner: ``refine(image, mask)`` of it
            gives probabilities (1, 1, h, w) for a normalised image
            (1, 3, h, w) and a mask in [-1, 1] (1, 1, h, w). Images are
            normalised by its ImgDataPreprocessor, or by ImageNet's mean and
            deviation if it has none. Of its ``init_cfg`` the ``Pretrained``
            ones are loaded, and have to fit.
        classes (Sequence[int], optional): Labels to refine. Defaults to None,
            all but the ``background``.
        background (int, optional): Label that is not refined, but what the
            others leave. Defaults to None: 0 for a segmentor of up to two
            classes unless ``classes`` has it, none for one of more.
        per (str): ``'class'`` to refine a class in the whole image at once,
            ``'component'`` to refine each of its connected components in a
            crop, which is for small objects in large images. Defaults to
            ``'class'``.
        expand (float): Growth of a component's box as a share of its height
            and width, half of it on each side. Defaults to 0.25.
        min_area (int): Masks of fewer pixels keep their label. Defaults to 64,
            one pixel at the first scale of CRM.
        band (float, optional): Pixels keep their label, whatever the refiner
            says, where the coarse prediction has no other one within so many
            rows and columns. A number from 1 up is in pixels, one below 1 is
            a share of the image's diagonal. Defaults to None, no such veto.
        threshold (float): Probability above which a refined mask claims a
            pixel. Defaults to 0.5.
        soft (bool): Refine the probability of each class instead of the label
            map's mask. Defaults to False: CRM learns from masks.
        backend_args (dict, optional): Of mmengine's file client, for images.
            Defaults to None.
        data_preprocessor (dict, optional): Of the segmentor if that names
            none; runners pass it. Defaults to None.

    Raises:
        ValueError: If an argument is out of range or ``refiner`` has no
            ``refine``.
        RuntimeError: If the refiner's checkpoint does not fit.
    """

    def __init__(
        self,
        module: ConfigType | nn.Module,
        refiner: ConfigType | nn.Module,
        classes: Sequence[int] | None = None,
        background: int | None = None,
        per: str = 'class',
        expand: float = 0.25,
        min_area: int = 64,
        band: float | None = None,
        threshold: float = 0.5,
        soft: bool = False,
        backend_args: dict | None = None,
        data_preprocessor: OptConfigType = None,
    ) -> None:
        if isinstance(module, dict) and data_preprocessor is not None:
            module = {'data_preprocessor': data_preprocessor, **module}
        super().__init__(module)
        if per not in ('class', 'component'):
            raise ValueError(
                "per of RefinedSegmentor must be 'class' or 'component', got "
                f'{per!r}'
            )
        if expand < 0 or min_area < 0 or not 0 <= threshold < 1:
            raise ValueError(
                'RefinedSegmentor needs expand and min_area of 0 or more and '
                f'threshold in [0, 1), got {expand}, {min_area} and '
                f'{threshold}'
            )
        if band is not None and band <= 0:
            raise ValueError(
                'band of RefinedSegmentor must be above 0 or None, pixels '
                f'from 1 up and a share of the diagonal below, got {band}'
            )
        self.refiner = _build_refiner(refiner)
        own = getattr(self.refiner, 'data_preprocessor', None)
        if not isinstance(own, ImgDataPreprocessor):
            own = ImgDataPreprocessor(_MEAN, _STD, bgr_to_rgb=True)
        self.normalize = own
        count = getattr(self.module, 'num_classes', None)
        if background is None and count in (1, 2) and 0 not in (classes or ()):
            background = 0
        _check_labels(classes, background, count)
        self.classes = None if classes is None else sorted(classes)
        self.background = background
        self.per = per
        self.expand = expand
        self.min_area = min_area
        self.band = band
        self.threshold = threshold
        self.soft = soft
        self.backend_args = backend_args

    @torch.no_grad()
    def test_step(self, data: dict) -> list[SegDataSample]:
        """Predict and refine.

        Args:
            data (dict): Batch of a data loader: ``inputs``, images (3, h, w)
                in OpenCV's order, and mostly ``data_samples``.

        Returns:
            list[SegDataSample]: Samples with ``pred_sem_seg`` and
            ``coarse_sem_seg``.

        Raises:
            ValueError: If the batch is one of test-time augmentation, or the
                segmentor predicts no labels.
        """
        inputs = data['inputs']
        if not all(isinstance(image, Tensor) for image in inputs):
            raise ValueError(
                'RefinedSegmentor takes images (3, H, W), not the views of '
                'them that test-time augmentation gives'
            )
        samples = self.module.test_step(data)
        for image, sample in zip(inputs, samples, strict=True):
            if 'pred_sem_seg' not in sample:
                raise ValueError(
                    'RefinedSegmentor needs a segmentor that gives '
                    f'pred_sem_seg, {type(self.module).__name__} gives '
                    f'{sample.keys()}'
                )
            labels = self._refine(image, sample)
            sample.coarse_sem_seg = sample.pred_sem_seg
            sample.pred_sem_seg = PixelData(data=labels[None])
        return list(samples)

    def val_step(self, data: dict) -> list[SegDataSample]:
        """The same as :meth:`test_step`."""
        return self.test_step(data)

    def merge_preds(self, data_samples_list: list[SampleList]) -> SampleList:
        """Not for this model: it refines one view of each image."""
        raise NotImplementedError(
            'RefinedSegmentor refines predictions of one view: test without '
            'augmentation'
        )

    def _refine(self, pixels: Tensor, sample: SegDataSample) -> Tensor:
        """Refined labels of a sample, (H, W)."""
        coarse = sample.pred_sem_seg.data
        coarse = coarse.reshape(coarse.shape[-2:])
        present = [int(label) for label in coarse.unique()]
        refined = self._chosen(present)
        if len(present) == 1 or not refined:
            return coarse.clone()
        image = self._image(pixels, sample, coarse.shape).to(coarse.device)
        probability = _Softmax(sample) if self.soft else None
        merge = RunningMerge(coarse, self.threshold)
        for label in refined:
            region = coarse == label
            mask = (
                region.float() if probability is None else probability(label)
            )
            for window, part in self._parts(region):
                # Other components of a class are none of this one's mask.
                own = mask[window].masked_fill(region[window] & ~part, 0)
                prob = self.refiner.refine(
                    image[(..., *window)], 2 * own[None, None] - 1
                )
                merge.add(label, prob[0, 0].float(), part, window)
        labels, lost = merge.labels, merge.lost
        labels[lost] = self._rest(sample, lost, labels[lost])
        if self.band is None:
            return labels
        radius = self.band
        if radius < 1:  # a share
            radius *= hypot(*coarse.shape)
        near = boundary_band(coarse, ceil(radius))
        return torch.where(near, labels, coarse)

    def _chosen(self, present: Sequence[int]) -> list[int]:
        """Labels to refine of those in a prediction, ascending."""
        if self.classes is not None:
            return [label for label in self.classes if label in present]
        return [label for label in present if label != self.background]

    def _parts(self, region: Tensor) -> Iterator[tuple[Slices, Tensor]]:
        """Masks of a class to refine, and the windows that show them."""
        if self.per == 'component':
            mask = region.cpu().numpy().astype(np.uint8)
            for window, part in components(mask, self.expand, self.min_area):
                yield window, torch.from_numpy(part).to(region.device)
        elif region.sum() >= self.min_area:
            yield _ALL, region

    def _rest(
        self, sample: SegDataSample, where: Tensor, labels: Tensor
    ) -> Tensor | int:
        """Labels, (n,), of pixels that their own class has lost."""
        if self.background is not None:
            return self.background
        if self.classes is None or 'seg_logits' not in sample:
            return labels
        logits = sample.seg_logits.data[:, where]
        if len(logits) == 1:
            return labels if len(self.classes) == 2 else 1 - self.classes[0]
        others = [i for i in range(len(logits)) if i not in self.classes]
        if not others:
            return labels
        best = logits[others].argmax(0)
        return torch.tensor(others, device=best.device)[best].to(labels)

    def _image(
        self, pixels: Tensor, sample: SegDataSample, size: Sequence[int]
    ) -> Tensor:
        """Normalised image for the refiner, (1, 3, H, W)."""
        image = self._read(sample.get('img_path'), size)
        if image is None:
            image = _undo(pixels, sample, size)
        batch = self.normalize(dict(inputs=[image]), False)['inputs']
        return batch[..., : size[0], : size[1]]

    def _read(self, path: str | None, size: Sequence[int]) -> Tensor | None:
        """Pixels of an image file, (3, H, W), unless it is of another size."""
        if not path or not fileio.exists(path, backend_args=self.backend_args):
            return None
        image = mmcv.imread(path, backend_args=self.backend_args)
        if image is None or image.shape[:2] != tuple(size):
            return None
        return torch.from_numpy(image).permute(2, 0, 1)


class _Softmax:
    """Probability of one class after the other, without a K x H x W copy.

    Args:
        sample (SegDataSample): Sample with ``seg_logits``, (K, H, W); of one
            channel, the host gives its sigmoid.
    """

    def __init__(self, sample: SegDataSample) -> None:
        if 'seg_logits' not in sample:
            raise ValueError(
                'soft=True of RefinedSegmentor needs a segmentor that gives '
                f'seg_logits, got {sample.keys()}'
            )
        self.logits = sample.seg_logits.data
        self.largest = self.logits.amax(0)
        self.total = sum((x - self.largest).exp() for x in self.logits)

    def __call__(self, label: int) -> Tensor:
        """Probability of a class, (H, W)."""
        if len(self.logits) == 1:
            return self.logits[0] if label else 1 - self.logits[0]
        return (self.logits[label] - self.largest).exp() / self.total


def _build_refiner(refiner: ConfigType | nn.Module) -> nn.Module:
    """A refiner with its weights."""
    if isinstance(refiner, dict):
        refiner = MODELS.build(refiner)
        given = getattr(refiner, 'init_cfg', None) or ()
        given = [given] if isinstance(given, dict) else given
        paths = [
            cfg['checkpoint']
            for cfg in given
            if cfg['type'] in ('Pretrained', PretrainedInit)
        ]
        for path in paths:
            load_checkpoint(refiner, path, map_location='cpu', strict=True)
        if not paths and [*refiner.parameters()]:
            print_log(
                'refiner of RefinedSegmentor has random weights: give it '
                "init_cfg=dict(type='Pretrained', checkpoint=...)",
                logger='current',
                level=logging.WARNING,
            )
    if not callable(getattr(refiner, 'refine', None)):
        raise ValueError(
            'refiner of RefinedSegmentor must have refine(image, mask), as '
            f'mmplugins.CRM does, got {type(refiner).__name__}'
        )
    return refiner


def _check_labels(
    classes: Sequence[int] | None, background: int | None, count: int | None
) -> None:
    """Raise unless labels are those of a segmentor, each once."""
    labels = [*(classes or ()), *([] if background is None else [background])]
    limit = max(count, 2) if count else float('inf')  # one channel, two labels
    if len({*labels}) < len(labels) or not all(
        0 <= label < limit for label in labels
    ):
        raise ValueError(
            'classes and background of RefinedSegmentor must be labels '
            + (f'0 to {limit - 1}' if count else 'from 0')
            + f', each once, got {classes} and {background}'
        )


def _undo(
    pixels: Tensor, sample: SegDataSample, size: Sequence[int]
) -> Tensor:
    """Image of a test pipeline, back at its original size, (3, H, W).

    As mmseg maps its logits back: flipped and resized, and with what a
    pipeline padded.
    """
    if pixels.shape[0] != 3:
        raise ValueError(
            'RefinedSegmentor needs images of three channels, got '
            f'{tuple(pixels.shape)} of {sample.get("img_path")}'
        )
    if sample.get('flip'):
        vertical = sample.get('flip_direction') == 'vertical'
        pixels = pixels.flip(1 if vertical else 2)
    return F.interpolate(
        pixels[None].float(), tuple(size), mode='bilinear', antialias=True
    )[0]
