"""Data sets of high-resolution targets and their references.

An item names files: ``gt_path``, the target; ``ref_path``, its reference or a
list of them, where it has one; ``img_path``, the low-resolution image, where
the set has them ready. ``reference`` says what the reference is.
"""

import os
from collections.abc import Sequence

from mmengine import fileio
from mmengine.dataset import BaseDataset

from mmplugins.registry import DATASETS

from .pairs import (
    CUFED5_NAME,
    read_pairs,
    require_no_leak,
    stem,
    unrelated_references,
)

SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff', '.ppm', '.webp')
REFERENCES = ('paired', 'unrelated', 'upsampled', 'self')


@DATASETS.register_module()
class ReferencePairDataset(BaseDataset):
    """Targets and references, listed in a file or found by their names.

    The order is that of the file or of the names, on every machine. A target
    is never its own reference: that, also by a link, is an error.

    Args:
        ann_file (str): Annotation file as of
            :func:`~mmplugins.ssen.pairs.read_pairs`. Defaults to ``''``: each
            image in the folder ``gt`` has the one of its name in ``ref``.
        data_prefix (dict, optional): Folders ``gt``, ``ref`` and, for
            low-resolution images that are there already, ``img``, under
            ``data_root``. Defaults to None, the root itself for the first and,
            with ``ann_file``, for the second.
        reference (str): ``'paired'``, the pair's own; ``'unrelated'``, that of
            another scene, the same in every run; ``'upsampled'``, the
            low-resolution image itself, made larger, which holds nothing new;
            ``'self'``, none. The last two need no files. Defaults to
            ``'paired'``.
        num_refs (int, optional): How many references, the first ones. One is a
            path, several are a list. Defaults to 1; None is a list of all.
        scenes (Sequence[str], optional): Scenes to take. Defaults to None,
            all.
        filename_tmpl (dict, optional): Names in ``ref`` and ``img`` by the
            target's, without suffix, such as ``dict(img='{}x4')``. Defaults
            to None, ``'{}'``.
        backend_args (dict, optional): Of mmengine's file client. Defaults to
            None.
        kwargs: Of mmengine's ``BaseDataset``.

    Raises:
        ValueError: If an argument is out of range, there are no images, a file
            is missing, or a reference is its target.
    """

    METAINFO = dict(dataset_type='reference_pairs', task_name='refsr')
    # Folders that a layout defaults to.
    LAYOUT: dict = {}

    def __init__(
        self,
        ann_file: str = '',
        data_prefix: dict | None = None,
        reference: str = 'paired',
        num_refs: int | None = 1,
        scenes: Sequence[str] | None = None,
        filename_tmpl: dict | None = None,
        backend_args: dict | None = None,
        **kwargs,
    ) -> None:
        name = type(self).__name__
        if reference not in REFERENCES:
            raise ValueError(
                f'reference of {name} must be one of {REFERENCES}, got '
                f'{reference!r}'
            )
        if num_refs is not None and num_refs < 1:
            raise ValueError(
                f'num_refs of {name} must be 1 or more, or None for all, got '
                f'{num_refs}'
            )
        root = dict(gt='', ref='') if ann_file else dict(gt='')
        given = {k: v for k, v in (data_prefix or {}).items() if v is not None}
        if unknown := set(given) - {'gt', 'ref', 'img'}:
            raise ValueError(
                f"data_prefix of {name} may have 'gt', 'ref' and 'img', got "
                f'{sorted(unknown)}'
            )
        self.reference = reference
        self.num_refs = num_refs
        self.scenes = scenes
        self.filename_tmpl = dict(ref='{}', img='{}') | (filename_tmpl or {})
        self.backend_args = backend_args
        super().__init__(
            ann_file=ann_file,
            data_prefix={**root, **self.LAYOUT, **given},
            **kwargs,
        )

    def load_data_list(self) -> list[dict]:
        """Find the files of each pair.

        Returns:
            list[dict]: ``gt_path``, ``key``, ``scene``, ``reference`` and,
            where there are such files, ``ref_path`` and ``img_path``.
        """
        pairs = self._pairs()
        if not pairs:
            raise ValueError(
                f'{type(self).__name__} found no image in '
                f'{self.data_prefix["gt"]!r}'
            )
        refs = self._chosen_references(pairs)
        taken = self._taken(pairs)
        low = self._files('img') if 'img' in self.data_prefix else None
        items = []
        for place in taken:
            pair = pairs[place]
            item = dict(
                gt_path=self._join('gt', pair['gt']),
                key=stem(pair['gt']),
                scene=pair['scene'],
                reference=self.reference,
            )
            if refs is not None:
                item['ref_path'] = self._ref_path(
                    item['gt_path'], pair['gt'], refs[place]
                )
            if low is not None:
                item['img_path'] = self._join(
                    'img', self._named(pair['gt'], 'img', low)
                )
            items.append(item)
        return items

    def _pairs(self) -> list[dict]:
        """All pairs, in order; ``refs`` are relative to the folder ``ref``."""
        if self.ann_file:
            return read_pairs(self.ann_file, self.backend_args)
        names = sorted(self._list('gt'))
        pairs = [dict(gt=x, refs=[], scene=stem(x)) for x in names]
        if self.reference in ('paired', 'unrelated'):
            if 'ref' not in self.data_prefix:
                raise ValueError(
                    f'{type(self).__name__} needs ann_file or the folder of '
                    "references, data_prefix['ref'], for reference="
                    f'{self.reference!r}'
                )
            files = self._files('ref')
            for pair in pairs:
                pair['refs'] = [self._named(pair['gt'], 'ref', files)]
        return pairs

    def _chosen_references(
        self, pairs: Sequence[dict]
    ) -> list[list[str]] | None:
        if self.reference == 'paired':
            return [pair['refs'] for pair in pairs]
        if self.reference == 'unrelated':
            return unrelated_references(pairs)
        return None

    def _taken(self, pairs: Sequence[dict]) -> list[int]:
        """Places of the pairs of the scenes asked for."""
        if self.scenes is None:
            return [*range(len(pairs))]
        there = {pair['scene'] for pair in pairs}
        if missing := set(self.scenes) - there:
            raise ValueError(
                f'scenes of {type(self).__name__} must be of '
                f'{sorted(there)[:20]}, got {sorted(missing)}'
            )
        chosen = set(self.scenes)
        return [i for i, pair in enumerate(pairs) if pair['scene'] in chosen]

    def _ref_path(
        self, gt_path: str, gt: str, refs: Sequence[str]
    ) -> str | list[str]:
        count = self.num_refs
        if not refs or len(refs) < (count or 1):
            raise ValueError(
                f'{gt} of {type(self).__name__} has {len(refs)} references, '
                f'num_refs asks for {count or "one at least"}'
            )
        paths = [self._join('ref', ref) for ref in refs[:count]]
        for path in paths:
            require_no_leak(gt_path, path)
            # A leaked target makes every figure meaningless.
            if _is_one_file(gt_path, path):
                raise ValueError(
                    f'reference {path} links to its target {gt_path}'
                )
        return paths[0] if count == 1 else paths

    def _join(self, key: str, name: str) -> str:
        return fileio.join_path(
            self.data_prefix[key], name, backend_args=self.backend_args
        )

    def _files(self, key: str) -> dict[str, list[str]]:
        """Names of a folder's images by what they are without suffix."""
        files: dict[str, list[str]] = {}
        for name in sorted(self._list(key)):
            files.setdefault(stem(name), []).append(name)
        return files

    def _named(self, gt: str, key: str, files: dict[str, list[str]]) -> str:
        """File of a folder that belongs to a target, of its suffix if any."""
        folders, slash, name = stem(gt).rpartition('/')
        wanted = folders + slash + self.filename_tmpl[key].format(name)
        names = files.get(wanted, [])
        same = [x for x in names if x[len(wanted) :] == gt[len(stem(gt)) :]]
        if not names:
            raise ValueError(
                f'{gt} of {type(self).__name__} has no {key}: there is no '
                f'image {wanted!r} in {self.data_prefix[key]!r}'
            )
        return (same or names)[0]

    def _list(self, key: str) -> list[str]:
        folder = self.data_prefix[key]
        if not fileio.isdir(folder, backend_args=self.backend_args):
            raise ValueError(
                f'data_prefix of {type(self).__name__} must name folders, '
                f'there is no {folder!r}'
            )
        names = fileio.list_dir_or_file(
            folder,
            list_dir=False,
            recursive=True,
            backend_args=self.backend_args,
        )
        return [
            name.replace('\\', '/')
            for name in names
            if name.lower().endswith(SUFFIXES)
        ]


