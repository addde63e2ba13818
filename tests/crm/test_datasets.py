"""Pairs of files in the layouts of the sets."""

from pathlib import Path

import numpy as np
import pytest
from mmengine.dataset import ConcatDataset
from mmengine.registry import DATASETS
from PIL import Image

from mmplugins.crm.datasets import (
    BIGDataset,
    DUTSDataset,
    ECSSDDataset,
    FSS1000Dataset,
    MaskPairDataset,
    MSRA10KDataset,
    RelabelledPASCALDataset,
)


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b'')


def files(dataset, root):
    """Paths of each item by key, from the root on."""
    keys = ('img_path', 'seg_map_path', 'coarse_map_path')
    return [
        tuple(
            Path(info[key]).relative_to(root).as_posix()
            for key in keys
            if key in info
        )
        for info in map(dataset.get_data_info, range(len(dataset)))
    ]


def davis(root, frames=('00000', '00005')):
    for sequence in ('dog', 'dog-agility', 'cows'):
        for frame in frames:
            touch(root, f'JPEGImages/{sequence}/{frame}.jpg')
            touch(root, f'Annotations/{sequence}/{frame}.png')
    touch(root, 'JPEGImages/dog/notes.txt', 'Annotations/dog/99999.png')


DAVIS = dict(img_path='JPEGImages', seg_map_path='Annotations')


def test_pairs_of_a_tree(tmp_path):
    davis(tmp_path)
    dataset = MaskPairDataset(data_root=str(tmp_path), data_prefix=DAVIS)
    assert files(dataset, tmp_path) == [
        (f'JPEGImages/{x}.jpg', f'Annotations/{x}.png')
        for x in (
            *('cows/00000', 'cows/00005', 'dog-agility/00000'),
            *('dog-agility/00005', 'dog/00000', 'dog/00005'),
        )
    ]
    assert dataset.get_data_info(0)['seg_fields'] == []
    assert dataset.metainfo['classes'] == ('background', 'foreground')
    assert len(dataset.metainfo['palette']) == 2


@pytest.mark.parametrize('sequences', [['dog'], ['dog/', 'cows'], ['cows']])
def test_sequences_are_whole_folders(sequences, tmp_path):
    davis(tmp_path)
    dataset = MaskPairDataset(
        data_root=str(tmp_path), data_prefix=DAVIS, sequences=sequences
    )
    found = {image.split('/')[1] for image, _ in files(dataset, tmp_path)}
    assert found == {name.rstrip('/') for name in sequences}
    assert len(dataset) == 2 * len(sequences)


def test_coarse_masks_and_no_true_ones(tmp_path):
    touch(tmp_path, 'im/a.JPG', 'im/b.jpeg', 'c/a_x.png', 'c/b_x.png')
    dataset = MaskPairDataset(
        img_suffix=['.JPG', '.jpeg'],
        coarse_map_suffix='_x.png',
        data_root=str(tmp_path),
        data_prefix=dict(
            img_path='im', seg_map_path=None, coarse_map_path='c'
        ),
    )
    assert files(dataset, tmp_path) == [
        ('im/a.JPG', 'c/a_x.png'),
        ('im/b.jpeg', 'c/b_x.png'),
    ]


def test_the_first_suffix_that_fits_wins(tmp_path):
    touch(tmp_path, 'a.jpg', 'a.tif', 'a.png', 'b.tif', 'b.png')
    dataset = MaskPairDataset(('.jpg', '.tif'), data_root=str(tmp_path))
    assert files(dataset, tmp_path) == [
        ('a.jpg', 'a.png'),
        ('b.tif', 'b.png'),
    ]


def expected(folder, masks, names, img='.jpg', seg='.png'):
    return [(f'{folder}{x}{img}', f'{masks}{x}{seg}') for x in names]


@pytest.mark.parametrize(
    ('build', 'pairs'),
    [
        (MSRA10KDataset, expected('Imgs/', 'Imgs/', ['1', '22'])),
        (
            ECSSDDataset,
            expected('images/', 'ground_truth_mask/', ['0001', '0002']),
        ),
        (
            DUTSDataset,
            expected(
                *('DUTS-TR/DUTS-TR-Image/', 'DUTS-TR/DUTS-TR-Mask/'),
                ['ILSVRC_x', 'sun_y'],
            ),
        ),
        (
            lambda **kwargs: DUTSDataset(split='TE', **kwargs),
            expected(
                *('DUTS-TE/DUTS-TE-Image/', 'DUTS-TE/DUTS-TE-Mask/'),
                ['ILSVRC_x', 'sun_y'],
            ),
        ),
        (FSS1000Dataset, expected('', '', ['ab_wheel/1', 'zucchini/10'])),
        (
            BIGDataset,
            expected('', '', ['2007_1', '2009_2'], '_im.jpg', '_gt.png'),
        ),
        (
            RelabelledPASCALDataset,
            expected('', '', ['2007_1', '2009_2'], '_rgb.png', '_gt.png'),
        ),
        (
            RelabelledPASCALDataset,
            expected('', '', ['2007_1', '2009_2'], '_im.jpg', '_gt.png'),
        ),
    ],
)
def test_layouts(build, pairs, tmp_path):
    for pair in pairs:
        touch(tmp_path, *pair)
    dataset = build(data_root=str(tmp_path))
    assert files(dataset, tmp_path) == pairs
    assert DATASETS.get(f'mmplugins.{type(dataset).__name__}')


