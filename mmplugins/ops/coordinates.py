"""Coordinates of pixels: one convention for the whole package.

B batch, C channels, H x W pixels, P points. An image spans [-1, 1] on both
axes, whatever its size; a coordinate is (y, x), rows first. Pixel i of N
covers [2 i / N - 1, 2 (i + 1) / N - 1] and its centre is (2 i + 1) / N - 1
(align_corners=False), so that maps of different sizes over the same area
share their coordinates.
"""

from collections.abc import Sequence
from math import pi

import torch
import torch.nn.functional as F
from torch import Tensor


def pixel_centers(
    size: Sequence[int],
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Coordinates of the centres of all pixels.

    Args:
        size (Sequence[int]): Height H and width W in pixels.
        device (torch.device | str, optional): Where to. Defaults to None,
            torch's default.
        dtype (torch.dtype): Floating type. Defaults to ``torch.float32``.

    Returns:
        Tensor: (y, x) in (-1, 1), (H, W, 2).

    Raises:
        ValueError: If the size is not two positive numbers.
    """
    y, x = (
        # Odd numbers over N, exact up to one rounding of the division.
        (2 * torch.arange(n, device=device, dtype=torch.float64) + 1) / n - 1
        for n in _checked(size)
    )
    return torch.stack(torch.meshgrid(y, x, indexing='ij'), -1).to(dtype)


def cell_size(
    size: Sequence[int],
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Height and width of a pixel in units of the coordinates.

    Args:
        size (Sequence[int]): Height H and width W in pixels.
        device (torch.device | str, optional): Where to. Defaults to None,
            torch's default.
        dtype (torch.dtype): Floating type. Defaults to ``torch.float32``.

    Returns:
        Tensor: (2 / H, 2 / W), (2,).

    Raises:
        ValueError: If the size is not two positive numbers.
    """
    cells = [2 / n for n in _checked(size)]
    return torch.tensor(cells, device=device, dtype=dtype)


def max_frequency(size: Sequence[int]) -> tuple[float, float]:
    """Highest angular frequencies that the pixels of an image can carry.

    ``sin(w y)`` sampled every d = 2 / H is told from slower waves up to
    Nyquist's w = pi / d = pi H / 2. (Samples from corner to corner are
    2 / (H - 1) apart, which gives pi (H - 1) / 2.)

    Args:
        size (Sequence[int]): Height H and width W in pixels.

    Returns:
        tuple[float, float]: (pi H / 2, pi W / 2) in radians per unit.

    Raises:
        ValueError: If the size is not two positive numbers.
    """
    height, width = _checked(size)
    return pi * height / 2, pi * width / 2


def sample_at(
    x: Tensor,
    coords: Tensor,
    mode: str = 'bilinear',
    padding_mode: str = 'border',
) -> Tensor:
    """Values of a map at coordinates.

    At the pixel centres these are the pixels. Computed in float32 at least:
    a coordinate in bfloat16 would be off by pixels.

    Args:
        x (Tensor): Map, (B, C, H, W).
        coords (Tensor): (y, x), (B, P, 2) or (B, H', W', 2); B may be 1 for
            the same points in every map.
        mode (str): ``'bilinear'``, ``'nearest'`` or ``'bicubic'``. Defaults
            to ``'bilinear'``.
        padding_mode (str): What lies outside, ``'border'``, ``'zeros'`` or
            ``'reflection'``. Defaults to ``'border'``.

    Returns:
        Tensor: Values, (B, C, P) or (B, C, H', W'), of the map's type.

    Raises:
        ValueError: If a shape is not as above.
    """
    if (
        x.ndim != 4
        or coords.ndim not in (3, 4)
        or coords.shape[-1] != 2
        or coords.shape[0] not in (1, x.shape[0])
    ):
        raise ValueError(
            'sample_at needs a map (B, C, H, W) and coords (B, P, 2) or '
            f"(B, H', W', 2), got {tuple(x.shape)} and {tuple(coords.shape)}"
        )
    dtype = torch.promote_types(x.dtype, torch.float32)
    grid = coords.to(dtype).flip(-1)  # torch's order is (x, y)
    points = grid.ndim == 3
    if points:
        grid = grid.unsqueeze(1)  # (B, 1, P, 2)
    out = F.grid_sample(
        x.to(dtype),
        grid.expand(x.shape[0], -1, -1, -1),
        mode=mode,
        padding_mode=padding_mode,
        align_corners=False,
    ).to(x.dtype)
    return out.squeeze(2) if points else out


def _checked(size: Sequence[int]) -> tuple[int, int]:
    """Height and width, or an error."""
    if len(size) != 2 or min(size) < 1:
        raise ValueError(
            f'size must be (height, width) of 1 pixel or more, got '
            f'{tuple(size)}'
        )
    return int(size[0]), int(size[1])
