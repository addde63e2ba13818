"""Views of an image: pad, zoom, crop and flip as one affine map each.

N views, H x W image. A map theta (2, 3) takes the coordinates (x, y, 1) of
the view to those of the image; both are in [-1, 1] from edge to edge
(align_corners=False), so that one map serves an image and its features,
whatever their resolutions.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def sample_views(
    num: int,
    size: Sequence[int],
    max_pad: int = 20,
    max_zoom: float = 2.0,
    flip: float = 0.5,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw views: pad by reflection, zoom every other time, crop, flip.

    The image gains ``max_pad`` pixels on each side, is enlarged with
    probability one half by a factor of U(1, max_zoom), cut to its own size at
    whole pixels, and flipped (mhamilton723/FeatUp @ 6b5a6c0,
    datasets/JitteredImage.py). A view without zoom copies pixels exactly.

    Args:
        num (int): Number N of views.
        size (Sequence[int]): Height and width of the image in pixels.
        max_pad (int): Pixels of padding. Defaults to 20.
        max_zoom (float): Largest factor. Defaults to 2.0.
        flip (float): Probability of a horizontal flip. Defaults to 0.5.
        generator (torch.Generator, optional): Source of randomness, on the
            CPU. Defaults to None, torch's own.
        device (torch.device | str, optional): Where the maps go. Defaults to
            None, the CPU.

    Returns:
        Tensor: Maps, (N, 2, 3), float32.

    Raises:
        ValueError: If a range is not valid.
    """
    if not 0 <= max_pad < min(size):
        raise ValueError(
            f'max_pad of a view must be 0 or more and below the image of '
            f'{size[0]} x {size[1]} pixels, got {max_pad}'
        )
    if max_zoom < 1 or not 0 <= flip <= 1:
        raise ValueError(
            f'a view needs max_zoom of 1 or more and flip in [0, 1], got '
            f'{max_zoom} and {flip}'
        )
    rand = torch.rand(5, num, generator=generator, dtype=torch.float64)
    zoom = torch.where(rand[0] < 0.5, 1 + rand[1] * (max_zoom - 1), 1.0)
    mirror = torch.where(rand[2] < flip, -1.0, 1.0)
    theta = torch.zeros(num, 2, 3, dtype=torch.float64)
    # Axis 0 is x in theta, the width.
    for axis, (n, share) in enumerate(zip(reversed(size), rand[3:])):
        room = ((n + 2 * max_pad) * zoom).floor() - n
        start = (share * (room + 1)).floor().clamp(max=room)
        theta[:, axis, axis] = 1 / zoom
        # Pixel u of the view is pixel (u + start) / zoom - max_pad.
        theta[:, axis, 2] = (1 + 2 * start / n) / zoom - 2 * max_pad / n - 1
    theta[:, 0, 0] *= mirror
    return theta.to(device, torch.float32)


def apply_views(
    x: Tensor, theta: Tensor, size: Sequence[int] | None = None
) -> Tensor:
    """Show images or features as their views do.

    Args:
        x (Tensor): Images or features, (N, C, h, w).
        theta (Tensor): Maps of :func:`sample_views`, (N, 2, 3).
        size (Sequence[int], optional): Height and width of the result.
            Defaults to None, those of ``x``.

    Returns:
        Tensor: Views, (N, C, *size), bilinear, reflected at the edges.
    """
    size = tuple(size or x.shape[-2:])
    # float16 is too coarse for coordinates.
    dtype = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        grid = F.affine_grid(
            theta.to(dtype), [len(x), 1, *size], align_corners=False
        )  # (N, *size, 2)
        out = F.grid_sample(
            x.to(dtype),
            grid,
            padding_mode='reflection',
            align_corners=False,
        )
    return out.to(x.dtype)


def shift_views(theta: Tensor, offset: int, size: Sequence[int]) -> Tensor:
    """Maps of what begins elsewhere than the image, such as cells.

    Args:
        theta (Tensor): Maps of :func:`sample_views`, (N, 2, 3).
        offset (int): Pixel where it begins, on both axes.
        size (Sequence[int]): Height and width of the image in pixels.

    Returns:
        Tensor: Maps, (N, 2, 3).
    """
    steps = theta.new_tensor([2 * offset / n for n in reversed(size)])
    # Not a product of matrices, which autocast would make coarse.
    moved = (theta[..., :2] * steps).sum(-1)  # (N, 2)
    return torch.cat([theta[..., :2], theta[..., 2:] + moved[..., None]], -1)
