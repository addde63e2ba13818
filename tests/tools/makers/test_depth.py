"""The depth of a photograph against scikit-image's disparity."""

import json

import cv2
import numpy as np
import pytest
from makers import depth as maker
from makers.photographs import photograph
from skimage import data


def test_depth_is_that_of_the_disparity():
    """The camera's constants are those of skimage's text."""
    _, _, disparity = data.stereo_motorcycle()
    depth = maker.stereo_depth()
    assert depth.dtype == np.uint16
    known = np.isfinite(disparity)
    np.testing.assert_array_equal(depth > 0, known)
    wanted = 193.001 * 994.978 / (disparity[known] + 31.086)
    assert np.abs(depth[known] - wanted).max() <= 0.5 + 1e-3
    assert (depth[known].min(), depth.max()) == (2110, 5017)
    text = data.stereo_motorcycle.__doc__
    assert all(x in text for x in ('994.978px', '31.086px', '193.001mm'))


def test_depth_belongs_to_the_left_photograph():
    """Moved by their disparity, its pixels are those of the right one."""
    left, right, _ = data.stereo_motorcycle()
    name = maker.STEREO_PHOTO
    np.testing.assert_array_equal(photograph(name), left)
    depth = maker.stereo_depth().astype(float)
    rows, columns = np.nonzero(depth)
    moved = 193.001 * 994.978 / depth[rows, columns] - 31.086

    def difference(image, offset):
        there = np.rint(columns - offset).astype(int)
        seen = there >= 0
        rest = image[rows[seen], there[seen]].astype(int)
        return np.abs(left[rows[seen], columns[seen]] - rest).mean()

    assert difference(right, moved) < 0.3 * difference(right, moved.mean())


def test_depth_crops_are_the_photographs_and_share_no_pixel(tmp_path):
    maker.write_depth(tmp_path, (160, 180), seed=0, count=3)
    files = {
        p.relative_to(tmp_path).as_posix()
        for p in tmp_path.rglob('*')
        if p.is_file()
    }
    assert files == {'meta.json'} | {
        f'{part}/{split}/motorcycle_{index:03d}.png'
        for part in ('images', 'depth')
        for split, count in (('train', 3), ('val', 6))
        for index in range(count)
    }
    photo = photograph(maker.STEREO_PHOTO)[..., ::-1]
    covered = {}
    for split in ('train', 'val'):
        covered[split] = np.zeros(photo.shape[:2], int)
        for path in sorted((tmp_path / 'images' / split).iterdir()):
            image = cv2.imread(str(path))
            scores = cv2.matchTemplate(
                np.ascontiguousarray(photo), image, cv2.TM_SQDIFF
            )
            top, left = np.unravel_index(scores.argmin(), scores.shape)
            box = np.s_[top : top + 160, left : left + 180]
            np.testing.assert_array_equal(image, photo[box])
            depth = cv2.imread(
                str(tmp_path / 'depth' / split / path.name),
                cv2.IMREAD_UNCHANGED,
            )
            wanted = maker.stereo_depth()[box]
            np.testing.assert_array_equal(depth, wanted, strict=True)
            covered[split][box] += 1
    assert not covered['train'][:, 370:].any()
    assert not covered['val'][:, :371].any()
    assert covered['val'].max() == 1  # tiles
    assert covered['val'].sum() == 6 * 160 * 180
    meta = json.loads((tmp_path / 'meta.json').read_text())
    assert meta['counts'] == {'train': 3, 'val': 6}
    assert (meta['unit'], meta['held_out']) == ('mm', 'right')


@pytest.mark.parametrize('size', [(160, 352), (500, 370), (16, 16), (33, 70)])
@pytest.mark.parametrize('held_out', maker.SIDES)
def test_depth_windows_stay_in_their_half(size, held_out):
    taken = np.zeros((500, 741), bool)
    for split in ('val', 'train'):
        seen = taken.copy()
        right = (split == 'val') == (held_out == 'right')
        half = (371, 741) if right else (0, 370)
        for top, left in maker.depth_windows(
            split, size, count=50, held_out=held_out
        ):
            box = np.s_[top : top + size[0], left : left + size[1]]
            assert half[0] <= left <= left + size[1] <= half[1]
            assert 0 <= top <= top + size[0] <= 500
            assert not taken[box].any()
            seen[box] = True
            if split == 'val':
                taken |= seen
    count = len(maker.depth_windows('val', size))
    assert count == (500 // size[0]) * (370 // size[1])


def test_bad_arguments_of_depth_windows():
    with pytest.raises(ValueError, match=r"split must be one of .*'test'"):
        maker.depth_windows('test', (64, 64))
    with pytest.raises(ValueError, match=r"held-out must be .*'top'"):
        maker.depth_windows('val', (64, 64), held_out='top')
