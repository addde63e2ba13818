"""Targets and references in the layouts of the sets; nothing leaks."""

import gc
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler, pseudo_collate
from mmengine.registry import DATASETS, METRICS
from PIL import Image
from torch.utils.data import DataLoader

from mmplugins.compat import load_config
from mmplugins.ssen.datasets import (
    CUFED5Dataset,
    CUFEDDataset,
    ReferencePairDataset,
)

CONFIGS = Path(__file__).parents[2] / 'configs/_base_/datasets'
LEVELS = [1, 2, 3, 4, 5, 'unrelated', 'upsampled', 'self']


@pytest.fixture(autouse=True)
def _no_collection(monkeypatch):
    """Each data set that is built collects what the whole process left."""
    monkeypatch.setattr(gc, 'collect', lambda *_: 0)


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b'')


def draw(root, *names, size=(160, 160)):
    """Images of noise; every name has its own."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng([*name.encode()])
        noise = rng.integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(noise).save(path)


def items(dataset):
    return [dataset.get_data_info(i) for i in range(len(dataset))]


def files(dataset, root):
    """(key, target, reference) of each item, from the root on."""

    def short(path):
        if isinstance(path, list):
            return [short(x) for x in path]
        return path and Path(path).relative_to(root).as_posix()

    return [
        (x['key'], short(x['gt_path']), short(x.get('ref_path')))
        for x in items(dataset)
    ]


def cufed5(root, groups=3, write=touch):
    """Written in an order that is not theirs."""
    for group in reversed(range(groups)):
        for level in (3, 0, 5, 1, 4, 2):
            write(root, f'CUFED5/{group:03d}_{level}.png')
    prefix = dict(gt='CUFED5', ref='CUFED5')
    return dict(data_root=str(root), data_prefix=prefix)


def test_training_pairs_are_those_of_the_same_name(tmp_path):
    touch(tmp_path, 'input/b.png', 'input/a.png', 'input/c.PNG', 'ref/x.txt')
    touch(tmp_path, 'ref/c.jpg', 'ref/a.png', 'ref/a.bmp', 'ref/b.png')
    touch(tmp_path, 'input/notes.txt', 'ref/unused.png')
    dataset = CUFEDDataset(data_root=str(tmp_path))
    assert files(dataset, tmp_path) == [
        ('a', 'input/a.png', 'ref/a.png'),
        ('b', 'input/b.png', 'ref/b.png'),
        ('c', 'input/c.PNG', 'ref/c.jpg'),
    ]
    assert {x['reference'] for x in items(dataset)} == {'paired'}
    assert dataset.metainfo['dataset_type'] == 'cufed'
    (tmp_path / 'ref/b.png').unlink()
    message = "input|b.png of CUFEDDataset has no ref: .* 'b' in '.*ref'"
    with pytest.raises(ValueError, match=message):
        CUFEDDataset(data_root=str(tmp_path))


@pytest.mark.parametrize('level', LEVELS)
def test_levels_of_cufed5(level, tmp_path):
    dataset = CUFED5Dataset(level, **cufed5(tmp_path))
    wanted = {
        'unrelated': [f'CUFED5/{x}_1.png' for x in ('001', '002', '000')],
        'upsampled': [None] * 3,
        'self': [None] * 3,
    }
    given = [f'CUFED5/{x:03d}_{level}.png' for x in range(3)]
    assert files(dataset, tmp_path) == [
        (f'{x:03d}_0', f'CUFED5/{x:03d}_0.png', ref)
        for x, ref in enumerate(wanted.get(level, given))
    ]
    control = level if isinstance(level, str) else 'paired'
    assert {x['reference'] for x in items(dataset)} == {control}
    assert [x['scene'] for x in items(dataset)] == ['000', '001', '002']


def test_several_levels_are_a_list(tmp_path):
    dataset = CUFED5Dataset([2, 1], **cufed5(tmp_path, 1))
    refs = ['CUFED5/000_2.png', 'CUFED5/000_1.png']
    assert files(dataset, tmp_path) == [('000_0', 'CUFED5/000_0.png', refs)]
    one = CUFED5Dataset((4,), **cufed5(tmp_path, 1))
    assert files(one, tmp_path)[0][2] == ['CUFED5/000_4.png']


def test_the_folder_itself_may_be_the_root(tmp_path):
    cufed5(tmp_path, 2)
    dataset = CUFED5Dataset(data_root=str(tmp_path / 'CUFED5'))
    assert [x[0] for x in files(dataset, tmp_path)] == ['000_0', '001_0']


def test_unrelated_references_are_the_same_of_a_part(tmp_path):
    """As tests of a few images use ``indices``, or chosen scenes."""
    common = cufed5(tmp_path, 7)
    whole = files(CUFED5Dataset('unrelated', **common), tmp_path)
    assert len({ref for _, _, ref in whole}) == 7
    assert all(gt[:-5] != ref[:-5] for _, gt, ref in whole)
    part = CUFED5Dataset('unrelated', indices=3, **common)
    assert files(part, tmp_path) == whole[:3]
    part = CUFED5Dataset('unrelated', scenes=['004'], **common)
    assert files(part, tmp_path) == whole[4:5]


@pytest.mark.parametrize('level', [0, 6, (), (1, 0), 'paired', 'XH'])
def test_levels_that_do_not_exist(level, tmp_path):
    with pytest.raises(ValueError, match='level of CUFED5Dataset must be'):
        CUFED5Dataset(level, **cufed5(tmp_path))


def test_a_missing_level_is_named(tmp_path):
    common = cufed5(tmp_path)
    (tmp_path / 'CUFED5/001_4.png').unlink()
    CUFED5Dataset(3, **common)
    message = "001_0.png .* no reference of level 4: .* '001_4' in"
    with pytest.raises(ValueError, match=message):
        CUFED5Dataset(4, **common)


def listed(root, pairs, **kwargs):
    (root / 'pairs.json').write_text(json.dumps(pairs))
    return ReferencePairDataset(
        ann_file='pairs.json', data_root=str(root), **kwargs
    )


PAIRS = [
    dict(gt='dog/1.png', refs=['dog/2.png', 'dog/3.png'], scene='dog'),
    dict(gt='cat/1.png', refs=['cat/2.png'], scene='cat'),
    dict(gt='dog/2.png', refs=['dog/3.png', 'dog/1.png'], scene='dog'),
]


def test_the_order_is_that_of_the_file(tmp_path):
    dataset = listed(tmp_path, PAIRS)
    assert files(dataset, tmp_path) == [
        ('dog/1', 'dog/1.png', 'dog/2.png'),
        ('cat/1', 'cat/1.png', 'cat/2.png'),
        ('dog/2', 'dog/2.png', 'dog/3.png'),
    ]
    prefix = dict(gt='high', ref='others')
    dataset = listed(tmp_path, PAIRS, data_prefix=prefix, num_refs=None)
    assert files(dataset, tmp_path)[:2] == [
        ('dog/1', 'high/dog/1.png', ['others/dog/2.png', 'others/dog/3.png']),
        ('cat/1', 'high/cat/1.png', ['others/cat/2.png']),
    ]
    dataset = listed(tmp_path, PAIRS, num_refs=2, scenes=['dog'])
    assert [x[2] for x in files(dataset, tmp_path)] == [
        ['dog/2.png', 'dog/3.png'],
        ['dog/3.png', 'dog/1.png'],
    ]


def test_scenes_are_taken_whole(tmp_path):
    dataset = listed(tmp_path, PAIRS, scenes=('cat',), reference='unrelated')
    assert files(dataset, tmp_path) == [('cat/1', 'cat/1.png', 'dog/3.png')]
    message = r"must be of \['cat', 'dog'\], got \['cow'\]"
    with pytest.raises(ValueError, match=message):
        listed(tmp_path, PAIRS, scenes=['dog', 'cow'])


def test_low_resolution_images_that_are_there(tmp_path):
    names = [f'{i:04d}' for i in (3, 1, 2)]
    touch(tmp_path, *(f'HR/{x}.png' for x in names))
    touch(tmp_path, *(f'LR/X4/{x}x4.png' for x in names))
    dataset = ReferencePairDataset(
        data_root=str(tmp_path),
        data_prefix=dict(gt='HR', img='LR/X4'),
        filename_tmpl=dict(img='{}x4'),
        reference='self',
    )
    assert [
        (Path(x['gt_path']).name, Path(x['img_path']).name)
        for x in items(dataset)
    ] == [(f'{x}.png', f'{x}x4.png') for x in sorted(names)]
    assert not any('ref_path' in x for x in items(dataset))


def test_instances_share_nothing(tmp_path):
    """The host's own set keeps the templates of one for the next."""
    touch(tmp_path, 'HR/a.png', 'LR/ax4.png', 'LR/a.png')
    common = dict(data_root=str(tmp_path), reference='self')
    prefix = dict(gt='HR', img='LR')
    first = ReferencePairDataset(
        data_prefix=prefix, filename_tmpl=dict(img='{}x4'), **common
    )
    second = ReferencePairDataset(data_prefix=prefix, **common)
    assert items(first)[0]['img_path'].endswith('ax4.png')
    assert items(second)[0]['img_path'].endswith('a.png')
    assert prefix == dict(gt='HR', img='LR')
    assert ReferencePairDataset.LAYOUT == {}
    assert set(CUFEDDataset.LAYOUT) == {'gt', 'ref'}


