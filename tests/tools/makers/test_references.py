"""Pairs of targets and references against scikit-image and the sources."""

import json
import os

import cv2
import numpy as np
import prepare_data
import pytest
from makers import references as maker
from makers.photographs import photograph
from skimage import data, transform

from mmplugins.ssen.datasets import ReferencePairDataset
from mmplugins.ssen.pairs import read_pairs


def read_tree(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in folder.rglob('*')
        if p.is_file()
    }


def read_rgb(path):
    return cv2.imread(str(path))[..., ::-1]


def save(path, seed, size=(20, 24)):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    assert cv2.imwrite(str(path), image)


@pytest.fixture(scope='module')
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp('demo')
    options = ['--num-train', '7', '--num-val', '2', '--size', '64', '96']
    prepare_data.main(['references', str(out), *options])
    return out


def test_the_demo_has_what_it_lists(demo):
    listed = {
        f'images/{name}'
        for split in ('train', 'val')
        for pair in read_pairs(str(demo / f'{split}.json'))
        for name in (pair['gt'], *pair['refs'])
    }
    others = {'train.json', 'val.json', 'meta.json'}
    assert set(read_tree(demo)) == (
        listed | others | {'disparity/motorcycle.npy'}
    )
    meta = json.loads((demo / 'meta.json').read_text())
    assert meta['counts'] == {'train': 7, 'val': 2}
    scenes = {
        split: {x['scene'] for x in read_pairs(str(demo / f'{split}.json'))}
        for split in ('train', 'val')
    }
    assert not scenes['train'] & scenes['val']
    assert len(scenes['train']) == 5  # each photograph has its turn
    assert scenes['val'] == {'motorcycle', 'chelsea', 'rocket'}


def test_the_stereo_pair_is_scikit_images(demo):
    left, right, disparity = data.stereo_motorcycle()
    pair = read_pairs(str(demo / 'val.json'))[0]
    for name, image in zip((pair['gt'], *pair['refs']), (left, right)):
        np.testing.assert_array_equal(read_rgb(demo / 'images' / name), image)
    kept = np.load(demo / 'disparity/motorcycle.npy')
    np.testing.assert_array_equal(kept, disparity.astype(np.float32))


def test_the_disparity_finds_the_reference(demo):
    """A target's pixel (x, y) is the reference's (x - disparity, y)."""
    left, right = (
        read_rgb(demo / f'images/motorcycle/{x}.png').astype(np.float32)
        for x in ('left', 'right')
    )
    disparity = np.load(demo / 'disparity/motorcycle.npy')
    y, x = np.mgrid[: left.shape[0], : left.shape[1]].astype(np.float32)
    known = np.isfinite(disparity)
    moved = np.where(known, x - disparity, -1)
    known &= moved >= 0
    seen = cv2.remap(right, moved.astype(np.float32), y, cv2.INTER_LINEAR)
    aligned = np.abs(seen - left)[known].mean()
    assert aligned < 0.4 * np.abs(right - left)[known].mean()


def test_views_are_where_their_matrix_says(demo):
    scores = []
    for split in ('train', 'val'):
        for pair in read_pairs(str(demo / f'{split}.json')):
            if 'matrix' not in pair:
                continue
            target = read_rgb(demo / 'images' / pair['gt'])
            view = read_rgb(demo / 'images' / pair['refs'][0])
            assert target.shape == view.shape == (64, 96, 3)
            matrix = np.vstack([pair['matrix'], [0, 0, 1]])
            back, inside = (
                transform.warp(
                    x, transform.AffineTransform(matrix), order=3, cval=0
                )
                for x in (view / 255, np.ones(view.shape[:2]))
            )
            inside = inside > 0.999
            assert 0.2 < inside.mean() < 1
            back = back * (target[inside].mean() / 255 / back[inside].mean())
            error = np.abs(back * 255 - target)[inside].mean()
            scores.append(
                error / np.abs(view.astype(float) - target)[inside].mean()
            )
    assert len(scores) == 9
    assert np.mean(scores) < 0.3
    assert max(scores) < 0.6


