"""Reading masks of any kind, and packing what a refiner takes.

The image is H x W x 3, uint8, BGR. The true mask ``gt_seg_map`` is H x W,
uint8: 1 foreground, 0 background, 255 ignored. The coarse mask
``coarse_seg_map`` is H x W, float32, the probability of foreground in [0, 1].
"""

from collections.abc import Sequence
from io import BytesIO

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmcv.transforms.utils import cache_randomness
from mmengine import fileio
from mmengine.structures import BaseDataElement, PixelData
from PIL import Image

from mmplugins.registry import TRANSFORMS

IGNORE_INDEX = 255
MASKS = ('gt_seg_map', 'coarse_seg_map')


@TRANSFORMS.register_module()
class LoadMasks(BaseTransform):
    """Read the true mask, and the coarse one where there is one.

    Files are grey, of one bit, of a palette, or of three equal channels. What
    is foreground depends on the file:

    - a grey map, 0 to 255: values from ``threshold`` up; of one that holds 0
      and 1 alone, 1;
    - a map of a palette: every index above 0;
    - labels, with ``foreground``: these labels;
    - numbered instances, with ``instance``: one of the numbers.

    Required keys: ``seg_map_path`` or ``coarse_map_path``, or both; one that
    is missing or None is left out. Added keys: ``gt_seg_map`` and
    ``coarse_seg_map``, which also go to ``seg_fields`` so that a host's
    transforms move them along.

    Args:
        threshold (int): Least grey value of the foreground, 1 to 255.
            Defaults to 128.
        soft (bool): Keep a grey coarse mask as a probability instead of
            cutting it at the threshold. Defaults to True.
        foreground (int | Sequence[int], optional): Labels of the foreground
            of the true mask. Defaults to None, grey values.
        instance (int | str, optional): Number of the instance, or
            ``'random'`` for one that is in the map. Defaults to None, all
            that is foreground.
        coarse_foreground (int | Sequence[int], optional): Labels of the
            foreground of the coarse mask. Defaults to None, grey values.
        ignore_index (int, optional): Label or index to ignore in the true
            mask. Defaults to None, none.
        backend_args (dict, optional): Of mmengine's file client. Defaults to
            None.

    Raises:
        ValueError: If an argument is out of range, or a file is no mask or
            not of the image's size.
    """

    def __init__(
        self,
        threshold: int = 128,
        soft: bool = True,
        foreground: int | Sequence[int] | None = None,
        instance: int | str | None = None,
        coarse_foreground: int | Sequence[int] | None = None,
        ignore_index: int | None = None,
        backend_args: dict | None = None,
    ) -> None:
        if not 1 <= threshold <= 255:
            raise ValueError(
                f'threshold of LoadMasks must be 1 to 255, got {threshold}'
            )
        if isinstance(instance, str) and instance != 'random':
            raise ValueError(
                "instance of LoadMasks must be a number, 'random' or None, "
                f'got {instance!r}'
            )
        if instance is not None and foreground is not None:
            raise ValueError(
                'LoadMasks takes foreground or instance, got '
                f'{foreground!r} and {instance!r}'
            )
        self.threshold = threshold
        self.soft = soft
        self.foreground = foreground
        self.instance = instance
        self.coarse_foreground = coarse_foreground
        self.ignore_index = ignore_index
        self.backend_args = backend_args

    def transform(self, results: dict) -> dict:
        """Read the masks.

        Args:
            results (dict): Result dict of a data set.

        Returns:
            dict: The same with masks.
        """
        if path := results.get('seg_map_path'):
            self._add(results, 'gt_seg_map', self._read_truth(path), path)
        if path := results.get('coarse_map_path'):
            self._add(results, 'coarse_seg_map', self._read_coarse(path), path)
        return results

    def _add(
        self, results: dict, key: str, mask: np.ndarray, path: str
    ) -> None:
        # As hosts test: a true mask of the file's size for an image resized.
        size = tuple(results.get('ori_shape', mask.shape))
        if size != mask.shape:
            raise ValueError(
                f'mask {path} is of {mask.shape[0]} x {mask.shape[1]} pixels '
                f'and its image {results.get("img_path")} of '
                f'{size[0]} x {size[1]}'
            )
        results[key] = mask
        fields = results.setdefault('seg_fields', [])
        if key not in fields:
            fields.append(key)

    def _read_truth(self, path: str) -> np.ndarray:
        values, indexed = read_mask(path, self.backend_args)
        if self.instance is not None:
            mask = values == self._pick(values, path)
        elif self.foreground is not None:
            mask = np.isin(values, self.foreground)
        else:
            mask = self._cut(values, indexed, path)
        mask = mask.astype(np.uint8)
        if self.ignore_index is not None:
            mask[values == self.ignore_index] = IGNORE_INDEX
        return mask

    def _read_coarse(self, path: str) -> np.ndarray:
        values, indexed = read_mask(path, self.backend_args)
        if self.coarse_foreground is not None:
            return np.isin(values, self.coarse_foreground).astype(np.float32)
        if indexed or not self.soft:
            return self._cut(values, indexed, path).astype(np.float32)
        return _grey(values, path).astype(np.float32) / 255

    def _cut(self, values: np.ndarray, indexed: bool, path: str) -> np.ndarray:
        """Foreground (H, W) of indices or of grey values."""
        return values > 0 if indexed else _grey(values, path) >= self.threshold

    @cache_randomness
    def _pick(self, values: np.ndarray, path: str) -> int:
        if self.instance != 'random':
            return self.instance
        numbers = np.unique(values)
        numbers = numbers[(numbers > 0) & (numbers != self.ignore_index)]
        if not len(numbers):
            raise ValueError(f'mask {path} holds no instance')
        return np.random.choice(numbers)

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(threshold={self.threshold}, '
            f'soft={self.soft}, foreground={self.foreground}, '
            f'instance={self.instance!r}, '
            f'coarse_foreground={self.coarse_foreground}, '
            f'ignore_index={self.ignore_index})'
        )


