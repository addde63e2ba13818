"""Data sets of pairs of an image and a binary mask.

Layouts are those in which the sets are distributed; several sets are joined
by mmengine's ``ConcatDataset``.
"""

from collections.abc import Sequence

from mmengine import fileio
from mmengine.dataset import BaseDataset

from mmplugins.registry import DATASETS


@DATASETS.register_module()
class MaskPairDataset(BaseDataset):
    """Any folder of images and masks of the same names.

    An image ``<img_path>/<name><img_suffix>`` goes with the mask
    ``<seg_map_path>/<name><seg_map_suffix>`` and, where there is a prefix for
    it, the coarse mask ``<coarse_map_path>/<name><coarse_map_suffix>``. A name
    may have folders in it, and all prefixes may be one folder. Without
    ``seg_map_path`` there is no true mask.

    Args:
        img_suffix (str | Sequence[str], optional): How images end, the first
            that fits. Defaults to None, ``'.jpg'``.
        seg_map_suffix (str, optional): How masks end. Defaults to None,
            ``'.png'``.
        coarse_map_suffix (str, optional): How coarse masks end. Defaults to
            None, ``'.png'``.
        data_prefix (dict, optional): Folders ``img_path``, ``seg_map_path``
            and ``coarse_map_path`` under ``data_root``. Defaults to None, the
            root itself for the first two.
        sequences (Sequence[str], optional): Folders in ``img_path`` to take,
            such as sequences of frames. Defaults to None, all.
        backend_args (dict, optional): Of mmengine's file client. Defaults to
            None.
        kwargs: Of mmengine's ``BaseDataset``.

    Raises:
        ValueError: If there are no images, a sequence has none, or one has
            no mask.
    """

    METAINFO = dict(
        classes=('background', 'foreground'),
        palette=[[0, 0, 0], [255, 255, 255]],
    )
    # What the arguments default to; a subclass is a layout.
    LAYOUT: dict = {}

    def __init__(
        self,
        img_suffix: str | Sequence[str] | None = None,
        seg_map_suffix: str | None = None,
        coarse_map_suffix: str | None = None,
        data_prefix: dict | None = None,
        sequences: Sequence[str] | None = None,
        backend_args: dict | None = None,
        **kwargs,
    ) -> None:
        given = dict(
            img_suffix=img_suffix,
            seg_map_suffix=seg_map_suffix,
            coarse_map_suffix=coarse_map_suffix,
            data_prefix=data_prefix,
        )
        layout = dict(
            img_suffix='.jpg',
            seg_map_suffix='.png',
            coarse_map_suffix='.png',
            data_prefix=dict(img_path='', seg_map_path=''),
        )
        layout |= self.LAYOUT
        layout |= {k: v for k, v in given.items() if v is not None}
        prefixes = {
            k: v for k, v in layout['data_prefix'].items() if v is not None
        }
        suffix = layout['img_suffix']
        self.img_suffixes = (
            (suffix,) if isinstance(suffix, str) else tuple(suffix)
        )
        self.seg_map_suffix = layout['seg_map_suffix']
        self.coarse_map_suffix = layout['coarse_map_suffix']
        self.sequences = sequences
        self.backend_args = backend_args
        super().__init__(data_prefix=prefixes, **kwargs)

    def load_data_list(self) -> list[dict]:
        """Pair the files.

        Returns:
            list[dict]: ``img_path``, ``seg_map_path``, ``coarse_map_path``
            and ``seg_fields`` of each pair, by name.
        """
        folder = self.data_prefix['img_path']
        images = {
            name.removesuffix(suffix): name
            for suffix in reversed(self.img_suffixes)
            for name in self._list(folder, suffix)
        }
        images = self._of_sequences(images, folder)
        if not images:
            raise ValueError(
                f'{type(self).__name__} found no image that ends in '
                f'{" or ".join(self.img_suffixes)} in {folder!r}'
            )
        pairs = [
            dict(img_path=fileio.join_path(folder, images[name]))
            for name in sorted(images)
        ]
        for key, suffix in (
            ('seg_map_path', self.seg_map_suffix),
            ('coarse_map_path', self.coarse_map_suffix),
        ):
            if key in self.data_prefix:
                masks = self._masks_of(images, key, suffix)
                for pair, mask in zip(pairs, masks):
                    pair[key] = mask
        return [{**pair, 'seg_fields': []} for pair in pairs]

    def _masks_of(
        self, images: dict[str, str], key: str, suffix: str
    ) -> list[str]:
        """Path of each image's mask, in the order of their names."""
        folder = self.data_prefix[key]
        there = set(self._list(folder, suffix))
        names = sorted(images)
        missing = [name for name in names if name + suffix not in there]
        if missing:
            raise ValueError(
                f'{len(missing)} of {len(names)} images of '
                f'{type(self).__name__} have no {key}: '
                f'{images[missing[0]]!r} in {self.data_prefix["img_path"]!r} '
                f'needs {missing[0] + suffix!r} in {folder!r}'
            )
        return [fileio.join_path(folder, name + suffix) for name in names]

    def _of_sequences(
        self, images: dict[str, str], folder: str
    ) -> dict[str, str]:
        if self.sequences is None:
            return images
        taken = {}
        for sequence in self.sequences:
            start = sequence.rstrip('/') + '/'
            found = {k: v for k, v in images.items() if k.startswith(start)}
            if not found:
                raise ValueError(
                    f'sequences of {type(self).__name__} must be folders of '
                    f'images in {folder!r}, which has '
                    f'{sorted({k.split("/")[0] for k in images if "/" in k})}'
                    f', got {sequence!r}'
                )
            taken |= found
        return taken

    def _list(self, folder: str, suffix: str) -> list[str]:
        if not fileio.isdir(folder, backend_args=self.backend_args):
            raise ValueError(
                f'data_prefix of {type(self).__name__} must name folders, '
                f'there is no {folder!r}'
            )
        return [
            name.replace('\\', '/')
            for name in fileio.list_dir_or_file(
                folder,
                list_dir=False,
                suffix=suffix,
                recursive=True,
                backend_args=self.backend_args,
            )
        ]


