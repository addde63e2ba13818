"""Figures of refinement against loops, OpenCV, SciPy and torchmetrics."""

import math
import time

import cv2
import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.registry import METRICS as ROOT_METRICS
from mmengine.structures import BaseDataElement, PixelData
from scipy.ndimage import gaussian_filter, grey_dilation, grey_erosion
from torchmetrics.functional.classification import (
    binary_jaccard_index,
    multiclass_jaccard_index,
)

from mmplugins.crm import MaskRefinementMetric, boundary_accuracy
from mmplugins.ops.boundary import boundary_scores

NAN = float('nan')


def blobs(seed, size=(60, 80), num_classes=2, width=5):
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((num_classes, *size))
    return gaussian_filter(noise, (0, width, width)).argmax(0).astype('u1')


def published(gt, pred):
    """Boundary accuracy as the evaluation of the paper, by OpenCV."""
    h, w = gt.shape
    shares = []
    for i in range(5):
        r = 1 + int(((w + h) / 300 - 1) / 5 * i)
        kernel = cv2.getStructuringElement(
            cv2.MORPH_ELLIPSE, (2 * r + 1, 2 * r + 1)
        )
        band = cv2.morphologyEx(gt, cv2.MORPH_GRADIENT, kernel) > 0
        shares.append((gt[band] == pred[band]).mean())
    return np.mean(shares)


def literal(gt, pred, radii):
    """The same without OpenCV: its ellipse written out, SciPy's greys."""
    shares = []
    for r in radii:
        span = np.arange(-r, r + 1)
        reach = np.rint(np.sqrt(r * r - span * span))[:, None]
        disc = abs(span) <= reach
        greys = gt.astype(int)
        top = grey_dilation(greys, footprint=disc, mode='nearest')
        low = grey_erosion(greys, footprint=disc, mode='nearest')
        # 'nearest' repeats the border, whose pixels the window has anyway
        # for a mask that keeps away from it.
        band = top > low
        shares.append((gt == pred)[band].mean())
    return np.mean(shares)


