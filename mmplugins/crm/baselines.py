"""Refiners without learning, to compare with.

B batch, H x W image.
"""

import cv2
import numpy as np
import torch
from torch import Tensor

from mmplugins.registry import MODELS
from mmplugins.typing import ConfigType, OptSampleList

from .refiner import BaseRefiner


@MODELS.register_module()
class GrabCutRefiner(BaseRefiner):
    """OpenCV's GrabCut (Rother et al., SIGGRAPH 2004) near the boundary.

    Pixels within the band around the coarse boundary are decided anew, by the
    colours of the foreground and the background beyond it.

    Args:
        band (float): Half the band's width, not in pixels but as a share
            of the image's diagonal, below 1. Defaults to 0.02.
        iterations (int): Iterations of GrabCut. Defaults to 5.
        max_pixels (float): Larger images are decided at a scale of so many
            pixels. Defaults to 1e6.
        data_preprocessor (dict): Normalises the images; its mean and deviation
            are taken back.

    Raises:
        ValueError: If a number is not above 0, or the band not below 1.
    """

    def __init__(
        self,
        data_preprocessor: ConfigType,
        band: float = 0.02,
        iterations: int = 5,
        max_pixels: float = 1e6,
    ) -> None:
        super().__init__(data_preprocessor)
        if min(band, iterations, max_pixels) <= 0:
            raise ValueError(
                'GrabCutRefiner needs band, iterations and max_pixels above '
                f'0, got {band}, {iterations} and {max_pixels}'
            )
        if band >= 1:
            raise ValueError(
                'band of GrabCutRefiner must be a share of the diagonal below '
                f'1, not pixels, got {band}'
            )
        self.band = band
        self.iterations = iterations
        self.max_pixels = max_pixels

    def forward(
        self,
        inputs: Tensor,
        data_samples: OptSampleList = None,
        mode: str = 'predict',
    ) -> list:
        """Refined masks; there is nothing to train.

        Raises:
            ValueError: If another mode than ``'predict'`` is asked for.
        """
        if mode != 'predict':
            raise ValueError(
                f"mode of GrabCutRefiner must be 'predict', got {mode!r}"
            )
        return self.predict(inputs, data_samples)

    @torch.no_grad()
    def refine(self, image: Tensor, mask: Tensor) -> Tensor:
        """Refine masks.

        Args:
            image (Tensor): Normalised images, (B, 3, H, W).
            mask (Tensor): Masks in [-1, 1], (B, 1, H, W).

        Returns:
            Tensor: Masks of 0 and 1, (B, 1, H, W).
        """
        norm = self.data_preprocessor
        images = image * norm.std + norm.mean
        images = (
            images.round()
            .clamp(0, 255)
            .byte()
            .permute(0, 2, 3, 1)
            .cpu()
            .numpy()
        )
        masks = (mask[:, 0] > 0).cpu().numpy()
        out = [self._cut(*pair) for pair in zip(images, masks, strict=True)]
        return torch.from_numpy(np.stack(out))[:, None].to(image)

    def _cut(self, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Mask of one image, (H, W), bool."""
        height, width = mask.shape
        scale = min(1, (self.max_pixels / mask.size) ** 0.5)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        coarse = cv2.resize(
            mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST
        )
        # Distance to the other side of the boundary.
        depth = np.maximum(
            cv2.distanceTransform(coarse, cv2.DIST_L2, 5),
            cv2.distanceTransform(1 - coarse, cv2.DIST_L2, 5),
        )
        sure = depth > self.band * np.hypot(*size)
        labels = np.where(coarse > 0, cv2.GC_PR_FGD, cv2.GC_PR_BGD)
        labels[sure & (coarse > 0)] = cv2.GC_FGD
        labels[sure & (coarse == 0)] = cv2.GC_BGD
        labels = labels.astype(np.uint8)
        if len(np.unique(coarse)) < 2:
            return mask  # nothing to tell apart
        cv2.setRNGSeed(0)
        cv2.grabCut(
            small,
            labels,
            None,
            np.zeros((1, 65)),
            np.zeros((1, 65)),
            self.iterations,
            cv2.GC_INIT_WITH_MASK,
        )
        new = np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.float32)
        if scale < 1:
            new = cv2.resize(
                new, (width, height), interpolation=cv2.INTER_LINEAR
            )
        return new > 0.5
