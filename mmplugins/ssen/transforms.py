"""Transforms that keep a target, its low-resolution image and references.

Images are H x W x 3, uint8 or float32, in the channel order they were loaded
in. ``gt`` is the target, ``img`` the low-resolution image, ``scale`` times
smaller, and ``ref`` a reference of any size, or a list of them. A sample may
go without reference. Windows are (top, left, height, width) in pixels.
"""

from collections.abc import Callable, Sequence

import mmcv
import numpy as np
from mmcv.transforms import BaseTransform
from mmcv.transforms.utils import cache_randomness
from mmengine import fileio
from PIL import Image

from mmplugins.registry import TRANSFORMS

PADDINGS = {'replicate': 'edge', 'reflect': 'reflect', 'zero': 'constant'}


def resize_bicubic(image: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Resize by Pillow's bicubic kernel, widened where the image shrinks.

    Args:
        image (np.ndarray): (H, W, C), uint8 or float32.
        size (Sequence[int]): Height and width in pixels.

    Returns:
        np.ndarray: Of that size and the same type.
    """
    height, width = size
    if image.dtype == np.uint8:
        out = mmcv.imresize(
            image, (width, height), interpolation='bicubic', backend='pillow'
        )
        return out.reshape(height, width, -1)
    channels = [
        Image.fromarray(np.ascontiguousarray(channel, np.float32)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        for channel in np.moveaxis(image, -1, 0)
    ]
    return np.stack([np.asarray(x) for x in channels], -1).astype(image.dtype)


def fit_reference(
    image: np.ndarray,
    size: Sequence[int],
    mode: str = 'pad',
    padding: str = 'replicate',
    trim: int = 0,
) -> np.ndarray:
    """Give a reference a size; unless told, none of it is cut off.

    Args:
        image (np.ndarray): (h, w, C), uint8 or float32.
        size (Sequence[int]): Height and width in pixels.
        mode (str): ``'pad'``: one that is too large is shrunk, with its aspect
            kept, then padded at the bottom and on the right. ``'resize'``:
            stretched or shrunk as it takes. Defaults to ``'pad'``.
        padding (str): ``'replicate'`` of the border, ``'reflect'`` or
            ``'zero'``. Defaults to ``'replicate'``.
        trim (int): How many pixels ``'pad'`` may cut off at the bottom and on
            the right, where that spares the reference from being shrunk by
            next to nothing, and so blurred. Defaults to 0.

    Returns:
        np.ndarray: Of that size and the same type.
    """
    if mode == 'resize':
        return _resized(image, size)
    if all(side - new <= trim for side, new in zip(image.shape, size)):
        image = image[: size[0], : size[1]]
    old = image.shape[:2]
    factor = min(*(new / side for new, side in zip(size, old)), 1)
    # Rounding must not bring back a pixel too many.
    inner = [
        min(max(round(side * factor), 1), new) for side, new in zip(old, size)
    ]
    image = _resized(image, inner)
    room = [(0, new - side) for side, new in zip(inner, size)]
    return np.pad(image, (*room, (0, 0)), PADDINGS[padding])


def _resized(image: np.ndarray, size: Sequence[int]) -> np.ndarray:
    same = tuple(image.shape[:2]) == tuple(size)
    return image if same else resize_bicubic(image, size)


@TRANSFORMS.register_module()
class LoadReference(BaseTransform):
    """Read the references that the data set names, or make what it asks for.

    Of ``reference='upsampled'`` the reference is the low-resolution image made
    larger, see :class:`UpsampledReference`, so this transform must come behind
    the one that makes ``img``; of ``'self'`` there is none.

    Required keys: ``ref_path``; ``reference``, if there is none. Added keys:
    ``ref``, ``ori_ref_shape``, ``ref_channel_order``, ``ref_color_type``.

    Args:
        channel_order (str): ``'bgr'`` or ``'rgb'``. Defaults to ``'bgr'``.
        imdecode_backend (str, optional): Of ``mmcv.imfrombytes``. Defaults to
            None, mmcv's own.
        choice (str): Of several paths, ``'all'``, which makes ``ref`` a list,
            or ``'random'``, one that is drawn. Defaults to ``'all'``.
        backend_args (dict, optional): Of mmengine's file client. Defaults to
            None.

    Raises:
        ValueError: If an argument is out of range, there is no path where one
            is needed, or a file is no image.
    """

    def __init__(
        self,
        channel_order: str = 'bgr',
        imdecode_backend: str | None = None,
        choice: str = 'all',
        backend_args: dict | None = None,
    ) -> None:
        _check('channel_order of LoadReference', channel_order, 'bgr', 'rgb')
        _check('choice of LoadReference', choice, 'all', 'random')
        self.channel_order = channel_order
        self.imdecode_backend = imdecode_backend
        self.choice = choice
        self.backend_args = backend_args

    def transform(self, results: dict) -> dict:
        """Add the reference.

        Args:
            results (dict): Result dict of a data set.

        Returns:
            dict: The same with a reference, if it has one.
        """
        kind = results.get('reference', 'paired')
        if kind == 'self':
            return results
        if kind == 'upsampled':
            return UpsampledReference().transform(results)
        paths = results.get('ref_path')
        if not paths:
            raise ValueError(
                'LoadReference needs ref_path, the sample of '
                f'{results.get("gt_path")} has none'
            )
        if not isinstance(paths, str) and self.choice == 'random':
            paths = paths[self._draw(len(paths))]
            results['ref_path'] = paths
        if isinstance(paths, str):
            refs = self._read(paths)
            results['ori_ref_shape'] = refs.shape
        else:
            refs = [self._read(path) for path in paths]
            results['ori_ref_shape'] = [ref.shape for ref in refs]
        results['ref'] = refs
        results['ref_channel_order'] = self.channel_order
        results['ref_color_type'] = 'color'
        return results

    def _read(self, path: str) -> np.ndarray:
        data = fileio.get(path, backend_args=self.backend_args)
        try:
            image = mmcv.imfrombytes(
                data,
                channel_order=self.channel_order,
                backend=self.imdecode_backend,
            )
        except OSError:  # Pillow's; OpenCV returns None
            image = None
        if image is None:
            raise ValueError(f'reference {path} is no image')
        return image

    @cache_randomness
    def _draw(self, count: int) -> int:
        return int(np.random.randint(count))

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(channel_order={self.channel_order!r}, '
            f'imdecode_backend={self.imdecode_backend!r}, '
            f'choice={self.choice!r})'
        )


@TRANSFORMS.register_module()
class RandomRot90(BaseTransform):
    """Turn images together by 0, 90, 180 or 270 degrees, drawn evenly.

    Each transform draws for itself: target and low-resolution image belong
    into one, the reference into another, else the network learns that the two
    are always turned alike.

    Required and modified keys: ``keys``; ``ref`` may be missing.

    Args:
        keys (str | Sequence[str]): Images to turn together. Defaults to
            ``('img', 'gt')``.
        prob (float): Probability of a draw, which may still be 0 degrees.
            Defaults to 1.0.

    Raises:
        ValueError: If ``prob`` is out of range, or an image is missing.
    """

    def __init__(
        self, keys: str | Sequence[str] = ('img', 'gt'), prob: float = 1.0
    ) -> None:
        if not 0 <= prob <= 1:
            raise ValueError(
                f'prob of RandomRot90 must be in [0, 1], got {prob}'
            )
        self.keys = (keys,) if isinstance(keys, str) else tuple(keys)
        self.prob = prob

    def transform(self, results: dict) -> dict:
        """Turn the images.

        Args:
            results (dict): Result dict with the images.

        Returns:
            dict: The same, turned.
        """
        turns = self._draw()
        for key in self.keys:
            if key == 'ref' and key not in results:
                continue
            images = _require(results, key, 'RandomRot90')
            results[key] = _map(
                lambda x: np.ascontiguousarray(np.rot90(x, turns)), images
            )
        return results

    @cache_randomness
    def _draw(self) -> int:
        """Quarter turns counterclockwise."""
        chosen = np.random.rand() < self.prob
        return int(np.random.randint(4)) if chosen else 0

    def __repr__(self) -> str:
        return f'{type(self).__name__}(keys={self.keys}, prob={self.prob})'


@TRANSFORMS.register_module()
class FitReference(BaseTransform):
    """Give references the size of the target, so that they form a batch.

    See :func:`fit_reference`. A network takes references of any size: batches
    of one, as in tests, need no more than ``trim``.

    Required keys: ``gt``, or ``img`` and ``scale``, unless ``size`` is given.
    Modified keys: ``ref``, if there is one.

    Args:
        mode (str): ``'pad'`` or ``'resize'``. Defaults to ``'pad'``.
        padding (str): ``'replicate'``, ``'reflect'`` or ``'zero'``. Defaults
            to ``'replicate'``.
        size (tuple[int, int], optional): Height and width in pixels. Defaults
            to None, the target's.
        trim (int): How many pixels to cut off rather than shrink the whole;
            ``scale - 1`` is for targets that were cut to a multiple of
            ``scale``. Defaults to 0.

    Raises:
        ValueError: If an argument is out of range or a size is not known.
    """

    def __init__(
        self,
        mode: str = 'pad',
        padding: str = 'replicate',
        size: tuple[int, int] | None = None,
        trim: int = 0,
    ) -> None:
        _check('mode of FitReference', mode, 'pad', 'resize')
        _check('padding of FitReference', padding, *PADDINGS)
        if size is not None and min(size) < 1:
            raise ValueError(
                f'size of FitReference must be 1 or more, got {size}'
            )
        if trim < 0:
            raise ValueError(
                f'trim of FitReference must be 0 or more, got {trim}'
            )
        self.mode = mode
        self.padding = padding
        self.size = size and tuple(size)
        self.trim = trim

    def transform(self, results: dict) -> dict:
        """Fit the references.

        Args:
            results (dict): Result dict with a target.

        Returns:
            dict: The same with references of its size.
        """
        if 'ref' not in results:
            return results
        if self.size is not None:
            size = self.size
        elif 'gt' in results:
            size = results['gt'].shape[:2]
        else:
            size = _high_size(results, None, 'FitReference')
        results['ref'] = _map(
            lambda x: fit_reference(
                x, size, self.mode, self.padding, self.trim
            ),
            results['ref'],
        )
        return results

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(mode={self.mode!r}, '
            f'padding={self.padding!r}, size={self.size}, trim={self.trim})'
        )


@TRANSFORMS.register_module()
class RandomReferenceCrop(BaseTransform):
    """Cut a window of the target at random, and one of each reference near it.

    The centre of a reference's window lies at the same share of its height and
    width as that of the target, plus a shift drawn evenly, as far as its
    borders let it. A reference that is smaller than its window is taken whole
    in that direction. A low-resolution image, if it is there, is cut along.

    Required keys: ``gt``. Modified keys: ``gt`` and, where they are there,
    ``img`` and ``ref``. Added keys: ``gt_window`` and ``ref_window`` (a list
    where ``ref`` is one).

    Args:
        size (int | tuple[int, int]): Height and width of the target's window
            in pixels, divisible by ``scale``. Defaults to 160.
        scale (int): Of the low-resolution image. Defaults to 4.
        reference (str): ``'near'``, or ``'whole'``, which leaves references as
            they are. Defaults to ``'near'``.
        ref_size (int | tuple[int, int], optional): Height and width of a
            reference's window. Defaults to None, ``size``.
        shift (int, optional): Largest shift in pixels in each direction.
            Defaults to None, a quarter of the reference's window.

    Raises:
        ValueError: If an argument is out of range, or an image too small.
    """

    def __init__(
        self,
        size: int | tuple[int, int] = 160,
        scale: int = 4,
        reference: str = 'near',
        ref_size: int | tuple[int, int] | None = None,
        shift: int | None = None,
    ) -> None:
        name = 'RandomReferenceCrop'
        self.size = _pair(size)
        self.ref_size = self.size if ref_size is None else _pair(ref_size)
        _check(f'reference of {name}', reference, 'near', 'whole')
        if scale < 1 or min(*self.size, *self.ref_size) < 1:
            raise ValueError(
                f'size, ref_size and scale of {name} must be 1 or more, got '
                f'{self.size}, {self.ref_size} and {scale}'
            )
        if any(side % scale for side in self.size):
            raise ValueError(
                f'size of {name} must be divisible by scale={scale}, got '
                f'{self.size}'
            )
        if shift is not None and shift < 0:
            raise ValueError(f'shift of {name} must be 0 or more, got {shift}')
        self.scale = scale
        self.reference = reference
        self.shift = shift

    def transform(self, results: dict) -> dict:
        """Cut the windows.

        Args:
            results (dict): Result dict with a target.

        Returns:
            dict: The same, cut.
        """
        gt = _require(results, 'gt', 'RandomReferenceCrop')
        full = gt.shape[:2]
        if any(side < wanted for side, wanted in zip(full, self.size)):
            raise ValueError(
                f'target of RandomReferenceCrop must have {self.size[0]} x '
                f'{self.size[1]} pixels or more, got {full[0]} x {full[1]}: '
                f'{results.get("gt_path")}'
            )
        step = 1
        if 'img' in results:
            step = self.scale
            self._require_scale(results['img'].shape[:2], full, results)
        window = self._draw_window(full, step)
        results['gt_window'] = window
        results['gt'] = _cut(gt, window)
        if 'img' in results:
            low = tuple(side // self.scale for side in window)
            results['img'] = _cut(results['img'], low)
        if 'ref' in results and self.reference == 'near':
            results['ref_window'] = _map(
                lambda x: self._window_near(x.shape[:2], window, full),
                results['ref'],
            )
            results['ref'] = _map(_cut, results['ref'], results['ref_window'])
        return results

    def _require_scale(
        self, low: tuple[int, int], full: tuple[int, int], results: dict
    ) -> None:
        if tuple(side * self.scale for side in low) != tuple(full):
            raise ValueError(
                f'img of RandomReferenceCrop must be {self.scale} times '
                f'smaller than gt, got {low} and {tuple(full)}: '
                f'{results.get("img_path")}'
            )

    @cache_randomness
    def _draw_window(
        self, full: tuple[int, int], step: int
    ) -> tuple[int, int, int, int]:
        top, left = (
            step * int(np.random.randint((side - wanted) // step + 1))
            for side, wanted in zip(full, self.size)
        )
        return (top, left, *self.size)

    def _window_near(
        self,
        size: tuple[int, int],
        window: tuple[int, int, int, int],
        full: tuple[int, int],
    ) -> tuple[int, int, int, int]:
        """Window of a reference of a size."""
        starts, sides = [], []
        shifts = self._draw_shifts()
        for axis in range(2):
            side = min(self.ref_size[axis], size[axis])
            centre = (window[axis] + window[axis + 2] / 2) / full[axis]
            start = round(centre * size[axis] - side / 2) + shifts[axis]
            starts.append(min(max(start, 0), size[axis] - side))
            sides.append(side)
        return (*starts, *sides)

    @cache_randomness
    def _draw_shifts(self) -> tuple[int, int]:
        most = [
            side // 4 if self.shift is None else self.shift
            for side in self.ref_size
        ]
        return tuple(int(np.random.randint(-x, x + 1)) for x in most)

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(size={self.size}, scale={self.scale}, '
            f'reference={self.reference!r}, ref_size={self.ref_size}, '
            f'shift={self.shift})'
        )


@TRANSFORMS.register_module()
class UpsampledReference(BaseTransform):
    """Take the low-resolution image, made larger, for the reference.

    A control: what a network gains by it does not come from a reference.

    Required keys: ``img``, and ``scale`` unless it is given. Added or
    overwritten keys: ``ref`` and what goes with it.

    Args:
        scale (int, optional): How much larger. Defaults to None, ``scale`` of
            the sample.

    Raises:
        ValueError: If the image or the scale is missing.
    """

    def __init__(self, scale: int | None = None) -> None:
        if scale is not None and scale < 1:
            raise ValueError(
                f'scale of UpsampledReference must be 1 or more, got {scale}'
            )
        self.scale = scale

    def transform(self, results: dict) -> dict:
        """Replace the reference.

        Args:
            results (dict): Result dict with a low-resolution image.

        Returns:
            dict: The same with a reference of the target's size.
        """
        size = _high_size(results, self.scale, 'UpsampledReference')
        results.pop('ref_path', None)
        results['reference'] = 'upsampled'
        results['ref'] = resize_bicubic(results['img'], size)
        results['ori_ref_shape'] = results['ref'].shape
        for key in ('channel_order', 'color_type'):
            if f'img_{key}' in results:
                results[f'ref_{key}'] = results[f'img_{key}']
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(scale={self.scale})'


@TRANSFORMS.register_module()
class SelfReference(BaseTransform):
    """Drop the reference: a network then searches the image itself.

    Removed keys: ``ref`` and what goes with it.
    """

    def transform(self, results: dict) -> dict:
        """Drop the reference.

        Args:
            results (dict): Result dict.

        Returns:
            dict: The same without reference.
        """
        for key in [k for k in results if k == 'ref' or k.startswith('ref_')]:
            del results[key]
        results.pop('ori_ref_shape', None)
        results['reference'] = 'self'
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}()'


def _map(function: Callable, *values: object) -> object:
    """Apply to one value or to each of a list."""
    if isinstance(values[0], list):
        return [function(*one) for one in zip(*values)]
    return function(*values)


def _cut(image: np.ndarray, window: tuple[int, int, int, int]) -> np.ndarray:
    top, left, height, width = window
    return np.ascontiguousarray(image[top : top + height, left : left + width])


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    height, width = value
    return height, width


def _high_size(results: dict, scale: int | None, name: str) -> tuple[int, int]:
    """Size of the target by that of the low-resolution image."""
    image = _require(results, 'img', name)
    scale = results.get('scale') if scale is None else scale
    if scale is None:
        raise ValueError(
            f"{name} needs scale: dict(type='SetValues', "
            'dictionary=dict(scale=4)) before it sets one'
        )
    height, width = image.shape[:2]
    return round(height * scale), round(width * scale)


def _require(results: dict, key: str, name: str) -> np.ndarray:
    if key not in results:
        raise ValueError(
            f'{name} needs {key!r}, the sample of {results.get("gt_path")} '
            f'has none'
        )
    return results[key]


def _check(name: str, value: object, *valid: object) -> None:
    if value not in valid:
        raise ValueError(f'{name} must be one of {valid}, got {value!r}')