def test_a_target_is_never_its_reference(tmp_path):
    touch(tmp_path, 'HR/a.png', 'HR/b.png')
    with pytest.raises(ValueError, match=r'a\.png is the target itself'):
        ReferencePairDataset(
            data_root=str(tmp_path), data_prefix=dict(gt='HR', ref='HR')
        )
    with pytest.raises(ValueError, match='is the target itself'):
        listed(tmp_path, [dict(gt='HR/a.png', refs=['HR/./a.png'])])
    # Only the folders make them one file.
    pairs = [dict(gt='a.png', refs=['HR/a.png'])]
    with pytest.raises(ValueError, match='is the target itself'):
        listed(tmp_path, pairs, data_prefix=dict(gt='HR'))
    message = 'files of CUFED5 that end in _0 are targets'
    with pytest.raises(ValueError, match=message):
        listed(tmp_path, [dict(gt='000_0.png', refs=['001_0.png'])])


@pytest.mark.parametrize('link', [os.symlink, os.link])
def test_a_link_to_the_target_is_no_reference(link, tmp_path):
    touch(tmp_path, 'input/a.png', 'ref/b.png')
    link(tmp_path / 'input/a.png', tmp_path / 'ref/a.png')
    message = r'reference .*ref/a\.png links to its target .*input/a\.png'
    with pytest.raises(ValueError, match=message):
        CUFEDDataset(data_root=str(tmp_path))


