import pytest
import torch
import torch.nn.functional as F
from helpers import assert_all_parameters_get_gradients
from mmengine.registry import MODELS
from torch import nn

from mmplugins.ssen.rcan import (
    RCAB,
    RCAN,
    ChannelAttention,
    RCANTrunk,
    ResidualGroup,
    Upsampler,
)

SCALES = [2, 3, 4, 8]
MEAN = torch.tensor([0.4488, 0.4371, 0.4040]).view(1, 3, 1, 1)


def build(**kwargs):
    cfg = dict(
        type='mmplugins.RCAN',
        num_groups=2,
        num_blocks=2,
        mid_channels=8,
        reduction=4,
    )
    return MODELS.build({**cfg, **kwargs})


def shuffled(x, r):
    """Sub-pixel (i, j) of channel c is channel c r r + i r + j."""
    B, C, h, w = x.shape
    out = x.new_empty(B, C // r**2, r * h, r * w)
    for k in range(C // r**2):
        for i in range(r):
            for j in range(r):
                out[:, k, i::r, j::r] = x[:, k * r * r + i * r + j]
    return out


def test_the_published_size():
    with torch.device('meta'):
        model = RCAN()
    assert sum(p.numel() for p in model.parameters()) == 15_592_355
    # The mean colour is a constant: state is what was learned.
    assert sum(v.numel() for v in model.state_dict().values()) == 15_592_355
    assert len(model.trunk.groups) == 10
    assert {len(group.blocks) for group in model.trunk.groups} == {20}


def test_channel_attention_is_the_formula():
    attention = ChannelAttention(8, 4).double()
    x = torch.randn(2, 8, 5, 7).double()
    w1, w2 = (
        conv.weight[..., 0, 0] for conv in (attention.reduce, attention.expand)
    )
    assert w1.shape == (2, 8)
    out = attention(x)
    for k in range(2):
        means = torch.stack([plane.sum() / 35 for plane in x[k]])
        hidden = (w1 @ means + attention.reduce.bias).clamp(min=0)
        share = 1 / (1 + (-(w2 @ hidden + attention.expand.bias)).exp())
        torch.testing.assert_close(out[k], x[k] * share[:, None, None])


def test_blocks_groups_and_trunk_add_to_their_input():
    x = torch.randn(1, 8, 6, 5).double()
    for module, last in (
        (RCAB(8, 4), 'attention.expand'),
        (ResidualGroup(8, 2, 4), 'conv'),
        (RCANTrunk(8, 2, 2, 4), 'conv'),
    ):
        module.double()
        before = x.clone()
        assert not torch.allclose(module(x), x)
        last = module.get_submodule(last)
        nn.init.zeros_(last.weight)
        # A sigmoid of it is zero, as is the convolution.
        nn.init.constant_(last.bias, 0 if last.kernel_size[0] == 3 else -1e3)
        assert torch.equal(module(x), x)
        assert torch.equal(x, before)
    skip = torch.randn_like(x)
    assert torch.equal(module(x, skip), skip)


@pytest.mark.parametrize('scale', SCALES)
@torch.no_grad()
def test_upsampling_is_the_formula(scale):
    model = Upsampler(4, 3, scale).double()
    x = torch.randn(2, 4, 5, 6).double()
    wanted = x
    factors = {2: [2], 3: [3], 4: [2, 2], 8: [2, 2, 2]}[scale]
    for conv, factor in zip(model.stages, factors, strict=True):
        wanted = F.conv2d(wanted, conv.weight, conv.bias, padding=1)
        wanted = shuffled(wanted, factor)
    wanted = F.conv2d(wanted, model.last.weight, model.last.bias, padding=1)
    out = model(x)
    assert out.shape == (2, 3, 5 * scale, 6 * scale)
    torch.testing.assert_close(out, wanted)


@pytest.mark.parametrize('scale', SCALES)
@torch.no_grad()
def test_windows_are_those_of_the_whole(scale):
    model, x = Upsampler(4, 3, scale).double(), torch.randn(1, 4, 11, 9)
    x = x.double()
    whole = model(x)
    for top, left, height, width in (
        (0, 0, 3, 4),
        (4, 3, 1, 1),
        (7, 5, 4, 4),
        (0, 2, 11, 3),
        (0, 0, 11, 9),
    ):
        out = model(x, (top, left, height, width))
        rows = slice(scale * top, scale * (top + height))
        columns = slice(scale * left, scale * (left + width))
        torch.testing.assert_close(
            out, whole[..., rows, columns], rtol=0, atol=1e-12
        )


@pytest.mark.parametrize('scale', SCALES)
@torch.no_grad()
def test_the_radius_is_no_larger_than_needed(scale):
    """A pixel at that distance counts, one beyond it does not."""
    model = Upsampler(4, 3, scale)
    radius = model.radius
    for distance, counts in ((radius, True), (radius + 1, False)):
        x = torch.zeros(1, 4, 1, 17)
        x[..., 8 + distance] = float('nan')
        out = model(x)[..., 8 * scale : 9 * scale]
        assert out.isnan().any() == counts


@pytest.mark.parametrize('scale', SCALES)
@pytest.mark.parametrize('size', [(1, 1), (1, 6), (7, 5)])
def test_any_size_is_enlarged(scale, size):
    model = build(upscale_factor=scale)
    out = model(torch.rand(2, 3, *size))
    assert out.shape == (2, 3, scale * size[0], scale * size[1])
    assert out.isfinite().all()


@torch.no_grad()
def test_layers_see_images_less_their_mean_in_their_range():
    """An image of the mean colour is zero to them, whatever the range."""
    model = build(img_range=255)
    seen = []
    model.head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(MEAN.expand(1, 3, 4, 4))
    assert seen[0].abs().max() == 0
    x = torch.rand(1, 3, 4, 4)
    model(x)
    torch.testing.assert_close(seen[1], 255 * x - 255 * MEAN)
    nn.init.zeros_(model.upsampler.last.weight)
    nn.init.constant_(model.upsampler.last.bias, 51.0)
    out = model(x)
    torch.testing.assert_close(out, (MEAN + 51 / 255).expand_as(out))


@torch.no_grad()
def test_large_images_come_in_windows():
    """Exactly, for the means are those of the whole image."""
    model = build().double()
    lr = torch.rand(1, 3, 12, 10).double()
    whole, feat = model(lr), model.extract(lr)
    out = model.reconstruct(feat, (5, 3, 4, 6))
    torch.testing.assert_close(
        out, whole[..., 20:36, 12:36], rtol=0, atol=1e-12
    )
    # Of a part alone the means are others, however far its border is.
    alone = model(lr[..., :8, :])
    difference = (alone - whole[..., :32, :])[..., :4, :].abs().max()
    assert difference > 1e-9


def test_all_weights_learn():
    model = build(reduction=1)
    target = torch.rand(2, 3, 24, 20)
    (model(torch.rand(2, 3, 6, 5)) * target).sum().backward()
    assert_all_parameters_get_gradients(model)


def test_the_mean_moves_with_the_model():
    model = build(rgb_mean=(0.5, 0.4, 0.3)).double()
    assert model.mean.dtype == torch.double
    assert 'mean' not in model.state_dict()
    assert model.mean.flatten().tolist() == pytest.approx([0.5, 0.4, 0.3])


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(upscale_factor=5), r'upscale_factor .* \[2, 3, 4, 8\], got 5'),
        (dict(num_groups=0), 'num_groups and num_blocks .* got 0 and 2'),
        (dict(num_blocks=0), 'num_groups and num_blocks .* got 2 and 0'),
        (dict(img_range=0), 'img_range above 0 .* got 0'),
        (dict(rgb_mean=(0.5,)), r'rgb_mean of 3 values, got .* \(0.5,\)'),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(**kwargs)


@pytest.mark.parametrize('shape', [(3, 8, 8), (1, 1, 8, 8), (1, 4, 8, 8)])
def test_other_images_are_named(shape):
    with pytest.raises(ValueError, match=rf'got \({shape[0]}, '):
        build()(torch.zeros(shape))


@pytest.mark.parametrize(
    'window', [(-1, 0, 2, 2), (0, 0, 0, 2), (0, 3, 2, 3), (4, 0, 3, 2)]
)
def test_windows_outside_are_named(window):
    with pytest.raises(ValueError, match=r'window .* inside of .*\(6, 5\)'):
        Upsampler(4)(torch.zeros(1, 4, 6, 5), window)
