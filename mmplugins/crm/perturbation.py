"""Coarse masks made from true ones: outlines thinned, boundaries gnawed at.

Masks are H x W, uint8, 1 foreground and 0 background; a contour is N x 2
points (x, y) in pixels. The recipe is that of CascadePSP (Cheng et al., CVPR
2020, arXiv 2005.02551), which CRM trains on too, with three changes: the IoU
is that with the true mask, not with the thinned one; what overshoots the
target is undone; and kernels grow with the image.
"""

import math
from functools import cache

import cv2
import numpy as np

# Pixels for which the kernels are meant: the crops of the recipe.
BASE_SIZE = 224
# A contour of fewer points is dropped.
MIN_POINTS = 10
# Boxes drawn at a time, each on the boundary as it is by then.
_ROUND = 16
# Kernels above this are disks by distance instead of by OpenCV's operators,
# whose time grows with their area.
_MAX_KERNEL = 15


def thin_polygon(
    contour: np.ndarray,
    rng: np.random.Generator,
    cut: float = 0.1,
    keep: float = 0.1,
) -> np.ndarray:
    """Straighten a contour: drop a stretch of it and most other points.

    The stretch is ``cut`` of the points in a row. Where it starts is drawn
    from the tenth of all places at which its two ends are closest to each
    other, so that it is a spike or a notch that goes. Of the rest ``keep`` is
    drawn, in order, three points at least.

    Args:
        contour (np.ndarray): Points of a closed contour, (N, 2).
        rng (np.random.Generator): Source of randomness.
        cut (float): Share of the stretch, 0 to 1. Defaults to 0.1.
        keep (float): Share of the other points to keep, 0 to 1. Defaults to
            0.1.

    Returns:
        np.ndarray: Points of the contour, (M, 2).
    """
    count = len(contour)
    length = round(cut * count)
    if length:
        gaps = contour - np.roll(contour, -length - 1, 0)
        gaps = (gaps * gaps).sum(1)
        places = max(count // 10, 1)
        nearest = np.argpartition(gaps, places - 1)[:places]
        start = nearest[rng.integers(places)]
        # From the point after the stretch round to the one before it.
        contour = np.roll(contour, -start - length - 1, 0)[: count - length]
    left = len(contour)
    kept = min(max(round(keep * left), 3), left)
    index = np.sort(rng.choice(left, kept, replace=False, shuffle=False))
    return contour[index]


def thin_mask(
    mask: np.ndarray, iou: float, rng: np.random.Generator
) -> np.ndarray:
    """Redraw a mask from thinned contours, of holes too.

    Twice as many points are kept, and half as many cut, as long as the result
    falls below the target; the mask itself is returned if even all points
    do, as they may of thin structures.

    Args:
        mask (np.ndarray): Mask, (H, W) uint8.
        iou (float): Least IoU with it.
        rng (np.random.Generator): Source of randomness.

    Returns:
        np.ndarray: Mask, (H, W) uint8.
    """
    contours, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    # (N, 1, 2) from OpenCV 4, (N, 2) from 5.
    contours = [c.reshape(-1, 2) for c in contours if len(c) >= MIN_POINTS]
    share = 0.1
    while contours and share < 1:
        polygons = [
            thin_polygon(contour, rng, cut=0.01 / share, keep=share)
            for contour in contours
        ]
        thin = cv2.fillPoly(np.zeros_like(mask), polygons, 1)
        if mask_iou(mask, thin) >= iou:
            return thin
        share *= 2
    return mask.copy()


def perturb_boundary(
    mask: np.ndarray,
    iou: float,
    rng: np.random.Generator,
    truth: np.ndarray | None = None,
    kernel: tuple[int, int] = (3, 9),
    scale: float = 1.0,
    steps: int = 1000,
    tolerance: float = 0.02,
) -> np.ndarray:
    """Dilate or erode a mask in random boxes until its IoU is down.

    Three boxes of four lie on the boundary; the others lie anywhere and set
    their centre pixel first, for spots and holes. A step that raises the IoU
    is undone, and one that falls by more than ``tolerance`` below the target
    is repeated in a box of half the size, so that the result is there or not
    yet.

    Args:
        mask (np.ndarray): Mask to start from, (H, W) uint8.
        iou (float): Target, 0 to 1.
        rng (np.random.Generator): Source of randomness.
        truth (np.ndarray, optional): Mask that the IoU is measured against,
            (H, W) uint8. Defaults to None, ``mask``.
        kernel (tuple[int, int]): Least and largest side of the kernels in
            pixels, rectangles and ellipses. Defaults to (3, 9).
        scale (float): Factor of the largest side; sides are log-uniform
            in between. Defaults to 1.0.
        steps (int): Boxes to try. Defaults to 1000.
        tolerance (float): How far below the target the result may be.
            Defaults to 0.02.

    Returns:
        np.ndarray: Mask, (H, W) uint8, of an IoU from ``iou - tolerance`` to
            ``iou``; above where the steps did not suffice, as for masks of a
            few pixels.
    """
    truth = mask if truth is None else truth
    mask = mask.copy()
    total = cv2.countNonZero(truth)
    inter = cv2.countNonZero(mask & truth)
    area = cv2.countNonZero(mask)
    height, width = mask.shape
    for step in range(steps):
        if inter <= iou * (area + total - inter) or not total:
            break
        if step % _ROUND == 0:
            draws = _draw_boxes(mask, rng, kernel, scale)
        top, left, side, size, dilate, ellipse, plant = draws[step % _ROUND]
        while side >= 2:
            y0, x0 = max(top - side // 2, 0), max(left - side // 2, 0)
            y1, x1 = min(y0 + side, height), min(x0 + side, width)
            box = mask[y0:y1, x0:x1]
            true_box = truth[y0:y1, x0:x1]
            new = box
            if plant:
                new = box.copy()
                new[top - y0, left - x0] = dilate
            new = _morph(new, size, dilate, ellipse)
            gained = cv2.countNonZero(new) - cv2.countNonZero(box)
            gained_inter = cv2.countNonZero(
                cv2.bitwise_and(new, true_box)
            ) - cv2.countNonZero(cv2.bitwise_and(box, true_box))
            new_inter = inter + gained_inter
            union = area + total - inter
            new_union = union + gained - gained_inter
            if new_inter * union > inter * new_union:
                break
            if new_inter >= (iou - tolerance) * new_union:
                mask[y0:y1, x0:x1] = new
                inter, area = new_inter, area + gained
                break
            side //= 2
    return mask


def perturb_mask(
    mask: np.ndarray,
    iou: float,
    rng: np.random.Generator,
    kernel: tuple[int, int] = (3, 9),
    scale: float | None = None,
) -> np.ndarray:
    """Make a coarse mask of a given IoU: :func:`thin_mask`, then boxes.

    Args:
        mask (np.ndarray): True mask, (H, W) uint8, 1 foreground.
        iou (float): IoU to come down to, 0 to 1; 1 changes nothing.
        rng (np.random.Generator): Source of randomness.
        kernel (tuple[int, int]): Least and largest side of the kernels in
            pixels. Defaults to (3, 9).
        scale (float, optional): Factor of the largest side. Defaults to None,
            the shorter side of the mask over 224, 1 at least.

    Returns:
        np.ndarray: Mask, (H, W) uint8, of an IoU of ``iou`` or up to 0.02
            less; more for masks of a few pixels, and an empty one stays
            empty.

    Raises:
        ValueError: If the mask is no binary map or the target is out of
            range.
    """
    if mask.ndim != 2 or mask.dtype != np.uint8 or mask.max(initial=0) > 1:
        raise ValueError(
            'mask to perturb must be (H, W) uint8 of 0 and 1, got '
            f'{mask.shape} {mask.dtype} up to {mask.max(initial=0)}'
        )
    if not 0 <= iou <= 1:
        raise ValueError(f'iou must be in [0, 1], got {iou}')
    if scale is None:
        scale = max(min(mask.shape) / BASE_SIZE, 1.0)
    thin = thin_mask(mask, iou, rng)
    return perturb_boundary(thin, iou, rng, mask, kernel, scale)


def mask_iou(first: np.ndarray, second: np.ndarray) -> float:
    """Intersection over union of two masks.

    Args:
        first (np.ndarray): Mask, (H, W) uint8.
        second (np.ndarray): Mask, (H, W) uint8.

    Returns:
        float: 0 to 1; 1 where both are empty.
    """
    inter = cv2.countNonZero(first & second)
    union = cv2.countNonZero(first | second)
    return inter / union if union else 1.0


def boundary_points(mask: np.ndarray) -> np.ndarray:
    """Pixels with another value above, below, left or right of them.

    Args:
        mask (np.ndarray): Map of any values, (H, W) uint8.

    Returns:
        np.ndarray: Rows and columns, (N, 2).
    """
    cross = _kernel(3, cv2.MORPH_CROSS)
    edge = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, cross)
    points = cv2.findNonZero(edge)
    if points is None:
        return np.zeros((0, 2), np.int32)
    return points.reshape(-1, 2)[:, ::-1]


def _draw_boxes(
    mask: np.ndarray,
    rng: np.random.Generator,
    kernel: tuple[int, int],
    scale: float,
) -> list[tuple]:
    """Row, column, side, kernel, dilate?, ellipse? and plant? of boxes."""
    height, width = mask.shape
    anywhere = rng.integers((height, width), size=(_ROUND, 2))
    points = boundary_points(mask)
    plant = rng.random(_ROUND) < 0.25
    centres = anywhere
    if len(points):
        picked = points[rng.integers(len(points), size=_ROUND)]
        centres = np.where(plant[:, None], anywhere, picked)
    least, most = kernel[0], max(kernel[1] * scale, kernel[0])
    size = np.exp(rng.uniform(math.log(least), math.log(most + 1), _ROUND))
    size = size.astype(int)
    # Boxes from twice the kernel to a third of the image.
    low = 2 * size
    high = np.maximum(max(height, width) / 3, low + 1)
    side = low * (high / low) ** rng.random(_ROUND)
    return list(
        zip(
            *centres.T.tolist(),
            side.astype(int).tolist(),
            size.tolist(),
            *(rng.random((2, _ROUND)) < 0.5).tolist(),
            plant.tolist(),
        )
    )


def _morph(
    mask: np.ndarray, size: int, dilate: bool, ellipse: bool
) -> np.ndarray:
    """Dilated or eroded mask; nothing comes in from outside."""
    if ellipse and size > _MAX_KERNEL:
        # Distance to the nearest 0, so of what does not grow.
        distance = cv2.distanceTransform(
            mask ^ dilate, cv2.DIST_L2, cv2.DIST_MASK_3
        )
        return (distance > size / 2).astype(np.uint8) ^ dilate
    shape = cv2.MORPH_ELLIPSE if ellipse else cv2.MORPH_RECT
    operate = cv2.dilate if dilate else cv2.erode
    return operate(mask, _kernel(size, shape))


@cache
def _kernel(size: int, shape: int) -> np.ndarray:
    return cv2.getStructuringElement(shape, (size, size))
