"""Transforms of targets and references, on images that know their place."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmcv.transforms.utils import cache_random_params
from mmengine.registry import TRANSFORMS
from PIL import Image
from scipy import stats

from mmplugins.ssen.transforms import (
    FitReference,
    LoadReference,
    RandomReferenceCrop,
    RandomRot90,
    SelfReference,
    UpsampledReference,
    fit_reference,
    resize_bicubic,
)


def noise(height, width, seed=0, dtype=np.uint8):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3)).astype(dtype)


def places(height, width):
    """Row and column of every pixel, as float32 (H, W, 3)."""
    grid = np.mgrid[:height, :width].astype(np.float32)
    return np.stack([*grid, 0 * grid[0]], -1)


def window_of(image):
    """(top, left, height, width) of a window of `places`."""
    top, left = image[0, 0, :2].astype(int)
    height, width = image.shape[:2]
    wanted = places(top + height, left + width)[top:, left:]
    np.testing.assert_array_equal(image, wanted)
    return int(top), int(left), height, width


@pytest.mark.parametrize('size', [(10, 15), (40, 61), (23, 23), (1, 1)])
def test_bicubic_is_that_of_pillow_and_torch(size):
    image = noise(40, 60)
    wanted = Image.fromarray(image).resize(
        size[::-1], Image.Resampling.BICUBIC
    )
    out = resize_bicubic(image, size)
    np.testing.assert_array_equal(out, np.array(wanted), strict=True)
    exact = resize_bicubic(image.astype(np.float32), size)
    assert exact.dtype == np.float32
    wanted = F.interpolate(
        torch.from_numpy(image).permute(2, 0, 1)[None].double(),
        size,
        mode='bicubic',
        antialias=True,
    )
    wanted = wanted[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(exact, wanted, atol=1e-3)
    assert np.abs(out - wanted.clip(0, 255)).max() <= 1.5


@pytest.mark.parametrize('dtype', [np.uint8, np.float32])
@pytest.mark.parametrize(
    ('padding', 'mode'),
    [('replicate', 'replicate'), ('reflect', 'reflect'), ('zero', 'constant')],
)
def test_a_smaller_reference_is_padded_only(dtype, padding, mode):
    image = noise(20, 30, dtype=dtype)
    out = fit_reference(image, (32, 40), padding=padding)
    chw = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    wanted = F.pad(chw, (0, 10, 0, 12), mode=mode)[0].permute(1, 2, 0)
    np.testing.assert_array_equal(out, wanted.numpy())
    assert out.dtype == dtype
    np.testing.assert_array_equal(fit_reference(image, (20, 30)), image)


@pytest.mark.parametrize(
    ('old', 'new', 'inner'),
    [
        ((80, 60), (40, 40), (40, 30)),
        ((30, 90), (40, 60), (20, 60)),
        ((41, 60), (40, 60), (40, 59)),
        ((50, 1000), (40, 60), (3, 60)),
        ((1, 1000), (40, 60), (1, 60)),
    ],
)
def test_a_larger_reference_keeps_its_aspect_and_loses_nothing(
    old, new, inner
):
    image = noise(*old)
    out = fit_reference(image, new)
    assert out.shape == (*new, 3)
    shrunk = Image.fromarray(image).resize(
        inner[::-1], Image.Resampling.BICUBIC
    )
    np.testing.assert_array_equal(out[: inner[0], : inner[1]], shrunk)
    if inner[0] < new[0]:
        below = out[inner[0] :, : inner[1]]
        assert (below == np.array(shrunk)[-1:]).all()


def test_some_pixels_too_many_may_be_cut():
    image = noise(43, 61)
    cut = image[:40, :60]
    out = fit_reference(image, (40, 60), trim=3)
    np.testing.assert_array_equal(out, cut)
    out = fit_reference(image[:20], (40, 60), trim=3)
    np.testing.assert_array_equal(out[:20], cut[:20])
    # Not where it has to be shrunk anyway.
    for trim in (2, 0):
        out = fit_reference(image, (40, 60), trim=trim)
        wanted = Image.fromarray(image).resize(
            (57, 40), Image.Resampling.BICUBIC
        )
        np.testing.assert_array_equal(out[:, :57], wanted)


def test_resizing_takes_any_aspect():
    image = noise(30, 20)
    out = fit_reference(image, (16, 40), 'resize')
    wanted = Image.fromarray(image).resize((40, 16), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(out, wanted)


def test_references_get_the_size_of_the_target():
    results = dict(gt=noise(32, 48), ref=[noise(20, 20), noise(90, 50, 1)])
    given = [x.copy() for x in results['ref']]
    out = FitReference()(dict(results))['ref']
    for image, old in zip(out, given):
        np.testing.assert_array_equal(image, fit_reference(old, (32, 48)))
    one = FitReference('resize')(dict(gt=results['gt'], ref=given[0]))['ref']
    assert one.shape == (32, 48, 3)
    # Without a target, as in use: of the low-resolution image.
    real = dict(img=noise(8, 12), scale=4, ref=given[0])
    np.testing.assert_array_equal(FitReference()(real)['ref'], out[0])
    sized = FitReference(size=(64, 20), padding='zero')
    assert sized(dict(ref=given[0]))['ref'].shape == (64, 20, 3)
    assert FitReference()(dict(gt=0)) == dict(gt=0)  # no reference


def test_a_turn_is_the_same_for_all_keys():
    image = noise(8, 12)
    turned = [torch.from_numpy(image).rot90(k, (0, 1)) for k in range(4)]
    transform = RandomRot90(keys=('gt', 'img', 'list'))
    seen = []
    np.random.seed(0)
    for _ in range(400):
        results = transform(
            dict(gt=image, img=image[::2, ::2], list=[image, image])
        )
        (turns,) = [
            k
            for k in range(4)
            if np.array_equal(results['gt'], turned[k].numpy())
        ]
        seen.append(turns)
        assert results['gt'].flags.c_contiguous
        small = torch.from_numpy(image[::2, ::2].copy()).rot90(turns, (0, 1))
        np.testing.assert_array_equal(results['img'], small)
        for one in results['list']:
            np.testing.assert_array_equal(one, results['gt'])
    assert stats.chisquare(np.bincount(seen, minlength=4)).pvalue > 0.01


def test_two_turns_of_a_pipeline_are_independent():
    image = places(3, 5)
    turns = [image.tobytes()] + [
        np.rot90(image, k).tobytes() for k in (1, 2, 3)
    ]
    first, second = RandomRot90(('img', 'gt')), RandomRot90('ref')
    np.random.seed(0)
    table = np.zeros((4, 4))
    for _ in range(1600):
        results = second(first(dict(img=image, gt=image, ref=image)))
        table[
            turns.index(results['gt'].tobytes()),
            turns.index(results['ref'].tobytes()),
        ] += 1
    assert stats.chisquare(table.ravel()).pvalue > 0.01


def test_turns_happen_at_times():
    image = places(3, 5)
    transform = RandomRot90('gt', prob=0.4)
    np.random.seed(0)
    same = [
        transform(dict(gt=image))['gt'].tobytes() == image.tobytes()
        for _ in range(600)
    ]
    assert np.mean(same) == pytest.approx(0.6 + 0.4 / 4, abs=0.05)


def test_a_sample_may_go_without_reference():
    assert RandomRot90('ref')(dict(reference='self')) == dict(reference='self')
    with pytest.raises(
        ValueError, match=r"needs 'img', .* of a\.png has none"
    ):
        RandomRot90(('img',))(dict(gt_path='a.png'))


def cropped(full=(60, 80), refs=((60, 80),), low=None, **kwargs):
    results = dict(gt=places(*full), ref=[places(*size) for size in refs])
    if low:
        results['img'] = places(full[0] // low, full[1] // low)
    transform = RandomReferenceCrop(**{'size': 32, **kwargs})
    return transform(results)


def test_windows_lie_where_they_say():
    np.random.seed(0)
    for size in (32, (16, 40)):
        for _ in range(30):
            results = cropped(size=size, refs=[(60, 80), (120, 90), (20, 300)])
            window = window_of(results['gt'])
            assert window == results['gt_window']
            assert window[2:] == ((32, 32) if size == 32 else size)
            for ref, given in zip(results['ref'], results['ref_window']):
                assert window_of(ref) == given
                assert ref.flags.c_contiguous


def test_targets_windows_are_drawn_evenly():
    np.random.seed(0)
    corners = [cropped(full=(35, 36))['gt_window'][:2] for _ in range(1000)]
    counts = np.zeros((4, 5))
    for corner in corners:
        counts[corner] += 1
    assert stats.chisquare(counts.ravel()).pvalue > 0.01


@pytest.mark.parametrize('shift', [0, 5, None])
def test_a_references_window_is_near(shift):
    np.random.seed(0)
    most = 8 if shift is None else shift
    moves = []
    for _ in range(800):
        results = cropped((200, 240), [(200, 240)], shift=shift)
        top, left = results['gt_window'][:2]
        (other,) = results['ref_window']
        move = np.array(other[:2]) - (top, left)
        if most <= top <= 168 - most and most <= left <= 208 - most:
            moves.append(move)
        assert (np.abs(move) <= most).all()
    for axis in range(2):
        drawn = np.array(moves)[:, axis]
        counts = np.bincount(drawn + most, minlength=2 * most + 1)
        assert len(counts) == 2 * most + 1
        if most:
            assert stats.chisquare(counts).pvalue > 0.01
    if most:
        assert abs(np.corrcoef(np.transpose(moves))[0, 1]) < 0.1


def test_references_of_other_sizes_are_cut_at_the_same_share():
    np.random.seed(0)
    for _ in range(50):
        results = cropped(
            (100, 100), [(50, 300), (20, 100)], ref_size=40, shift=0
        )
        top, left = results['gt_window'][:2]
        first, second = results['ref_window']
        assert first[2:] == (40, 40)
        centre = np.clip((left + 16) * 3, 20, 280)
        assert abs(first[1] + 20 - centre) <= 0.5
        centre = np.clip((top + 16) / 2, 20, 30)
        assert abs(first[0] + 20 - centre) <= 0.5
        # Smaller than its window: whole in that direction.
        assert second[0] == 0
        assert second[2:] == (20, 40)


def test_references_may_stay_whole():
    results = cropped(refs=[(60, 80), (10, 10)], reference='whole')
    assert [x.shape[:2] for x in results['ref']] == [(60, 80), (10, 10)]
    assert 'ref_window' not in results
    one = RandomReferenceCrop(32)(dict(gt=places(60, 80)))
    assert set(one) == {'gt', 'gt_window'}
    one = RandomReferenceCrop(32)(dict(gt=places(60, 80), ref=places(60, 80)))
    assert window_of(one['ref']) == one['ref_window']


@pytest.mark.parametrize('scale', [2, 3, 4])
def test_a_low_resolution_image_is_cut_along(scale):
    np.random.seed(0)
    corners = set()
    for _ in range(200):
        results = cropped((48, 60), low=scale, size=24, scale=scale)
        window = window_of(results['gt'])
        wanted = tuple(side // scale for side in window)
        assert window_of(results['img']) == wanted
        assert not any(side % scale for side in window)
        corners.add(window[:2])
    for axis, most in enumerate((24, 36)):
        found = {corner[axis] for corner in corners}
        assert found == {*range(0, most + 1, scale)}


def test_draws_are_cached():
    """As in a host's ``TransformBroadcaster``."""
    for transform in (RandomReferenceCrop(32), RandomRot90(('gt', 'ref'))):
        with cache_random_params(transform):
            outs = [
                transform(dict(gt=places(60, 80), ref=places(60, 80)))
                for _ in range(5)
            ]
        for key in ('gt', 'ref'):
            assert len({out[key].tobytes() for out in outs}) == 1