@pytest.mark.parametrize('build', [BIGDataset, RelabelledPASCALDataset])
def test_masks_that_are_to_be_refined(build, tmp_path):
    names = [f'{x}{y}' for x in 'ab' for y in ('_im.jpg', '_gt.png')]
    touch(tmp_path, *(f'test/{x}' for x in (*names, 'a_seg.png', 'b_seg.png')))
    prefix = dict.fromkeys(
        ['img_path', 'seg_map_path', 'coarse_map_path'], 'test'
    )
    dataset = build(data_root=str(tmp_path), data_prefix=prefix)
    assert files(dataset, tmp_path) == [
        (f'test/{x}_im.jpg', f'test/{x}_gt.png', f'test/{x}_seg.png')
        for x in 'ab'
    ]


def test_sets_join_and_run_their_pipeline(tmp_path):
    rng = np.random.default_rng(0)
    for name in ('Imgs/1', 'images/2'):
        touch(tmp_path, f'{name}.jpg')
        image = rng.integers(0, 256, (40, 50, 3), np.uint8)
        Image.fromarray(image).save(tmp_path / f'{name}.jpg')
    touch(tmp_path, 'ground_truth_mask/x')
    for name in ('Imgs/1', 'ground_truth_mask/2'):
        mask = (rng.random((40, 50)) < 0.5).astype(np.uint8) * 255
        Image.fromarray(mask).save(tmp_path / f'{name}.png')
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='mmplugins.LoadMasks'),
        dict(type='mmplugins.RandomScaleCrop', input_size=32),
        dict(type='mmplugins.PerturbMask'),
        dict(type='mmplugins.SampleQueries', input_size=32, query_size=32),
        dict(type='mmplugins.PackRefineInputs'),
    ]
    import mmcv.transforms  # noqa: F401, LoadImageFromFile

    common = dict(data_root=str(tmp_path), pipeline=pipeline)
    dataset = ConcatDataset([MSRA10KDataset(**common), ECSSDDataset(**common)])
    assert len(dataset) == 2
    for index in range(2):
        item = dataset[index]
        assert item['inputs'].shape == (3, 32, 32)
        sample = item['data_samples']
        assert sample.gt_sem_seg.data.shape == (1, 32, 32)
        assert sample.coarse_sem_seg.data.shape == (1, 32, 32)
        assert sample.query_window[2:] == (32, 32)
        assert sample.ori_shape == (40, 50)


def test_missing_masks_are_counted_and_named(tmp_path):
    davis(tmp_path)
    (tmp_path / 'Annotations/cows/00005.png').unlink()
    (tmp_path / 'Annotations/dog/00000.png').unlink()
    message = (
        r"2 of 6 images of MaskPairDataset have no seg_map_path: 'cows/00005"
        r".jpg' in '.*JPEGImages' needs 'cows/00005.png' in '.*Annotations'"
    )
    with pytest.raises(ValueError, match=message):
        MaskPairDataset(data_root=str(tmp_path), data_prefix=DAVIS)
    # Of the sequences asked for none is missing.
    MaskPairDataset(
        data_root=str(tmp_path),
        data_prefix=DAVIS,
        sequences=['dog-agility'],
    )


def test_nothing_found_is_named(tmp_path):
    davis(tmp_path)
    with pytest.raises(ValueError, match=r'no image that ends in \.tif in'):
        MaskPairDataset('.tif', data_root=str(tmp_path), data_prefix=DAVIS)
    with pytest.raises(ValueError, match=r'there is no .*nowhere'):
        MaskPairDataset(data_root=str(tmp_path / 'nowhere'))
    message = r"has \['cows', 'dog', 'dog-agility'\], got 'do'"
    with pytest.raises(ValueError, match=message):
        MaskPairDataset(
            data_root=str(tmp_path), data_prefix=DAVIS, sequences=['do']
        )
    with pytest.raises(ValueError, match=r"'TR' or 'TE', got 'train'"):
        DUTSDataset(split='train')
