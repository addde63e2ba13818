"""Boundaries and their scores against loops and exact distances."""

import math
import time

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt, gaussian_filter
from skimage.morphology import disk, isotropic_dilation

from mmplugins.ops.boundary import boundary_map, boundary_scores

NAN = float('nan')


def blobs(seed, size, num_classes, width=3):
    """A label map of smooth regions."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((num_classes, *size))
    return torch.from_numpy(
        gaussian_filter(noise, (0, width, width)).argmax(0)
    )


def literal_boundary(labels, valid):
    """Pixel by pixel."""
    height, width = labels.shape
    out = np.zeros((height, width), bool)
    for y in range(height):
        for x in range(width):
            for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if not (0 <= v < height and 0 <= u < width):
                    continue
                if valid[y, x] and valid[v, u]:
                    out[y, x] |= bool(labels[y, x] != labels[v, u])
    return out


def literal_scores(pred, target, num_classes, radius, ignore_index=None):
    """P, R and F of each class from exact distances to the other boundary."""
    pred, target = pred.numpy(), target.numpy()
    valid = target != (-(10**6) if ignore_index is None else ignore_index)
    edges = [literal_boundary(x, valid) for x in (pred, target)]
    rows = []
    for label in range(num_classes):
        ours, theirs = edges[0] & (pred == label), edges[1] & (target == label)
        p = share_near(ours, theirs, radius)
        r = share_near(theirs, ours, radius)
        if not (valid & (target == label)).any():
            f = NAN
        elif math.isnan(p) and math.isnan(r):
            f = float(((pred == label) == (target == label))[valid].all())
        elif math.isnan(p) or math.isnan(r) or p + r == 0:
            f = 0.0
        else:
            f = 2 * p * r / (p + r)
        rows.append((p, r, f))
    return torch.tensor(rows, dtype=torch.double).T


def share_near(ours, theirs, radius):
    if not ours.any():
        return NAN
    if not theirs.any():
        return 0.0
    return (distance_transform_edt(~theirs) <= radius)[ours].mean()


@pytest.mark.parametrize('size', [(1, 1), (1, 5), (2, 2), (7, 1), (13, 18)])
def test_boundary_is_pixel_by_pixel(size):
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(3, size, generator=generator)
        valid = torch.rand(size, generator=generator) < 0.8
        every = np.ones(size, bool)
        out = boundary_map(labels)
        np.testing.assert_array_equal(out, literal_boundary(labels, every))
        out = boundary_map(labels, valid)
        wanted = literal_boundary(labels, valid.numpy())
        np.testing.assert_array_equal(out, wanted)


def test_boundaries_of_a_batch_are_those_of_its_maps():
    labels = torch.randint(2, (2, 3, 6, 7))
    out = boundary_map(labels)
    for i in range(2):
        for j in range(3):
            assert torch.equal(out[i, j], boundary_map(labels[i, j]))


@pytest.mark.parametrize('radius', [0, 1, 1.5, 2, 4.5, 9.2, 100])
@pytest.mark.parametrize('ignore_index', [None, 2, 255])
def test_scores_are_those_of_exact_distances(radius, ignore_index):
    for seed in range(3):
        pred, target = blobs(seed, (34, 41), 5), blobs(seed + 9, (34, 41), 4)
        target[5:12, 20:] = 255  # no class of ours either way
        scores = boundary_scores(pred, target, 5, radius, ignore_index)
        wanted = literal_scores(pred, target, 5, radius, ignore_index)
        torch.testing.assert_close(
            torch.stack(scores), wanted, rtol=1e-12, atol=0, equal_nan=True
        )
        assert scores.f_score[4].isnan()
        if ignore_index == 2:
            assert scores.f_score[2].isnan()


def test_f_of_davis_with_our_boundary():
    """Dilation by a disc, as in Perazzi et al., CVPR 2016."""
    pred, target = blobs(0, (60, 80), 2) > 0, blobs(1, (60, 80), 2) > 0
    radius = math.ceil(0.008 * math.hypot(60, 80))
    ours, theirs = (
        (boundary_map(x) & x).numpy().astype(bool) for x in (pred, target)
    )
    p = (ours & isotropic_dilation(theirs, radius)).sum() / ours.sum()
    r = (theirs & isotropic_dilation(ours, radius)).sum() / theirs.sum()
    assert disk(radius).shape == (3, 3)
    scores = boundary_scores(pred, target, 2, radius)
    assert scores.precision[1] == pytest.approx(p)
    assert scores.recall[1] == pytest.approx(r)
    assert scores.f_score[1] == pytest.approx(2 * p * r / (p + r))


def square(top, left, side=12, size=(40, 50)):
    labels = torch.zeros(size, dtype=torch.long)
    labels[top : top + side, left : left + side] = 1
    return labels


@pytest.mark.parametrize('radius', [0, 3])
def test_the_same_map_is_perfect(radius):
    target = blobs(3, (30, 40), 4)
    scores = boundary_scores(target, target, 4, radius)
    for values in scores:
        torch.testing.assert_close(values, torch.ones(4, dtype=torch.double))


def test_a_shift_up_to_the_radius_is_forgiven_and_more_is_not():
    target = square(10, 10)
    for shift, wanted in ((0, 1), (3, 1), (30, 0)):
        pred = square(10, 10 + shift)
        out = boundary_scores(pred, target, 2, 3).f_score
        torch.testing.assert_close(out, torch.full((2,), wanted).double())
    # Of two strips' straight boundaries, 4 pixels apart, none matches.
    target = torch.arange(40).expand(10, -1) // 20
    pred = target.roll(4, 1)
    pred[:, :4] = 0
    assert (boundary_scores(pred, target, 2, 3.99).f_score == 0).all()
    assert (boundary_scores(pred, target, 2, 4).f_score == 1).all()


def test_distance_is_euclidean():
    target, pred = square(10, 10, 1), square(13, 14, 1)
    assert boundary_scores(pred, target, 2, 5).f_score[1] == 1
    assert boundary_scores(pred, target, 2, 4.99).f_score[1] == 0


def test_nothing_predicted():
    scores = boundary_scores(torch.zeros(40, 50), square(10, 10), 2, 3)
    assert scores.precision.isnan().all()
    assert scores.recall.tolist() == [0, 0]
    assert scores.f_score.tolist() == [0, 0]


def test_nothing_there():
    """Only the background has a score, and its boundary is a wrong one."""
    scores = boundary_scores(square(10, 10), torch.zeros(40, 50), 3, 3)
    assert scores.f_score[0] == 0
    assert scores.f_score[1:].isnan().all()


def test_a_class_that_fills_the_map():
    full = torch.ones(8, 9)
    assert boundary_scores(full, full, 2, 3).f_score[1] == 1
    assert boundary_scores(0 * full, full, 2, 3).f_score[1] == 0
    assert boundary_scores(square(2, 2, 3, (8, 9)), full, 2, 3).f_score[1] == 0
    # Two halves that nothing known connects, one of them of the class.
    half = full.clone()
    half[:, 4], half[:, 5:] = 7, 0
    assert (boundary_scores(half, half, 2, 3, 7).f_score == 1).all()
    assert (boundary_scores(full, half, 2, 3, 7).f_score == 0).all()


def test_ignored_pixels_neither_count_nor_match():
    target, pred = square(10, 10), square(10, 10)
    perfect = torch.ones(2, dtype=torch.double)
    pred[25:35, 30:] = 1  # nobody knows what is there
    target[25:35, 30:] = 7
    scores = boundary_scores(pred, target, 2, 3, ignore_index=7)
    torch.testing.assert_close(scores.f_score, perfect)
    assert boundary_scores(pred, target, 2, 3).precision[1] < 0.5
    # What is ignored around the square hides all of its boundary.
    target = square(9, 9, 14) * 7
    target[10:22, 10:22] = 1
    scores = boundary_scores(square(10, 10), target, 2, 3, ignore_index=7)
    assert scores.recall.isnan().all()


@pytest.mark.parametrize('dtype', [torch.bool, torch.uint8, torch.int32])
def test_any_kind_of_label(dtype):
    pred, target = square(10, 11), square(10, 10)
    out = boundary_scores(pred.to(dtype), target.to(dtype), 2, 0)
    wanted = boundary_scores(pred, target, 2, 0)
    for ours, theirs in zip(out, wanted):
        assert torch.equal(ours, theirs)
    assert 0 < out.f_score[1] < 1


def test_arguments_stay_as_they_are():
    pred, target = square(10, 11), square(10, 10)
    boundary_scores(pred, target, 2, 3, ignore_index=0)
    assert torch.equal(pred, square(10, 11))
    assert torch.equal(target, square(10, 10))


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r'one size, got \(4, 5\) and \(5,'):
        boundary_scores(torch.zeros(4, 5), torch.zeros(5, 4), 2, 1)
    with pytest.raises(ValueError, match=r'maps \(H, W\)'):
        boundary_scores(torch.zeros(1, 4, 5), torch.zeros(1, 4, 5), 2, 1)
    with pytest.raises(ValueError, match='radius .* got -1'):
        boundary_scores(torch.zeros(4, 5), torch.zeros(4, 5), 2, -1)


@pytest.mark.parametrize('jitter', [0, 40])
def test_an_image_takes_a_fraction_of_a_second(jitter):
    """480 x 360, 11 classes, also where nothing matches."""
    target = blobs(0, (360, 480), 11, width=12)
    pred = target.roll((jitter, jitter), (0, 1))
    best = math.inf
    for _ in range(3):
        start = time.perf_counter()
        boundary_scores(pred, target, 11, 4.5)
        best = min(best, time.perf_counter() - start)
    assert best < 0.5


@pytest.mark.gpu
def test_a_gpu_agrees():
    pred, target = blobs(0, (90, 120), 5), blobs(1, (90, 120), 5)
    out = boundary_scores(pred.cuda(), target.cuda(), 5, 4.5, 0)
    for ours, theirs in zip(out, boundary_scores(pred, target, 5, 4.5, 0)):
        assert ours.is_cuda
        torch.testing.assert_close(ours.cpu(), theirs, equal_nan=True)
