"""References made of photographs: moved views of them.

Images (H, W, 3) uint8. Points are (x, y) in pixels, (0, 0) the centre of the
top left one. A matrix (2, 3) takes a point of the target to that of the view.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmcv.transforms.utils import cache_randomness

from mmplugins.registry import TRANSFORMS


def sample_view(
    rng: np.random.Generator,
    photo: np.ndarray,
    size: Sequence[int],
    angle: float = 20.0,
    zoom: float = 1.2,
    shift: float = 0.2,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw a target of a photograph and another view of it, of equal size.

    The view is turned, nearer or further, moved, and a little lighter or
    darker; what lies beyond the photograph is its mirror image. How far all of
    it may go is drawn first, so that there are easy ones to begin with.

    Args:
        rng (np.random.Generator): Source of the draws.
        photo (np.ndarray): (h, w, 3) uint8, no smaller than ``size``.
        size (Sequence[int]): Height and width in pixels.
        angle (float): Largest turn in degrees, either way. Defaults to 20.
        zoom (float): Largest factor, or one over it. Defaults to 1.2.
        shift (float): Largest shift in parts of the sides. Defaults to 0.2.

    Returns:
        tuple[np.ndarray, np.ndarray, np.ndarray]: Target and view,
        (height, width, 3) uint8, and the matrix.
    """
    height, width = size
    ends = [side - one + 1 for side, one in zip(photo.shape, size)]
    top, left = rng.integers(0, ends).tolist()
    reach = rng.random()
    turn = reach * math.radians(rng.uniform(-angle, angle))
    factor = zoom ** (reach * rng.uniform(-1, 1))
    moved = reach * rng.uniform(-shift, shift, 2) * (width, height)
    cos, sin = factor * math.cos(turn), factor * math.sin(turn)
    matrix = np.array([[cos, -sin, 0], [sin, cos, 0]])
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    matrix[:, 2] = centre + moved - matrix[:, :2] @ centre
    whole = matrix.copy()  # from points of the photograph
    whole[:, 2] -= matrix[:, :2] @ (left, top)
    view = cv2.warpAffine(
        photo,
        whole,
        (width, height),
        flags=cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REFLECT_101,
    )
    view = np.clip(view * rng.uniform(0.9, 1.1), 0, 255)
    target = photo[top : top + height, left : left + width]
    return target, np.rint(view).astype(np.uint8), matrix


@TRANSFORMS.register_module()
class MovedReference(BaseTransform):
    """Cut a target, and take a moved view of the photograph as its reference.

    So any photographs train a network, see :func:`sample_view`. A sample that
    has a reference may keep it, and its target, whole.

    Required keys: ``gt``. Modified keys: ``gt``. Added or overwritten keys:
    ``ref`` and what goes with it.

    Args:
        size (int | tuple[int, int]): Height and width in pixels. Defaults to
            160.
        prob (float): Probability of a view where there is a reference.
            Defaults to 1.0.
        angle (float): As of :func:`sample_view`. Defaults to 20.
        zoom (float): As there. Defaults to 1.2.
        shift (float): As there. Defaults to 0.2.

    Raises:
        ValueError: If an argument is out of range, or the target too small.
    """

    def __init__(
        self,
        size: int | tuple[int, int] = 160,
        prob: float = 1.0,
        angle: float = 20.0,
        zoom: float = 1.2,
        shift: float = 0.2,
    ) -> None:
        self.size = (size, size) if isinstance(size, int) else tuple(size)
        if min(self.size) < 1 or not 0 <= prob <= 1:
            raise ValueError(
                'MovedReference needs size >= 1 and prob in [0, 1], got '
                f'{self.size} and {prob}'
            )
        if angle < 0 or zoom < 1 or shift < 0:
            raise ValueError(
                'MovedReference needs angle >= 0, zoom >= 1 and shift >= 0, '
                f'got {angle}, {zoom} and {shift}'
            )
        self.prob = prob
        self.angle = angle
        self.zoom = zoom
        self.shift = shift

    def transform(self, results: dict) -> dict:
        """Make the reference.

        Args:
            results (dict): Result dict with a target.

        Returns:
            dict: The same with a reference.
        """
        gt = results['gt']
        if any(n < m for n, m in zip(gt.shape, self.size)):
            raise ValueError(
                f'target of MovedReference must have {self.size[0]} x '
                f'{self.size[1]} pixels or more, got {gt.shape[0]} x '
                f'{gt.shape[1]}: {results.get("gt_path")}'
            )
        seed, moves = self._draw()
        if 'ref' in results and not moves:
            return results
        gt, ref, _ = sample_view(
            np.random.default_rng(seed),
            gt,
            self.size,
            self.angle,
            self.zoom,
            self.shift,
        )
        results['gt'], results['ref'] = np.ascontiguousarray(gt), ref
        results['ref_path'] = results.get('gt_path')
        results['reference'] = 'moved'
        results['ori_ref_shape'] = ref.shape
        for key in ('channel_order', 'color_type'):
            if f'gt_{key}' in results:
                results[f'ref_{key}'] = results[f'gt_{key}']
        return results

    @cache_randomness
    def _draw(self) -> tuple[int, bool]:
        return int(np.random.randint(2**31)), np.random.rand() < self.prob

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(size={self.size}, prob={self.prob}, '
            f'angle={self.angle}, zoom={self.zoom}, shift={self.shift})'
        )
