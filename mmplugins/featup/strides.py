"""How many pixels a cell of a feature map covers.

H x W image in pixels, h x w grid of cells, stride s: cell (i, j) covers the
pixels [s i, s (i + 1)) x [s j, s (j + 1)).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .backbone import FrozenBackbone

# Divided by every power of two up to 256, by 14 and by 28.
_PROBE = 1792


class MapShape(NamedTuple):
    """What :func:`measure_maps` tells of a map."""

    channels: int
    """Channels C."""
    stride: float
    """Pixels per cell."""


def measure_strides(backbone: nn.Module) -> list[float | None] | None:
    """Strides of a backbone's outputs, as :func:`measure_maps` finds them.

    Args:
        backbone (nn.Module): Backbone that takes images (B, 3, H, W).

    Returns:
        list[float | None] | None: Pixels per cell of each output, None for
        one that is not a map; None for a backbone that cannot be measured.
    """
    maps = measure_maps(backbone)
    return maps and [one and one.stride for one in maps]


def measure_maps(backbone: nn.Module) -> list[MapShape | None] | None:
    """Channels and strides of a backbone, by a forward of shapes alone.

    Nothing is computed and nothing of the backbone changes: its weights are
    replaced by tensors of the meta device for the call.

    Args:
        backbone (nn.Module): Backbone that takes images (B, 3, H, W).

    Returns:
        list[MapShape | None] | None: Of each output, None for one that is not
        a map; None for a backbone that cannot run so, such as one that takes
        images of one size only.
    """
    tensors = dict(backbone.named_parameters())
    tensors.update(backbone.named_buffers())
    shapes = {name: x.detach().to('meta') for name, x in tensors.items()}
    image = torch.empty(1, 3, _PROBE, _PROBE, device='meta')
    training = backbone.training
    backbone.eval()
    try:
        with torch.no_grad():
            outs = functional_call(backbone, shapes, (image,))
    except Exception:  # whatever is wrong shows itself in the real forward
        return None
    finally:
        backbone.train(training)
    return [
        MapShape(out.shape[1], _PROBE / out.shape[-2])
        if isinstance(out, Tensor) and out.ndim == 4
        else None
        for out in outs
    ]


def measure_offset(
    backbone: nn.Module, images: Tensor, level: int = -1
) -> float:
    """Where the first cell of a backbone begins, by what its cells look at.

    A convolution of stride 2 with symmetric padding looks at the pixels about
    2 i, not about 2 i + 1/2; five of them leave the cells of stride 32 some 16
    pixels up and left of their places on the grid, and trained weights may add
    to it. The centre of a cell's gradient by the image, averaged over cells
    and images, shows it.

    Args:
        backbone (nn.Module): Backbone with the weights to use.
        images (Tensor): Normalised images, (B, 3, H, W), of 4 x 4 cells or
            more; cells at the edges are left out.
        level (int): Index of the map among the backbone's. Defaults to -1.

    Returns:
        float: Pixel where the first cell begins, mean of both axes; 0 for
        cells that look at their own pixels.

    Raises:
        ValueError: If the map has fewer than 4 x 4 cells.
    """
    if isinstance(backbone, FrozenBackbone):
        backbone = backbone.module  # gives no gradients itself
    training = backbone.training
    backbone.eval()
    images = images.detach().requires_grad_()
    try:
        with torch.enable_grad():
            feats = backbone(images)[level]
    finally:
        backbone.train(training)
    rows, columns = feats.shape[-2:]
    if min(rows, columns) < 4:
        raise ValueError(
            'measure_offset needs images of 4 x 4 cells or more, got '
            f'{rows} x {columns}'
        )
    stride = images.shape[-2] / rows, images.shape[-1] / columns
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(feats.shape[1], generator=generator).to(feats)
    offsets = []
    for i in range(rows // 2 - 1, rows // 2 + 1):
        for j in range(columns // 2 - 1, columns // 2 + 1):
            with torch.enable_grad():
                seen = torch.einsum('bc,c->', feats[..., i, j], weight)
            (grad,) = torch.autograd.grad(seen, images, retain_graph=True)
            grad = grad.square().sum((0, 1))  # (H, W)
            for axis, cell in ((0, i), (1, j)):
                share = grad.sum(1 - axis) / grad.sum()
                pixels = torch.arange(len(share)).to(share)
                nominal = stride[axis] * (cell + 0.5) - 0.5
                offsets.append((share @ pixels).item() - nominal)
    return sum(offsets) / len(offsets)


def infer_stride(image: Sequence[int], grid: Sequence[int]) -> float:
    """Pixels per cell of a grid that a backbone made of an image.

    Small images leave several strides open; :func:`measure_strides` does not.

    Args:
        image (Sequence[int]): Height and width in pixels.
        grid (Sequence[int]): Rows and columns of cells.

    Returns:
        float: A stride with ``floor(n / s) <= cells <= ceil(n / s)`` on both
        axes. Of several the one that covers the image exactly, else a usual
        one (a power of two or 14) that rounds both axes alike, else a usual
        one, else the one that covers the image best.

    Raises:
        ValueError: If no stride explains the grid.
    """
    fitting = [s for s in range(1, max(image) + 1) if fits(s, image, grid)]
    if not fitting:
        raise ValueError(
            f'no stride makes {grid[0]} x {grid[1]} cells of {image[0]} x '
            f'{image[1]} pixels: set strides of FeatUpNeck'
        )

    def rank(stride: int) -> tuple:
        missed = [n - stride * g for n, g in zip(image, grid)]
        alike = missed[0] * missed[1] >= 0
        usual = stride & (stride - 1) == 0 or stride == 14
        total = sum(map(abs, missed))
        return total > 0, not (usual and alike), not usual, total

    return min(fitting, key=rank)


def fits(
    stride: float, image: Sequence[int], grid: Sequence[int], slack: int = 0
) -> bool:
    """Whether a backbone of a stride may make a grid of an image.

    Args:
        stride (float): Pixels per cell.
        image (Sequence[int]): Height and width in pixels.
        grid (Sequence[int]): Rows and columns of cells.
        slack (int): Cells more or less than rounding explains, as by
            convolutions without padding. Defaults to 0.

    Returns:
        bool: Whether ``floor(n / s) <= cells <= ceil(n / s)`` on both axes,
        within the slack.
    """
    return all(
        n // stride - slack <= g <= -(-n // stride) + slack
        for n, g in zip(image, grid)
    )
