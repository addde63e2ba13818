import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS as ROOT_MODELS
from scipy.ndimage import binary_dilation, sobel, uniform_filter
from torch.autograd import gradcheck

from mmplugins.crm import (
    MaskCrossEntropyLoss,
    MaskGradientLoss,
    MaskL1Loss,
    MaskL2Loss,
)
from mmplugins.crm.losses import (
    mask_cross_entropy_loss,
    mask_gradient_loss,
    mask_l1_loss,
    mask_l2_loss,
    sobel_magnitude,
)

FUNCTIONS = [
    mask_cross_entropy_loss,
    mask_l1_loss,
    mask_l2_loss,
    mask_gradient_loss,
]
MODULES = {
    MaskCrossEntropyLoss: (mask_cross_entropy_loss, 1.0, 'loss_ce'),
    MaskL1Loss: (mask_l1_loss, 0.5, 'loss_l1'),
    MaskL2Loss: (mask_l2_loss, 0.5, 'loss_l2'),
    MaskGradientLoss: (mask_gradient_loss, 2.0, 'loss_grad'),
}


def masks(*shape, dtype=torch.float):
    """Logits of some confidence, a soft target."""
    logits = 3 * torch.randn(*shape, dtype=dtype)
    return logits, torch.rand(*shape, dtype=dtype)


def magnitude(x):
    """Gradient of a map (H, W) by SciPy in double precision."""
    x = uniform_filter(np.asarray(x, float), 3, mode='constant')
    dy, dx = (sobel(x, axis, mode='constant') / 4 for axis in (0, 1))
    return np.sqrt(dx**2 + dy**2 + 1e-4)


def errors(function, logits, target):
    """Error of each pixel by the formulas, (B, H, W)."""
    p = 1 / (1 + np.exp(-logits[:, 0].double().numpy()))
    gt = target[:, 0].double().numpy()
    if function is mask_cross_entropy_loss:
        return -np.where(gt > 0.5, np.log(p), np.log(1 - p))
    if function is mask_l1_loss:
        return abs(p - gt)
    if function is mask_l2_loss:
        return (p - gt) ** 2
    return np.stack([abs(magnitude(a) - magnitude(b)) for a, b in zip(p, gt)])


@pytest.mark.parametrize('function', FUNCTIONS)
@pytest.mark.parametrize('size', [(9, 14), (5, 3), (1, 1)])
def test_losses_are_their_formulas(function, size):
    logits, target = masks(3, 1, *size)
    loss = function(logits, target)
    assert loss.shape == ()
    wanted = errors(function, logits, target).mean()
    assert loss.item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize('function', FUNCTIONS)
def test_the_mean_is_over_the_valid_pixels_of_the_batch(function):
    """Three ignored in one image, more in the other, one at the border."""
    logits, target = masks(2, 1, 16, 13)
    ignored = torch.zeros(2, 1, 16, 13, dtype=torch.bool)
    ignored[0, 0, 7, 5:8] = ignored[1, 0, 0, 0] = True
    ignored[1, 0, 10:, 6:] = True
    target[ignored] = 255
    counted = ~ignored[:, 0].numpy()
    if function is mask_gradient_loss:
        window = np.ones((1, 5, 5), bool)
        counted = ~binary_dilation(~counted, window)
    wanted = errors(function, logits, target)[counted].mean()
    loss = function(logits, target, ~ignored)
    assert loss.item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize('function', FUNCTIONS)
def test_ignored_pixels_have_no_influence(function):
    """Neither on the loss, nor has it a gradient there."""
    logits, target = masks(2, 1, 12, 12, dtype=torch.double)
    valid = torch.ones(2, 1, 12, 12, dtype=torch.bool)
    valid[0, 0, 3:6, 3:6] = False
    wanted = function(logits, target, valid)
    logits[~valid], target[~valid] = 9, 255
    logits.requires_grad_()
    loss = function(logits, target, valid)
    torch.testing.assert_close(loss, wanted)
    loss.backward()
    assert (logits.grad[~valid] == 0).all()
    assert (logits.grad[1] != 0).any()


@pytest.mark.parametrize('function', FUNCTIONS)
def test_all_valid_is_none(function):
    logits, target = masks(2, 1, 8, 9)
    valid = torch.ones_like(target, dtype=torch.bool)
    torch.testing.assert_close(
        function(logits, target, valid), function(logits, target)
    )


@pytest.mark.parametrize('function', FUNCTIONS)
def test_nothing_valid_costs_nothing_and_stays_in_the_graph(function):
    logits, target = masks(1, 1, 8, 9)
    logits.requires_grad_()
    loss = function(logits, target, torch.zeros_like(target).bool())
    loss.backward()
    assert loss == 0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize('function', FUNCTIONS)
def test_a_right_and_certain_mask_costs_nothing(function):
    target = torch.zeros(1, 1, 20, 20)
    target[..., 5:, 3:12] = 1
    logits = 80 * target - 40
    right, wrong = function(logits, target), function(-logits, target)
    assert right.item() == pytest.approx(0, abs=1e-6)
    if function is not mask_gradient_loss:
        assert wrong.item() == pytest.approx(
            40 if function is mask_cross_entropy_loss else 1
        )


