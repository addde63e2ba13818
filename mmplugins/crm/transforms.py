"""Transforms that keep an image, its true mask and its coarse one together.

The image is H x W x 3, uint8, BGR. The true mask ``gt_seg_map`` is H x W,
uint8: 1 foreground, 0 background, 255 ignored. The coarse mask
``coarse_seg_map`` is H x W, float32, the probability of foreground in [0, 1].
In training a window of S x S pixels is shown at Q x Q, S = Q / s, and asked
for at its own resolution: the target's grid is finer than the input's by 1/s,
as it is in the stages of a cascade.
"""

import math
import zlib
from collections.abc import Sequence

import cv2
import mmcv
import numpy as np
from mmcv.transforms import BaseTransform, Pad, Resize
from mmcv.transforms.utils import cache_randomness

from mmplugins.registry import TRANSFORMS

from .loading import IGNORE_INDEX, MASKS
from .perturbation import boundary_points, perturb_mask


@TRANSFORMS.register_module()
class PerturbMask(BaseTransform):
    """Make the coarse mask from the true one.

    Required keys: ``gt_seg_map``, and ``img_path`` with ``seed='name'``.
    Added keys: ``coarse_seg_map``, also in ``seg_fields``. Ignored pixels are
    background here. See :func:`~mmplugins.crm.perturbation.perturb_mask`.

    Args:
        iou (float | tuple[float, float]): IoU with the true mask, or its
            range, drawn evenly. Defaults to (0.8, 1.0).
        prob (float): Probability of doing so. Otherwise a coarse mask that
            was loaded stays, or the true mask is taken as it is. Defaults to
            1.0.
        seed (str, optional): ``'name'`` draws from the image's name and its
            folder's, the same in every run. Defaults to None, numpy's global
            state.
        kernel (tuple[int, int]): Least and largest side of the kernels in
            pixels. Defaults to (3, 9).
        scale (float, optional): Factor of the largest side. Defaults to None,
            the shorter side of the image over 224, 1 at least.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        iou: float | tuple[float, float] = (0.8, 1.0),
        prob: float = 1.0,
        seed: str | None = None,
        kernel: tuple[int, int] = (3, 9),
        scale: float | None = None,
    ) -> None:
        low, high = iou if isinstance(iou, Sequence) else (iou, iou)
        if not 0 <= low <= high <= 1:
            raise ValueError(
                'iou of PerturbMask must be in [0, 1], the smaller first, '
                f'got {iou}'
            )
        _check_prob('prob of PerturbMask', prob)
        if seed not in (None, 'name'):
            raise ValueError(
                f"seed of PerturbMask must be 'name' or None, got {seed!r}"
            )
        if not 1 <= kernel[0] <= kernel[1]:
            raise ValueError(
                'kernel of PerturbMask must be 1 or more, the smaller first, '
                f'got {kernel}'
            )
        self.iou = (low, high)
        self.prob = prob
        self.seed = seed
        self.kernel = tuple(kernel)
        self.scale = scale

    def transform(self, results: dict) -> dict:
        """Add the coarse mask.

        Args:
            results (dict): Result dict with a true mask.

        Returns:
            dict: The same with a coarse mask.
        """
        rng = np.random.default_rng(self._draw(results))
        chosen = rng.random() < self.prob
        if not chosen and 'coarse_seg_map' in results:
            return results
        mask = (results['gt_seg_map'] == 1).astype(np.uint8)
        if chosen:
            iou = rng.uniform(*self.iou)
            mask = perturb_mask(mask, iou, rng, self.kernel, self.scale)
        results['coarse_seg_map'] = mask.astype(np.float32)
        fields = results.setdefault('seg_fields', [])
        if 'coarse_seg_map' not in fields:
            fields.append('coarse_seg_map')
        return results

    @cache_randomness
    def _draw(self, results: dict) -> int:
        """Seed of the sample."""
        if self.seed is None:
            return np.random.randint(2**31)
        parts = results['img_path'].replace('\\', '/').split('/')
        return zlib.crc32('/'.join(parts[-2:]).encode())

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(iou={self.iou}, prob={self.prob}, '
            f'seed={self.seed!r}, kernel={self.kernel}, scale={self.scale})'
        )


@TRANSFORMS.register_module()
class SoftenMask(BaseTransform):
    """Blur the coarse mask and, at times, cut it again.

    A blurred mask is like what one stage hands to the next; one that is cut
    again has lost what is thin and rounds its corners, like the mask of a
    segmentor with large cells.

    Required and modified keys: ``coarse_seg_map``.

    Args:
        sigma (tuple[float, float]): Least and largest deviation of the
            Gaussian in pixels, drawn log-uniformly. Defaults to (0.5, 16.0).
        prob (float): Probability of doing so. Defaults to 0.5.
        hard (float): Probability that a blurred mask is cut at one half.
            Defaults to 0.5.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        sigma: tuple[float, float] = (0.5, 16.0),
        prob: float = 0.5,
        hard: float = 0.5,
    ) -> None:
        _check_prob('prob of SoftenMask', prob)
        _check_prob('hard of SoftenMask', hard)
        if not 0 < sigma[0] <= sigma[1]:
            raise ValueError(
                'sigma of SoftenMask must be above 0, the smaller first, got '
                f'{sigma}'
            )
        self.sigma = tuple(sigma)
        self.prob = prob
        self.hard = hard

    def transform(self, results: dict) -> dict:
        """Blur the coarse mask.

        Args:
            results (dict): Result dict with a coarse mask.

        Returns:
            dict: The same, perhaps blurred.
        """
        chosen, sigma, hard = self._draw()
        if chosen:
            mask = cv2.GaussianBlur(
                results['coarse_seg_map'],
                None,
                sigma,
                borderType=cv2.BORDER_REPLICATE,
            )
            if hard:
                mask = (mask > 0.5).astype(np.float32)
            results['coarse_seg_map'] = mask
        return results

    @cache_randomness
    def _draw(self) -> tuple[bool, float, bool]:
        chosen, hard = np.random.rand(2) < (self.prob, self.hard)
        low, high = np.log(self.sigma)
        return chosen, float(np.exp(np.random.uniform(low, high))), hard

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(sigma={self.sigma}, prob={self.prob}, '
            f'hard={self.hard})'
        )


