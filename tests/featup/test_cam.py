import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import leaf
from mmengine.registry import MODELS
from torch.autograd import gradcheck

from mmplugins.featup.cam import (
    grad_cam_weight,
    mask_image,
    normalize_map,
    weighted_map,
)

B, C, K = 2, 5, 3


def literal_normal(cam, size, interpolation):
    """ReLU, OpenCV's resize, least to 0 and greatest to 1, one by one."""
    outs = []
    for x in cam.numpy():
        x = cv2.resize(np.maximum(x, 0), size[::-1], None, 0, 0, interpolation)
        outs.append((x - x.min()) / (x.max() - x.min()))
    return torch.from_numpy(np.stack(outs))


def test_grad_cam_weight_is_the_mean_of_the_derivative():
    """Of softplus(w mean(x^2)): sigmoid(w mean(x^2)) 2 w x / (h w)."""
    x = torch.randn(B, C, 3, 4, dtype=torch.double)
    w = torch.randn(B, C, dtype=torch.double)

    def logit(x):
        return (w * x.square().mean((2, 3))).sum(1)

    with torch.no_grad():  # as in a test loop
        got = grad_cam_weight(lambda x: F.softplus(logit(x)), x)
    wanted = logit(x).sigmoid()[:, None] * 2 * w * x.mean((2, 3)) / 12
    torch.testing.assert_close(got, wanted)
    assert not got.requires_grad
    assert not x.requires_grad


def test_grad_cam_of_pooling_and_a_linear_head_is_cam():
    x = torch.randn(B, C, 3, 4, dtype=torch.double)
    fc = torch.nn.Linear(C, K).double()
    labels = torch.tensor([2, 0])

    def score(x):
        return fc(x.mean((2, 3))).gather(1, labels[:, None])[:, 0]

    weight = fc.weight[labels]
    got = grad_cam_weight(score, x)
    torch.testing.assert_close(12 * got, weight.detach())
    torch.testing.assert_close(
        normalize_map(weighted_map(x, got), (6, 9)),
        normalize_map(weighted_map(x, weight), (6, 9)).detach(),
    )
    # The mean of a map is the logit without its bias.
    torch.testing.assert_close(
        weighted_map(x, weight).mean((1, 2)), score(x) - fc.bias[labels]
    )


def test_grad_cam_of_something_else_is_refused():
    x = torch.randn(B, C, 3, 4)
    other = torch.randn(B, requires_grad=True)
    for score in (lambda x: other, lambda x: torch.ones(B)):
        with pytest.raises(ValueError, match='depends on the map'):
            grad_cam_weight(score, x)


def test_weighted_map_is_a_sum_over_channels():
    x, weight = torch.randn(B, C, 3, 4), torch.randn(B, C)
    got = weighted_map(x, weight)
    for i in range(B):
        wanted = sum(weight[i, c] * x[i, c] for c in range(C))
        torch.testing.assert_close(got[i], wanted)


