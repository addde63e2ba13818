"""The command line: layouts, repetition, and what it refuses."""

import json

import cv2
import numpy as np
import prepare_data
import pytest
from makers import shapes


def read_tree(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in folder.rglob('*')
        if p.is_file()
    }


def run(out, *options):
    sizes = ['--num-train', '3', '--num-val', '2', '--size', '32', '48']
    prepare_data.main(['shapes', str(out), *sizes, *options])


def test_command_writes_the_layout(tmp_path):
    out = tmp_path / 'deep' / 'set'
    run(out, '--seed', '7')
    files = read_tree(out)
    expected = {
        f'{part}/{split}/{index:06d}.png'
        for part in ('images', 'labels')
        for split, num in (('train', 3), ('val', 2))
        for index in range(num)
    }
    assert set(files) == expected | {'meta.json'}
    assert sorted(p.name for p in out.iterdir()) == [
        'images',
        'labels',
        'meta.json',
    ]
    meta = json.loads(files['meta.json'])
    assert meta['classes'] == list(prepare_data.CLASSES)
    assert meta['palette'] == prepare_data.PALETTE
    assert (meta['size'], meta['seed']) == ([32, 48], 7)
    assert meta['counts'] == {'train': 3, 'val': 2}

    scene = shapes.shapes_scene(7, 'val', 1, 48 / 32)
    image, label = shapes.render(scene, 32, 48)
    read = cv2.imread(str(out / 'labels/val/000001.png'), -1)
    np.testing.assert_array_equal(read, label)
    read = cv2.imread(str(out / 'images/val/000001.png'), -1)
    np.testing.assert_array_equal(read[..., ::-1], image)


def test_same_seed_gives_same_bytes_whatever_the_counts(tmp_path):
    run(tmp_path / 'a')
    run(tmp_path / 'b')
    run(tmp_path / 'longer', '--num-train', '5', '--num-val', '4')
    run(tmp_path / 'other', '--seed', '1')
    first = read_tree(tmp_path / 'a')
    assert read_tree(tmp_path / 'b') == first
    longer = read_tree(tmp_path / 'longer')
    pngs = [name for name in first if name.endswith('.png')]
    assert all(longer[name] == first[name] for name in pngs)
    assert len(longer) == len(first) + 8
    other = read_tree(tmp_path / 'other')
    assert all(other[name] != first[name] for name in pngs)


def test_second_call_skips(tmp_path, capsys):
    run(tmp_path)
    assert 'wrote 3 + 2' in capsys.readouterr().out
    mark = tmp_path / 'images/train/000000.png'
    mark.write_bytes(b'untouched')
    run(tmp_path)
    assert 'holds this set already' in capsys.readouterr().out
    assert mark.read_bytes() == b'untouched'


@pytest.mark.parametrize(
    'change',
    [
        ['--seed', '1'],
        ['--num-train', '4'],
        ['--num-val', '3'],
        ['--size', '32', '49'],
    ],
)
def test_different_call_refuses_unless_told(tmp_path, capsys, change):
    run(tmp_path)
    before = read_tree(tmp_path)
    with pytest.raises(SystemExit) as failure:
        run(tmp_path, *change)
    assert failure.value.code == 1
    message = capsys.readouterr().err
    assert message.count('\n') == 1
    assert '--overwrite' in message
    assert str(tmp_path) in message
    assert read_tree(tmp_path) == before

    run(tmp_path, *change, '--overwrite')
    run(tmp_path / 'fresh', *change)
    fresh = read_tree(tmp_path / 'fresh')
    after = read_tree(tmp_path)
    assert fresh.items() <= after.items()
    assert len(after) == 2 * len(fresh)


def test_unknown_files_are_neither_replaced_nor_removed(tmp_path, capsys):
    note = tmp_path / 'notes.txt'
    note.write_text('mine')
    with pytest.raises(SystemExit):
        run(tmp_path)
    assert '--overwrite' in capsys.readouterr().err
    assert read_tree(tmp_path) == {'notes.txt': b'mine'}
    run(tmp_path, '--overwrite')
    assert note.read_text() == 'mine'
    assert (tmp_path / 'meta.json').exists()


def test_cut_off_run_is_not_taken_for_a_set(tmp_path, monkeypatch):
    out = tmp_path / 'set'
    real = shapes.render

    def fail_late(scene, height, width):
        if (out / '.partial/images/val/000000.png').exists():
            raise KeyboardInterrupt
        return real(scene, height, width)

    monkeypatch.setattr(shapes, 'render', fail_late)
    with pytest.raises(KeyboardInterrupt):
        run(out)
    assert [p.name for p in out.iterdir()] == ['.partial']
    monkeypatch.undo()
    run(out)
    run(tmp_path / 'fresh')
    assert read_tree(out) == read_tree(tmp_path / 'fresh')


