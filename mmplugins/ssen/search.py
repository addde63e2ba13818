"""Explicit search: where, near each pixel, the reference looks most alike.

B batch, C channels, H x W map, R radius in cells of a level, N side of the
window, T pixels of the map to a cell. Displacements are (dy, dx). Cell i is
centred on pixel T i + (T - 1) / 2.
"""

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor

from mmplugins.registry import MODELS

# Scores that are there at once.
_BLOCK = 2**22
# Pixels across of the windows that the last fraction is sought in.
_NEAR = 5
# Slopes of unit contrast, squared, below which there is nothing to follow.
_LEAST = 1e-4


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


def soft_match(
    query: Tensor,
    key: Tensor,
    radius: int,
    window: int = 1,
    scale: float = 1.0,
) -> Tensor:
    """Mean displacement to the keys around each position, by likeness.

    ``sum_d d softmax_d(scale mean_n <query(p + n), key(p + n + d)>)`` over the
    displacements d of at most ``radius`` along either axis, and the n of a
    window around p as far as it lies on the map. Beyond the map keys are zero,
    like nothing: without them, all would be drawn towards its middle.

    Args:
        query (Tensor): What is looked for at every position, (B, C, H, W).
        key (Tensor): What it is compared with, (B, C, H, W).
        radius (int): Largest displacement R, in pixels of the maps.
        window (int): Rows and columns N of a window, odd. Defaults to 1.
        scale (float): Factor of the mean dot products. Defaults to 1.0.

    Returns:
        Tensor: Pixels of the maps, (B, 2, H, W).

    Raises:
        ValueError: If the shapes differ, the radius is below 1 or the window
            even.
    """
    if query.shape != key.shape or query.ndim != 4:
        raise ValueError(
            'soft_match needs query and key of one shape (B, C, H, W), got '
            f'{tuple(query.shape)} and {tuple(key.shape)}'
        )
    if radius < 1 or window < 1 or not window % 2:
        raise ValueError(
            'soft_match needs radius >= 1 and an odd window, got '
            f'{radius} and {window}'
        )
    B, _, H, W = query.shape
    padded = F.pad(key, (radius,) * 4)
    side, halo = 2 * radius + 1, window // 2
    rows = max(1, _BLOCK // (B * W * side**2))
    found = query.new_empty(B, 2, H, W)
    reach = torch.arange(-radius, radius + 1).to(query)[:, None, None]
    for top in range(0, H, rows):
        end = min(top + rows, H)
        first, last = max(0, top - halo), min(H, end + halo)
        band = query[..., first:last, :]
        below = padded[..., first : last + 2 * radius, :]
        scores = torch.stack(
            [
                (band * below[..., y : y + last - first, x : x + W]).sum(1)
                for y in range(side)
                for x in range(side)
            ],
            1,
        )
        if window > 1:
            scores = _local_mean(scores, window)
        scores = scores[..., top - first : end - first, :]
        share = (scale * scores).softmax(1).unflatten(1, (side, side))
        for axis in (0, 1):  # of (B, side, side, rows, W)
            moved = (share.sum(2 - axis) * reach).sum(1)
            found[:, axis, top:end] = moved
    return found


def small_match(
    query: Tensor, key: Tensor, window: int, damping: float = 0.1
) -> Tensor:
    """Displacement of less than a pixel, by a step of Lucas and Kanade (1981).

    The d of least squares of ``query(p + n) - key(p + n) - <grad key, d>``
    over the n of a window around p, with the diagonal of its normal equations
    larger by a share of their trace.

    Args:
        query (Tensor): What is looked for, (B, C, H, W).
        key (Tensor): Where, (B, C, H, W).
        window (int): Rows and columns of a window, odd.
        damping (float): That share. Defaults to 0.1.

    Returns:
        Tensor: Pixels of the maps, at most one along an axis, (B, 2, H, W).
    """
    wide = F.pad(key, (1, 1, 1, 1), mode='replicate')
    dy = (wide[..., 2:, 1:-1] - wide[..., :-2, 1:-1]) / 2
    dx = (wide[..., 1:-1, 2:] - wide[..., 1:-1, :-2]) / 2
    rest = query - key
    pairs = ((dy, dy), (dy, dx), (dx, dx), (dy, rest), (dx, rest))
    sums = torch.stack([(a * b).sum(1) for a, b in pairs], 1)
    yy, yx, xx, yr, xr = _local_mean(sums, window).unbind(1)
    more = damping * (yy + xx) + _LEAST
    yy, xx = yy + more, xx + more
    found = torch.stack([xx * yr - yx * xr, yy * xr - yx * yr], 1)
    return (found / (yy * xx - yx * yx)[:, None]).clamp(-1, 1)


@MODELS.register_module()
class LocalSearch(BaseModule):
    """Displacement between two maps by comparing their neighbourhoods.

    From coarse to fine: a level takes the means of T x T pixels, T halved from
    level to level and 1 on the last, of the map and of the reference as far as
    it has been found. Both, less their local mean and each of length one, are
    compared window by window, :func:`soft_match`; what is then missing of a
    pixel, :func:`small_match` finds. What is alike everywhere moves nowhere.
    There is nothing to learn, and no gradient.

    Args:
        levels (int): Number of levels. Defaults to 3.
        radius (int): Radius R in cells of a level, so on the first
            R 2^(levels - 1) pixels of the map. Defaults to 4.
        window (int): Cells N across that are compared together, odd. Defaults
            to 9.
        sharpness (float): Factor of the cosines. Defaults to 20.
        steps (int): How often the last fraction is sought. Defaults to 2.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        levels: int = 3,
        radius: int = 4,
        window: int = 9,
        sharpness: float = 20.0,
        steps: int = 2,
    ) -> None:
        super().__init__()
        if levels < 1 or radius < 1 or window < 1 or not window % 2:
            raise ValueError(
                'LocalSearch needs levels >= 1, radius >= 1 and an odd '
                f'window, got {levels}, {radius} and {window}'
            )
        if steps < 0:
            raise ValueError(f'steps of LocalSearch must be >= 0, got {steps}')
        self.levels = levels
        self.radius = radius
        self.window = window
        self.sharpness = sharpness
        self.steps = steps

    @torch.no_grad()
    def forward(self, feat: Tensor, ref_feat: Tensor) -> Tensor:
        """Search.

        Args:
            feat (Tensor): Map of the input, (B, C, H, W).
            ref_feat (Tensor): Map of the reference, (B, C, H, W).

        Returns:
            Tensor: Displacement in pixels of the map, (B, 2, H, W), in float32
            at least.
        """
        with torch.autocast(feat.device.type, enabled=False):
            dtype = torch.promote_types(feat.dtype, torch.float32)
            feat, ref_feat = feat.to(dtype), ref_feat.to(dtype)
            total = feat.new_zeros(len(feat), 2, *feat.shape[-2:])
            for level in reversed(range(self.levels)):
                seen = read_at(ref_feat, total)
                total = _add(total, self._level(feat, seen, 2**level))
            query = _contrast(feat)
            for _ in range(self.steps):
                key = _contrast(read_at(ref_feat, total))
                total = _add(total, small_match(query, key, _NEAR))
        return total

    def _level(self, feat: Tensor, seen: Tensor, stride: int) -> Tensor:
        """Displacement that a level finds, in pixels, (B, 2, H, W)."""
        height, width = feat.shape[-2:]
        query, key = (self._describe(x, stride) for x in (feat, seen))
        found = stride * soft_match(
            query, key, self.radius, self.window, self.sharpness
        )
        if stride > 1:
            size = [stride * n for n in found.shape[-2:]]
            found = F.interpolate(found, size, mode='bilinear')
        return found[..., :height, :width]

    def _describe(self, x: Tensor, stride: int) -> Tensor:
        """Unit vectors of the cells, zero where all around is alike."""
        below, beside = (-n % stride for n in x.shape[-2:])
        x = F.pad(x, (0, beside, 0, below), mode='replicate')
        x = F.avg_pool2d(x, stride)
        least = _noise(x)
        x = x - _local_mean(x, self.window)
        return x / x.norm(dim=1, keepdim=True).clamp_min(least)


def _add(total: Tensor, found: Tensor) -> Tensor:
    """A step from p, and from there on what was found before."""
    return found + read_at(total, found)


def _contrast(x: Tensor) -> Tensor:
    """A map less its local mean, over its local deviation."""
    least = _noise(x)
    x = x - _local_mean(x, _NEAR)
    square = _local_mean(x.square().sum(1, keepdim=True), _NEAR)
    return x / (square + least**2 + 1e-12).sqrt()


def _noise(x: Tensor) -> Tensor:
    """Length of a difference that may be rounding alone, (B, 1, 1, 1)."""
    longest = x.norm(dim=1, keepdim=True).amax((2, 3), keepdim=True)
    return (1e-4 * longest).clamp_min(1e-12)


def _local_mean(x: Tensor, window: int) -> Tensor:
    """Mean of the window around each pixel as far as it lies on the map."""
    return F.avg_pool2d(x, window, 1, window // 2, count_include_pad=False)