@DATASETS.register_module()
class CUFEDDataset(ReferencePairDataset):
    """CUFED, pairs for training: ``input/X.png`` and ``ref/X.png``.

    11,871 targets of 160x160 pixels, cut from photographs of events; a few
    references have another size (Zhang et al., CVPR 2019).

    Args:
        args: Of :class:`ReferencePairDataset`.
    """

    METAINFO = dict(dataset_type='cufed', task_name='refsr')
    LAYOUT = dict(gt='input', ref='ref')


@DATASETS.register_module()
class CUFED5Dataset(ReferencePairDataset):
    """CUFED5: ``NNN_0.png`` and five references of falling similarity.

    126 groups in one folder, about 500x300 pixels (Zhang et al., CVPR 2019).

    Args:
        level (int | Sequence[int] | str): Which reference, 1 to 5 (``XH``,
            ``H``, ``M``, ``L``, ``XL``), several of them, or a control:
            ``'unrelated'`` (1 of another group), ``'upsampled'``,
            ``'self'``. Defaults to 1.
        kwargs: Of :class:`ReferencePairDataset`, but for ``ann_file``,
            ``reference`` and ``num_refs``.

    Raises:
        ValueError: If there is no such level.
    """

    METAINFO = dict(dataset_type='cufed5', task_name='refsr')
    LAYOUT = dict(gt='', ref='')

    def __init__(self, level: int | Sequence[int] | str = 1, **kwargs) -> None:
        control, levels = 'paired', level
        if isinstance(level, str):
            control, levels = level, (1,)
            if control not in REFERENCES[1:]:
                raise ValueError(
                    'level of CUFED5Dataset must be 1 to 5 or one of '
                    f'{REFERENCES[1:]}, got {level!r}'
                )
        elif isinstance(level, int):
            levels = (level,)
        levels = tuple(levels)
        if not levels or not set(levels) <= {1, 2, 3, 4, 5}:
            raise ValueError(
                'level of CUFED5Dataset must be 1 to 5 (0 is the target), '
                f'got {level}'
            )
        self.levels = levels
        single = isinstance(level, (int, str))
        super().__init__(
            reference=control, num_refs=1 if single else None, **kwargs
        )

    def _pairs(self) -> list[dict]:
        files = self._files('ref')
        pairs = []
        for gt in sorted(self._list('gt')):
            folders, slash, name = stem(gt).rpartition('/')
            group = CUFED5_NAME.fullmatch(name)
            if not group or group[2] != '0':
                continue
            pair = dict(gt=gt, refs=[], scene=folders + slash + group[1])
            if self.reference in ('paired', 'unrelated'):
                pair['refs'] = [
                    self._level_of(pair, level, files) for level in self.levels
                ]
            pairs.append(pair)
        return pairs

    def _level_of(self, pair: dict, level: int, files: dict) -> str:
        wanted = f'{pair["scene"]}_{level}'
        if wanted not in files:
            raise ValueError(
                f'{pair["gt"]} of CUFED5Dataset has no reference of level '
                f'{level}: there is no image {wanted!r} in '
                f'{self.data_prefix["ref"]!r}'
            )
        return files[wanted][0]


def _is_one_file(first: str, second: str) -> bool:
    """Whether two paths lead to one file; those of no disk do not."""
    try:
        return os.path.samefile(first, second)
    except OSError:
        return False
