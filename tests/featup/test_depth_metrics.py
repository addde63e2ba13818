"""The metric against numpy, and mmseg's where the two measure the same."""

import numpy as np
import pytest
import torch
from mmengine.registry import METRICS
from mmseg.evaluation import DepthMetric

from mmplugins.featup import AlignedDepthMetric, depth_metrics

KEYS = {'rmse', 'abs_rel', 'd1', 'd2', 'd3'}


def sample(pred, depth):
    """What the evaluator gets of an image: maps (1, H, W)."""
    return dict(
        pred_depth_map=dict(data=torch.as_tensor(pred)[None]),
        gt_depth_map=dict(data=torch.as_tensor(depth)[None]),
        img_path='image.png',
    )


def images(count=3, size=(13, 17)):
    """Depths of 0.5 to 12 with a quarter unknown, and noisy predictions."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        depth = rng.uniform(0.5, 12, size)
        pred = depth * rng.uniform(0.7, 1.4, size)
        blank = rng.choice([0, np.nan, np.inf], size)
        depth = np.where(rng.random(size) < 0.25, blank, depth)
        yield pred.astype(np.float32), depth.astype(np.float32)


def evaluate(metric, pairs):
    for pair in pairs:
        metric.process({}, [sample(*pair)])
    return metric.compute_metrics(metric.results)


def literal(pred, depth, space, low=1e-3, high=10.0, align=True):
    """The metric of an image in numpy."""
    with np.errstate(invalid='ignore'):
        keep = np.isfinite(depth) & (depth > low) & (depth < high)
    p, g = pred[keep].astype(np.float64), depth[keep].astype(np.float64)
    if align:
        target = 1 / g if space == 'disparity' else g
        system = np.stack([p, np.ones_like(p)], 1)
        scale, shift = np.linalg.lstsq(system, target, rcond=None)[0]
        p = scale * p + shift
    if space == 'disparity':
        p = 1 / np.maximum(p, 1e-9)
        p[p < 0] = high
    p = np.clip(p, low, high)
    ratio = np.maximum(p / g, g / p)
    return dict(
        rmse=np.sqrt(np.mean((p - g) ** 2)),
        abs_rel=np.mean(np.abs(p - g) / g),
        d1=np.mean(ratio < 1.25),
        d2=np.mean(ratio < 1.25**2),
        d3=np.mean(ratio < 1.25**3),
    )


@pytest.mark.parametrize('space', ['disparity', 'depth'])
@pytest.mark.parametrize('align', [True, False])
def test_is_the_mean_of_numpys_errors(space, align):
    pairs = list(images())
    if space == 'disparity':
        pairs = [(1 / pred, depth) for pred, depth in pairs]
    if align:
        pairs = [(5 * pred - 2, depth) for pred, depth in pairs]
    got = evaluate(AlignedDepthMetric(space=space, align=align), pairs)
    rows = [literal(*pair, space, align=align) for pair in pairs]
    assert got.keys() == KEYS
    for key in KEYS:
        wanted = np.mean([row[key] for row in rows])
        assert got[key] == pytest.approx(wanted, rel=1e-5), key
    assert 0.2 < got['d1'] < 0.95


def test_is_that_of_mmseg_where_nothing_is_aligned():
    pairs = [
        (np.clip(pred, 0.01, 9.9), depth) for pred, depth in images(count=4)
    ]
    # mmseg's own filter of unknown depth is the range alone.
    host = DepthMetric(min_depth_eval=1e-3, max_depth_eval=10.0)
    wanted = evaluate(host, pairs)
    got = evaluate(AlignedDepthMetric(space='depth', align=False), pairs)
    for key in KEYS:
        assert got[key] == pytest.approx(wanted[key], rel=1e-5), key


def test_the_crop_is_that_of_mmseg():
    rng = np.random.default_rng(1)
    depth = rng.uniform(1, 9, (480, 640)).astype(np.float32)
    pred = depth * rng.uniform(0.7, 1.4, depth.shape).astype(np.float32)
    pred = np.clip(pred, 0.1, 9.9)
    pred[:45], pred[471:], pred[:, :41], pred[:, 601:] = 1, 1, 1, 1
    host = DepthMetric(max_depth_eval=10.0, crop_type='nyu_crop')
    wanted = evaluate(host, [(pred, depth)])
    ours = dict(space='depth', align=False)
    got = evaluate(
        AlignedDepthMetric(**ours, crop=(45, 471, 41, 601)), [(pred, depth)]
    )
    whole = evaluate(AlignedDepthMetric(**ours), [(pred, depth)])
    for key in KEYS:
        assert got[key] == pytest.approx(wanted[key], rel=1e-4), key
    assert whole['rmse'] > 1.2 * got['rmse']


@pytest.mark.parametrize('space', ['disparity', 'depth'])
def test_right_up_to_scale_and_shift_is_perfect(space):
    pairs = []
    for _, depth in images():
        known = np.isfinite(depth) & (depth > 0)
        right = np.where(known, depth, 1)
        right = 1 / right if space == 'disparity' else right
        pairs.append((np.where(known, 7 * right - 30, 5), depth))
    got = evaluate(AlignedDepthMetric(space=space), pairs)
    assert got['rmse'] < 1e-4
    assert got['d1'] == 1


@pytest.mark.parametrize('space', ['disparity', 'depth'])
def test_scale_and_shift_of_each_image_do_not_matter(space):
    pairs = list(images())
    other = [
        (pred * (i + 0.5) - 3 * i, depth)
        for i, (pred, depth) in enumerate(pairs)
    ]
    first = evaluate(AlignedDepthMetric(space=space), pairs)
    second = evaluate(AlignedDepthMetric(space=space), other)
    for key in KEYS:
        assert second[key] == pytest.approx(first[key], rel=1e-4), key


def test_a_constant_prediction_is_the_mean():
    _, depth = next(images())
    pred = np.full_like(depth, 0.1)
    got = evaluate(AlignedDepthMetric(space='depth'), [(pred, depth)])
    g = depth[np.isfinite(depth) & (depth > 0) & (depth < 10)]
    assert got['rmse'] == pytest.approx(g.std(), rel=1e-5)


def test_the_range_limits_predictions():
    """A disparity of 0 or less is far away, not behind the camera."""
    depth = np.array([[1.0, 2.0, 4.0, 8.0]])
    disparity = np.array([[1.0, 0.5, 0.0, -1.0]])
    metric = AlignedDepthMetric(align=False, max_depth=9.0)
    got = evaluate(metric, [(disparity, depth)])
    assert got['rmse'] == pytest.approx(np.sqrt((5**2 + 1**2) / 4))
    assert got['d1'] == pytest.approx(3 / 4)


def test_images_without_depth_are_left_out(monkeypatch):
    pairs = list(images())
    wanted = evaluate(AlignedDepthMetric(), pairs)
    blank = np.zeros((13, 17), np.float32)
    one = blank.copy()
    one[3, 3] = 2.0
    pairs += [(pairs[0][0], blank), (pairs[0][0], one)]
    lines = []
    monkeypatch.setattr(
        depth_metrics, 'print_log', lambda text, **_: lines.append(text)
    )
    got = evaluate(AlignedDepthMetric(), pairs)
    assert got == pytest.approx(wanted)
    assert len(lines) == 1
    assert lines[0].startswith('2 of 5 images have fewer than two pixels')


def test_no_image_with_depth_is_an_error():
    _, depth = next(images())
    metric = AlignedDepthMetric(crop=(0, 5, 0, 5))
    message = r'none of 1 images .*max_depth=10.0 in crop=.*rescale_factor'
    with pytest.raises(ValueError, match=message):
        evaluate(metric, [(depth, 1000 * depth)])


def test_other_sizes_are_named():
    with pytest.raises(ValueError, match=r'\(2, 3\), gt_depth_map \(3, 2\)'):
        evaluate(AlignedDepthMetric(), [(np.ones((2, 3)), np.ones((3, 2)))])


@pytest.mark.parametrize('scope', [None, 'mmseg', 'mmpretrain'])
def test_builds_in_any_scope(in_scope, scope):
    with in_scope(scope):
        cfg = dict(type='mmplugins.AlignedDepthMetric', prefix='depth')
        metric = METRICS.build(cfg)
    for pair in images():
        metric.process({}, [sample(*pair)])
    assert metric.evaluate(3).keys() == {f'depth/{key}' for key in KEYS}


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(space='log'), "space of AlignedDepthMetric .* got 'log'"),
        (
            dict(max_depth=float('inf')),
            'max_depth .* < inf, got 0.001 and inf',
        ),
        (dict(min_depth=0.0), 'min_depth and .* got 0.0 and 10.0'),
        (dict(crop=(5, 4, 0, 9)), r'crop of .* got \(5, 4, 0, 9\)'),
        (dict(crop=(0, 4, 0)), r'crop of .* got \(0, 4, 0\)'),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        AlignedDepthMetric(**arguments)