def test_the_control_is_the_low_resolution_image():
    img = noise(9, 13)
    wanted = Image.fromarray(img).resize((39, 27), Image.Resampling.BICUBIC)
    results = dict(
        img=img,
        scale=3,
        ref=noise(5, 5),
        ref_path='x.png',
        img_channel_order='rgb',
    )
    out = UpsampledReference()(dict(results))
    np.testing.assert_array_equal(out['ref'], wanted)
    assert out['reference'] == 'upsampled'
    assert out['ref_channel_order'] == 'rgb'
    assert 'ref_path' not in out
    out = UpsampledReference(2)(dict(results))
    assert out['ref'].shape == (18, 26, 3)


def test_no_reference_leaves_nothing_of_it():
    results = dict(
        gt=1, img=2, ref=3, ref_path='x', ref_channel_order='bgr',
        ori_ref_shape=(1, 1, 3), reference='paired',
    )  # fmt: skip
    out = SelfReference()(results)
    assert out == dict(gt=1, img=2, reference='self')


@pytest.mark.parametrize('backend', [None, 'pillow', 'cv2'])
@pytest.mark.parametrize('order', ['bgr', 'rgb'])
def test_references_are_read(backend, order, tmp_path):
    paths = []
    for i, mode in enumerate(('RGB', 'L', 'RGBA')):
        paths.append(str(tmp_path / f'{i}.png'))
        Image.fromarray(noise(6, 7 + i, i)).convert(mode).save(paths[-1])
    transform = LoadReference(order, backend)
    results = transform(dict(ref_path=paths, reference='paired'))
    assert [x.shape for x in results['ref']] == results['ori_ref_shape']
    assert results['ref_channel_order'] == order
    for path, image in zip(paths, results['ref']):
        rgb = np.array(Image.open(path).convert('RGB'))
        wanted = rgb if order == 'rgb' else rgb[..., ::-1]
        np.testing.assert_array_equal(image, wanted)
        one = transform(dict(ref_path=path))
        np.testing.assert_array_equal(one['ref'], wanted)
        assert one['ori_ref_shape'] == wanted.shape


