"""References: of any size to the network's maps, and several to one.

B batch, K channels of images, C of maps, R references, h x w small image, s
scale. Images are in [0, 1]; maps have the small image's resolution: cell i is
centred on s i + (s - 1) / 2 of the reference, like pixels of a resized image.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn

from .blocks import init_linear
from .rcan import SHUFFLES
from .search import read_at


class ReferenceStem(BaseModule):
    """Strided convolutions that bring a large image to the maps' resolution.

    Args:
        in_channels (int): Channels of the image.
        channels (int): Channels C.
        scale (int): 2, 3, 4 or 8.
    """

    def __init__(self, in_channels: int, channels: int, scale: int) -> None:
        super().__init__()
        # Kernels of 3x3 and stride 2 would be centred on every second pixel.
        self.convs = ModuleList(
            nn.Conv2d(
                channels if k else in_channels,
                channels,
                4 if factor == 2 else 3,
                stride=factor,
                padding=1 if factor == 2 else 0,
            )
            for k, factor in enumerate(SHUFFLES[scale])
        )
        for conv in self.convs[:-1]:
            nn.init.kaiming_normal_(conv.weight, a=0.1)
            nn.init.zeros_(conv.bias)
        init_linear(self.convs[-1])

    def forward(self, x: Tensor) -> Tensor:
        """Map of an image (B, K, s h, s w), (B, C, h, w)."""
        for k, conv in enumerate(self.convs):
            x = conv(F.leaky_relu(x, 0.1) if k else x)
        return x


def fit_reference(ref: Tensor, size: Sequence[int]) -> Tensor:
    """Bring a reference to a size, with all that it shows.

    A larger one is shrunk, its aspect kept; what then is missing at the bottom
    and the right repeats the border.

    Args:
        ref (Tensor): Images in [0, 1], (B, K, H, W).
        size (Sequence[int]): Rows and columns.

    Returns:
        Tensor: (B, K, *size).

    Raises:
        ValueError: If it is no batch of images.
    """
    if ref.ndim != 4 or not ref.numel():
        raise ValueError(
            f'a reference must be images (B, K, H, W), got {tuple(ref.shape)}'
        )
    ratio = min(n / m for n, m in zip(size, ref.shape[-2:]))
    if ratio < 1:
        small = [
            min(max(1, round(m * ratio)), n)
            for n, m in zip(size, ref.shape[-2:])
        ]
        dtype = torch.promote_types(ref.dtype, torch.float32)
        shrunk = F.interpolate(
            ref.to(dtype), small, mode='bicubic', antialias=True
        )
        ref = shrunk.clamp(0, 1).to(ref.dtype)  # cubics overshoot
    missing = [n - m for n, m in zip(size, ref.shape[-2:])]
    if any(missing):
        ref = F.pad(ref, (0, missing[1], 0, missing[0]), mode='replicate')
    return ref


def move_reference(ref: Tensor, shift: Tensor) -> Tensor:
    """Read a reference where it shows what the image does.

    Args:
        ref (Tensor): Images, (B, K, s h, s w).
        shift (Tensor): Displacement (dy, dx) in pixels of the maps,
            (B, 2, h, w).

    Returns:
        Tensor: (B, K, s h, s w), bilinear, the border repeated.
    """
    scale = ref.shape[-1] / shift.shape[-1]
    shift = scale * F.interpolate(shift, ref.shape[-2:], mode='bilinear')
    return read_at(ref, shift).to(ref.dtype)


def blend_references(feat: Tensor, aligned: Sequence[Tensor]) -> Tensor:
    """One map of several aligned ones, by how alike they are to the input.

    At each pixel, a softmax over the references of ``<feat, aligned> /
    sqrt(C)``: neither their order nor a repetition of all matters.

    Args:
        feat (Tensor): Map of the input, (B, C, h, w).
        aligned (Sequence[Tensor]): Aligned maps, each (B, C, h, w).

    Returns:
        Tensor: (B, C, h, w).
    """
    if len(aligned) == 1:
        return aligned[0]
    scores = torch.stack([(feat * x).sum(1, keepdim=True) for x in aligned])
    weights = (scores / feat.shape[1] ** 0.5).softmax(0)  # (R, B, 1, h, w)
    return sum(weight * x for weight, x in zip(weights, aligned))
