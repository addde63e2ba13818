"""Annotation files, pairs of frames, and splits without a common scene."""

import json

import pytest

from mmplugins.ssen.pairs import (
    frame_pairs,
    read_pairs,
    require_no_leak,
    split_scenes,
    stem,
    unrelated_references,
    write_pairs,
)


def write(path, content):
    path.write_text(
        content if isinstance(content, str) else json.dumps(content)
    )
    return str(path)


def test_lines_as_the_published_list_has_them(tmp_path):
    path = write(
        tmp_path / 'pairs.txt',
        '000_0.png 000_1.png\n\n001_0.png 001_1.png  001_2.png\na/b.jpg\n',
    )
    assert read_pairs(path) == [
        dict(gt='000_0.png', refs=['000_1.png'], scene='000_0'),
        dict(gt='001_0.png', refs=['001_1.png', '001_2.png'], scene='001_0'),
        dict(gt='a/b.jpg', refs=[], scene='a/b'),
    ]


@pytest.mark.parametrize('wrap', [lambda x: x, lambda x: {'data_list': x}])
def test_json(wrap, tmp_path):
    entries = [
        {'gt': 'a b.png', 'refs': ['c.png', 'd.png'], 'scene': 's', 'k': 1},
        {'gt': 'e.png', 'refs': 'f.png'},
    ]
    path = write(tmp_path / 'pairs.json', wrap(entries))
    assert read_pairs(path) == [
        entries[0],
        {'gt': 'e.png', 'refs': ['f.png'], 'scene': 'e'},
    ]


def test_what_is_written_is_read(tmp_path):
    pairs = [
        dict(gt='s/1.png', refs=['s/2.png', 's/3.png'], scene='s', step=[1]),
        dict(gt='t/1.png', refs=['t/2.png'], scene='t'),
    ]
    path = str(tmp_path / 'new' / 'pairs.json')
    write_pairs(path, pairs, split='val')
    assert read_pairs(path) == pairs
    content = json.loads((tmp_path / 'new/pairs.json').read_text())
    assert content == {'metainfo': {'split': 'val'}, 'data_list': pairs}
    with pytest.raises(ValueError, match='s/1.png is the target itself'):
        write_pairs(path, [dict(gt='s/1.png', refs=['s/1.png'])])
    assert read_pairs(path) == pairs


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ([], 'has no pairs'),
        ({'pairs': []}, "one as 'data_list'"),
        ('{"cut', 'is no JSON'),
        ([['a', 'b']], r"pair 1 of .* must be a dict .* got \['a', 'b'\]"),
        ([{'gt': 'a', 'refs': ['b']}, {'refs': ['b']}], "pair 2 .* have 'gt'"),
        ([{'gt': 'a', 'refs': 3}], "a list 'refs', got"),
        ([{'gt': 'a.png', 'refs': ['b', './a.png']}], 'the target itself'),
        ([{'gt': '3/000_0.png', 'refs': ['3/001_0.png']}], 'end in _0'),
    ],
)
def test_what_is_no_list_of_pairs_is_named(content, message, tmp_path):
    path = write(tmp_path / 'pairs.json', content)
    with pytest.raises(ValueError, match=message):
        read_pairs(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r'nothing\.json does not exist'):
        read_pairs(str(tmp_path / 'nothing.json'))


@pytest.mark.parametrize(
    ('gt', 'ref'),
    [
        ('a.png', 'a.png'),
        ('x/../a.png', 'a.png'),
        ('x\\a.png', './x//a.png'),
        ('/data/CUFED5/012_0.png', '/data/CUFED5/011_0.png'),
        ('012_0.png', '013_0.jpg'),
    ],
)
def test_leaks(gt, ref):
    for pair in ((gt, ref), (ref, gt)):
        with pytest.raises(ValueError, match='^reference of'):
            require_no_leak(*pair)