def test_a_photograph_is_turned_as_it_says(tmp_path):
    path = str(tmp_path / 'a.jpg')
    image = Image.fromarray(noise(16, 32))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(path, exif=exif)
    shapes = {
        LoadReference(imdecode_backend=x)(dict(ref_path=path))['ref'].shape
        for x in (None, 'pillow', 'cv2')
    }
    assert shapes == {(32, 16, 3)}


def test_one_of_several_references_is_drawn(tmp_path):
    paths = [str(tmp_path / f'{i}.png') for i in range(3)]
    for i, path in enumerate(paths):
        Image.fromarray(noise(4, 4, i)).save(path)
    np.random.seed(0)
    transform = LoadReference('rgb', choice='random')
    counts = np.zeros(3)
    for _ in range(300):
        results = transform(dict(ref_path=[*paths]))
        place = paths.index(results['ref_path'])
        counts[place] += 1
        np.testing.assert_array_equal(results['ref'], noise(4, 4, place))
    assert stats.chisquare(counts).pvalue > 0.01


def test_controls_are_made_where_they_are_read():
    given = dict(reference='self', img=noise(4, 4), scale=4)
    assert 'ref' not in LoadReference()(dict(given))
    given['reference'] = 'upsampled'
    out = LoadReference()(dict(given))['ref']
    np.testing.assert_array_equal(out, resize_bicubic(given['img'], (16, 16)))