@DATASETS.register_module()
class MSRA10KDataset(MaskPairDataset):
    """MSRA-10K: ``Imgs/N.jpg`` and ``Imgs/N.png``, 10,000 pairs.

    Args:
        args: Of :class:`MaskPairDataset`.
    """

    LAYOUT = dict(data_prefix=dict(img_path='Imgs', seg_map_path='Imgs'))


@DATASETS.register_module()
class DUTSDataset(MaskPairDataset):
    """DUTS: ``DUTS-TR/DUTS-TR-Image/X.jpg`` and ``DUTS-TR-Mask/X.png``.

    10,553 pairs; the 5,019 of ``DUTS-TE`` by ``split='TE'``.

    Args:
        split (str): ``'TR'`` or ``'TE'``. Defaults to ``'TR'``.
        data_prefix (dict, optional): Folders. Defaults to None, those of the
            split.
        kwargs: Of :class:`MaskPairDataset`.

    Raises:
        ValueError: If there is no such split.
    """

    def __init__(
        self, split: str = 'TR', data_prefix: dict | None = None, **kwargs
    ) -> None:
        if split not in ('TR', 'TE'):
            raise ValueError(
                f"split of DUTSDataset must be 'TR' or 'TE', got {split!r}"
            )
        folder = f'DUTS-{split}/DUTS-{split}'
        super().__init__(
            data_prefix=data_prefix
            or dict(img_path=f'{folder}-Image', seg_map_path=f'{folder}-Mask'),
            **kwargs,
        )


@DATASETS.register_module()
class ECSSDDataset(MaskPairDataset):
    """ECSSD: ``images/X.jpg`` and ``ground_truth_mask/X.png``, 1,000 pairs.

    Args:
        args: Of :class:`MaskPairDataset`.
    """

    LAYOUT = dict(
        data_prefix=dict(img_path='images', seg_map_path='ground_truth_mask')
    )


@DATASETS.register_module()
class FSS1000Dataset(MaskPairDataset):
    """FSS-1000: ``<class>/N.jpg`` and ``<class>/N.png``, 10,000 pairs.

    Args:
        args: Of :class:`MaskPairDataset`; ``sequences`` chooses classes.
    """


@DATASETS.register_module()
class BIGDataset(MaskPairDataset):
    """BIG: ``X_im.jpg``, ``X_gt.png``, and ``X_seg.png`` to be refined.

    All in one folder, 50 in ``val`` and 100 in ``test``, 2048x1600 to
    5000x3600 pixels (Cheng et al., CVPR 2020). The coarse masks are read
    with ``data_prefix=dict(img_path=..., seg_map_path=...,
    coarse_map_path=...)``.

    Args:
        args: Of :class:`MaskPairDataset`.
    """

    LAYOUT = dict(
        img_suffix='_im.jpg',
        seg_map_suffix='_gt.png',
        coarse_map_suffix='_seg.png',
    )


@DATASETS.register_module()
class RelabelledPASCALDataset(BIGDataset):
    """500 images of PASCAL VOC 2012 labelled anew, laid out as BIG.

    ``X_rgb.png`` or ``X_im.png`` (or ``.jpg``), ``X_gt.png`` and
    ``X_seg.png`` in one folder (Cheng et al., CVPR 2020).

    Args:
        args: Of :class:`MaskPairDataset`.
    """

    LAYOUT = dict(
        BIGDataset.LAYOUT,
        img_suffix=('_rgb.png', '_rgb.jpg', '_im.png', '_im.jpg'),
    )