@pytest.mark.parametrize(
    ('gt', 'ref'),
    [
        ('a.png', 'b.png'),
        ('input/a.png', 'ref/a.png'),
        ('012_0.png', '012_1.png'),
        ('012_0.png', '011_5.png'),
        ('frame_10.png', '000_0.png'),  # frames may be called anything
        ('012_1.png', '012_0.png'),
        ('clip_0.png', 'other_0.png'),
    ],
)
def test_no_leaks(gt, ref):
    assert require_no_leak(gt, ref) is None


def test_stems():
    assert stem('a.b/c.d.png') == 'a.b/c.d'
    assert stem('a.b\\c') == 'a.b/c'
    assert stem('x/.hidden') == 'x/.hidden'


def test_frames_have_those_ahead_of_them():
    frames = list('abcde')
    assert frame_pairs(frames) == [
        dict(gt=x, refs=[y]) for x, y in zip('abcde', 'bcded')
    ]
    found = frame_pairs(frames, (2, -1))
    assert [p['refs'] for p in found] == [
        ['c', 'b'],
        ['d', 'a'],
        ['e', 'b'],
        ['b', 'c'],
        ['c', 'd'],
    ]


def test_frames_at_the_ends_have_each_other_once():
    assert frame_pairs(list('ab'), (1, -1)) == [
        dict(gt='a', refs=['b']),
        dict(gt='b', refs=['a']),
    ]
    assert frame_pairs(list('abc'), (2,)) == [
        dict(gt='a', refs=['c']),
        dict(gt='c', refs=['a']),
    ]
    assert frame_pairs(['a']) == frame_pairs([]) == []
    for steps in ((0,), (1, 0), ()):
        with pytest.raises(ValueError, match='steps must be other than 0'):
            frame_pairs(list('ab'), steps)


def test_splits_share_no_scene_and_are_stable():
    scenes = [f'scene{i}' for i in range(100)]
    train, val = split_scenes(scenes, 0.2)
    assert len(val) == 20
    assert sorted(train + val) == sorted(scenes)
    assert split_scenes(reversed(scenes * 2), 0.2) == (train, val)
    assert split_scenes(scenes, 0.2, seed=1)[1] != val
    # More scenes: those held out mostly stay so.
    more = split_scenes([*scenes, 'x', 'y', 'z', 'u', 'v'], 0.2)[1]
    assert len(set(more) & set(val)) >= 18
    for share in (0.001, 0.999):
        parts = split_scenes('ab', share)
        assert [len(part) for part in parts] == [1, 1]


@pytest.mark.parametrize(
    ('scenes', 'share', 'message'),
    [
        ('a', 0.5, r"two scenes at least, got \['a'\]"),
        ('ab', 0, 'between 0 and 1, got 0'),
        ('ab', 1.0, 'between 0 and 1, got 1.0'),
    ],
)
def test_bad_splits(scenes, share, message):
    with pytest.raises(ValueError, match=message):
        split_scenes(scenes, share)


def pairs_of(scenes):
    return [
        dict(gt=f'{i}.png', refs=[f'{i}r.png'], scene=scene)
        for i, scene in enumerate(scenes)
    ]


@pytest.mark.parametrize('scenes', ['abcdefg', 'aaabbb', 'aaaaab', 'ab'])
def test_unrelated_references_are_of_another_scene(scenes):
    pairs = pairs_of(scenes)
    found = unrelated_references(pairs)
    assert found == unrelated_references(pairs)
    for pair, refs in zip(pairs, found):
        (other,) = [p for p in pairs if p['refs'] == refs]
        assert other['scene'] != pair['scene']
    if len(set(scenes)) == len(scenes):  # each of them once
        assert sorted(x for refs in found for x in refs) == sorted(
            p['refs'][0] for p in pairs
        )


def test_unrelated_references_may_not_exist():
    message = "unrelated references of 0.png need another scene than 'a'"
    with pytest.raises(ValueError, match=message):
        unrelated_references(pairs_of('aaa'))
    pairs = pairs_of('ab')
    pairs[1]['refs'] = []
    with pytest.raises(ValueError, match='that has references'):
        unrelated_references(pairs)
