from statistics import harmonic_mean

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.registry import METRICS
from mmengine.structures import BaseDataElement
from scipy.stats import pearsonr

from mmplugins.featup.metrics import (
    CAMMetric,
    adcc,
    coherency,
    complexity,
    score_drop,
    score_gain,
)

SIZE = (6, 9)


def prediction(scores, masked_scores, cam=None, masked_cam=None):
    return dict(
        pred_score=torch.tensor(scores),
        masked_score=torch.tensor(masked_scores),
        cam=torch.rand(SIZE) if cam is None else cam,
        masked_cam=torch.rand(SIZE) if masked_cam is None else masked_cam,
    )


def figures(*predictions):
    metric = CAMMetric()
    metric.process({}, predictions)
    return metric.evaluate(len(predictions))


def random_predictions(count):
    scores = torch.randn(2, count, 5).mul(2).softmax(-1).tolist()
    return [prediction(*each) for each in zip(*scores)]


def test_figures_are_those_of_the_definitions():
    predictions = random_predictions(20)
    y, o, com, coh = [], [], [], []
    for one in predictions:
        label = int(np.argmax(one['pred_score']))
        y.append(float(one['pred_score'][label]))
        o.append(float(one['masked_score'][label]))
        cam, masked = one['cam'].numpy(), one['masked_cam'].numpy()
        com.append(np.abs(cam).sum() / cam.size)
        coh.append((pearsonr(cam.ravel(), masked.ravel())[0] + 1) / 2)
    y, o, com, coh = map(np.array, (y, o, com, coh))
    assert 0 < (o > y).sum() < 20
    drop = np.maximum(0, y - o) / y
    each = 3 / (1 / coh + 1 / (1 - com) + 1 / (1 - drop))
    means = 3 / (1 / coh.mean() + 1 / (1 - com.mean()) + 1 / (1 - drop.mean()))
    wanted = {
        'cam/average_drop': drop.mean(),
        'cam/average_increase': (o > y).mean(),
        'cam/average_gain': (np.maximum(0, o - y) / (1 - y)).mean(),
        'cam/coherency': coh.mean(),
        'cam/complexity': com.mean(),
        'cam/adcc': each.mean(),
        'cam/adcc_of_means': means,
    }
    got = figures(*predictions)
    assert got.keys() == wanted.keys()
    for key, value in wanted.items():
        assert got[key] == pytest.approx(100 * value, rel=1e-5)
    assert got['cam/adcc_of_means'] > got['cam/adcc']


def test_scores_of_the_predicted_class_count():
    """0.6 to 0.15 of class 1; the masked image's own class is another."""
    got = figures(prediction([0.4, 0.6], [0.85, 0.15]))
    assert got['cam/average_drop'] == pytest.approx(75)
    assert got['cam/average_increase'] == 0
    assert got['cam/average_gain'] == 0
    got = figures(prediction([0.4, 0.6], [0.1, 0.9]))
    assert got['cam/average_drop'] == 0
    assert got['cam/average_increase'] == 100
    assert got['cam/average_gain'] == pytest.approx(75)


def test_a_score_that_stays_is_no_increase():
    got = figures(
        prediction([0.4, 0.6], [0.4, 0.6]), prediction([0.0, 1.0], [0.0, 1.0])
    )
    for name in ('average_drop', 'average_increase', 'average_gain'):
        assert got[f'cam/{name}'] == 0


def test_a_drop_is_not_made_up_for_by_a_gain():
    assert score_drop(0.5, 0.25) == 0.5
    assert score_drop(0.5, 0.75) == 0
    assert score_gain(0.5, 0.75) == 0.5
    assert score_gain(0.5, 0.25) == 0


def test_a_perfect_map():
    """Half of the image, kept as it is, with the same map and score."""
    cam = torch.zeros(4, 4)
    cam[:2] = 1
    got = figures(prediction([0.4, 0.6], [0.4, 0.6], cam, cam))
    assert got['cam/coherency'] == pytest.approx(100)
    assert got['cam/complexity'] == 50
    assert got['cam/adcc'] == pytest.approx(100 * harmonic_mean([1, 0.5, 1]))


def test_coherency_of_the_opposite_and_of_the_constant_is_zero():
    cam = torch.rand(SIZE)
    assert coherency(cam, 1 - cam) == pytest.approx(0, abs=1e-7)
    assert coherency(cam, 0.5 * cam + 0.2) == pytest.approx(1)
    for value in (0.0, 0.3):
        flat = torch.full(SIZE, value)
        assert coherency(cam, flat) == coherency(flat, cam) == 0


def test_complexity_is_the_share_that_is_kept():
    cam = torch.zeros(4, 5)
    cam[1, :3] = 1
    assert complexity(cam) == pytest.approx(3 / 20)


@pytest.mark.parametrize(
    ('drop', 'coherent', 'complex_'),
    [(0.2, 0.9, 0.4), (0, 1, 0), (1, 0.9, 0.4), (0.2, 0, 0.4), (0.2, 0.9, 1)],
)
def test_adcc_is_the_harmonic_mean(drop, coherent, complex_):
    wanted = harmonic_mean([coherent, 1 - complex_, 1 - drop])
    assert adcc(drop, coherent, complex_) == pytest.approx(wanted)


def test_through_an_evaluator():
    """As a runner does: built by name, samples in batches, as elements."""
    predictions = random_predictions(6)
    metric = METRICS.build(dict(type='mmplugins.CAMMetric', prefix='jbu'))
    evaluator = Evaluator(metric)
    for begin in (0, 4):
        batch = predictions[begin : begin + 4]
        evaluator.process([BaseDataElement(**one) for one in batch], {})
    got = evaluator.evaluate(6)
    wanted = figures(*predictions)
    assert got == {k.replace('cam/', 'jbu/'): v for k, v in wanted.items()}


def test_a_prediction_without_a_masked_image_is_refused():
    one = prediction([0.4, 0.6], [0.4, 0.6])
    del one['masked_cam'], one['masked_score']
    with pytest.raises(ValueError, match='masked_score, masked_cam.*masking'):
        figures(one)
