"""Boundaries of label maps, and how well those of two maps agree.

H x W map, C classes, N boundary pixels. Distances are Euclidean, between the
centres of pixels, in pixels.
"""

from math import floor
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Offsets that are looked up at once for all boundary pixels left.
_BLOCK = 64


class BoundaryScores(NamedTuple):
    """Scores of each class, 0 to 1 or NaN, each (C,) in double precision."""

    precision: Tensor
    recall: Tensor
    f_score: Tensor


def boundary_map(labels: Tensor, valid: Tensor | None = None) -> Tensor:
    """Pixels with another label above, below, left or right of them.

    Both sides of an edge are boundary, each of its own label: the boundary of
    a class is the inner one, one pixel wide. The border of the map is none.

    Args:
        labels (Tensor): Labels of any kind, a binary mask too, (..., H, W).
        valid (Tensor, optional): Pixels with a label, bool, (..., H, W). An
            edge counts where both of its sides are valid. Defaults to None,
            all.

    Returns:
        Tensor: Boundary, bool, (..., H, W).
    """
    boundary = torch.zeros_like(labels, dtype=torch.bool)
    for dim in (-2, -1):
        count = labels.shape[dim] - 1
        edge = labels.narrow(dim, 0, count) != labels.narrow(dim, 1, count)
        if valid is not None:
            edge &= valid.narrow(dim, 0, count) & valid.narrow(dim, 1, count)
        for side in (0, 1):
            boundary.narrow(dim, side, count).logical_or_(edge)
    return boundary


def boundary_scores(
    pred: Tensor,
    target: Tensor,
    num_classes: int,
    radius: float,
    ignore_index: int | None = None,
) -> BoundaryScores:
    """Precision, recall and F of the boundaries of each class.

    A boundary pixel matches if a boundary pixel of the same class lies within
    ``radius`` in the other map; several may match one. Precision P is the
    share of the predicted pixels that match, recall R that of the target's,
    and F = 2 P R / (P + R), 0 if nothing matches. A class that has no
    boundary in either map, for it fills all there is, has F = 1 if the two
    masks are equal, else 0.

    DAVIS (Perazzi et al., CVPR 2016) matches alike, but takes as boundary the
    pixels above and left of an edge instead of those inside the class, half a
    pixel away, and rounds the radius up.

    Args:
        pred (Tensor): Predicted labels or a binary mask, (H, W).
        target (Tensor): True labels or mask, (H, W), on the same device.
        num_classes (int): Number C of classes, two for a mask.
        radius (float): Farthest match in pixels, 0 or more.
        ignore_index (int, optional): Label of target pixels that are neither
            boundary nor match, and make no boundary of those beside them.
            Defaults to None.

    Returns:
        BoundaryScores: ``precision``, NaN for a class without a predicted
        boundary; ``recall``, NaN for one without a true boundary;
        ``f_score``, NaN for one that is not in the target.

    Raises:
        ValueError: If the shapes do not fit or ``radius`` is below 0.
    """
    if pred.ndim != 2 or pred.shape != target.shape:
        raise ValueError(
            'boundary_scores needs two maps (H, W) of one size, got '
            f'{tuple(pred.shape)} and {tuple(target.shape)}'
        )
    if radius < 0:
        raise ValueError(
            f'radius of boundary_scores must be 0 or more, got {radius}'
        )
    pred, target = pred.int(), target.int()
    valid = torch.ones_like(target, dtype=torch.bool)
    if ignore_index is not None:
        valid = target != ignore_index
    # Labels where there is a boundary, else C, which stands for no class.
    ours, theirs = (
        _in_range(x, boundary_map(x, valid), num_classes)
        for x in (pred, target)
    )
    predicted, right = _count_matches(ours, theirs, num_classes, radius)
    true, found = _count_matches(theirs, ours, num_classes, radius)
    precision, recall = right / predicted, found / true
    f_score = 2 * precision * recall / (precision + recall)
    f_score[right == 0] = 0

    pred, target = (_in_range(x, valid, num_classes) for x in (pred, target))
    area = _count(target, num_classes)
    both = _count(target[pred == target], num_classes)
    equal = (both == area) & (both == _count(pred, num_classes))
    f_score[(predicted == 0) & (true == 0) & equal] = 1
    f_score[area == 0] = torch.nan
    return BoundaryScores(precision, recall, f_score)


def _in_range(labels: Tensor, keep: Tensor, num_classes: int) -> Tensor:
    """Labels 0 to C - 1 where they are kept, C elsewhere."""
    keep = keep & (labels >= 0) & (labels < num_classes)
    return torch.where(keep, labels, num_classes)


def _count(labels: Tensor, num_classes: int) -> Tensor:
    """Number of pixels of each class, (C,), in double precision."""
    counts = torch.bincount(labels.flatten(), minlength=num_classes + 1)
    return counts[:num_classes].double()


def _count_matches(
    ours: Tensor, theirs: Tensor, num_classes: int, radius: float
) -> tuple[Tensor, Tensor]:
    """Boundary pixels of each class, and those near one of theirs, (C,)."""
    reach = floor(radius)
    theirs = F.pad(theirs, [reach] * 4, value=num_classes)
    rows, columns = (ours < num_classes).nonzero(as_tuple=True)
    labels = ours[rows, columns]  # (N,)
    places = (rows + reach) * theirs.shape[1] + columns + reach
    counts = _count(labels, num_classes)
    far = torch.arange(len(labels), device=labels.device)
    # The nearest first: what has matched needs no more looking up.
    steps = _disc(radius, theirs.shape[1]).to(labels.device)
    for block in steps.split(_BLOCK):
        if not len(far):
            break
        seen = theirs.flatten()[places[far, None] + block]  # (N, offsets)
        far = far[(seen != labels[far, None]).all(1)]
    return counts, counts - _count(labels[far], num_classes)


def _disc(radius: float, stride: int) -> Tensor:
    """Offsets within a radius in a flat map, by distance, (offsets,)."""
    span = torch.arange(-floor(radius), floor(radius) + 1)
    distance = (span[:, None] ** 2 + span**2).flatten()
    offsets = (span[:, None] * stride + span).flatten()
    order = distance.argsort(stable=True)
    return offsets[order][distance[order] <= radius**2]