def test_replacement_cut_off_leaves_no_meta(tmp_path, monkeypatch):
    run(tmp_path)
    real = type(tmp_path).rename

    def fail_at_labels(self, target):
        if self.name == 'labels':
            raise KeyboardInterrupt
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(type(tmp_path), 'rename', fail_at_labels)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, '--seed', '1', '--overwrite')
    assert not (tmp_path / 'meta.json').exists()
    assert (tmp_path / 'images').exists()


def test_set_without_meta_is_not_taken_for_whole(tmp_path, capsys):
    run(tmp_path)
    whole = read_tree(tmp_path)
    for text in (None, '{"cut'):
        (tmp_path / 'meta.json').unlink()
        if text:
            (tmp_path / 'meta.json').write_text(text)
        with pytest.raises(SystemExit):
            run(tmp_path)
        assert '--overwrite' in capsys.readouterr().err
        run(tmp_path, '--overwrite')
        assert read_tree(tmp_path) == whole


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (['--size', '15', '48'], ['size', '16 16', '15 48']),
        (['--size', '48', '0'], ['size', '16 16', '48 0']),
        (['--num-train', '0'], ['num-train', 'at least 1', 'got 0']),
        (['--num-val', '-2'], ['num-val', 'at least 1', 'got -2']),
        (['--seed', '-1'], ['seed', 'at least 0', 'got -1']),
        (['--size', '48'], ['--size', 'expected 2']),
        (['--seed', 'x'], ['--seed', "'x'"]),
    ],
)
def test_bad_option_is_named(tmp_path, capsys, options, words):
    with pytest.raises(SystemExit) as failure:
        run(tmp_path / 'set', *options)
    assert failure.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    for word in words:
        assert word in message
    assert not (tmp_path / 'set').exists()


def test_file_in_place_of_the_folder_is_one_line(tmp_path, capsys):
    path = tmp_path / 'file'
    path.write_text('mine')
    with pytest.raises(SystemExit) as failure:
        run(path)
    assert failure.value.code == 1
    message = capsys.readouterr().err
    assert message.count('\n') == 1
    assert str(path) in message
    assert path.read_text() == 'mine'


def test_unknown_command_is_refused(capsys):
    with pytest.raises(SystemExit):
        prepare_data.main(['circles', 'out'])
    assert "'circles'" in capsys.readouterr().err


def run_depth(out, *options):
    sizes = ['--num-train', '3', '--size', '160', '180']
    prepare_data.main(['depth', str(out), *sizes, *options])


def test_depth_set_is_reproducible_and_guarded(tmp_path, capsys):
    run_depth(tmp_path / 'a')
    run_depth(tmp_path / 'b')
    first = read_tree(tmp_path / 'a')
    assert read_tree(tmp_path / 'b') == first
    assert 'wrote 3 + 6' in capsys.readouterr().out
    run_depth(tmp_path / 'a')
    assert 'holds this set already' in capsys.readouterr().out
    for change in (['--seed', '1'], ['--held-out', 'left']):
        with pytest.raises(SystemExit):
            run_depth(tmp_path / 'a', *change)
        assert 'images, depth and meta.json' in capsys.readouterr().err
        assert read_tree(tmp_path / 'a') == first
    with pytest.raises(SystemExit):
        run(tmp_path / 'a')  # shapes
    run_depth(tmp_path / 'a', '--held-out', 'left', '--overwrite')
    run_depth(tmp_path / 'c', '--held-out', 'left')
    assert read_tree(tmp_path / 'a') == read_tree(tmp_path / 'c') != first


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (['--num-train', '0'], 'num-train must be at least 1, got 0'),
        (['--seed', '-1'], 'seed must be at least 0, got -1'),
        (['--size', '501', '64'], 'at most 500 370, got 501 64'),
        (['--size', '64', '371'], 'at most 500 370, got 64 371'),
        (['--size', '8', '64'], 'at least 16 16, got 8 64'),
        (['--held-out', 'top'], "invalid choice: 'top'"),
    ],
)
def test_bad_depth_option_is_named(tmp_path, capsys, options, words):
    with pytest.raises(SystemExit) as failure:
        run_depth(tmp_path / 'set', *options)
    assert failure.value.code == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / 'set').exists()
