import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from mmplugins.featup import BlurLoss, CRFLoss, TotalVariationLoss
from mmplugins.featup.losses import (
    crf_loss,
    gaussian_view_loss,
    total_variation,
)


def test_likelihood_is_torchs():
    pred, target = torch.randn(2, 6, 3, 4), torch.randn(2, 6, 3, 4)
    scale = torch.rand(2, 1, 3, 4) + 0.1
    wanted = F.gaussian_nll_loss(
        pred, target, (scale**2).expand_as(pred), eps=1e-12
    )
    torch.testing.assert_close(gaussian_view_loss(pred, target, scale), wanted)


def test_likelihood_is_least_where_the_scale_is_the_error():
    """The scale is the deviation, not the variance."""
    target, pred = torch.zeros(1, 4, 1, 1), torch.full((1, 4, 1, 1), 0.7)
    scales = torch.arange(0.1, 2.0, 0.1)
    losses = [
        gaussian_view_loss(pred, target, s.view(1, 1, 1, 1)) for s in scales
    ]
    best = scales[torch.stack(losses).argmin()]
    assert best.item() == pytest.approx(0.7, abs=1e-4)


def test_likelihood_of_half_precision_does_not_overflow():
    pred = torch.full((1, 2, 2, 2), 300.0, dtype=torch.float16)
    loss = gaussian_view_loss(pred, -pred, torch.ones(1, 1, 2, 2))
    assert loss.item() == pytest.approx(600**2 / 2)


def test_total_variation_is_its_sum():
    x = torch.randn(2, 3, 4, 5)
    total = 0.0
    for i in range(4):
        for j in range(5):
            if i:
                total += (x[..., i, j] - x[..., i - 1, j]).square().sum()
            if j:
                total += (x[..., i, j] - x[..., i, j - 1]).square().sum()
    torch.testing.assert_close(total_variation(x), total / x.numel())
    assert total_variation(torch.ones(1, 1, 3, 3)) == 0


def test_crf_is_its_sum():
    feats, image = torch.randn(2, 4, 6, 8), torch.randn(2, 3, 6, 8)
    loss = crf_loss(feats, image, 20, torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    ys = torch.randint(6, (20,), generator=generator)
    xs = torch.randint(8, (20,), generator=generator)
    total = 0.0
    for f, c in zip(feats, image):
        for y, x in zip(ys, xs):
            for v, u in zip(ys, xs):
                near = ((y - v) / 6) ** 2 + ((x - u) / 8) ** 2
                alike = (c[:, y, x] - c[:, v, u]).square().sum()
                k = 10 * (-near / 0.2 - alike / 0.3).exp()
                k = k + 3 * (-near / 0.01).exp()
                total += k * (f[:, y, x] - f[:, v, u]).square().sum()
    torch.testing.assert_close(
        loss, total / (2 * 20 * 20), rtol=1e-4, atol=1e-4
    )


def test_crf_prefers_features_that_follow_the_image():
    """Of this very view: a mirrored image costs more."""
    image = torch.zeros(1, 3, 16, 16)
    image[..., :5] = 2
    feats = image[:, :1] * 3
    generator = torch.Generator()
    aligned = crf_loss(feats, image, 400, generator.manual_seed(0))
    mirrored = crf_loss(feats, image.flip(-1), 400, generator.manual_seed(0))
    assert aligned < 0.7 * mirrored


def test_gradients():
    generator = torch.Generator()
    image = torch.randn(1, 3, 4, 5).double()
    feats = torch.randn(1, 2, 4, 5).double().requires_grad_()
    scale = (torch.rand(1, 1, 4, 5) + 0.5).double().requires_grad_()
    other = torch.randn(1, 2, 4, 5).double()
    assert gradcheck(gaussian_view_loss, (feats, other, scale))
    assert gradcheck(total_variation, feats)
    assert gradcheck(
        lambda x: crf_loss(x, image, 6, generator.manual_seed(0)), feats
    )
    blur = BlurLoss()
    assert gradcheck(lambda x: blur(x, image)['loss_blur'], feats)


@pytest.mark.parametrize('cls', [BlurLoss, CRFLoss, TotalVariationLoss])
def test_weights_scale_the_losses(cls):
    feats, image = torch.randn(1, 2, 8, 8), torch.randn(1, 3, 32, 32)
    values = []
    for weight in (1.0, 2.5):
        torch.manual_seed(0)
        losses = cls(loss_weight=weight)(feats, image)
        assert len(losses) == 1
        values.extend(losses.values())
    assert values[0] > 0
    torch.testing.assert_close(values[1], 2.5 * values[0])
    flat = cls()(torch.ones_like(feats), image)
    assert next(iter(flat.values())).item() == pytest.approx(0, abs=1e-5)


def test_blur_loss_is_zero_for_a_ramp_and_not_for_noise():
    """But for the two columns where a reflected ramp has a peak."""
    ramp, noise = torch.arange(20.0), 4 * torch.randn(1, 1, 20, 20)
    ramp = ramp.expand(1, 1, 20, 20)
    blur = BlurLoss(1.0)
    edges = blur(ramp, ramp)['loss_blur']
    assert edges < 0.02 * blur(noise, ramp)['loss_blur']


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_crf_of_autocast_agrees(dtype):
    """Features far from zero: differences of large squares."""
    feats = 60 + torch.randn(1, 30, 12, 12)
    image, generator = torch.randn(1, 3, 12, 12), torch.Generator()
    wanted = crf_loss(feats, image, 50, generator.manual_seed(0))
    with torch.autocast('cpu', dtype):
        out = crf_loss(feats, image, 50, generator.manual_seed(0))
    torch.testing.assert_close(out, wanted, rtol=1e-3, atol=0)