@pytest.mark.parametrize('size', [(97, 131), (64, 64), (64, 96)])
@pytest.mark.parametrize(
    'upsampler',
    [
        dict(type='mmplugins.JBUStack', num_stages=3),
        dict(type='mmplugins.JBUStack', num_stages=2, channel_fixup=False),
        dict(type='mmplugins.BilinearUpsampler', num_stages=2),
    ],
)
def test_weighed_before_the_upsampling_or_after(upsampler, size):
    cfg = dict(type='mmplugins.FeatUpNeck', in_channels=C, strides=32)
    neck = MODELS.build({**cfg, 'upsampler': upsampler}).double().eval()
    cells = [-(-n // 32) for n in size]
    feats = (torch.randn(B, C, *cells, dtype=torch.double),)
    image = torch.rand(B, 3, *size, dtype=torch.double)
    weight = torch.randn(B, C, dtype=torch.double)
    with torch.no_grad():
        before = neck.linear(feats, image, weight[:, None])[:, 0]
        after = weighted_map(neck(feats, image)[0], weight)
    assert before.shape[-1] > 2 * cells[1]
    torch.testing.assert_close(before, after)


@pytest.mark.parametrize('shape', [(7, 7), (2, 2), (5, 3)])
@pytest.mark.parametrize('size', [(224, 224), (97, 131)])
def test_normalize_map_is_what_opencv_makes(shape, size):
    cam = torch.randn(B, *shape)
    got = normalize_map(cam, size)
    wanted = literal_normal(cam, size, cv2.INTER_LINEAR)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)
    assert got.amin((1, 2)).tolist() == [0] * B
    assert got.amax((1, 2)).tolist() == [1] * B
    got = normalize_map(cam, size, 'nearest')
    wanted = literal_normal(cam, size, cv2.INTER_NEAREST_EXACT)
    torch.testing.assert_close(got, wanted)


def test_normalize_map_leaves_the_size_and_the_order():
    cam = torch.rand(B, 6, 7) + 1
    got = normalize_map(cam, (6, 7))
    low, high = cam.amin((1, 2), True), cam.amax((1, 2), True)
    torch.testing.assert_close(got, (cam - low) / (high - low))


@pytest.mark.parametrize('value', [-1.0, 0.0, 0.3, 3e7])
def test_a_constant_map_singles_out_nothing(value):
    noisy = value * (1 + 1e-7 * torch.randn(B, 3, 4))
    for cam in (torch.full((B, 3, 4), value), noisy):
        assert not normalize_map(cam, (97, 131)).any()


def test_bfloat16_is_normalized_in_float32():
    cam = torch.randn(B, 7, 7)
    got = normalize_map(cam.bfloat16(), (50, 60))
    assert got.dtype == torch.float32
    wanted = normalize_map(cam, (50, 60))
    torch.testing.assert_close(got, wanted, atol=2e-2, rtol=0)


def test_an_unknown_way_to_resize_is_refused():
    with pytest.raises(ValueError, match=r"\['bilinear', 'nearest'\].*'area'"):
        normalize_map(torch.rand(B, 2, 2), (4, 4), 'area')


def test_mask_image_blends_with_the_background():
    image, cam = torch.randn(B, 3, 4, 5), torch.rand(B, 4, 5)
    torch.testing.assert_close(mask_image(image, cam), image * cam[:, None])
    assert torch.equal(mask_image(image, torch.ones(B, 4, 5), 9.0), image)
    colour = torch.randn(3, 1, 1)
    out = mask_image(image, torch.zeros(B, 4, 5), colour)
    assert torch.equal(out, colour.expand(B, 3, 4, 5))


def test_black_is_not_zero_once_normalized():
    """A mask of the pixels, seen from after the normalisation."""
    pixels, cam = 255 * torch.rand(B, 3, 4, 5), torch.rand(B, 4, 5)
    mean = torch.tensor([120.0, 110.0, 100.0]).view(3, 1, 1)
    std = torch.tensor([60.0, 50.0, 40.0]).view(3, 1, 1)
    got = mask_image((pixels - mean) / std, cam, -mean / std)
    wanted = (pixels * cam[:, None] - mean) / std
    torch.testing.assert_close(got, wanted)
    assert not torch.allclose(mask_image((pixels - mean) / std, cam), wanted)


@pytest.mark.parametrize('shape', [(B, 5, 4), (1, 4, 5), (B, 1, 4, 5)])
def test_a_mask_of_another_size_is_refused(shape):
    with pytest.raises(ValueError, match='do not cover'):
        mask_image(torch.rand(B, 3, 4, 5), torch.rand(shape))


def test_gradients():
    x, weight = leaf(torch.randn(B, C, 2, 3)), leaf(torch.randn(B, C))
    assert gradcheck(weighted_map, (x, weight))
    cam = leaf(torch.rand(B, 3, 4) + 0.5)
    assert gradcheck(lambda x: normalize_map(x, (5, 7)), cam)
    image, cam = leaf(torch.randn(B, 3, 3, 4)), leaf(torch.rand(B, 3, 4))
    assert gradcheck(lambda *x: mask_image(*x, 0.5), (image, cam))