def test_a_link_to_the_targets_folder_holds_no_references(tmp_path):
    touch(tmp_path, 'input/a.png')
    os.symlink(tmp_path / 'input', tmp_path / 'ref')
    with pytest.raises(ValueError, match='links to its target'):
        CUFEDDataset(data_root=str(tmp_path))


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(reference='random'), "must be one of .*, got 'random'"),
        (dict(num_refs=0), 'must be 1 or more, or None for all, got 0'),
        (dict(data_prefix=dict(lq='x')), r"may have .* got \['lq'\]"),
        (dict(data_prefix=dict(gt='no')), r"must name folders, .*no'"),
        (
            dict(data_prefix=dict(gt='empty'), reference='self'),
            r"found no image in '.*empty'",
        ),
        (dict(), "folder of references, data_prefix.'ref'., for reference="),
        (dict(ann_file='no.txt'), r'no\.txt does not exist'),
    ],
)
def test_bad_arguments_are_named(arguments, message, tmp_path):
    (tmp_path / 'empty').mkdir()
    touch(tmp_path, 'a.png')
    with pytest.raises(ValueError, match=message):
        ReferencePairDataset(data_root=str(tmp_path), **arguments)


def test_too_few_references_are_counted(tmp_path):
    message = r'cat/1\.png .* has 1 references, num_refs asks for 2'
    with pytest.raises(ValueError, match=message):
        listed(tmp_path, PAIRS, num_refs=2)
    with pytest.raises(ValueError, match='has 0 ref.* asks for one at least'):
        listed(tmp_path, [dict(gt='a.png', refs=[])], num_refs=None)
    assert len(listed(tmp_path, [dict(gt='a', refs=[])], reference='self'))


