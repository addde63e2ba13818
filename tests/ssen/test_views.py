import numpy as np
import pytest
from mmengine.registry import TRANSFORMS
from scipy import ndimage

from mmplugins.ssen import MovedReference
from mmplugins.ssen.views import sample_view


def photo(height=120, width=150):
    """Smooth enough to be read between its pixels."""
    noise = np.random.default_rng(1).random((height, width, 3))
    smooth = ndimage.gaussian_filter(noise, (3, 3, 0))
    smooth = (smooth - smooth.min()) / np.ptp(smooth)
    return np.rint(40 + 170 * smooth).astype(np.uint8)


def sample(**more):
    gt = photo()
    return dict(gt=gt, gt_path='a.png', gt_channel_order='bgr', **more)


def read(image, x, y):
    """Values at points, by cubic splines of another library."""
    return np.stack(
        [
            ndimage.map_coordinates(image[..., c].astype(float), [y, x])
            for c in range(3)
        ],
        -1,
    )


def test_the_matrix_says_where_the_target_is_in_the_view():
    for seed in range(6):
        rng = np.random.default_rng(seed)
        target, view, matrix = sample_view(rng, photo(), (64, 80))
        assert target.shape == view.shape == (64, 80, 3)
        y, x = np.mgrid[:64, :80]
        u, v = np.einsum('ij,jhw->ihw', matrix, [x, y, np.ones_like(x)])
        inside = (u > 1) & (u < 78) & (v > 1) & (v < 62)
        assert inside.mean() > 0.3
        seen = read(view, u[inside], v[inside])
        seen = seen * (target[inside].mean() / seen.mean())  # the light
        moved = np.abs(view.astype(float) - target)[inside].mean()
        assert np.abs(seen - target[inside]).mean() < 3
        assert moved > 1 or np.abs(matrix - np.eye(2, 3)).max() < 1


def test_how_far_views_go():
    turns, zooms, moves = [], [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        args = dict(angle=30.0, zoom=1.5, shift=0.25)
        matrix = sample_view(rng, photo(), (64, 80), **args)[2]
        turns.append(np.degrees(np.arctan2(matrix[1, 0], matrix[0, 0])))
        zooms.append(np.sqrt(np.linalg.det(matrix[:, :2])))
        centre = np.array([39.5, 31.5])
        moves.append(
            (matrix[:, :2] @ centre + matrix[:, 2] - centre) / (80, 64)
        )
    assert 20 < np.max(np.abs(turns)) <= 30
    assert 1 / 1.5 <= np.min(zooms) < 0.8
    assert 1.2 < np.max(zooms) <= 1.5
    assert 0.18 < np.abs(moves).max() <= 0.25
    assert np.median(np.abs(turns)) < 10  # most are easier


def test_a_target_and_its_view():
    np.random.seed(0)
    results = MovedReference(size=(48, 64)).transform(sample())
    assert results['gt'].shape == results['ref'].shape == (48, 64, 3)
    assert results['gt'].flags.c_contiguous
    assert results['ref_channel_order'] == 'bgr'
    assert results['reference'] == 'moved'
    # The target is a window of the photograph.
    windows = np.lib.stride_tricks.sliding_window_view(photo(), (48, 64, 3))
    same = (windows[:, :, 0] == results['gt']).all((2, 3, 4))
    assert same.sum() == 1


def test_draws_differ_and_follow_the_seed():
    transform = TRANSFORMS.build(
        dict(type='mmplugins.MovedReference', size=32)
    )

    def draw(seed):
        np.random.seed(seed)
        return transform(sample())

    first, again, other = draw(0), draw(0), draw(1)
    np.testing.assert_array_equal(first['ref'], again['ref'])
    assert (first['ref'] != other['ref']).any()


def test_a_reference_may_stay():
    np.random.seed(0)
    kept = 0
    for _ in range(40):
        ref = np.zeros((7, 9, 3), np.uint8)
        results = MovedReference(size=32, prob=0.25)(sample(ref=ref))
        if results['ref'] is ref:
            kept += 1
            assert results['gt'].shape == (120, 150, 3)
        else:
            assert results['ref'].shape == results['gt'].shape == (32, 32, 3)
    assert 22 <= kept <= 38  # 30 are expected
    # Without one there is nothing to keep.
    assert 'ref' in MovedReference(size=32, prob=0.0)(sample())


def test_one_line_says_what_is_wrong():
    for args in (dict(size=0), dict(prob=2), dict(zoom=0.5), dict(angle=-1)):
        with pytest.raises(ValueError, match='MovedReference needs'):
            MovedReference(**args)
    with pytest.raises(ValueError, match=r'121 x 121 .*120 x 150: a\.png'):
        MovedReference(size=121)(sample())