def test_the_target_of_the_cross_entropy_is_cut_above_a_half():
    logits = torch.full((1, 1, 1, 4), 2.0)
    target = torch.tensor([0.0, 0.5, 0.500001, 1.0]).view(1, 1, 1, 4)
    positive, negative = math.log1p(math.exp(-2)), math.log1p(math.exp(2))
    assert mask_cross_entropy_loss(logits, target).item() == pytest.approx(
        (positive + negative) / 2
    )


def test_the_gradient_of_a_ramp_is_twice_its_slope():
    ramp = 0.01 * torch.arange(20.0).expand(1, 1, 15, 20)
    for x in (ramp, ramp.mT):
        inner = sobel_magnitude(x)[..., 2:-2, 2:-2]
        wanted = math.sqrt(0.02**2 + 1e-4)
        torch.testing.assert_close(inner, torch.full_like(inner, wanted))
    flat = sobel_magnitude(torch.ones(1, 2, 9, 9))
    assert flat[..., 2:-2, 2:-2].unique().item() == pytest.approx(0.01)
    assert (flat[..., 0, :] > 0.5).all()  # what lies outside is 0


def test_the_gradient_loss_sees_edges_alone():
    """A shifted edge costs, a shifted level hardly."""
    target = torch.zeros(1, 1, 40, 40)
    target[..., 20:] = 1
    blurred = F.avg_pool2d(target, 7, 1, 3, count_include_pad=False)
    softer = target.clamp(0.1, 0.9)
    losses = [
        mask_gradient_loss(p.logit(1e-6), target).item()
        for p in (target, blurred, softer)
    ]
    assert losses[0] < 1e-4
    assert losses[1] > 1.5 * losses[2]
    assert mask_l1_loss(softer.logit(), target) > 1.5 * mask_l1_loss(
        blurred.logit(1e-6), target
    )


@pytest.mark.parametrize('function', FUNCTIONS)
@pytest.mark.parametrize('ignoring', [False, True])
def test_gradients(function, ignoring):
    logits, target = masks(2, 1, 7, 6, dtype=torch.double)
    valid = None
    if ignoring:
        valid = torch.ones_like(target).bool()
        valid[0, 0, 0, :2] = False
    logits.requires_grad_()
    assert gradcheck(lambda x: function(x, target, valid), logits)


@pytest.mark.parametrize('function', FUNCTIONS)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_computes_in_float32(function, dtype):
    logits, target = masks(2, 1, 16, 16)
    logits = logits.to(dtype)
    wanted = function(logits.float(), target)
    with torch.autocast('cpu', dtype):
        loss = function(logits, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize('function', FUNCTIONS)
def test_a_bool_target_is_a_hard_one(function):
    logits, target = masks(1, 1, 6, 7)
    target = target > 0.5
    torch.testing.assert_close(
        function(logits, target), function(logits, target.float())
    )


@pytest.mark.parametrize('cls', MODULES)
def test_modules_weigh_their_functions(cls):
    function, weight, name = MODULES[cls]
    logits, target = masks(2, 1, 8, 8)
    valid = target > 0.1
    loss = cls()
    assert (loss.loss_weight, loss.loss_name) == (weight, name)
    assert not loss.state_dict()
    torch.testing.assert_close(
        loss(logits, target), weight * function(logits, target)
    )
    other = cls(loss_weight=3.0, loss_name='loss_x')
    assert other.loss_name == 'loss_x'
    torch.testing.assert_close(
        other(logits, target, valid), 3 * function(logits, target, valid)
    )


@pytest.mark.parametrize('scope', [None, 'mmseg', 'mmpretrain', 'mmagic'])
def test_they_build_in_any_scope(in_scope, scope):
    with in_scope(scope):
        for cls in MODULES:
            name = f'mmplugins.{cls.__name__}'
            assert type(ROOT_MODELS.build(dict(type=name))) is cls


@pytest.mark.parametrize('function', FUNCTIONS)
def test_bad_arguments_are_named(function):
    logits, target = masks(2, 1, 4, 5)
    with pytest.raises(ValueError, match=r'target .*\(2, 1, 4, 5\), got \(2,'):
        function(logits, target[:, 0])
    with pytest.raises(ValueError, match=r'valid .* got \(1, 1, 4, 5\)'):
        function(logits, target, target[:1] > 0.5)
    with pytest.raises(ValueError, match='valid .*bool, got torch.uint8'):
        function(logits, target, target.byte())


@pytest.mark.gpu
@pytest.mark.parametrize('function', FUNCTIONS)
def test_a_gpu_agrees(function):
    logits, target = masks(2, 1, 16, 16)
    valid = torch.rand_like(target) > 0.05
    wanted = function(logits, target, valid)
    with torch.autocast('cuda', torch.float16):
        loss = function(logits.cuda(), target.cuda(), valid.cuda())
    torch.testing.assert_close(loss.cpu(), wanted)
