"""The loss against numpy's least squares and its formula written out."""

import numpy as np
import pytest
import torch
from helpers import leaf
from torch.autograd import gradcheck

from mmplugins.featup import ScaleShiftInvariantLoss
from mmplugins.featup.depth import (
    fit_scale_shift,
    scale_and_shift_invariant_loss,
    to_space,
    valid_depth,
)

SIZES = [(2, 2), (7, 5), (16, 9), (33, 40)]


def maps(batch=2, size=(16, 9), holes=0.3):
    """Predictions (B, H, W) and depths with holes of 0, NaN and infinity."""
    pred = torch.randn(batch, *size, dtype=torch.double)
    depth = torch.rand(batch, *size, dtype=torch.double) * 4 + 1
    blanks = torch.tensor([0, float('nan'), float('inf'), -1.0])
    blank = blanks[torch.randint(4, depth.shape)].double()
    keep = torch.rand(depth.shape) >= holes
    keep[:, 0, :2] = True  # two at least
    return pred, torch.where(keep, depth, blank), keep


def solve(pred, target, keep):
    """Scale and shift of one image by numpy."""
    system = np.stack([pred[keep], np.ones(keep.sum())], 1)
    return np.linalg.lstsq(system, target[keep], rcond=None)[0]


def literal_loss(pred, target, keep, alpha, num_scales):
    """The formula pixel by pixel, for one image of numpy arrays."""
    scale, shift = solve(pred, target, keep)
    error = {
        (y, x): scale * pred[y, x] + shift - target[y, x]
        for y, x in zip(*np.nonzero(keep))
    }
    loss = sum(e**2 for e in error.values()) / (2 * len(error))
    for k in range(num_scales):
        step = 2**k
        level = {
            (y // step, x // step): e
            for (y, x), e in error.items()
            if y % step == 0 and x % step == 0
        }
        differences = 0.0
        for (y, x), e in level.items():
            for neighbour in ((y + 1, x), (y, x + 1)):
                if neighbour in level:
                    differences += abs(level[neighbour] - e)
        if level:
            loss += alpha * differences / len(level)
    return loss


@pytest.mark.parametrize('size', SIZES)
def test_fit_is_that_of_numpy(size):
    pred, depth, keep = maps(batch=3, size=size)
    scale, shift = fit_scale_shift(pred, depth, valid_depth(depth))
    for i in range(3):
        wanted = solve(pred[i].numpy(), depth[i].numpy(), keep[i].numpy())
        got = [scale[i].item(), shift[i].item()]
        np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize(
    ('alpha', 'num_scales'), [(0.5, 4), (0.5, 1), (2.0, 3), (0.0, 4)]
)
def test_loss_is_the_formula(size, alpha, num_scales):
    pred, depth, keep = maps(batch=3, size=size)
    wanted = np.mean(
        [
            literal_loss(
                pred[i].numpy(),
                depth[i].numpy(),
                keep[i].numpy(),
                alpha,
                num_scales,
            )
            for i in range(3)
        ]
    )
    loss = scale_and_shift_invariant_loss(
        pred, depth, alpha=alpha, num_scales=num_scales
    )
    assert loss.item() == pytest.approx(wanted, rel=1e-9)


def test_a_channel_axis_changes_nothing():
    pred, depth, _ = maps()
    assert torch.equal(
        scale_and_shift_invariant_loss(pred[:, None], depth[:, None]),
        scale_and_shift_invariant_loss(pred, depth),
    )
    module = ScaleShiftInvariantLoss()
    assert torch.equal(
        module(pred[:, None], depth[:, None]), module(pred, depth)
    )


@pytest.mark.parametrize(('scale', 'shift'), [(7.0, -3.0), (1e-3, 0.1)])
def test_invariant_to_scale_and_shift_of_the_prediction(scale, shift):
    pred, depth, _ = maps()
    pred, depth = pred.float(), depth.float()
    loss = scale_and_shift_invariant_loss(pred, depth)
    assert loss > 0.1
    # Each image has its own.
    scales = torch.tensor([scale, -2 * scale]).view(2, 1, 1)
    shifts = torch.tensor([shift, shift + 1]).view(2, 1, 1)
    other = scale_and_shift_invariant_loss(scales * pred + shifts, depth)
    assert other.item() == pytest.approx(loss.item(), rel=1e-5)


def test_right_up_to_scale_and_shift_is_zero():
    _, depth, keep = maps()
    disparity = to_space(depth, valid_depth(depth), 'disparity')
    assert torch.equal(disparity[keep], 1 / depth[keep])
    pred = 3 * disparity + 5
    for space, low, high in (('disparity', 0, 1e-12), ('depth', 1e-3, 1)):
        loss = ScaleShiftInvariantLoss(space=space)(pred, depth)
        assert low <= loss.item() <= high


@pytest.mark.parametrize('alpha', [0.0, 0.5])
def test_gradcheck(alpha):
    pred, depth, _ = maps(size=(5, 6))
    module = ScaleShiftInvariantLoss(alpha=alpha)
    assert gradcheck(lambda x: module(x, depth), (leaf(pred),))
    assert gradcheck(
        lambda x: scale_and_shift_invariant_loss(x, depth, alpha=alpha),
        (leaf(pred),),
    )


@pytest.mark.parametrize('normalize', [False, True])
@pytest.mark.parametrize('space', ['disparity', 'depth'])
def test_pixels_without_depth_do_not_count(space, normalize):
    pred, depth, keep = maps()
    module = ScaleShiftInvariantLoss(space=space, normalize=normalize)
    x = leaf(pred)
    loss = module(x, depth)
    (grad,) = torch.autograd.grad(loss, x)
    assert (grad[~keep] == 0).all()
    assert (grad[keep] != 0).all()
    # Not even what is predicted there being infinite.
    wild = leaf(pred.masked_fill(~keep, float('inf')))
    assert torch.equal(module(wild, depth), loss)
    (other,) = torch.autograd.grad(module(wild, depth), wild)
    assert torch.equal(other, grad)


def test_normalized_targets_forget_the_unit():
    """Metres or millimetres, the same loss; as literal without."""
    pred, depth, keep = maps(batch=1)
    metres = ScaleShiftInvariantLoss()(pred, depth)
    millimetres = ScaleShiftInvariantLoss()(pred, 1000 * depth)
    assert millimetres.item() == pytest.approx(metres.item(), rel=1e-9)
    disparity = 1 / depth.where(keep, torch.tensor(1.0).double())
    low, high = disparity[keep].min(), disparity[keep].max()
    wanted = scale_and_shift_invariant_loss(
        pred, (disparity - low) / (high - low), keep
    )
    assert metres.item() == pytest.approx(wanted.item(), rel=1e-9)
    plain = ScaleShiftInvariantLoss(normalize=False)
    wanted = scale_and_shift_invariant_loss(pred, disparity, keep)
    assert plain(pred, depth).item() == pytest.approx(wanted.item(), rel=1e-9)
    assert plain(pred, 1000 * depth) < 0.01 * plain(pred, depth)


def degenerate(kind):
    """One image (1, 6, 5) with nothing to learn from."""
    pred, depth, _ = maps(batch=1, size=(6, 5))
    if kind == 'no depth':
        depth[:] = 0
    elif kind == 'nan':
        depth[:] = float('nan')
    elif kind == 'one pixel':
        depth[:] = 0
        depth[:, 3, 3] = 2.0
    elif kind == 'one depth':
        depth[:] = 2.1
    return pred.float(), depth.float()


@pytest.mark.parametrize('normalize', [False, True])
@pytest.mark.parametrize('kind', ['no depth', 'nan', 'one pixel', 'one depth'])
def test_nothing_to_learn_from_counts_zero(kind, normalize):
    pred, depth = degenerate(kind)
    module = ScaleShiftInvariantLoss(normalize=normalize)
    x = pred.requires_grad_()
    loss = module(x, depth)
    assert loss.item() == pytest.approx(0, abs=1e-10)
    (grad,) = torch.autograd.grad(loss, x)
    assert grad.abs().max() < 1e-5


@pytest.mark.parametrize('kind', ['no depth', 'one pixel'])
def test_images_without_depth_do_not_dilute_the_mean(kind):
    pred, depth, _ = maps(batch=1, size=(6, 5))
    empty, blank = degenerate(kind)
    loss = scale_and_shift_invariant_loss(pred, depth)
    both = scale_and_shift_invariant_loss(
        torch.cat([pred, empty.double()]), torch.cat([depth, blank.double()])
    )
    assert both.item() == pytest.approx(loss.item(), rel=1e-12)


@pytest.mark.parametrize('value', [0.0, 0.1, 1000.1])
def test_a_constant_prediction_fits_by_the_mean(value):
    """Scale 0 and no gradient instead of one of rounding errors."""
    _, depth, keep = maps(batch=1, size=(16, 9))
    x = torch.full((1, 16, 9), value, requires_grad=True)
    depth = depth.float()
    scale, shift = fit_scale_shift(x.detach(), depth, keep)
    assert scale.item() == 0
    assert shift.item() == pytest.approx(depth[keep].mean().item(), rel=1e-6)
    loss = scale_and_shift_invariant_loss(x, depth, alpha=0.0)
    wanted = depth[keep].var(correction=0) / 2
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    (grad,) = torch.autograd.grad(loss, x)
    assert not grad.any()


def test_fit_of_no_pixels():
    pred = torch.randn(2, 3, 4)
    valid = torch.zeros(2, 3, 4, dtype=torch.bool)
    scale, shift = fit_scale_shift(pred, pred, valid)
    assert scale.tolist() == shift.tolist() == [0, 0]


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    pred, depth, _ = maps(size=(32, 32))
    module = ScaleShiftInvariantLoss()
    half = module(pred.to(dtype), depth.float())
    assert half.dtype == torch.float32
    # All that is lost is the rounding of the prediction.
    assert torch.equal(half, module(pred.to(dtype).float(), depth.float()))
    whole = module(pred, depth)
    assert half.item() == pytest.approx(whole.item(), rel=5e-3)


def test_a_step_reduces_the_loss():
    pred, depth, _ = maps()
    x = leaf(pred)
    module = ScaleShiftInvariantLoss()
    optimizer = torch.optim.SGD([x], lr=30.0)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = module(x, depth)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_weight_and_name():
    pred, depth, _ = maps()
    module = ScaleShiftInvariantLoss(loss_weight=3.0, loss_name='loss_depth')
    assert module.loss_name == 'loss_depth'
    loss = ScaleShiftInvariantLoss()(pred, depth)
    assert module(pred, depth).item() == pytest.approx(3 * loss.item())


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(space='log'), r"space of Scale.*\('disparity', .*got 'log'"),
        (dict(alpha=-1.0), 'alpha of Scale.* 0 or more, got -1'),
        (dict(num_scales=0), 'num_scales of Scale.* 1 or more, got 0'),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ScaleShiftInvariantLoss(**arguments)


@pytest.mark.parametrize(
    ('pred', 'target'),
    [((2, 4, 4), (2, 4, 5)), ((2, 3, 4, 4), (2, 3, 4, 4)), ((4, 4), (4, 4))],
)
def test_bad_shapes_are_named(pred, target):
    with pytest.raises(ValueError, match=r'share a shape \(B, H, W\)'):
        scale_and_shift_invariant_loss(torch.ones(pred), torch.ones(target))
