"""What every refiner of masks has in common.

B batch, H x W image, h x w an image before it was padded.
"""

from abc import abstractmethod

import torch
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement, PixelData
from torch import Tensor

from mmplugins.typing import OptSampleList, SampleList


class BaseRefiner(BaseModel):
    """Refines the coarse masks of data samples through :meth:`refine`."""

    @abstractmethod
    def refine(self, image: Tensor, mask: Tensor) -> Tensor:
        """Refine masks.

        Args:
            image (Tensor): Normalised images of any size, (B, 3, H, W).
            mask (Tensor): Masks in [-1, 1], (B, 1, H, W).

        Returns:
            Tensor: Probabilities, (B, 1, H, W).
        """

    @torch.no_grad()
    def predict(
        self, inputs: Tensor, data_samples: SampleList
    ) -> list[BaseDataElement]:
        """Refine the masks of a batch, each at its image's own size.

        Args:
            inputs (Tensor): Normalised images, padded at the bottom and at the
                right where they differ, (B, 3, H, W).
            data_samples (SampleList): Samples with ``coarse_sem_seg``, in
                [0, 1], (1, h, w).

        Returns:
            list[BaseDataElement]: The samples, with ``refined_prob`` in
            [0, 1] and ``pred_sem_seg`` of 0 and 1, (1, h, w) each.
        """
        samples = data_samples or [None] * len(inputs)
        for image, sample in zip(inputs, samples, strict=True):
            coarse = coarse_mask(sample)
            height, width = coarse.shape[-2:]
            mask = 2 * coarse[None].to(image) - 1
            prob = self.refine(image[None, :, :height, :width], mask)[0]
            sample.refined_prob = PixelData(data=prob)
            sample.pred_sem_seg = PixelData(data=(prob > 0.5).byte())
        return list(samples)


def coarse_mask(sample: BaseDataElement | None) -> Tensor:
    """Coarse mask of a sample.

    Args:
        sample (BaseDataElement): Sample with ``coarse_sem_seg``.

    Returns:
        Tensor: Mask in [0, 1], (1, H, W).

    Raises:
        ValueError: If it has none.
    """
    if sample is None or 'coarse_sem_seg' not in sample:
        raise ValueError(
            'a refiner needs coarse_sem_seg in every data sample: load it by '
            'mmplugins.LoadMasks or make it by mmplugins.PerturbMask, and '
            'pack it by mmplugins.PackRefineInputs; got '
            f'{sample.keys() if sample is not None else None}'
        )
    return sample.coarse_sem_seg.data


def coarse_masks(inputs: Tensor, data_samples: OptSampleList) -> Tensor:
    """Coarse masks of a batch, as networks take them.

    Args:
        inputs (Tensor): Images, (B, 3, H, W), for their device and type.
        data_samples (list): Samples with ``coarse_sem_seg``, (1, H, W).

    Returns:
        Tensor: Masks in [-1, 1], (B, 1, H, W).

    Raises:
        ValueError: If a sample has none.
    """
    masks = torch.stack(
        [coarse_mask(sample) for sample in data_samples or [None]]
    )
    return 2 * masks.to(inputs) - 1


def network_inputs(
    model: BaseModel, image: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """What a refiner's ``refine`` takes, of one image and mask as they load.

    Args:
        model (BaseModel): Refiner, for its preprocessor and device.
        image (Tensor): Image, (3, H, W), in OpenCV's order, uint8.
        mask (Tensor): Mask in [0, 1], (H, W).

    Returns:
        tuple[Tensor, Tensor]: Normalised image, (1, 3, H, W), and mask in
        [-1, 1], (1, 1, H, W).
    """
    batch = model.data_preprocessor(dict(inputs=image[None]), False)['inputs']
    height, width = mask.shape  # the preprocessor may have padded
    batch = batch[..., :height, :width].float()
    return batch, 2 * mask[None, None].to(batch) - 1