@TRANSFORMS.register_module()
class RandomScaleCrop(BaseTransform):
    """Cut a square that the network will see at a random scale.

    With s log-uniform in ``scales``, the square has ``round(input_size / s)``
    pixels a side, no more than the image's shorter side offers. An image that
    is too small is padded: true masks by 255, coarse ones by 0.

    Required keys: ``img``. Modified keys: ``img``, ``gt_seg_map``,
    ``coarse_seg_map``, ``img_shape``.

    Args:
        input_size (int): Side of what the network will see, in pixels.
            Defaults to 224.
        scales (tuple[float, float]): Range of s, above 0 and up to 1.
            Defaults to (0.125, 1.0).
        boundary (float): Probability that the square holds a pixel of the
            true mask's boundary, drawn evenly; else it lies anywhere.
            Defaults to 0.75.
        overhang (float): Share of a side that may be padding, 0 to below 1.
            Defaults to 0.0.
        padding_mode (str): ``'constant'``, zeros, or ``'reflect'``, of the
            image. Defaults to ``'constant'``.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        input_size: int = 224,
        scales: tuple[float, float] = (0.125, 1.0),
        boundary: float = 0.75,
        overhang: float = 0.0,
        padding_mode: str = 'constant',
    ) -> None:
        if not 0 < scales[0] <= scales[1] <= 1:
            raise ValueError(
                'scales of RandomScaleCrop must be in (0, 1], the smaller '
                f'first, got {scales}'
            )
        _check_prob('boundary of RandomScaleCrop', boundary)
        if not 0 <= overhang < 1:
            raise ValueError(
                f'overhang of RandomScaleCrop must be in [0, 1), got '
                f'{overhang}'
            )
        if padding_mode not in ('constant', 'reflect'):
            raise ValueError(
                "padding_mode of RandomScaleCrop must be 'constant' or "
                f"'reflect', got {padding_mode!r}"
            )
        self.input_size = input_size
        self.scales = tuple(scales)
        self.boundary = boundary
        self.overhang = overhang
        self.padding_mode = padding_mode

    def transform(self, results: dict) -> dict:
        """Cut the square.

        Args:
            results (dict): Result dict with an image.

        Returns:
            dict: The same, cut.
        """
        side = self._draw_side(results['img'].shape[:2])
        self._pad(results, side)
        top, left = self._draw_place(results, side)
        for key in ('img', *MASKS):
            if key in results:
                window = results[key][top : top + side, left : left + side]
                results[key] = np.ascontiguousarray(window)
        results['img_shape'] = (side, side)
        return results

    @cache_randomness
    def _draw_side(self, size: tuple[int, int]) -> int:
        low, high = self.scales
        offered = self.input_size * (1 - self.overhang) / min(size)
        low = min(max(low, offered), high)
        scale = math.exp(np.random.uniform(math.log(low), math.log(high)))
        return round(self.input_size / scale)

    @cache_randomness
    def _draw_place(self, results: dict, side: int) -> tuple[int, int]:
        mask = results.get('gt_seg_map')
        size = results['img'].shape[:2]
        return _draw_window(mask, size, side, self.boundary)

    def _pad(self, results: dict, side: int) -> None:
        """Pad in place, evenly, to a side of the square at least."""
        height, width = results['img'].shape[:2]
        rows, cols = max(side - height, 0), max(side - width, 0)
        if not (rows or cols):
            return
        edges = (rows // 2, rows - rows // 2, cols // 2, cols - cols // 2)
        border = cv2.BORDER_CONSTANT
        if self.padding_mode == 'reflect':
            border = cv2.BORDER_REFLECT_101
        results['img'] = cv2.copyMakeBorder(results['img'], *edges, border)
        for key, value in zip(MASKS, (IGNORE_INDEX, 0)):
            if key in results:
                results[key] = cv2.copyMakeBorder(
                    results[key], *edges, cv2.BORDER_CONSTANT, value=value
                )

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(input_size={self.input_size}, '
            f'scales={self.scales}, boundary={self.boundary}, '
            f'overhang={self.overhang}, padding_mode={self.padding_mode!r})'
        )


@TRANSFORMS.register_module()
class SampleQueries(BaseTransform):
    """Shrink a square and choose the window of it that will be asked for.

    Image and coarse mask are averaged down to ``input_size``. The true mask
    becomes its window of ``query_size`` pixels a side, unscaled, and the
    coarse mask's goes to ``coarse_query_map``. What moves the image must come
    before.

    Required keys: ``img``, square, and ``gt_seg_map``. Modified keys: ``img``,
    ``coarse_seg_map``, ``gt_seg_map``, ``img_shape``. Added keys:
    ``coarse_query_map``, ``target_size`` (S, S), and ``query_window`` (top,
    left, height, width) in its pixels.

    Args:
        input_size (int): Side of what the network sees, in pixels. Defaults
            to 224.
        query_size (int): Side of the window, in pixels. Defaults to 224.
        boundary (float): Probability that the window holds a pixel of the
            true mask's boundary, drawn evenly; else it lies anywhere.
            Defaults to 0.75.

    Raises:
        ValueError: If ``boundary`` is out of range, or an image is not square
            or smaller than either size.
    """

    def __init__(
        self,
        input_size: int = 224,
        query_size: int = 224,
        boundary: float = 0.75,
    ) -> None:
        _check_prob('boundary of SampleQueries', boundary)
        self.input_size = input_size
        self.query_size = query_size
        self.boundary = boundary

    def transform(self, results: dict) -> dict:
        """Shrink the input and choose the queries.

        Args:
            results (dict): Result dict with a square image and masks.

        Returns:
            dict: The same, ready to pack.
        """
        height, width = results['img'].shape[:2]
        if height != width or height < max(self.input_size, self.query_size):
            raise ValueError(
                'image of SampleQueries must be a square of '
                f'{max(self.input_size, self.query_size)} pixels or more, '
                f'got {height} x {width}: {results.get("img_path")}'
            )
        top, left = self._draw_place(results)
        size = self.query_size
        window = results['gt_seg_map'][top : top + size, left : left + size]
        results['gt_seg_map'] = np.ascontiguousarray(window)
        if 'coarse_seg_map' in results:
            window = results['coarse_seg_map'][
                top : top + size, left : left + size
            ]
            results['coarse_query_map'] = np.ascontiguousarray(window)
        for key in ('img', 'coarse_seg_map'):
            if key in results and height != self.input_size:
                results[key] = cv2.resize(
                    results[key],
                    (self.input_size, self.input_size),
                    interpolation=cv2.INTER_AREA,
                )
        results['img_shape'] = (self.input_size, self.input_size)
        results['target_size'] = (height, width)
        results['query_window'] = (top, left, size, size)
        return results

    @cache_randomness
    def _draw_place(self, results: dict) -> tuple[int, int]:
        mask = results['gt_seg_map']
        return _draw_window(mask, mask.shape, self.query_size, self.boundary)

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(input_size={self.input_size}, '
            f'query_size={self.query_size}, boundary={self.boundary})'
        )


@TRANSFORMS.register_module()
class ResizeMasks(Resize):
    """mmcv's ``Resize`` for image, true mask and coarse mask.

    The true mask is resized by nearest neighbour; the coarse one, being soft,
    by averaging where it shrinks and linearly where it grows.
    """

    def _resize_seg(self, results: dict) -> None:
        size = results['img_shape'][::-1]
        if 'gt_seg_map' in results:
            # Not INTER_NEAREST, which lies half a cell off.
            results['gt_seg_map'] = cv2.resize(
                results['gt_seg_map'],
                size,
                interpolation=cv2.INTER_NEAREST_EXACT,
            )
        if 'coarse_seg_map' in results:
            coarse = results['coarse_seg_map']
            shrinks = size[0] * size[1] < coarse.size
            results['coarse_seg_map'] = mmcv.imresize(
                coarse, size, interpolation='area' if shrinks else 'bilinear'
            )


@TRANSFORMS.register_module()
class PadMasks(Pad):
    """mmcv's ``Pad`` for image, true mask and coarse mask.

    With ``padding_mode='constant'`` the coarse mask is padded by
    ``pad_val['coarse']``, 0 if not given, and the true one by
    ``pad_val['seg']``, 255 if not given.
    """

    def _pad_seg(self, results: dict) -> None:
        super()._pad_seg(results)
        if 'coarse_seg_map' in results:
            results['coarse_seg_map'] = mmcv.impad(
                results['coarse_seg_map'],
                shape=results['pad_shape'][:2],
                pad_val=self.pad_val.get('coarse', 0),
                padding_mode=self.padding_mode,
            )


def _draw_window(
    mask: np.ndarray | None,
    size: tuple[int, int],
    side: int,
    boundary: float,
) -> tuple[int, int]:
    """Top left corner of a square, by numpy's global state.

    Args:
        mask (np.ndarray, optional): True mask, (H, W); none has no boundary.
        size (tuple[int, int]): H and W.
        side (int): Of the square in pixels, H and W at most.
        boundary (float): Probability that it holds a boundary pixel.

    Returns:
        tuple[int, int]: Row and column.
    """
    room = np.array(size) - side
    low, high = np.zeros(2, int), room
    if mask is not None and np.random.random() < boundary:
        points = boundary_points((mask == 1).astype(np.uint8))
        if len(points):
            point = points[np.random.randint(len(points))]
            low = np.clip(point - side + 1, 0, room)
            high = np.clip(point, 0, room)
    top, left = np.random.randint(low, high + 1)
    return int(top), int(left)


def _check_prob(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f'{name} must be in [0, 1], got {value}')