def test_targets_are_windows_of_their_photographs(demo):
    for pair in read_pairs(str(demo / 'train.json')):
        image = read_rgb(demo / 'images' / pair['gt'])
        names = [x for x in maker.TRAIN_PHOTOS if x.startswith(pair['scene'])]
        photo = np.ascontiguousarray(photograph(names[0]))
        score = cv2.matchTemplate(
            photo, np.ascontiguousarray(image), cv2.TM_SQDIFF
        )
        top, left = np.unravel_index(score.argmin(), score.shape)
        window = photo[top : top + 64, left : left + 96]
        np.testing.assert_array_equal(image, window)


def test_the_demo_is_reproducible_and_guarded(demo, tmp_path, capsys):
    def run(out, *options):
        given = ['--num-train', '7', '--num-val', '2', '--size', '64', '96']
        prepare_data.main(['references', str(out), *given, *options])

    first = read_tree(demo)
    run(tmp_path / 'a')
    assert read_tree(tmp_path / 'a') == first
    assert 'wrote 7 + 3 pairs' in capsys.readouterr().out
    run(demo)
    assert 'holds this set already' in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run(tmp_path / 'a', '--seed', '1')
    assert '--overwrite' in capsys.readouterr().err
    run(tmp_path / 'a', '--seed', '1', '--overwrite')
    other = read_tree(tmp_path / 'a')
    assert set(other) == set(first)
    views = [x for x in first if x.endswith('_view.png')]
    assert all(other[x] != first[x] for x in views)


def test_the_demo_reads_as_a_data_set(demo):
    for split, count in (('train', 7), ('val', 3)):
        dataset = ReferencePairDataset(
            ann_file=f'{split}.json',
            data_root=str(demo),
            data_prefix=dict(gt='images', ref='images'),
        )
        assert len(dataset) == count
        for i in range(count):
            info = dataset.get_data_info(i)
            assert os.path.isfile(info['gt_path'])
            assert os.path.isfile(info['ref_path'])


def frames(root):
    """Three scenes of 4, 3 and 2 images; one frame stands still."""
    for scene, count in (('dog', 4), ('cat/one', 3), ('cow', 2)):
        for i in range(count):
            seed = 100 * len(scene) + i
            save(root / scene / f'{i:02d}.png', 7 if seed == 301 else seed)
    (root / 'dog/notes.txt').write_text('mine')


def run_frames(out, source, *options):
    prepare_data.main(['references', str(out), str(source), *options])


def lists(out):
    return {
        split: [
            (x['scene'], x['gt'], x['refs'])
            for x in read_pairs(str(out / f'{split}.json'))
        ]
        for split in ('train', 'val')
    }


def test_frames_of_scenes(tmp_path, capsys):
    source, out = tmp_path / 'source', tmp_path / 'out'
    frames(source)
    run_frames(out, source, '--share', '0.3')
    found = lists(out)
    scenes = {k: {scene for scene, *_ in x} for k, x in found.items()}
    assert len(scenes['val']) == 1
    assert len(scenes['train']) == 2
    assert scenes['train'] | scenes['val'] == {'dog', 'cat/one', 'cow'}
    wanted = {
        'dog': ['01', '02', '03', '02'],
        'cat/one': ['01', '02', '01'],
        'cow': ['01', '00'],
    }
    for pairs in found.values():
        for scene in {scene for scene, *_ in pairs}:
            own = [(gt, refs) for s, gt, refs in pairs if s == scene]
            assert own == [
                (f'{scene}/{i:02d}.png', [f'{scene}/{ref}.png'])
                for i, ref in enumerate(wanted[scene])
            ]
    files = read_tree(out)
    images = {x: y for x, y in files.items() if x.startswith('images/')}
    given = read_tree(source)
    given.pop('dog/notes.txt')
    assert images == {f'images/{x}': y for x, y in given.items()}
    numbers = [len(found[x]) for x in ('train', 'val')]
    assert f'wrote {numbers[0]} + {numbers[1]} pairs' in (
        capsys.readouterr().out
    )
    run_frames(out, source, '--share', '0.3')
    assert 'nothing to do' in capsys.readouterr().out
    assert read_tree(out) == files
    save(source / 'dog/04.png', 1)
    with pytest.raises(SystemExit):
        run_frames(out, source, '--share', '0.3')
    assert '--overwrite' in capsys.readouterr().err


