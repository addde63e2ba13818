"""Bicubic interpolation, to compare networks with."""

import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor

from mmplugins.registry import MODELS


@MODELS.register_module()
class Bicubic(BaseModule):
    """Enlarges images by Pillow's and MATLAB's bicubic kernel, a = -0.5.

    Args:
        upscale_factor (int): Scale s, 1 or more. Defaults to 4.

    Raises:
        ValueError: If there is no such scale.
    """

    def __init__(self, upscale_factor: int = 4) -> None:
        super().__init__()
        if upscale_factor < 1:
            raise ValueError(
                f'upscale_factor of Bicubic must be >= 1, got {upscale_factor}'
            )
        self.upscale_factor = upscale_factor

    def forward(self, lr: Tensor, ref: object = None) -> Tensor:
        """Enlarge images.

        Args:
            lr (Tensor): (B, K, h, w).
            ref (object): Not used. Defaults to None.

        Returns:
            Tensor: (B, K, s h, s w).
        """
        # Without antialias, torch takes a = -0.75.
        return F.interpolate(
            lr,
            scale_factor=self.upscale_factor,
            mode='bicubic',
            antialias=True,
        )