# The pipelines of the configs, on sets of noise in the published layouts.


def batches(in_scope, dataset, count=1):
    with in_scope('mmagic'):
        dataset = DATASETS.build(dataset)
        sampler = DefaultSampler(dataset, shuffle=False)
        loader = DataLoader(
            dataset, count, sampler=sampler, collate_fn=pseudo_collate
        )
        return list(loader)


def config(name, monkeypatch, tmp_path):
    cfg = load_config(str(CONFIGS / f'{name}.py'))
    monkeypatch.chdir(tmp_path)
    return cfg


def low(image, scale=4):
    """Shrunk by Pillow; image (3, H, W)."""
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    size = (picture.width // scale, picture.height // scale)
    small = picture.resize(size, Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1)


def read(path):
    return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)


def turn_of(image, given):
    """Quarter turns of an image, BGR as hosts load it, padded if need be."""
    found = []
    for turns in range(4):
        turned = given.rot90(turns, (1, 2))
        height, width = turned.shape[1:]
        if torch.equal(image.flip(0)[:, :height, :width], turned):
            found.append(turns)
    (turns,) = found
    return turns


def test_training_on_cufed(tmp_path, in_scope, monkeypatch):
    root = tmp_path / 'data/CUFED'
    names = [f'{x}.png' for x in 'abcd']
    draw(root, *(f'input/{x}' for x in names))
    draw(root, *(f'ref/{x}' for x in names[:3]))
    draw(root, 'ref/d.png', size=(100, 130))
    cfg = config('cufed-160', monkeypatch, tmp_path)
    targets, refs = (
        [read(root / folder / x) for x in names] for folder in ('input', 'ref')
    )
    seen = set()
    for seed in range(12):
        np.random.seed(seed)
        (batch,) = batches(in_scope, cfg.train_dataloader.dataset, 4)
        for i, sample in enumerate(batch['data_samples']):
            img, ref = (batch['inputs'][key][i] for key in ('img', 'ref'))
            turns = turn_of(sample.gt_img, targets[i])
            assert turn_of(img, low(targets[i])) == turns
            assert ref.shape == (3, 160, 160)
            assert sample.ref_channel_order == 'bgr'
            assert sample.reference == 'paired'
            seen.add((turns, turn_of(ref, refs[i])))
    assert len({a for a, _ in seen}) == len({b for _, b in seen}) == 4
    assert len({(a - b) % 4 for a, b in seen}) == 4  # not turned together


def test_levels_of_the_robustness_test(tmp_path, in_scope, monkeypatch):
    root = tmp_path / 'data/CUFED/CUFED5'
    for group in range(2):
        for level in range(6):
            size = (30, 43) if level == 0 else (20 + 4 * level, 42)
            draw(root, f'{group:03d}_{level}.png', size=size)
    cfg = config('cufed5-levels', monkeypatch, tmp_path)
    rows = [metrics[0].prefix for metrics in cfg.test_evaluator]
    assert [row.split('/')[0] for row in rows] == [*cfg.levels]
    assert len(cfg.test_dataloader) == len(rows) == 8
    for loader, level in zip(cfg.test_dataloader, LEVELS):
        assert loader.dataset.level == level
        for group, batch in enumerate(batches(in_scope, loader.dataset)):
            inputs = batch['inputs']
            gt = read(root / f'{group:03d}_0.png')[:, :28, :40]
            sample = batch['data_samples'][0]
            assert torch.equal(sample.gt_img.flip(0), gt)
            img = inputs['img'] if isinstance(inputs, dict) else inputs
            assert torch.equal(img[0].flip(0), low(gt))
            if level == 'self':
                assert not isinstance(inputs, dict)
                continue
            (ref,) = inputs['ref']
            if level == 'upsampled':
                small = Image.fromarray(low(gt).permute(1, 2, 0).numpy())
                big = small.resize((40, 28), Image.Resampling.BICUBIC)
                wanted = torch.from_numpy(np.array(big)).permute(2, 0, 1)
            else:
                place = 1 if level == 'unrelated' else level
                other = 1 - group if level == 'unrelated' else group
                wanted = read(root / f'{other:03d}_{place}.png')
            if level in (1, 2, 'unrelated', 'upsampled'):
                # Two columns of 42 are cut off, the rest is as it was.
                wanted = wanted[:, :28, :40]
                assert torch.equal(ref.flip(0)[:, : wanted.shape[1]], wanted)
            assert ref.shape == (3, 28, 40)