def test_links_instead_of_copies(tmp_path):
    source, out = tmp_path / 'source', tmp_path / 'out'
    frames(source)
    run_frames(out, source, '--link', '--steps', '2', '-1')
    for pairs in lists(out).values():
        for scene, gt, refs in pairs:
            for name in (gt, *refs):
                path = out / 'images' / name
                assert path.is_symlink()
                assert path.resolve() == (source / name).resolve()
            if scene == 'dog' and gt.endswith('01.png'):
                assert refs == ['dog/03.png', 'dog/00.png']
    dataset = ReferencePairDataset(
        ann_file='train.json',
        data_root=str(out),
        data_prefix=dict(gt='images', ref='images'),
        num_refs=None,
    )
    assert len(dataset) == len(lists(out)['train'])


def test_a_frame_that_stands_still_is_no_reference(tmp_path, capsys):
    """It would hold the very pixels that are asked for."""
    source, out = tmp_path / 'source', tmp_path / 'out'
    for i, seed in enumerate((1, 1, 2, 3)):
        save(source / 'a' / f'{i}.png', seed)
    for i in range(2):
        save(source / 'b' / f'{i}.png', 10 + i)
    # The same pixels in another file.
    image = cv2.imread(str(source / 'a/1.png'))
    params = [cv2.IMWRITE_PNG_COMPRESSION, 9]
    cv2.imwrite(str(source / 'a/1.png'), image, params)
    assert (source / 'a/0.png').read_bytes() != (
        source / 'a/1.png'
    ).read_bytes()
    run_frames(out, source, '--share', '0.5')
    pairs = [x for part in lists(out).values() for x in part if x[0] == 'a']
    assert [(gt, refs) for _, gt, refs in pairs] == [
        ('a/1.png', ['a/2.png']),
        ('a/2.png', ['a/3.png']),
        ('a/3.png', ['a/2.png']),
    ]
    assert 'left out 1 references equal' in capsys.readouterr().out
    assert not (out / 'images/a/0.png').exists()


def test_one_scene_is_split_by_time(tmp_path):
    source, out = tmp_path / 'walk', tmp_path / 'out'
    for i in range(10):
        save(source / f'{i}.jpg', i)
    run_frames(out, source, '--share', '0.3', '--steps', '1', '3')
    found = lists(out)
    names = {
        split: {x for _, gt, refs in pairs for x in (gt, *refs)}
        for split, pairs in found.items()
    }
    assert names['train'] == {f'walk/{i}.jpg' for i in range(7)}
    assert names['val'] == {f'walk/{i}.jpg' for i in range(7, 10)}
    assert {scene for pairs in found.values() for scene, *_ in pairs} == {
        'walk'
    }


def test_a_folder_of_images_and_folders(tmp_path):
    source, out = tmp_path / 'set', tmp_path / 'out'
    for i in range(3):
        save(source / f'{i}.png', i)
        save(source / f'set/{i}.png', 10 + i)
    run_frames(out, source)
    found = lists(out)
    scenes = {scene for pairs in found.values() for scene, *_ in pairs}
    assert scenes == {'set', 'set_'}
    for i in range(3):
        assert (out / f'images/set_/{i}.png').read_bytes() == (
            source / f'{i}.png'
        ).read_bytes()