@pytest.mark.parametrize(
    ('build', 'message'),
    [
        (lambda: LoadReference('gbr'), "channel_order of .* got 'gbr'"),
        (lambda: LoadReference(choice='x'), "choice of LoadReference .* 'x'"),
        (
            lambda: LoadReference()(dict(gt_path='a.png')),
            r'needs ref_path, the sample of a\.png has none',
        ),
        (
            lambda: LoadReference()(dict(reference='upsampled')),
            "UpsampledReference needs 'img'",
        ),
        (lambda: RandomRot90(prob=2), r'prob of .* \[0, 1\], got 2'),
        (lambda: FitReference('crop'), "mode of FitReference .* got 'crop'"),
        (lambda: FitReference(padding='x'), "padding of .* got 'x'"),
        (lambda: FitReference(size=(0, 4)), r'size of .* got \(0, 4\)'),
        (lambda: FitReference(trim=-1), 'trim of .* got -1'),
        (
            lambda: FitReference()(dict(ref=1, img=noise(4, 4))),
            'FitReference needs scale: .*SetValues',
        ),
        (lambda: UpsampledReference(0), 'scale of .* got 0'),
        (lambda: RandomReferenceCrop(30), r'divisible by scale=4, got \(30'),
        (lambda: RandomReferenceCrop(0), '1 or more, got .0, 0., .0, 0. and'),
        (lambda: RandomReferenceCrop(32, shift=-1), 'shift of .* got -1'),
        (lambda: RandomReferenceCrop(32, 4, 'far'), "reference of .* 'far'"),
        (
            lambda: RandomReferenceCrop(32)(
                dict(gt=noise(31, 40), gt_path='a.png')
            ),
            r'32 x 32 pixels or more, got 31 x 40: a\.png',
        ),
        (
            lambda: RandomReferenceCrop(32)(
                dict(gt=noise(40, 40), img=noise(10, 11), img_path='b.png')
            ),
            r'4 times smaller than gt, got \(10, 11\) and \(40, 40\): b\.png',
        ),
    ],
)
def test_bad_arguments_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize('backend', [None, 'pillow'])
def test_a_file_that_is_no_image_is_named(backend, tmp_path):
    path = tmp_path / 'a.png'
    path.write_text('no image')
    with pytest.raises(ValueError, match=r'reference .*a\.png is no image'):
        LoadReference(imdecode_backend=backend)(dict(ref_path=str(path)))


@pytest.mark.parametrize('scope', [None, 'mmseg', 'mmagic'])
def test_registered(scope, in_scope):
    with in_scope(scope):
        for name in (
            *('FitReference', 'LoadReference', 'RandomReferenceCrop'),
            *('RandomRot90', 'SelfReference', 'UpsampledReference'),
        ):
            transform = TRANSFORMS.build(dict(type=f'mmplugins.{name}'))
            assert repr(transform).startswith(f'{name}(')