def test_training_without_references(tmp_path, in_scope, monkeypatch):
    root = tmp_path / 'data/DIV2K'
    folder = 'DIV2K_train_LR_bicubic/X4'
    draw(root, 'DIV2K_train_HR/0001.png', size=(200, 240))
    draw(root, f'{folder}/0001x4.png', size=(50, 60))
    cfg = config('div2k-192', monkeypatch, tmp_path)
    high, small = (
        read(root / x)
        for x in ('DIV2K_train_HR/0001.png', f'{folder}/0001x4.png')
    )
    (batch,) = batches(in_scope, cfg.train_dataloader.dataset)
    (img,), (sample,) = batch['inputs'], batch['data_samples']
    assert img.shape == (3, 48, 48)
    places = [
        (y, x, k)
        for y in range(3)
        for x in range(13)
        for k in range(4)
        if torch.equal(
            img.flip(0),
            small[:, y : y + 48, x : x + 48].rot90(k, (1, 2)),
        )
    ]
    ((y, x, k),) = places
    window = high[:, 4 * y : 4 * y + 192, 4 * x : 4 * x + 192]
    assert torch.equal(sample.gt_img.flip(0), window.rot90(k, (1, 2)))
    draw(tmp_path / 'data/set5', 'HR/a.png', size=(33, 41))
    (batch,) = batches(in_scope, cfg.val_dataloader.dataset)
    assert batch['inputs'][0].shape == (3, 8, 10)


def test_benchmarks(tmp_path, in_scope, monkeypatch):
    cfg = config('sisr-benchmarks-x4', monkeypatch, tmp_path)
    assert len(cfg.test_dataloader) == len(cfg.test_evaluator) == 4
    for loader, metrics in zip(cfg.test_dataloader, cfg.test_evaluator):
        root = tmp_path / loader.dataset.data_root
        draw(root, 'HR/x.png', size=(30, 45))
        # Some of Set14 are grey.
        Image.new('L', (45, 31), 77).save(root / 'HR/y.png')
        found = batches(in_scope, loader.dataset)
        gt = read(root / 'HR/x.png')[:, :28, :44]
        assert torch.equal(found[0]['inputs'][0].flip(0), low(gt))
        assert found[1]['inputs'][0].shape == (3, 7, 11)
        assert {x.crop_border for x in metrics} == {4}
        assert {x.prefix.lower() for x in metrics} == {root.name}


def test_registered():
    for name in ('ReferencePairDataset', 'CUFEDDataset', 'CUFED5Dataset'):
        assert DATASETS.get(f'mmplugins.{name}').__name__ == name


SET5 = Path(__file__).parents[3] / 'shared/data/set5'


@pytest.mark.skipif(not SET5.is_dir(), reason='needs Set5')
def test_bicubic_figures_of_set5_are_the_published_ones(in_scope):
    """28.42 dB and 0.8104, as in every paper on super-resolution."""
    cfg = load_config(str(CONFIGS / 'sisr-benchmarks-x4.py'))
    dataset = {**cfg.set5_dataloader.dataset, 'data_root': str(SET5)}
    figures = []
    with in_scope('mmagic'):
        metrics = [METRICS.build(x) for x in cfg.set5_evaluator]
        for item in DATASETS.build(dataset):
            gt = item['data_samples'].gt_img
            small = item['inputs'].permute(1, 2, 0).numpy()
            picture = Image.fromarray(small).resize(
                gt.shape[:0:-1], Image.Resampling.BICUBIC
            )
            up = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
            figures.append([x.process_image(gt, up, None) for x in metrics])
    psnr, ssim = np.mean(figures, 0)
    assert len(figures) == 5
    assert psnr == pytest.approx(28.42, abs=0.02)
    assert ssim == pytest.approx(0.8104, abs=0.002)