def test_all_scenes_may_be_for_tests(tmp_path, capsys):
    for scene in 'ab':
        for i in range(3):
            save(tmp_path / f'set/{scene}/{i}.png', 10 * i + ord(scene))
    out = tmp_path / 'out'
    arguments = ['references', str(out), str(tmp_path / 'set'), '--share', '1']
    prepare_data.main(arguments)
    pairs = read_pairs(str(out / 'val.json'))
    assert {pair['scene'] for pair in pairs} == {'a', 'b'}
    assert len(pairs) == 6
    assert not (out / 'train.json').exists()
    assert 'wrote 0 + 6 pairs' in capsys.readouterr().out
    prepare_data.main(arguments)
    assert 'nothing to do' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (['{out}', '{tmp}/none'], 'none must be a folder of images'),
        (['{out}', '{tmp}/empty'], 'empty has no images, files that end in'),
        (['{out}', '{tmp}/one'], 'leaves no pairs for train: it has 1 images'),
        (['{out}', '{tmp}/broken'], 'png is no image'),
        (['{tmp}/one/out', '{tmp}/one'], 'must not lie in the source'),
        (['{out}', '{tmp}/one', '--steps', '0'], 'other than 0, got [0]'),
        (['{out}', '{tmp}/two', '--share', '1.5'], 'at most 1, got 1.5'),
        (
            ['{out}', '{tmp}/one', '--share', '0'],
            'above 0 and at most 1, got 0.0',
        ),
        (['{out}', '{tmp}/one', '--size', '32', '32'], 'size does not go'),
        (['{out}', '--steps', '1'], 'steps needs SOURCE'),
        (['{out}', '--link'], 'link needs SOURCE'),
        (['{out}', '--num-train', '0'], 'num-train must be at least 1, got 0'),
        (['{out}', '--size', '301', '9'], 'at least 16 16, got 301 9'),
        (['{out}', '--size', '301', '99'], 'at most 300 300, got 301 99'),
    ],
)
def test_bad_options_are_named(options, words, tmp_path, capsys):
    (tmp_path / 'empty').mkdir()
    save(tmp_path / 'one/0.png', 0)
    save(tmp_path / 'two/a/0.png', 0)
    save(tmp_path / 'two/b/0.png', 1)
    for i in range(5):
        (tmp_path / 'broken').mkdir(exist_ok=True)
        (tmp_path / f'broken/{i}.png').write_text('no image')
    out = tmp_path / 'out'
    with pytest.raises(SystemExit) as failure:
        prepare_data.main(
            ['references', *(x.format(out=out, tmp=tmp_path) for x in options)]
        )
    assert failure.value.code == 2
    assert words in capsys.readouterr().err
    assert not (out / 'meta.json').exists()


def cufed(root, train=3, test=2):
    for i in range(train):
        save(root / f'CUFED/input/{i:05d}.png', i)
        save(root / f'CUFED/ref/{i:05d}.png', 50 + i)
    for i in range(test):
        for level in range(6):
            save(root / f'CUFED5/{i:03d}_{level}.png', 100 + 6 * i + level)


def test_a_copy_of_cufed_is_listed(tmp_path, capsys):
    root, out = tmp_path / 'copy', tmp_path / 'lists'
    cufed(root)
    prepare_data.main(['cufed', str(root), str(out)])
    text = capsys.readouterr().out
    assert 'train.json: wrote 3 pairs' in text
    assert 'test.json: wrote 2 pairs' in text
    assert 'train.json has 3 pairs, the set as published 11871' in text
    assert 'test.json has 2 pairs, the set as published 126' in text
    assert read_pairs(str(out / 'train.json')) == [
        dict(
            gt=f'CUFED/input/{i:05d}.png',
            refs=[f'CUFED/ref/{i:05d}.png'],
            scene=f'{i:05d}',
        )
        for i in range(3)
    ]
    assert read_pairs(str(out / 'test.json'))[1] == dict(
        gt='CUFED5/001_0.png',
        refs=[f'CUFED5/001_{k}.png' for k in range(1, 6)],
        scene='001',
    )
    dataset = ReferencePairDataset(
        ann_file=str(out / 'test.json'), data_root=str(root), num_refs=5
    )
    assert len(dataset) == 2
    prepare_data.main(['cufed', str(root), str(out)])
    assert 'nothing to do' in capsys.readouterr().out


@pytest.mark.parametrize(('train', 'test'), [(2, 0), (0, 2)])
def test_either_part_of_cufed_will_do(train, test, tmp_path):
    root, out = tmp_path / 'copy', tmp_path / 'lists'
    cufed(root, train, test)
    prepare_data.main(['cufed', str(root), str(out)])
    assert (out / 'train.json').exists() == bool(train)
    assert (out / 'test.json').exists() == bool(test)


def test_what_is_wrong_with_a_copy_is_named(tmp_path, capsys):
    root, out = tmp_path / 'copy', tmp_path / 'lists'

    def message():
        with pytest.raises(SystemExit) as failure:
            prepare_data.main(['cufed', str(root), str(out)])
        assert failure.value.code == 2
        assert not out.exists()
        return capsys.readouterr().err

    assert 'must be a folder of CUFED' in message()
    root.mkdir()
    assert "neither folders 'input' and 'ref' nor files NNN_0" in message()
    cufed(root)
    (root / 'CUFED5/001_3.png').unlink()
    assert "CUFED5, the first is '001_3'" in message()
    (root / 'CUFED/ref/00001.png').unlink()
    assert '1 references are missing in' in message()
    cufed(root)
    save(root / 'more/input/1.png', 1)
    save(root / 'more/ref/1.png', 2)
    assert 'holds several sets, name one of' in message()
