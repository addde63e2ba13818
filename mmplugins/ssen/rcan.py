"""RCAN: residual channel attention network for super-resolution.

B batch, C channels of the maps, h x w image, s scale: s h x s w result.
Images are RGB in [0, 1].
"""

from collections.abc import Sequence
from math import ceil

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn

from mmplugins.ops.implicit import Window
from mmplugins.ops.tiling import crop
from mmplugins.registry import MODELS
from mmplugins.typing import OptMultiConfig

# Mean colour of DIV2K's training images, RGB in [0, 1].
DIV2K_MEAN = (0.4488, 0.4371, 0.4040)
# Scale -> factors of the pixel shuffles.
SHUFFLES = {2: (2,), 3: (3,), 4: (2, 2), 8: (2, 2, 2)}


class ChannelAttention(nn.Module):
    """Weighs each channel by what the means of all of them say.

    The means are over the whole map: of a part of it, they are others. See
    :class:`RCANTrunk` for tiles.

    Args:
        channels (int): Channels C.
        reduction (int): C over the width of the hidden layer. Defaults to 16.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(channels // reduction, 1)
        self.reduce = nn.Conv2d(channels, hidden, 1)
        self.expand = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The map with its channels weighed, (B, C, h, w)."""
        weight = self.reduce(x.mean((2, 3), keepdim=True)).relu()
        return x * self.expand(weight).sigmoid()


