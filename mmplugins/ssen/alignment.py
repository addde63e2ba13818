"""Where aligned pixels come from, against where they should.

B batch, K taps, G groups of channels, H x W map, n layers, s scale.
Displacements are (dy, dx) in pixels of the map: pixel p shows the reference at
p + displacement. Pixel i of the map is centred on s i + (s - 1) / 2 of the
target, whose pixels are points (x, y), (0, 0) the centre of the top left one.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor

from mmplugins.registry import MODELS

from .offsets import Sampling


def displacements(aux: Sequence[Sampling]) -> list[Tensor]:
    """Where the output of each layer reads the reference.

    Each layer reads on average where the mean of its taps' offsets points;
    from there the layers before it are followed.

    Args:
        aux (Sequence[Sampling]): Offsets and masks of every layer, first to
            last.

    Returns:
        list[Tensor]: Of every layer, (B, 2, H, W), with gradients.
    """
    found: list[Tensor] = []
    for offset, _ in aux:
        found.append(follow(offset, found[-1] if found else None))
    return found


def follow(offset: Tensor, before: Tensor | None = None) -> Tensor:
    """Displacement of a layer's output by that of its input.

    Args:
        offset (Tensor): Offsets of the layer's taps, (B, 2 K G, H, W).
        before (Tensor, optional): Displacement of its input, (B, 2, H, W).
            Defaults to None, 0.

    Returns:
        Tensor: (B, 2, H, W).
    """
    mean = offset.unflatten(1, (-1, 2)).mean(1)
    return mean if before is None else mean + read_at(before, mean)


def read_at(x: Tensor, shift: Tensor) -> Tensor:
    """A map at every pixel plus a displacement, bilinear, the border repeated.

    Args:
        x (Tensor): (B, C, H, W).
        shift (Tensor): Displacement, (B, 2, H, W).

    Returns:
        Tensor: (B, C, H, W), in the type of ``shift``.
    """
    axes = [torch.arange(n).to(shift) for n in x.shape[-2:]]
    grid = torch.stack(torch.meshgrid(*axes, indexing='ij'), -1)
    points = grid + shift.permute(0, 2, 3, 1)
    size = points.new_tensor(x.shape[-2:])
    return F.grid_sample(
        x.to(shift.dtype),
        ((2 * points + 1) / size - 1).flip(-1),
        padding_mode='border',
        align_corners=False,
    )


def affine_displacement(
    matrix: Tensor, size: Sequence[int], scale: int
) -> tuple[Tensor, Tensor]:
    """Displacement of a reference that is the target, moved.

    Args:
        matrix (Tensor): From a point (x, y) of the target to that of the
            reference, (B, 2, 3); NaN where it is not known.
        size (Sequence[int]): Rows H and columns W of the map.
        scale (int): Pixels s of the target to one of the map.

    Returns:
        tuple[Tensor, Tensor]: (B, 2, H, W), 0 where not known, and whether it
        is and lies on the reference, bool, (B, 1, H, W).
    """
    axes = [
        scale * torch.arange(n, device=matrix.device) + (scale - 1) / 2
        for n in size
    ]
    y, x = torch.meshgrid(*axes, indexing='ij')
    points = torch.stack([x, y, torch.ones_like(x)]).to(matrix)  # (3, H, W)
    moved = torch.einsum('bij,jhw->bihw', matrix, points)
    ends = moved.new_tensor([scale * size[1], scale * size[0]])
    inside = (moved > -0.5) & (moved < (ends - 0.5)[:, None, None])
    shift = (moved - points[:2]).flip(1) / scale
    return shift.nan_to_num(0.0), inside.all(1, keepdim=True)


@MODELS.register_module()
class AlignmentLoss(BaseModule):
    """How far every layer is from where a moved reference shows the pixel.

    Not of the paper, whose offsets learn from the images alone, in 100,000
    iterations of 32 pairs: with references that
    :class:`~mmplugins.ssen.MovedReference` makes, the match is known, and the
    search is learned in a few thousand. The mean distance in pixels of the
    map, over pixels whose match is known and layers.

    Args:
        loss_weight (float): Its weight. Defaults to 0.02.
    """

    def __init__(self, loss_weight: float = 0.02) -> None:
        super().__init__()
        self.loss_weight = loss_weight

    def forward(
        self, aux: Sequence[Sampling], matrix: Tensor, scale: int
    ) -> Tensor:
        """Weighted loss.

        Args:
            aux (Sequence[Sampling]): Offsets and masks of every layer, first
                to last, one at least.
            matrix (Tensor): As of :func:`affine_displacement`.
            scale (int): As there.

        Returns:
            Tensor: A scalar, 0 if no match is known.
        """
        size = aux[0].offset.shape[-2:]
        # Half precision would round positions to whole pixels.
        with torch.autocast(matrix.device.type, enabled=False):
            wanted, known = affine_displacement(matrix, size, scale)
        count = (len(aux) * known.sum()).clamp_min(1)
        # The root of 0 has no gradient.
        distances = (
            ((found - wanted).square().sum(1, keepdim=True) + 1e-6).sqrt()
            for found in displacements(aux)
        )
        total = sum(x.where(known, 0).sum() for x in distances)
        return self.loss_weight * total / count
