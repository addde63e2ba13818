"""Image, true mask and coarse mask move together; draws are as they say."""

import functools

import cv2
import numpy as np
import pytest
from mmcv.transforms.utils import cache_random_params
from mmengine.registry import TRANSFORMS
from scipy import ndimage, stats

from mmplugins.crm.perturbation import mask_iou
from mmplugins.crm.transforms import (
    PadMasks,
    PerturbMask,
    RandomScaleCrop,
    ResizeMasks,
    SampleQueries,
    SoftenMask,
)


@functools.cache
def smooth_mask(size, seed=0, share=0.5):
    noise = np.random.default_rng(seed).standard_normal(size)
    field = ndimage.gaussian_filter(noise, min(size) / 12)
    return (field > np.quantile(field, 1 - share)).astype(np.uint8)


def together(size=(200, 300), seed=0, ignore=False):
    """Sample whose blue is the true mask, green the coarse one."""
    truth, coarse = (smooth_mask(size, seed + i).copy() for i in (0, 100))
    img = np.stack([truth, coarse, truth * 0], -1) * 255
    if ignore:
        truth[: size[0] // 4] = 255
        img[: size[0] // 4, :, 2] = 255
    return dict(
        img=img,
        img_path='folder/image.jpg',
        img_shape=size,
        ori_shape=size,
        gt_seg_map=truth,
        coarse_seg_map=coarse.astype(np.float32),
        seg_fields=['gt_seg_map', 'coarse_seg_map'],
    )


def assert_together(results, exact=True):
    img = results['img'].astype(float) / 255
    truth, coarse = results['gt_seg_map'], results['coarse_seg_map']
    assert img.shape[:2] == truth.shape == coarse.shape
    assert tuple(results['img_shape']) == truth.shape
    assert (truth.dtype, coarse.dtype) == (np.uint8, np.float32)
    valid = truth != 255
    if exact:
        np.testing.assert_array_equal(img[valid, 0], truth[valid])
        np.testing.assert_array_equal(img[..., 1], coarse)
        return
    # Nearest neighbours differ beside an edge, not away from it.
    difference = np.abs(img[..., 0] - truth)[valid]
    assert (difference > 0.6).mean() < 0.01
    np.testing.assert_allclose(img[..., 1], coarse, atol=0.01)
    assert 0.2 < truth[valid].mean() < 0.8


@pytest.mark.parametrize('direction', ['horizontal', 'vertical', 'diagonal'])
def test_flips_of_mmseg(direction, in_scope):
    pytest.importorskip('mmseg')
    from mmseg.registry import TRANSFORMS as MMSEG

    with in_scope('mmseg'):
        flip = MMSEG.build(
            dict(type='RandomFlip', prob=1.0, direction=direction)
        )
    before = together()
    after = flip(together())
    assert_together(after)
    axes = dict(horizontal=(1,), vertical=(0,), diagonal=(0, 1))[direction]
    for key in ('img', 'gt_seg_map', 'coarse_seg_map'):
        np.testing.assert_array_equal(after[key], np.flip(before[key], axes))


def test_crops_of_mmseg(in_scope):
    pytest.importorskip('mmseg')
    from mmseg.registry import TRANSFORMS as MMSEG

    with in_scope('mmseg'):
        crop = MMSEG.build(dict(type='RandomCrop', crop_size=(64, 90)))
    np.random.seed(0)
    seen = set()
    for _ in range(5):
        after = crop(together())
        assert_together(after)
        assert after['img'].shape == (64, 90, 3)
        seen.add(after['img'].tobytes())
    assert len(seen) > 1


@pytest.mark.parametrize('padding_mode', ['constant', 'reflect'])
@pytest.mark.parametrize('size', [(200, 300), (300, 200), (50, 300), (5, 7)])
def test_scale_crops_move_together(size, padding_mode):
    np.random.seed(0)
    transform = RandomScaleCrop(64, padding_mode=padding_mode)
    for seed in range(10):
        results = transform(together(size, seed, ignore=True))
        side = results['img'].shape[0]
        assert side == results['img'].shape[1]
        assert 64 <= side <= max(min(size), 64)
        valid = results['gt_seg_map'] != 255
        img = results['img'] / 255
        np.testing.assert_array_equal(
            img[valid, 0], results['gt_seg_map'][valid]
        )
        assert results['img_shape'] == (side, side)
        coarse = results['coarse_seg_map']
        np.testing.assert_array_equal(img[valid, 1], coarse[valid])
        if padding_mode == 'constant':
            assert_together(results)


def test_padding_is_ignored_and_background():
    np.random.seed(0)
    results = together((40, 100))
    results['img'][:] = 9
    results['gt_seg_map'][:] = 1
    results['coarse_seg_map'][:] = 1
    for mode in ('constant', 'reflect'):
        given = {k: v for k, v in results.items()}
        after = RandomScaleCrop(64, padding_mode=mode)(given)
        rows = after['gt_seg_map'] == 255
        assert rows.all(1).tolist() == [True] * 12 + [False] * 40 + [True] * 12
        assert (after['coarse_seg_map'] == ~rows).all()
        assert (after['img'][rows] == (0 if mode == 'constant' else 9)).all()
        assert (after['gt_seg_map'][~rows] == 1).all()


def sides(size, count=400, **kwargs):
    np.random.seed(0)
    transform = RandomScaleCrop(**kwargs)
    img = np.zeros((*size, 3), np.uint8)
    return [
        transform(dict(img=img.copy()))['img'].shape[0] for _ in range(count)
    ]


def test_scales_are_log_uniform():
    found = sides((2000, 2100), input_size=32, scales=(1 / 32, 1.0))
    assert 32 <= min(found) <= max(found) <= 1024
    scales = 32 / np.array(found)
    wanted = stats.loguniform(1 / 32, 1.0)
    assert stats.kstest(scales, wanted.cdf).pvalue > 0.01


@pytest.mark.parametrize(
    ('size', 'scales', 'overhang', 'low', 'high'),
    [
        ((120, 200), (0.125, 1.0), 0.0, 32, 120),
        ((120, 200), (0.125, 0.5), 0.0, 64, 120),
        ((120, 200), (0.125, 1.0), 0.25, 32, 160),
        ((600, 700), (0.125, 1.0), 0.0, 32, 256),
        ((600, 700), (1.0, 1.0), 0.0, 32, 32),
        ((50, 60), (0.125, 0.5), 0.0, 64, 64),
    ],
)
def test_squares_are_what_the_image_offers(size, scales, overhang, low, high):
    found = sides(size, 200, input_size=32, scales=scales, overhang=overhang)
    assert low <= min(found) <= low + 3
    assert high - 3 - 0.1 * (high - low) <= max(found) <= high


def has_edge(mask):
    return 0 < (mask == 1).mean() < 1


@pytest.mark.parametrize('prob', [0.0, 0.5, 1.0])
@pytest.mark.parametrize('kind', ['crop', 'queries'])
def test_windows_are_drawn_about_the_boundary(kind, prob):
    """A small disk in a large image is met as often as asked for."""
    truth = np.zeros((512, 512), np.uint8)
    cv2.circle(truth, (400, 90), 30, 1, -1)
    np.random.seed(0)
    if kind == 'crop':
        transform = RandomScaleCrop(32, scales=(1.0, 1.0), boundary=prob)
    else:
        transform = SampleQueries(32, 32, boundary=prob)
    hits, chance = [], []
    for _ in range(200):
        results = dict(img=np.zeros((512, 512, 3), np.uint8), gt_seg_map=truth)
        window = transform(results)['gt_seg_map']
        assert window.shape == (32, 32)
        hits.append(has_edge(window))
    corners = np.random.randint(0, 481, (2000, 2))
    chance = np.mean(
        [has_edge(truth[y : y + 32, x : x + 32]) for y, x in corners]
    )
    # An edge pixel of the background may be the only one in the window.
    wanted = prob + (1 - prob) * chance
    assert np.mean(hits) == pytest.approx(wanted, abs=0.1)
    assert chance < 0.1


def test_the_boundary_lies_anywhere_in_the_window():
    truth = np.zeros((400, 400), np.uint8)
    truth[:, 200:] = 1
    np.random.seed(0)
    columns = []
    for _ in range(300):
        results = dict(img=np.zeros((400, 400, 3), np.uint8), gt_seg_map=truth)
        transform = RandomScaleCrop(50, scales=(1.0, 1.0), boundary=1.0)
        columns.append(transform(results)['gt_seg_map'][0].argmax())
    assert min(columns) <= 2
    assert max(columns) >= 48
    assert 22 < np.mean(columns) < 28


@pytest.mark.parametrize('size', [(300, 300), (200, 200), (64, 64)])
def test_queries_are_the_window_of_the_truth(size):
    np.random.seed(0)
    for seed in range(10):
        given = together(size, seed)
        truth, img = given['gt_seg_map'].copy(), given['img'].copy()
        masked = given['coarse_seg_map'].copy()
        results = SampleQueries(64, 48)(given)
        top, left, height, width = results['query_window']
        assert (height, width) == (48, 48)
        assert 0 <= top <= size[0] - 48
        assert 0 <= left <= size[1] - 48
        window = truth[top : top + 48, left : left + 48]
        np.testing.assert_array_equal(results['gt_seg_map'], window)
        window = masked[top : top + 48, left : left + 48]
        np.testing.assert_array_equal(results['coarse_query_map'], window)
        assert results['target_size'] == size
        assert results['img'].shape == (64, 64, 3)
        assert results['img_shape'] == (64, 64)
        # Coarse mask and image are averaged alike.
        coarse = results['coarse_seg_map']
        assert coarse.dtype == np.float32
        np.testing.assert_allclose(
            results['img'][..., 1] / 255, coarse, atol=0.5 / 255 + 1e-6
        )
        np.testing.assert_allclose(
            coarse.mean(), img[..., 1].mean() / 255, atol=1e-5
        )
        if size == (64, 64):
            np.testing.assert_array_equal(results['img'], img)


def test_shrinking_averages_the_pixels_of_a_cell():
    rng = np.random.default_rng(0)
    given = together((64, 64))
    given['img'] = rng.integers(0, 256, (64, 64, 3), np.uint8)
    given['coarse_seg_map'] = rng.random((64, 64), np.float32)
    cells = given['coarse_seg_map'].reshape(16, 4, 16, 4).mean((1, 3))
    pixels = given['img'].reshape(16, 4, 16, 4, 3).mean((1, 3))
    results = SampleQueries(16, 64)(given)
    np.testing.assert_allclose(results['coarse_seg_map'], cells, atol=1e-6)
    np.testing.assert_allclose(results['img'], pixels, atol=0.51)


@pytest.mark.parametrize('size', [(100, 100), (250, 400), (640, 250)])
@pytest.mark.parametrize('keep_ratio', [False, True])
def test_resizing_moves_together(size, keep_ratio):
    results = ResizeMasks(
        scale=size[::-1],
        keep_ratio=keep_ratio,
        interpolation='area' if size[0] * size[1] < 60000 else 'bilinear',
    )(together((200, 300)))
    if not keep_ratio:
        assert results['img'].shape[:2] == size
    assert_together(results, exact=False)
    assert set(np.unique(results['gt_seg_map'])) <= {0, 1}
    assert len(np.unique(results['coarse_seg_map'])) > 2  # soft


def test_resizing_by_a_factor_keeps_ignored_pixels():
    results = ResizeMasks(scale_factor=0.5)(together(ignore=True))
    assert results['img'].shape == (100, 150, 3)
    assert (results['gt_seg_map'][:25] == 255).all()
    assert (results['gt_seg_map'][25:] < 2).all()
    del results['coarse_seg_map']
    assert ResizeMasks(scale=50)(results)['gt_seg_map'].shape == (50, 50)


@pytest.mark.parametrize('factor', [0.37, 0.6, 1.7])
def test_resizing_makes_up_no_label(factor):
    results = ResizeMasks(scale_factor=factor)(together(ignore=True))
    assert set(np.unique(results['gt_seg_map'])) == {0, 1, 255}


@pytest.mark.parametrize('mode', ['constant', 'edge', 'reflect'])
def test_padding_moves_together(mode):
    transform = PadMasks(size=(320, 210), padding_mode=mode)
    results = transform(together())
    assert results['img'].shape == (210, 320, 3)
    assert_together(results)
    outside = np.ones((210, 320), bool)
    outside[:200, :300] = False
    if mode == 'constant':
        assert (results['gt_seg_map'][outside] == 255).all()
        assert (results['coarse_seg_map'][outside] == 0).all()
    else:
        assert (results['gt_seg_map'] < 2).all()


def test_padding_of_the_coarse_mask_can_be_chosen():
    pad_val = dict(img=0, seg=7, coarse=0.5)
    results = PadMasks(size_divisor=64, pad_val=pad_val)(together())
    assert results['img'].shape == (256, 320, 3)
    assert (results['coarse_seg_map'][200:] == 0.5).all()
    assert (results['gt_seg_map'][:, 300:] == 7).all()


def perturbed(state=0, results=None, **kwargs):
    np.random.seed(state)
    results = results or together()
    if kwargs.pop('fresh', True):
        results.pop('coarse_seg_map')
        results['seg_fields'] = ['gt_seg_map']
    return PerturbMask(**kwargs)(results)


def test_coarse_masks_are_perturbed_true_ones():
    truth = together()['gt_seg_map']
    found = []
    for seed in range(60):
        results = perturbed(seed)
        coarse = results['coarse_seg_map']
        assert coarse.dtype == np.float32
        assert set(np.unique(coarse)) == {0, 1}
        assert results['seg_fields'] == ['gt_seg_map', 'coarse_seg_map']
        np.testing.assert_array_equal(results['gt_seg_map'], truth)
        found.append(mask_iou(truth, coarse.astype(np.uint8)))
    assert 0.78 <= min(found) < 0.83
    assert 0.97 < max(found) <= 1
    assert np.mean(found) == pytest.approx(0.9, abs=0.03)


def test_one_target_for_all():
    truth = together()['gt_seg_map']
    for seed in range(10):
        coarse = perturbed(seed, iou=0.85)['coarse_seg_map'].astype(np.uint8)
        assert 0.83 <= mask_iou(truth, coarse) <= 0.85


def test_ignored_pixels_are_background():
    results = together(ignore=True)
    wanted = (results['gt_seg_map'] == 1).astype(np.uint8)
    coarse = perturbed(results=results, iou=0.85)['coarse_seg_map']
    assert 0.83 <= mask_iou(wanted, coarse.astype(np.uint8)) <= 0.85
    assert (results['gt_seg_map'][:50] == 255).all()
    assert coarse[:25].mean() < 0.1


def test_the_state_of_numpy_decides():
    first, second = (perturbed(5)['coarse_seg_map'] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert (perturbed(6)['coarse_seg_map'] != first).any()


def test_a_name_decides_if_told():
    """In any run and process, whatever the root is called."""

    def coarse(state, path):
        results = {**together(), 'img_path': path}
        done = perturbed(state, results, seed='name', iou=0.85)
        return done['coarse_seg_map']

    first = coarse(0, 'data/dog/00000.jpg')
    np.testing.assert_array_equal(first, coarse(1, 'data/dog/00000.jpg'))
    np.testing.assert_array_equal(first, coarse(2, '/x/y/dog/00000.jpg'))
    np.testing.assert_array_equal(first, coarse(2, 'x\\dog\\00000.jpg'))
    assert (first != coarse(0, 'data/cat/00000.jpg')).any()
    assert (first != coarse(0, 'data/dog/00005.jpg')).any()


def test_probability():
    truth = together()['gt_seg_map'].astype(np.float32)
    same = [
        np.array_equal(
            perturbed(i, iou=0.85, prob=0.3)['coarse_seg_map'], truth
        )
        for i in range(200)
    ]
    assert np.mean(same) == pytest.approx(0.7, abs=0.1)
    # What was loaded stays then.
    loaded = together()['coarse_seg_map']
    kept = [
        np.array_equal(
            perturbed(i, iou=0.85, prob=0.3, fresh=False)['coarse_seg_map'],
            loaded,
        )
        for i in range(200)
    ]
    assert kept == same


def test_draws_are_cached():
    """As in a host's ``TransformBroadcaster``."""
    for transform in (
        PerturbMask(),
        RandomScaleCrop(64),
        SampleQueries(64, 64),
    ):
        with cache_random_params(transform):
            outs = {
                transform(together((200, 200)))['coarse_seg_map'].tobytes()
                + transform(together((200, 200)))['gt_seg_map'].tobytes()
                for _ in range(5)
            }
        assert len(outs) == 1


def test_softening_is_a_gaussian():
    np.random.seed(0)
    soft = SoftenMask(sigma=(3.0, 3.0), prob=1.0, hard=0.0)
    results = soft(together((80, 90)))
    coarse = together((80, 90))['coarse_seg_map']
    wanted = ndimage.gaussian_filter(coarse, 3.0, mode='nearest')
    np.testing.assert_allclose(results['coarse_seg_map'], wanted, atol=0.01)
    assert results['coarse_seg_map'].dtype == np.float32
    given = together((80, 90))
    never = SoftenMask(prob=0.0)(given)['coarse_seg_map']
    np.testing.assert_array_equal(never, coarse)
    hard = SoftenMask(sigma=(3.0, 3.0), prob=1.0, hard=1.0)
    cut = hard(together((80, 90)))['coarse_seg_map']
    assert cut.dtype == np.float32
    sure = np.abs(wanted - 0.5) > 0.01
    np.testing.assert_array_equal(cut[sure], (wanted > 0.5)[sure])


def test_softening_is_log_uniform():
    np.random.seed(0)
    transform = SoftenMask(sigma=(0.5, 8.0), prob=0.25)
    draws = [transform._draw() for _ in range(2000)]
    chosen, sigmas, hard = zip(*draws)
    assert 0.22 < np.mean(chosen) < 0.28
    assert 0.46 < np.mean(hard) < 0.54
    assert abs(np.corrcoef(chosen, hard)[0, 1]) < 0.1
    logs = np.log(sigmas)
    low, high = np.log(0.5), np.log(8)
    share = stats.kstest(logs, stats.uniform(low, high - low).cdf)
    assert share.pvalue > 0.01


def test_registered():
    for name in (
        *('LoadMasks', 'PackRefineInputs', 'PerturbMask', 'PadMasks'),
        *('RandomScaleCrop', 'SampleQueries', 'SoftenMask'),
    ):
        arguments = dict(size=(9, 9)) if name == 'PadMasks' else {}
        transform = TRANSFORMS.build(
            dict(type=f'mmplugins.{name}', **arguments)
        )
        assert repr(transform).startswith(f'{name}(')


@pytest.mark.parametrize(
    ('build', 'message'),
    [
        (lambda: PerturbMask(iou=(0.9, 0.8)), r'iou of .* got \(0.9, 0.8\)'),
        (lambda: PerturbMask(prob=2), r'prob of .* \[0, 1\], got 2'),
        (lambda: SoftenMask(prob=-1), r'prob of SoftenMask .* got -1'),
        (lambda: SoftenMask(hard=2), r'hard of SoftenMask .* got 2'),
        (lambda: SoftenMask(sigma=(0, 1)), r'sigma of .* got \(0, 1\)'),
        (lambda: PerturbMask(seed=3), "seed of .* 'name' or None, got 3"),
        (lambda: PerturbMask(kernel=(5, 3)), r'kernel of .* got \(5, 3\)'),
        (lambda: RandomScaleCrop(scales=(0.5, 2)), r'scales of .* 2\)'),
        (lambda: RandomScaleCrop(scales=(0, 1)), r'scales of .* \(0, 1\)'),
        (lambda: RandomScaleCrop(boundary=-1), 'boundary of .* got -1'),
        (lambda: RandomScaleCrop(overhang=1), 'overhang of .* got 1'),
        (lambda: RandomScaleCrop(padding_mode='x'), "padding_mode .* 'x'"),
        (lambda: SampleQueries(boundary=3), 'boundary of .* got 3'),
        (
            lambda: SampleQueries(64, 65)(together((64, 64))),
            'square of 65 pixels or more, got 64 x 64: folder/image.jpg',
        ),
        (
            lambda: SampleQueries(64, 64)(together((64, 70))),
            'square of 64 pixels or more, got 64 x 70',
        ),
    ],
)
def test_bad_arguments_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
