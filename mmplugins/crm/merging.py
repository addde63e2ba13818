"""Refined masks put back into the label map that they were taken from.

K classes that were refined, H x W image.
"""

from collections.abc import Callable, Iterable

import cv2
import numpy as np
import torch
from torch import Tensor

from .components import Slices


def boundary_band(labels: Tensor, radius: int) -> Tensor:
    """Pixels near a boundary: those that see a pixel of another label.

    A pixel sees the square of ``2 * radius + 1`` pixels around it; the border
    of the map is no boundary.

    Args:
        labels (Tensor): Labels of any type, or a mask, (..., H, W).
        radius (int): Pixels to see in each direction, 0 or more.

    Returns:
        Tensor: Band, bool, (..., H, W); empty for a radius of 0.

    Raises:
        ValueError: If the radius is negative.
    """
    if radius < 0:
        raise ValueError(
            f'radius of boundary_band must be 0 or more, got {radius}'
        )
    if labels.dtype == torch.bool:
        labels = labels.byte()
    high = low = labels
    for dim in (-2, -1):
        high = _extreme(high, radius, dim, torch.maximum)
        low = _extreme(low, radius, dim, torch.minimum)
    return high != low


class RunningMerge:
    """Arg-max over refined masks, of which none is kept.

    Args:
        labels (Tensor): Label map before the refinement, (H, W).
        threshold (float): Probability above which a mask claims a pixel.
            Defaults to 0.5.

    Attributes:
        labels (Tensor): Each pixel's class of the highest claim, the first of
            equal ones; the label before where there is none. (H, W).
    """

    def __init__(self, labels: Tensor, threshold: float = 0.5) -> None:
        self.labels = labels.clone()
        self._best = torch.full_like(labels, threshold, dtype=torch.float32)
        self._claimed = torch.zeros_like(labels, dtype=torch.bool)
        self._refined = torch.zeros_like(labels, dtype=torch.bool)

    @property
    def lost(self) -> Tensor:
        """Pixels that were refined and that nothing claims, bool, (H, W)."""
        return self._refined & ~self._claimed

    def add(
        self,
        label: int,
        prob: Tensor,
        part: Tensor,
        window: Slices | None = None,
    ) -> None:
        """Add a refined mask.

        Args:
            label (int): Its class.
            prob (Tensor): Its probability in a window, (h, w).
            part (Tensor): Pixels of the window that it is a refinement of,
                bool, (h, w).
            window (Slices, optional): Rows and columns of the window.
                Defaults to None, all.
        """
        window = window or (slice(None), slice(None))
        best = self._best[window]
        wins = prob > best
        best[wins] = prob[wins].to(best)
        self.labels[window][wins] = label
        self._claimed[window] |= wins
        self._refined[window] |= part


def merge_labels(
    labels: Tensor,
    refined: Iterable[tuple[int, Tensor]],
    band: int | None = None,
    ignore_index: int | None = 255,
) -> Tensor:
    """Give each pixel the refined class of the greatest probability.

    Only what is above a half claims a pixel. One that nothing claims keeps its
    label; but if its own class was refined and others were not, it takes the
    label of the nearest pixel of those: a class refined alone may shrink. A
    ``RefinedSegmentor`` does the same, by its background or its logits.

    Args:
        labels (Tensor): Label map before the refinement, integers, (H, W).
        refined (Iterable[tuple[int, Tensor]]): Class and probability (H, W)
            of each of the K classes; the first of equal ones wins. They may
            be made one after the other: only the best so far is kept.
        band (int, optional): Whole pixels, the radius of
            :func:`boundary_band`: what is farther from every boundary of
            ``labels`` keeps its label. Defaults to None, any may change.
        ignore_index (int, optional): Label that stays where it is and is not
            spread. Defaults to 255.

    Returns:
        Tensor: Label map, (H, W), of the type of ``labels``.

    Raises:
        ValueError: If a probability is not of the map's size.
    """
    merge = RunningMerge(labels)
    rest = torch.ones_like(labels, dtype=torch.bool)
    for index, prob in refined:
        if prob.shape != labels.shape:
            raise ValueError(
                f'merge_labels needs probabilities of {tuple(labels.shape)}, '
                f'as the labels, got {tuple(prob.shape)} for class {index}'
            )
        region = labels == index
        merge.add(index, prob, region)
        rest &= ~region
    kept = torch.zeros_like(rest)
    if ignore_index is not None:
        kept = labels == ignore_index
    rest &= ~kept
    merged, lost = merge.labels, merge.lost
    if lost.any() and rest.any():
        merged[lost] = _nearest(labels, rest)[lost]
    if band is not None:
        kept = kept | ~boundary_band(labels, band)
    return torch.where(kept, labels, merged)


def _extreme(x: Tensor, radius: int, dim: int, pick: Callable) -> Tensor:
    """Greatest or least of each window of 2 radius + 1 along an axis.

    Windows of twice the width come from two that overlap or meet.
    """
    size = x.shape[dim]
    radius = min(radius, size - 1)
    index = torch.arange(-radius, size + radius, device=x.device)
    x = x.index_select(dim, index.clamp(0, size - 1))
    width, wanted = 1, 2 * radius + 1
    while width < wanted:
        step = min(width, wanted - width)
        count = x.shape[dim] - step
        x = pick(x.narrow(dim, 0, count), x.narrow(dim, step, count))
        width += step
    return x


def _nearest(labels: Tensor, among: Tensor) -> Tensor:
    """Label of the nearest pixel among some, (H, W), to a few per cent."""
    # OpenCV numbers the zeros and says which one each pixel is nearest to.
    away = (~among).to(torch.uint8).cpu().numpy()
    _, number = cv2.distanceTransformWithLabels(
        away, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    values = labels.cpu().numpy()
    table = np.zeros(number.max() + 1, values.dtype)
    table[number[away == 0]] = values[away == 0]
    return torch.from_numpy(table[number]).to(labels.device)