@pytest.mark.parametrize(
    'size',
    [(60, 80), (80, 60), (375, 500), (1, 40), (700, 233), (601, 899)],
)
def test_mba_is_the_published_one(size):
    gt = blobs(0, size, width=min(20, max(size) / 10))
    pred = blobs(1, size, width=min(20, max(size) / 10))
    mixed = gt.copy()
    mixed[:, : size[1] // 2] = pred[:, : size[1] // 2]
    for other in (pred, mixed, 1 - gt):
        wanted = published(gt, other)
        assert boundary_accuracy(gt, other) == pytest.approx(wanted, abs=1e-12)
    assert 0 < boundary_accuracy(gt, mixed) < 1
    assert boundary_accuracy(gt, gt) == 1
    assert boundary_accuracy(gt, 1 - gt) == 0


@pytest.mark.parametrize(
    ('size', 'radii'),
    [
        ((40, 50), (1, 1, 1, 1, 1)),
        ((500, 375), (1, 1, 1, 2, 2)),  # of PASCAL's images
        ((300, 1500), (1, 2, 3, 4, 5)),
    ],
)
def test_mba_is_its_formula_written_out(size, radii):
    gt, pred = np.zeros((2, *size), 'u1')
    middle = [slice(n // 4, 3 * n // 4) for n in size]
    gt[tuple(middle)] = blobs(3, size)[tuple(middle)]
    pred[tuple(middle)] = blobs(3, size, width=5.5)[tuple(middle)]
    wanted = literal(gt, pred, radii)
    assert 0.3 < wanted < 0.99
    assert boundary_accuracy(gt, pred) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize(('top', 'left'), [(900, 1200), (0, 3700), (2010, 0)])
def test_mba_of_4k_is_that_of_the_whole_image(top, left):
    """Radii 1 to 16; a small mask, at the border too, is a fast one."""
    gt, pred = np.zeros((2, 2160, 3840), 'u1')
    gt[top : top + 150, left : left + 140] = blobs(0, (150, 140))
    pred[top : top + 150, left : left + 140] = blobs(0, (150, 140), width=6)
    pred[500, 2000] = 1
    times = [time.perf_counter()]
    values = []
    for function in (boundary_accuracy, published):
        values.append(function(gt, pred))
        times.append(time.perf_counter())
    assert values[0] == pytest.approx(values[1], abs=1e-12)
    assert times[1] - times[0] < times[2] - times[1]


def test_mba_takes_any_binary_array():
    gt, pred = blobs(0), blobs(1)
    wanted = boundary_accuracy(gt, pred)
    for kind in (
        lambda x: x.astype(bool),
        lambda x: 255 * x,
        lambda x: x.astype('f4'),
        lambda x: x.tolist(),
        torch.from_numpy,
        lambda x: torch.from_numpy(x).bool(),
        lambda x: np.asfortranarray(x),
        lambda x: np.repeat(x, 2, 1)[:, ::2],
    ):
        assert boundary_accuracy(kind(gt), pred) == wanted
        assert boundary_accuracy(gt, kind(pred)) == wanted


def test_mba_without_a_boundary_is_none():
    empty, full = np.zeros((30, 40), 'u1'), np.ones((30, 40), 'u1')
    for gt in (empty, full):
        for pred in (empty, full, blobs(0, (30, 40))):
            assert math.isnan(boundary_accuracy(gt, pred))
    nothing_known = np.zeros((60, 80), bool)
    assert math.isnan(boundary_accuracy(blobs(0), blobs(1), nothing_known))
    assert boundary_accuracy(blobs(0), np.zeros((60, 80))) < 0.7


def test_mba_leaves_ignored_pixels_out():
    """They are in no band, whatever is there; nor do they make one."""
    gt, pred = blobs(0), blobs(0)
    valid = np.ones((60, 80), bool)
    valid[20:40, 30:50] = False
    pred[~valid] = 1 - gt[~valid]
    assert boundary_accuracy(gt, pred) < 1
    assert boundary_accuracy(gt, pred, valid) == 1


def test_mba_of_a_boundary_that_is_known_in_part():
    """A square in a ring of unknown, all round or open to the right."""
    square = np.zeros((60, 80), 'u1')
    square[20:40, 30:50] = 1
    wrong = square.copy()
    wrong[20:30, 30:50] = 0
    valid = cv2.dilate(square, np.ones((9, 9), 'u1')) == square
    assert math.isnan(boundary_accuracy(square, wrong, valid))
    valid[:, 50:] = True
    # Two columns of twenty pixels; ten are wrong.
    assert boundary_accuracy(square, wrong, valid) == 0.75


def test_a_band_of_the_wide_radii_alone():
    """Foreground and background two pixels apart, unknown between."""
    gt = np.zeros((500, 375), 'u1')
    gt[:, :200] = 1
    valid = np.ones_like(gt, bool)
    valid[:, 200] = False
    pred = gt.copy()
    pred[:250, 199] = 0
    # Radius 1 reaches nothing; 2 reaches one pixel on either side.
    assert boundary_accuracy(gt, pred, valid) == 0.75


def test_bad_masks_are_named():
    with pytest.raises(ValueError, match=r'one size, got \(60, 80\), \(80,'):
        boundary_accuracy(blobs(0), blobs(0).T)
    with pytest.raises(ValueError, match=r'\(H, W\)'):
        boundary_accuracy(blobs(0)[None], blobs(0)[None])
    with pytest.raises(ValueError, match=r'gt of boundary_accuracy .* binary'):
        boundary_accuracy(blobs(0, num_classes=3), blobs(0))
    with pytest.raises(ValueError, match='pred of boundary_accuracy'):
        boundary_accuracy(blobs(0), np.linspace(0, 1, 4800).reshape(60, 80))


def sample(gt, pred, coarse=None, **metainfo):
    """A prediction as the model gives it."""
    out = BaseDataElement(metainfo=metainfo)
    maps = dict(gt_sem_seg=gt, pred_sem_seg=pred, coarse_sem_seg=coarse)
    for key, value in maps.items():
        if value is not None:
            value = torch.as_tensor(value)
            value = value if value.ndim == 3 else value[None]
            out.set_field(PixelData(data=value), key, dtype=PixelData)
    return out


def evaluate(samples, classes=None, **kwargs):
    """Figures as a test loop gets them, two images a batch."""
    evaluator = Evaluator(
        dict(type='mmplugins.MaskRefinementMetric', **kwargs)
    )
    evaluator.dataset_meta = classes and dict(classes=classes)
    for start in range(0, len(samples), 2):
        evaluator.process(samples[start : start + 2])
    return evaluator.evaluate(len(samples))


def triples(count=4, ignore=True, num_classes=2):
    """Truth, refined and coarse maps of images of several sizes."""
    out = []
    for i in range(count):
        size = (60 + 7 * i, 80 - 5 * i)
        gt, other = (blobs(s, size, num_classes) for s in (i, i + 50))
        pred, coarse = gt.copy(), other.copy()
        pred[:, :15] = other[:, :15]
        coarse[: 10 * i] = gt[: 10 * i]
        if ignore:
            gt[30:40, 5:40] = 255
        out.append((gt, pred, coarse))
    return out


def image_iou(gt, pred):
    """IoU of the foreground by torchmetrics."""
    gt, pred = (torch.from_numpy(x).long() for x in (gt, pred))
    return binary_jaccard_index(pred, gt, ignore_index=255).item()


@pytest.mark.parametrize('classes', [None, ('background', 'thing')])
@pytest.mark.parametrize('ignore', [False, True])
def test_figures_of_masks(classes, ignore):
    images = triples(ignore=ignore)
    figures = evaluate([sample(*image) for image in images], classes)
    for key, index in (('refined', 1), ('coarse', 2)):
        pairs = [(image[0], image[index]) for image in images]
        flat = (
            np.concatenate([x.ravel() for x in each]) for each in zip(*pairs)
        )
        wanted = dict(
            IoU=image_iou(*flat),
            image_IoU=np.mean([image_iou(*pair) for pair in pairs]),
            mBA=np.mean(
                [
                    boundary_accuracy(gt == 1, pred, gt != 255)
                    for gt, pred in pairs
                ]
            ),
            BF=np.mean(
                [
                    boundary_scores(
                        torch.from_numpy(pred),
                        torch.from_numpy(gt),
                        2,
                        0.0075 * math.hypot(*gt.shape),
                        255,
                    ).f_score[1]
                    for gt, pred in pairs
                ]
            ),
        )
        for name, value in wanted.items():
            got = figures[f'{key}/{name}']
            assert got == pytest.approx(100 * value, abs=0.006)
            assert 5 < got < 99
    if not ignore:
        mean = np.mean([published(gt, pred) for gt, pred, _ in images])
        assert figures['refined/mBA'] == pytest.approx(100 * mean, abs=0.006)
    names = ('IoU', 'image_IoU', 'mBA', 'BF')
    for name in names:
        gain = figures[f'refined/{name}'] - figures[f'coarse/{name}']
        assert figures[f'gain/{name}'] == pytest.approx(gain, abs=0.011)
    assert figures['worse'] == 0
    assert list(figures) == [
        *(f'{k}/{n}' for k in ('coarse', 'refined', 'gain') for n in names),
        'worse',
    ]


def test_pooled_iou_weighs_by_area_and_the_mean_does_not():
    """A large mask half found, a small one missed: 50 / 110 and 25."""
    gts, preds = torch.zeros(2, 2, 20, 20, dtype=torch.uint8)
    gts[0, :10, :10] = preds[0, :5, :10] = 1
    gts[1, :2, :5] = 1
    figures = evaluate([sample(*pair) for pair in zip(gts, preds)])
    assert figures['refined/IoU'] == 45.45
    assert figures['refined/image_IoU'] == 25


def test_without_a_coarse_mask():
    figures = evaluate([sample(*image[:2]) for image in triples()])
    assert {key.split('/')[0] for key in figures} == {'refined'}


def test_soft_masks_are_cut_above_the_threshold():
    images = triples()
    samples = [
        sample(gt, pred, np.float32(coarse) * 0.2 + 0.4)
        for gt, pred, coarse in images
    ]
    hard = evaluate([sample(*image) for image in images])
    assert evaluate(samples) == hard
    assert (
        evaluate(samples, threshold=0.39)['coarse/IoU'] != hard['coarse/IoU']
    )
    exact = np.full(images[0][0].shape, 0.5, 'f4')
    figures = evaluate([sample(*images[0][:2], exact)])
    assert figures['coarse/IoU'] == 0


def shifted(by):
    """A square of 400 pixels and itself with fewer rows."""
    gt = np.zeros((40, 40), 'u1')
    gt[10:30, 10:30] = 1
    pred = gt.copy()
    pred[10 : 10 + by] = 0
    return gt, pred


def test_worse_is_the_share_of_images_whose_iou_falls():
    """By 5 and 10 points, not at all, and a rise."""
    pairs = [(1, 2), (0, 2), (3, 3), (4, 1)]
    samples = [
        sample(shifted(0)[0], shifted(after)[1], shifted(before)[1])
        for before, after in pairs
    ]
    assert evaluate(samples)['worse'] == 50
    assert evaluate(samples, worse_tolerance=0.07)['worse'] == 25
    assert evaluate(samples, worse_tolerance=0.11)['worse'] == 0


def test_empty_masks_are_sane():
    """Rightly empty is perfect; its boundary has no figure."""
    empty, some = np.zeros((30, 30), 'u1'), blobs(0, (30, 30))
    figures = evaluate([sample(empty, empty, some)])
    assert figures['refined/image_IoU'] == 100
    assert figures['coarse/image_IoU'] == figures['coarse/IoU'] == 0
    for name in ('refined/IoU', 'refined/mBA', 'refined/BF', 'gain/mBA'):
        assert math.isnan(figures[name])
    assert figures['worse'] == 0
    assert evaluate([sample(empty, some, empty)])['worse'] == 100
    # Beside an image with a mask, only what is defined is averaged.
    both = [sample(empty, empty), sample(some, some)]
    assert set(evaluate(both).values()) == {100}


def test_an_image_without_ground_truth_is_left_out():
    unknown, some = np.full((30, 30), 255, 'u1'), blobs(0, (30, 30))
    others = [sample(gt, coarse, pred) for gt, pred, coarse in triples()]
    figures = evaluate([sample(unknown, some, some), *others])
    assert figures['worse'] == 100
    assert figures == evaluate(others)


def test_predictions_on_ignored_pixels_do_not_count():
    images = triples()
    wanted = evaluate([sample(*image) for image in images])
    for gt, pred, coarse in images:
        pred[gt == 255] = 1
        coarse[gt == 255] = 0
    assert evaluate([sample(*image) for image in images]) == wanted


CLASSES = ('road', 'tree', 'pole', 'sign')


def test_figures_of_classes():
    images = triples(num_classes=3)
    for gt, *others in images[:2]:
        for one in (gt, *others):
            one[one == 2] = 0  # poles in the last two alone
    images[1][1][2:6, 60:70] = 3  # a sign that is none
    figures = evaluate([sample(*image) for image in images], CLASSES)
    for key, index in (('refined', 1), ('coarse', 2)):
        pairs = [(image[0], image[index]) for image in images]
        flat = (
            torch.from_numpy(np.concatenate([x.ravel() for x in each])).long()
            for each in zip(*pairs)
        )
        gt, pred = flat
        ious = multiclass_jaccard_index(
            pred, gt, 4, average=None, ignore_index=255
        )
        for name, iou in list(zip(CLASSES, ious.tolist()))[:3]:
            assert figures[f'{key}/IoU.{name}'] == pytest.approx(
                100 * iou, abs=0.006
            )
        seen = ious if key == 'refined' else ious[:3]
        assert figures[f'{key}/mIoU'] == pytest.approx(
            100 * seen.mean().item(), abs=0.006
        )
        accuracies, scores, means = [], [], []
        for gt, pred in pairs:
            f_scores = boundary_scores(
                torch.from_numpy(pred),
                torch.from_numpy(gt),
                4,
                0.0075 * math.hypot(*gt.shape),
                255,
            ).f_score
            there = [c for c in range(4) if (gt == c).any()]
            for c in there:
                accuracies.append(
                    boundary_accuracy(gt == c, pred == c, gt != 255)
                )
            scores.extend(f_scores[there].tolist())
            known = gt != 255
            means.append(
                np.mean(
                    [
                        image_iou(
                            (gt[known] == c).astype('u1'),
                            (pred[known] == c).astype('u1'),
                        )
                        for c in there
                    ]
                )
            )
        assert len(scores) == 10
        for name, values in dict(
            mBA=accuracies, BF=scores, image_IoU=means
        ).items():
            assert figures[f'{key}/{name}'] == pytest.approx(
                100 * np.mean(values), abs=0.006
            )
    assert figures['refined/IoU.sign'] == 0
    assert math.isnan(figures['coarse/IoU.sign'])
    assert 'coarse/IoU' not in figures


def test_probabilities_of_classes_are_their_arg_max():
    images = triples(num_classes=3)
    samples = []
    for gt, pred, coarse in images:
        labels = torch.from_numpy(coarse).long()
        soft = torch.nn.functional.one_hot(labels, 3).permute(2, 0, 1) * 0.4
        samples.append(sample(gt, pred, soft + 0.2))
    wanted = evaluate([sample(*image) for image in images], CLASSES[:3])
    assert evaluate(samples, CLASSES[:3]) == wanted


def test_the_tolerance_is_that_of_the_boundary_f_score():
    gt, pred = shifted(3)
    strict = evaluate([sample(gt, pred)])
    lenient = evaluate([sample(gt, pred)], tolerance=0.06)
    assert strict['refined/BF'] < lenient['refined/BF'] == 100
    assert strict['refined/mBA'] == lenient['refined/mBA']


def test_a_table_of_the_images(monkeypatch):
    logged = []
    monkeypatch.setattr(
        'mmplugins.crm.metrics.print_log',
        lambda text, **_: logged.append(text),
    )
    images = triples(3)
    samples = [
        sample(*image, img_path=f'folder/{i}.jpg')
        for i, image in enumerate(images)
    ]
    quiet = evaluate(samples)
    assert not logged
    assert evaluate(samples, per_image=True) == quiet
    head, *rows = (line.split() for line in logged[0].splitlines()[1:])
    names = ('IoU', 'mBA', 'BF')
    kinds = [f'{k}/{n}' for k in ('coarse', 'refined') for n in names]
    assert head == ['image', *kinds]
    for i, (image, row) in enumerate(zip(images, rows, strict=True)):
        alone = evaluate([sample(*image)])
        assert row == [f'{i}.jpg', *(f'{alone[kind]:.2f}' for kind in kinds)]


@pytest.mark.parametrize('scope', [None, 'mmseg', 'mmpretrain', 'mmagic'])
def test_it_builds_in_any_scope(in_scope, scope):
    cfg = dict(type='mmplugins.MaskRefinementMetric')
    with in_scope(scope):
        assert type(ROOT_METRICS.build(cfg)) is MaskRefinementMetric


def test_a_prefix_and_a_device_are_mmengines():
    metric = MaskRefinementMetric(collect_device='gpu', prefix='val')
    assert (metric.collect_device, metric.prefix) == ('gpu', 'val')
    figures = evaluate([sample(*triples(1)[0])], prefix='val')
    assert 'val/refined/IoU' in figures


@pytest.mark.parametrize('name', ['threshold', 'tolerance', 'worse_tolerance'])
@pytest.mark.parametrize('value', [-0.1, 1, NAN])
def test_a_bad_argument_is_named(name, value):
    with pytest.raises(ValueError, match=f'^{name} of MaskRefinement'):
        MaskRefinementMetric(**{name: value})


def test_bad_samples_are_named():
    gt, pred, coarse = triples(1)[0]
    with pytest.raises(ValueError, match=r'one size, got \(59, 80\) for'):
        evaluate([sample(gt, pred[1:])])
    with pytest.raises(ValueError, match=r'coarse_sem_seg .* got -4 to 4'):
        evaluate([sample(gt, pred, 8 * np.float32(coarse) - 4)])
    with pytest.raises(
        ValueError, match=r'probabilities \(1, H, W\), got \(2'
    ):
        evaluate([sample(gt, pred, np.zeros((2, 60, 80), 'f4'))])
    with pytest.raises(ValueError, match='of all samples or of none'):
        evaluate([sample(gt, pred, coarse), sample(gt, pred)])