class RCAB(nn.Module):
    """Residual channel attention block: two convolutions, then attention.

    Args:
        channels (int): Channels C.
        reduction (int): As in :class:`ChannelAttention`. Defaults to 16.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.attention = ChannelAttention(channels, reduction)

    def forward(self, x: Tensor) -> Tensor:
        """The map and its residual, (B, C, h, w)."""
        return x + self.attention(self.conv2(self.conv1(x).relu_()))


class ResidualGroup(BaseModule):
    """Blocks and a convolution, with a short skip around them.

    Args:
        channels (int): Channels C.
        num_blocks (int): Number of blocks. Defaults to 20.
        reduction (int): As in :class:`ChannelAttention`. Defaults to 16.
    """

    def __init__(
        self, channels: int, num_blocks: int = 20, reduction: int = 16
    ) -> None:
        super().__init__()
        self.blocks = ModuleList(
            RCAB(channels, reduction) for _ in range(num_blocks)
        )
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """The map and its residual, (B, C, h, w)."""
        out = x
        for block in self.blocks:
            out = block(out)
        return x + self.conv(out)


class RCANTrunk(BaseModule):
    """Groups and a convolution, with a long skip around them.

    Every block looks at the means of the whole map, so that a trunk cannot
    work in tiles. It need not: its maps have the resolution of the small
    image, and without gradients only a few live at once. What is large comes
    behind it, in the :class:`Upsampler`, which works in tiles exactly.

    Args:
        channels (int): Channels C. Defaults to 64.
        num_groups (int): Number of groups. Defaults to 10.
        num_blocks (int): Number of blocks in each. Defaults to 20.
        reduction (int): As in :class:`ChannelAttention`. Defaults to 16.

    Raises:
        ValueError: If there is no group or no block.
    """

    radius = None
    """Pixels around a window that it depends on: all there are."""

    def __init__(
        self,
        channels: int = 64,
        num_groups: int = 10,
        num_blocks: int = 20,
        reduction: int = 16,
    ) -> None:
        super().__init__()
        if min(num_groups, num_blocks) < 1:
            raise ValueError(
                'num_groups and num_blocks of RCANTrunk must be 1 or more, '
                f'got {num_groups} and {num_blocks}'
            )
        self.groups = ModuleList(
            ResidualGroup(channels, num_blocks, reduction)
            for _ in range(num_groups)
        )
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """Deep features.

        Args:
            x (Tensor): Map, (B, C, h, w).
            skip (Tensor, optional): What the long skip adds, of the same
                shape. Defaults to None, ``x``.

        Returns:
            Tensor: (B, C, h, w).
        """
        out = x
        for group in self.groups:
            out = group(out)
        return self.conv(out) + (x if skip is None else skip)


class Upsampler(BaseModule):
    """Pixel shuffles and a last convolution: from maps to larger images.

    Args:
        channels (int): Channels C. Defaults to 64.
        out_channels (int): Channels of the image. Defaults to 3.
        scale (int): 2, 3, 4 or 8. Defaults to 4.

    Raises:
        ValueError: If there is no such scale.
    """

    def __init__(
        self, channels: int = 64, out_channels: int = 3, scale: int = 4
    ) -> None:
        super().__init__()
        if scale not in SHUFFLES:
            raise ValueError(
                f'upscale_factor must be one of {list(SHUFFLES)}, got {scale}'
            )
        self.scale = scale
        self.factors = SHUFFLES[scale]
        self.stages = ModuleList(
            nn.Conv2d(channels, factor**2 * channels, 3, padding=1)
            for factor in self.factors
        )
        self.last = nn.Conv2d(channels, out_channels, 3, padding=1)

    @property
    def radius(self) -> int:
        """Pixels of the map around a window that its image depends on."""
        # One pixel of each convolution, at its own resolution.
        total, scale = 1.0, 1
        for factor in self.factors:
            scale *= factor
            total += 1 / scale
        return ceil(total)

    def forward(
        self, x: Tensor, window: Sequence[int] | None = None
    ) -> Tensor:
        """Image of a map, or of a window of it.

        Args:
            x (Tensor): Map, (B, C, h, w).
            window (Sequence[int], optional): Top, left, height and width, in
                pixels of the map. Defaults to None, all.

        Returns:
            Tensor: (B, K, s h, s w) or s times the window: what there is in
            the whole image, to rounding.

        Raises:
            ValueError: If the window does not lie inside of the map.
        """
        if window is not None:
            x, top, left = crop(x, window, self.radius)
        for conv, factor in zip(self.stages, self.factors):
            x = F.pixel_shuffle(conv(x), factor)
        x = self.last(x)
        if window is None:
            return x
        return x[
            (
                ...,
                *Window(
                    *(self.scale * n for n in (top, left, *window[2:]))
                ).slices,
            )
        ]


@MODELS.register_module()
class RCAN(BaseModule):
    """Super-resolution without a reference (Zhang et al., arXiv 1807.02758).

    Args:
        num_groups (int): Number of residual groups. Defaults to 10.
        num_blocks (int): Number of blocks in each. Defaults to 20.
        mid_channels (int): Channels C. Defaults to 64.
        reduction (int): C over the hidden width of the channel attention.
            Defaults to 16.
        upscale_factor (int): Scale s, 2, 3, 4 or 8. Defaults to 4.
        img_range (float): Range of the values that the layers see: 255 for
            published weights. Defaults to 1.0.
        rgb_mean (Sequence[float]): Mean colour in [0, 1], which they do not
            see. Defaults to DIV2K's.
        init_cfg (dict, optional): Weight initialisation. Defaults to None,
            torch's.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(
        self,
        num_groups: int = 10,
        num_blocks: int = 20,
        mid_channels: int = 64,
        reduction: int = 16,
        upscale_factor: int = 4,
        img_range: float = 1.0,
        rgb_mean: Sequence[float] = DIV2K_MEAN,
        init_cfg: OptMultiConfig = None,
    ) -> None:
        super().__init__(init_cfg)
        if img_range <= 0 or len(rgb_mean) != 3:
            raise ValueError(
                'RCAN needs an img_range above 0 and an rgb_mean of 3 values, '
                f'got {img_range} and {rgb_mean}'
            )
        self.img_range = img_range
        self.upscale_factor = upscale_factor
        # Constants: no part of a checkpoint.
        mean = torch.tensor(rgb_mean).view(1, 3, 1, 1)
        self.register_buffer('mean', mean, persistent=False)
        self.head = nn.Conv2d(3, mid_channels, 3, padding=1)
        self.trunk = RCANTrunk(mid_channels, num_groups, num_blocks, reduction)
        self.upsampler = Upsampler(mid_channels, 3, upscale_factor)
        # Convolutions are faster so, on a CPU and in half precision.
        self.to(memory_format=torch.channels_last)

    def extract(self, lr: Tensor) -> Tensor:
        """Deep features of small images, (B, C, h, w).

        Args:
            lr (Tensor): RGB in [0, 1], (B, 3, h, w).

        Raises:
            ValueError: If they are no images of three channels.
        """
        if lr.ndim != 4 or lr.shape[1] != 3:
            raise ValueError(
                f'RCAN needs images (B, 3, h, w), got {tuple(lr.shape)}'
            )
        return self.trunk(self.head((lr - self.mean) * self.img_range))

    def reconstruct(
        self, feat: Tensor, window: Sequence[int] | None = None
    ) -> Tensor:
        """Large images of deep features, or a window of them.

        Args:
            feat (Tensor): Of :meth:`extract`, (B, C, h, w).
            window (Sequence[int], optional): Top, left, height and width, in
                pixels of the small images. Defaults to None, all.

        Returns:
            Tensor: RGB, about [0, 1], (B, 3, s h, s w) or s times the window.
        """
        return self.upsampler(feat, window) / self.img_range + self.mean

    def forward(self, lr: Tensor) -> Tensor:
        """Enlarge images.

        Args:
            lr (Tensor): RGB in [0, 1], (B, 3, h, w).

        Returns:
            Tensor: RGB, about [0, 1], (B, 3, s h, s w).

        Raises:
            ValueError: If they are no images of three channels.
        """
        return self.reconstruct(self.extract(lr))