@TRANSFORMS.register_module()
class PackRefineInputs(BaseTransform):
    """Pack image and masks for a refiner.

    Required keys: ``img``; packed where they are there: ``gt_seg_map``,
    ``coarse_seg_map`` and the ``meta_keys``. The result is

    - ``inputs`` (3, H, W) uint8, BGR;
    - ``data_samples``, a ``BaseDataElement`` with ``gt_sem_seg`` (1, h, w)
      uint8, ``coarse_sem_seg`` (1, H, W) and, behind
      :class:`~mmplugins.crm.SampleQueries`, ``coarse_query`` (1, h, w), both
      float32; all are ``PixelData``.

    Args:
        meta_keys (Sequence[str]): Keys to pack as meta information. Defaults
            to paths, shapes, flips and what
            :class:`~mmplugins.crm.SampleQueries` adds.
    """

    def __init__(
        self,
        meta_keys: Sequence[str] = (
            'img_path',
            'seg_map_path',
            'coarse_map_path',
            'ori_shape',
            'img_shape',
            'pad_shape',
            'scale_factor',
            'flip',
            'flip_direction',
            'target_size',
            'query_window',
        ),
    ) -> None:
        self.meta_keys = tuple(meta_keys)

    def transform(self, results: dict) -> dict:
        """Pack a sample.

        Args:
            results (dict): Result dict of a pipeline.

        Returns:
            dict: ``inputs`` and ``data_samples``.

        Raises:
            ValueError: If the image has not three channels, or the coarse
                mask not its size.
        """
        img = results['img']
        if img.ndim != 3 or img.shape[-1] != 3:
            raise ValueError(
                'img of PackRefineInputs must be (H, W, 3), got '
                f'{img.shape} of {results.get("img_path")}'
            )
        sample = BaseDataElement(
            metainfo={k: results[k] for k in self.meta_keys if k in results}
        )
        if 'gt_seg_map' in results:
            truth = results['gt_seg_map'].astype(np.uint8, copy=False)
            sample.gt_sem_seg = PixelData(data=_to_tensor(truth[None]))
        if 'coarse_seg_map' in results:
            coarse = results['coarse_seg_map'].astype(np.float32, copy=False)
            if coarse.shape != img.shape[:2]:
                raise ValueError(
                    f'coarse_seg_map of {coarse.shape} must have the size of '
                    f'its image, {img.shape[:2]}: {results.get("img_path")}'
                )
            sample.coarse_sem_seg = PixelData(data=_to_tensor(coarse[None]))
        if 'coarse_query_map' in results:
            query = results['coarse_query_map'].astype(np.float32, copy=False)
            sample.coarse_query = PixelData(data=_to_tensor(query[None]))
        inputs = _to_tensor(img.transpose(2, 0, 1))
        return dict(inputs=inputs, data_samples=sample)

    def __repr__(self) -> str:
        return f'{type(self).__name__}(meta_keys={self.meta_keys})'


def read_mask(
    path: str, backend_args: dict | None = None
) -> tuple[np.ndarray, bool]:
    """Read the values of a mask or label map, whatever they mean.

    Args:
        path (str): File that is grey, of one bit (then 0 and 255), of a
            palette, or of equal channels; transparency is left out.
        backend_args (dict, optional): Of mmengine's file client. Defaults to
            None.

    Returns:
        tuple[np.ndarray, bool]: Values, (H, W), of the file's type, and
        whether they index a palette.

    Raises:
        ValueError: If the file is damaged, no image, or has colours.
    """
    data = fileio.get(path, backend_args=backend_args)
    try:
        with Image.open(BytesIO(data)) as image:
            mode = image.mode
            values = np.array(image.convert('L') if mode == '1' else image)
    except Exception as error:  # Pillow has many for damaged files
        raise ValueError(
            f'{path} is not a mask that Pillow reads: {type(error).__name__}'
        ) from error
    if mode in ('LA', 'RGBA'):
        values = values[..., :-1]
    if values.ndim == 3:
        if (values != values[..., :1]).any():
            raise ValueError(
                f'mask {path} must be grey, of a palette or of equal '
                f'channels, got {mode} with colours'
            )
        values = values[..., 0]
    return values, mode == 'P'


def _grey(values: np.ndarray, path: str) -> np.ndarray:
    if values.dtype != np.uint8:
        raise ValueError(
            f'mask {path} must have 8 bits, or name its labels by foreground '
            f'or instance, got {values.dtype}'
        )
    # Of 0 and 1 alone, as label maps of two classes are.
    return values * np.uint8(255) if values.max(initial=0) == 1 else values


def _to_tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
