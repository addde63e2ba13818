"""Residual blocks without normalisation.

B batch, C channels, h x w map.
"""

import torch
from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn

# Residuals of a new block, as a share of what a usual one would be.
_QUIET = 0.1


def init_linear(conv: nn.Conv2d) -> None:
    """Keep the variance through a layer without an activation.

    Args:
        conv (nn.Conv2d): Layer to initialise.
    """
    nn.init.kaiming_normal_(conv.weight, nonlinearity='linear')
    nn.init.zeros_(conv.bias)


class ResidualBlock(nn.Module):
    """Two convolutions and a skip, without normalisation.

    Args:
        channels (int): Channels C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        for conv in (self.conv1, self.conv2):
            nn.init.kaiming_normal_(conv.weight)
            nn.init.zeros_(conv.bias)
        with torch.no_grad():
            self.conv2.weight.mul_(_QUIET)

    def forward(self, x: Tensor) -> Tensor:
        """The map and its residual, (B, C, h, w)."""
        return x + self.conv2(self.conv1(x).relu_())


class ResidualTrunk(BaseModule):
    """Residual blocks and a convolution, with a skip around them.

    Args:
        channels (int): Channels C. Defaults to 64.
        num_blocks (int): Number of blocks. Defaults to 16.
    """

    def __init__(self, channels: int = 64, num_blocks: int = 16) -> None:
        super().__init__()
        self.blocks = ModuleList(
            ResidualBlock(channels) for _ in range(num_blocks)
        )
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    @property
    def radius(self) -> int:
        """Pixels around a window that it depends on."""
        return 2 * len(self.blocks) + 1

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """Deep features.

        Args:
            x (Tensor): Map, (B, C, h, w).
            skip (Tensor, optional): What the skip adds, of the same shape.
                Defaults to None, ``x``.

        Returns:
            Tensor: (B, C, h, w).
        """
        out = x
        for block in self.blocks:
            out = block(out)
        return self.conv(out) + (x if skip is None else skip)
