"""Explicit search: where, near each pixel, the reference looks most alike.

B batch, C channels, H x W map, R radius in cells of the level, T stride of the
level. Displacements are (dy, dx).
"""

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmplugins.registry import MODELS

# Scores that are there at once.
_BLOCK = 2**22


def soft_match(
    query: Tensor, key: Tensor, radius: int, scale: float | Tensor = 1.0
) -> Tensor:
    """Mean displacement to the keys around each position, by likeness.

    ``sum_d d softmax_d(scale <query(p), key(p + d)>)`` over the displacements
    d of at most ``radius`` along either axis. Beyond the map keys are zero,
    like nothing: without them, all would be drawn towards its middle.

    Args:
        query (Tensor): What is looked for at every position, (B, C, H, W).
        key (Tensor): What it is compared with, (B, C, H, W).
        radius (int): Largest displacement R, in pixels of the maps.
        scale (float | Tensor): Factor of the dot products. Defaults to 1.0.

    Returns:
        Tensor: Pixels of the maps, (B, 2, H, W).

    Raises:
        ValueError: If the shapes differ or the radius is below 1.
    """
    if query.shape != key.shape or query.ndim != 4:
        raise ValueError(
            'soft_match needs query and key of one shape (B, C, H, W), got '
            f'{tuple(query.shape)} and {tuple(key.shape)}'
        )
    if radius < 1:
        raise ValueError(f'radius of soft_match must be >= 1, got {radius}')
    B, _, H, W = query.shape
    padded = F.pad(key, (radius,) * 4)
    rows = max(1, _BLOCK // (B * W * (2 * radius + 1) ** 2))
    bands = [
        _match_rows(
            query[..., top : top + rows, :],
            padded[..., top : top + rows + 2 * radius, :],
            radius,
            scale,
        )
        for top in range(0, H, rows)
    ]
    return bands[0] if len(bands) == 1 else torch.cat(bands, 2)


def _match_rows(
    query: Tensor, padded: Tensor, radius: int, scale: float | Tensor
) -> Tensor:
    """Some rows, with the keys around them: (B, 2, rows, W)."""
    H, W = query.shape[-2:]
    side = 2 * radius + 1
    scores = [
        (query * padded[..., y : y + H, x : x + W]).sum(1)
        for y in range(side)
        for x in range(side)
    ]
    share = (scale * torch.stack(scores, 1)).softmax(1)
    share = share.unflatten(1, (side, side))  # (B, side, side, rows, W)
    reach = torch.arange(-radius, radius + 1).to(share)[:, None, None]
    dy, dx = ((share.sum(axis) * reach).sum(1) for axis in (2, 1))
    return torch.stack([dy, dx], 1)


@MODELS.register_module()
class LocalSearch(BaseModule):
    """Displacement between two maps by comparing their neighbourhoods.

    One convolution, shared, of stride T describes both maps; descriptions,
    less their mean and of length one, are compared by :func:`soft_match`. What
    is alike everywhere moves nowhere.

    Args:
        channels (int): Channels C.
        stride (int): Stride T of the descriptions. Defaults to 1.
        radius (int): Radius R in cells, so R T pixels of the map. Defaults to
            4.
        init_cfg (dict, optional): Weight initialisation. Defaults to None.

    Raises:
        ValueError: If stride or radius are below 1.
    """

    def __init__(
        self,
        channels: int,
        stride: int = 1,
        radius: int = 4,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if stride < 1 or radius < 1:
            raise ValueError(
                'LocalSearch needs stride >= 1 and radius >= 1, got '
                f'{stride} and {radius}'
            )
        self.stride = stride
        self.radius = radius
        self.describe = nn.Conv2d(
            channels, channels, 2 * stride + 1, stride, stride
        )
        # At the start it is smooth, or cells between two would be unlike both.
        window = 1 - torch.arange(-stride, stride + 1).abs() / (stride + 1)
        window = window / window.square().sum().sqrt()
        with torch.no_grad():
            mix = nn.init.orthogonal_(torch.empty(channels, channels))
            self.describe.weight.copy_(
                mix[..., None, None] * window[:, None] * window
            )
            self.describe.bias.zero_()
        # Logarithm of the factor of cosines.
        self.sharpness = nn.Parameter(torch.tensor(3.0))

    def forward(self, feat: Tensor, ref_feat: Tensor) -> Tensor:
        """Search.

        Args:
            feat (Tensor): Map of the input, (B, C, H, W).
            ref_feat (Tensor): Map of the reference, (B, C, H, W).

        Returns:
            Tensor: Displacement in pixels of the map, (B, 2, H, W), in float32
            at least.
        """
        query, key = (self.describe(x) for x in (feat, ref_feat))
        with torch.autocast(feat.device.type, enabled=False):
            dtype = torch.promote_types(query.dtype, torch.float32)
            query, key = (x.to(dtype) for x in (query, key))
            mean = query.mean((2, 3), keepdim=True)
            query, key = (F.normalize(x - mean) for x in (query, key))
            found = self.stride * soft_match(
                query, key, self.radius, self.sharpness.to(dtype).exp()
            )
            # Cell i of the level is centred on pixel i T of the map.
            size = [self.stride * (n - 1) + 1 for n in found.shape[-2:]]
            found = F.interpolate(
                found, size, mode='bilinear', align_corners=True
            )
            below, beside = (n - m for n, m in zip(feat.shape[-2:], size))
            return F.pad(found, (0, beside, 0, below), mode='replicate')
