"""Boundary F-scores of images against a class by class computation."""

import math

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.registry import METRICS as ROOT_METRICS
from mmengine.structures import BaseDataElement, PixelData
from scipy.ndimage import (
    binary_erosion,
    distance_transform_edt,
    gaussian_filter,
)

from mmplugins.featup import BoundaryFScore

CLASSES = ('road', 'tree', 'pole')
NAN = float('nan')


def labels_of(seed, size=(40, 52), num_classes=3):
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((num_classes, *size))
    return torch.from_numpy(gaussian_filter(noise, (0, 4, 4)).argmax(0))


def sample(pred, target):
    """A prediction as mmseg's model gives it."""
    return BaseDataElement(
        pred_sem_seg=PixelData(data=pred[None]),
        gt_sem_seg=PixelData(data=target[None].to(torch.uint8)),
    )


def evaluate(pairs, classes=CLASSES, **kwargs):
    """Figures as a test loop gets them, two images a batch."""
    evaluator = Evaluator(dict(type='mmplugins.BoundaryFScore', **kwargs))
    evaluator.dataset_meta = dict(classes=classes)
    samples = [sample(pred, target) for pred, target in pairs]
    for start in range(0, len(samples), 2):
        evaluator.process(samples[start : start + 2])
    return evaluator.evaluate(len(samples))


def f_of_class(pred, target, radius):
    """F of two masks by erosion and exact distances."""
    cross = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]])
    edges = [
        mask & ~binary_erosion(mask, cross, border_value=1)
        for mask in (pred, target)
    ]
    if not edges[0].any() or not edges[1].any():
        return 0.0
    p = (distance_transform_edt(~edges[1]) <= radius)[edges[0]].mean()
    r = (distance_transform_edt(~edges[0]) <= radius)[edges[1]].mean()
    return 2 * p * r / (p + r) if p + r else 0.0


@pytest.mark.parametrize('tolerance', [0, 0.0075, 0.03])
def test_classes_are_averaged_over_the_images_that_hold_them(tolerance):
    pairs = [(labels_of(i), labels_of(i + 5)) for i in range(3)]
    pairs.append((labels_of(3, (31, 29)), labels_of(8, (31, 29))))
    for _, target in pairs[:2]:
        target[target == 2] = 0  # poles in the last two alone
    figures = evaluate(pairs, tolerance=tolerance)
    means = []
    for index, name in enumerate(CLASSES):
        values = [
            f_of_class(
                (pred == index).numpy(),
                (target == index).numpy(),
                tolerance * math.hypot(*target.shape),
            )
            for pred, target in pairs
            if (target == index).any()
        ]
        assert len(values) == (2 if name == 'pole' else 4)
        means.append(100 * sum(values) / len(values))
        assert figures[f'BF.{name}'] == pytest.approx(means[-1], abs=0.006)
    assert figures['mBF'] == pytest.approx(sum(means) / 3, abs=0.006)
    assert list(figures) == ['mBF', *(f'BF.{name}' for name in CLASSES)]


def test_perfect():
    target = labels_of(0)
    figures = evaluate([(target, target)])
    assert list(figures.values()) == [100.0] * 4


@pytest.mark.parametrize(('shift', 'wanted'), [(4, 100), (5, 0)])
def test_a_shift_within_the_tolerance_is_forgiven(shift, wanted):
    """480 x 360: 0.75 % of the diagonal are 4.5 pixels."""
    columns = torch.arange(480).expand(360, -1)
    target, pred = columns // 240, (columns - shift).clamp(0) // 240
    figures = evaluate([(pred, target)], CLASSES[:2])
    assert list(figures.values()) == [wanted] * 3


def test_a_class_in_no_ground_truth_is_left_out():
    target = labels_of(0, num_classes=2)
    pred = target.clone()
    pred[10:14, 10:14] = 2
    figures = evaluate([(pred, target)])
    assert math.isnan(figures['BF.pole'])
    seen = [figures['BF.road'], figures['BF.tree']]
    assert all(0 < value < 100 for value in seen)
    assert figures['mBF'] == pytest.approx(sum(seen) / 2, abs=0.01)


def test_a_class_never_predicted_scores_nothing():
    target = labels_of(0)
    pred = target.clone()
    pred[target == 2] = 0
    assert evaluate([(pred, target)])['BF.pole'] == 0


@pytest.mark.parametrize('ignore_index', [11, 255])
def test_ignored_pixels_do_not_count(ignore_index):
    target = labels_of(0)
    pred = target.clone()
    pred[20:, 30:] = labels_of(9)[20:, 30:]
    target[20:, 30:] = ignore_index
    kwargs = {} if ignore_index == 255 else dict(ignore_index=ignore_index)
    assert evaluate([(pred, target)], **kwargs)['mBF'] == 100
    assert evaluate([(pred, target)], ignore_index=99)['mBF'] < 100


@pytest.mark.parametrize('scope', [None, 'mmseg', 'mmpretrain', 'mmagic'])
def test_it_builds_in_any_scope(in_scope, scope):
    with in_scope(scope):
        metric = ROOT_METRICS.build(dict(type='mmplugins.BoundaryFScore'))
    assert type(metric) is BoundaryFScore


def test_a_prefix_and_a_device_are_mmengines():
    metric = BoundaryFScore(collect_device='gpu', prefix='val')
    assert (metric.collect_device, metric.prefix) == ('gpu', 'val')
    target = labels_of(0)
    assert 'val/mBF' in evaluate([(target, target)], prefix='val')


@pytest.mark.parametrize('tolerance', [-0.1, 1, NAN])
def test_a_bad_tolerance_is_named(tolerance):
    with pytest.raises(ValueError, match='tolerance of BoundaryFScore'):
        BoundaryFScore(tolerance=tolerance)


def test_maps_of_two_sizes_are_named():
    with pytest.raises(ValueError, match='of one size'):
        evaluate([(labels_of(0, (8, 9)), labels_of(0, (16, 18)))])
