import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import assert_all_parameters_get_gradients, leaf
from torch.autograd import gradcheck

from mmplugins.featup.implicit import (
    FourierFeatures,
    ImplicitUpsampler,
    PCACodec,
)
from mmplugins.ops import pixel_centers


def prepared(channels=12, grid=(12, 16), image=(24, 32), **kwargs):
    """An upsampler of a random network, its image and some features."""
    kwargs = {'dim': 5, 'num_frequencies': 6, **kwargs}
    upsampler = ImplicitUpsampler(channels, **kwargs).eval()
    guidance, feats = torch.rand(1, 3, *image), torch.randn(1, channels, 3, 4)
    upsampler.prepare(feats, guidance, grid)
    return upsampler, feats, guidance


# PCACodec


@pytest.mark.parametrize(('channels', 'dim'), [(6, 3), (5, 5), (40, 8)])
def test_components_are_those_of_an_svd(channels, dim):
    """Also with fewer vectors (30) than channels."""
    mixing = torch.randn(channels, channels).double()
    feats = torch.einsum(
        'cd,bdhw->bchw', mixing, torch.randn(2, channels, 3, 5).double()
    )
    codec = PCACodec(channels, dim).double()
    kept = codec.fit(feats)
    x = feats.movedim(1, -1).reshape(-1, channels).numpy()
    _, s, rows = np.linalg.svd(x - x.mean(0), full_matrices=False)
    np.testing.assert_allclose(codec.mean.numpy(), x.mean(0), atol=1e-12)
    np.testing.assert_allclose(codec.std, s[:dim] / math.sqrt(29), rtol=1e-8)
    assert kept == pytest.approx((s[:dim] ** 2).sum() / (s**2).sum())
    # The same axes up to their signs, which are fixed by the largest entry.
    axes = codec.basis.numpy()
    np.testing.assert_allclose(np.abs((axes * rows[:dim].T).sum(0)), 1)
    assert (axes[np.abs(axes).argmax(0), np.arange(dim)] > 0).all()
    back = codec.decode(codec.encode(feats)).movedim(1, -1).reshape(x.shape)
    wanted = (x - x.mean(0)) @ rows[:dim].T @ rows[:dim] + x.mean(0)
    np.testing.assert_allclose(back.numpy(), wanted, atol=1e-10)


def test_all_components_lose_nothing():
    codec = PCACodec(7, dim=128)
    assert codec.dim == 7
    feats = torch.randn(2, 7, 4, 4)
    assert codec.fit(feats) == pytest.approx(1)
    torch.testing.assert_close(codec.decode(codec.encode(feats)), feats)
    eye = codec.basis.T @ codec.basis
    torch.testing.assert_close(eye, torch.eye(7), rtol=0, atol=1e-5)
    # They have no correlation and the deviations that are noted.
    codes = codec.encode(feats).movedim(1, -1).flatten(0, -2)
    torch.testing.assert_close(
        torch.cov(codes.T), codec.std.square().diag(), rtol=0, atol=1e-5
    )


def test_the_codec_is_part_of_the_state():
    codec, other = PCACodec(6, 4), PCACodec(6, 4)
    codec.fit(torch.randn(1, 6, 5, 5))
    other.load_state_dict(codec.state_dict())
    feats = torch.randn(1, 6, 2, 3)
    assert torch.equal(other.encode(feats), codec.encode(feats))
    assert not list(codec.parameters())


def test_features_without_variance():
    codec = PCACodec(3, 2)
    assert codec.fit(torch.ones(1, 3, 4, 4)) == 1
    assert codec.encode(torch.ones(1, 3, 1, 1)).abs().max() == 0


# FourierFeatures


def test_waves_are_those_of_the_formula():
    encoding = FourierFeatures(4)
    coords, colors = torch.rand(5, 2) * 2 - 1, torch.rand(5, 3) - 0.5
    out = encoding(coords, colors, (10, 30))
    assert out.shape == (5, 43)
    tops = [math.pi * 10 / 2, math.pi * 30 / 2, 12, 12, 12]
    phases = encoding.phases.tolist()
    for p in range(5):
        values = [*coords[p].tolist(), *colors[p].tolist()]
        sines, cosines = [], []
        for d, (value, top) in enumerate(zip(values, tops)):
            for k in range(4):
                w = 0.135 * (top / 0.135) ** (k / 3)
                sines.append(math.sin(w * value + phases[0][d][k]))
                cosines.append(math.cos(w * value + phases[1][d][k]))
        wanted = torch.tensor([*sines, *cosines, *colors[p].tolist()])
        torch.testing.assert_close(out[p], wanted, rtol=0, atol=2e-5)


def test_channels_are_as_published():
    """5 values, 30 frequencies, sine and cosine, and the colour."""
    encoding = FourierFeatures()
    assert encoding.out_channels == 303
    point = torch.zeros(1, 2), torch.zeros(1, 3)
    assert encoding(*point, (8, 8)).shape == (1, 303)


def test_no_frequency_beyond_the_training_grid():
    # Published for 224 samples from corner to corner, 2 / 223 apart.
    published = torch.linspace(-2, 10, 30).exp()
    assert (published > math.pi * 223 / 2).sum() == 11
    for n in (2, 56, 224):
        limit = math.pi * n / 2
        ours = FourierFeatures().frequencies((n, 2 * n))
        assert ours.shape == (5, 30)
        assert ours[0].max().item() == pytest.approx(limit)
        assert ours[1].max().item() == pytest.approx(2 * limit)
        assert ours.min().item() == pytest.approx(0.135)


def test_frequencies_survive_a_change_of_type():
    wanted = FourierFeatures().frequencies((90, 120))
    torch.testing.assert_close(
        FourierFeatures().bfloat16().frequencies((90, 120)), wanted
    )


# ImplicitUpsampler


def inconsistency(upsampler, guidance, size, factor=2):
    """Error of averages of a finer result, in deviations of the coarse."""
    coarse = upsampler.codes(guidance, size)
    fine = upsampler.codes(guidance, [factor * n for n in size])
    error = F.avg_pool2d(fine, factor) - coarse
    spread = coarse - coarse.mean((-2, -1), keepdim=True)
    return (error.square().mean() / spread.square().mean()).sqrt().item()


@pytest.mark.parametrize('factor', [2, 3])
def test_a_finer_result_averages_to_the_coarser(factor):
    """No wave aliases, though the weights are random.

    The limit itself is what matters: with the published highest frequency
    finer results have little to do with the coarse one.
    """
    guidance = F.interpolate(torch.rand(1, 3, 6, 8), (48, 64), mode='bilinear')
    upsampler, *_ = prepared(grid=(24, 32), num_frequencies=30)
    upsampler.prepare(torch.randn(1, 12, 3, 4), guidance, (24, 32))
    with torch.no_grad():
        assert inconsistency(upsampler, guidance, (24, 32), factor) < 0.2
        frequencies = upsampler.encoding.frequencies
        upsampler.encoding.frequencies = lambda size: torch.cat(
            [
                torch.linspace(-2, 10, 30).exp().expand(2, -1),
                frequencies(size)[2:],
            ]
        )
        assert inconsistency(upsampler, guidance, (24, 32), factor) > 0.5


@pytest.mark.parametrize('size', [(6, 8), (5, 16), (12, 1), (1, 1), (7, 9)])
def test_a_coarser_result_is_an_average_of_a_finer(size):
    """Below the training grid, every wave is sampled often enough."""
    upsampler, _, guidance = prepared()
    out = upsampler.codes(guidance, size)
    assert out.shape == (1, 5, *size)
    k = [math.ceil(12 / size[0]), math.ceil(16 / size[1])]
    fine = upsampler.codes(guidance, [k[0] * size[0], k[1] * size[1]])
    torch.testing.assert_close(out, F.avg_pool2d(fine, k))


@pytest.mark.parametrize('image', [(24, 32), (2, 2), (31, 17)])
@pytest.mark.parametrize('size', [(24, 32), (13, 47), (50, 16)])
def test_any_size_of_image_and_result(image, size):
    upsampler, feats, _ = prepared()
    guidance = torch.rand(1, 3, *image)
    out = upsampler(feats, guidance, size)
    assert out.shape == (1, 12, *size)
    assert out.isfinite().all()
    assert torch.equal(out, upsampler(feats, guidance, size))


def test_size_follows_scale():
    upsampler, feats, guidance = prepared(scale='image')
    assert upsampler(feats, guidance).shape[-2:] == (24, 32)
    upsampler, feats, guidance = prepared(scale=5)
    assert upsampler(feats, guidance).shape[-2:] == (15, 20)


def test_linear_is_a_convolution_of_the_result():
    upsampler, feats, guidance = prepared()
    weight, bias = torch.randn(7, 12), torch.randn(7)
    out = upsampler.linear(feats, guidance, weight, bias)
    wanted = F.conv2d(
        upsampler(feats, guidance), weight[..., None, None], bias
    )
    torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-5)
    without = upsampler.linear(feats, guidance, weight)
    torch.testing.assert_close(
        without + bias.view(-1, 1, 1), out, rtol=1e-4, atol=1e-5
    )


def test_result_is_the_decoded_components():
    upsampler, feats, guidance = prepared()
    codes = upsampler.codes(guidance, (24, 32))
    torch.testing.assert_close(
        upsampler(feats, guidance), upsampler.codec.decode(codes)
    )


def test_components_come_in_units_of_their_deviation():
    """So that a network of ordinary weights suits any features."""
    upsampler, feats, guidance = prepared()
    once = upsampler.codes(guidance, (12, 16))
    upsampler.prepare(100 * feats, guidance, (12, 16))
    torch.testing.assert_close(
        upsampler.codes(guidance, (12, 16)), 100 * once, rtol=1e-4, atol=1e-3
    )


@pytest.mark.parametrize('size', [(24, 32), (5, 6)])
def test_pieces_are_the_whole(size):
    """In rows that fit the memory, down to one cell's."""
    upsampler, feats, guidance = prepared(max_memory=1e9)
    calls = []
    upsampler.network.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        whole = upsampler(feats, guidance, size)
        assert len(calls) == 1
        upsampler.max_memory = 1e-6
        pieces = upsampler(feats, guidance, size)
        assert len(calls) == 1 + size[0]
    torch.testing.assert_close(pieces, whole, rtol=1e-5, atol=1e-6)


def test_a_crop_is_what_it_was_in_the_image():
    """Colours are scaled by the training image, not by what is looked at."""
    upsampler, _, guidance = prepared(grid=(24, 32))
    whole = upsampler.codes(guidance, (24, 32))
    rows, columns = slice(3, 9), slice(20, 31)
    coords = pixel_centers((24, 32))[rows, columns].flatten(0, 1)
    colors = guidance[0, :, rows, columns].flatten(1).T
    out = upsampler.query(coords, colors).T.view(1, 5, 6, 11)
    torch.testing.assert_close(out, whole[..., rows, columns])


def test_colours_are_scaled_by_the_training_image():
    """An affine change of the image's values is undone by preparing."""
    upsampler, feats, guidance = prepared()
    wanted = upsampler.codes(guidance, (24, 32))
    changed = 7 * guidance - 3
    upsampler.prepare(feats, changed, (12, 16))
    out = upsampler.codes(changed, (24, 32))
    torch.testing.assert_close(out, wanted, rtol=1e-3, atol=1e-3)
    flat = torch.zeros(1, 3, 24, 32)
    upsampler.prepare(feats, flat, (12, 16))
    assert upsampler(feats, flat).isfinite().all()


def test_gradients():
    upsampler, feats, guidance = prepared(
        channels=3, grid=(3, 4), dim=2, num_frequencies=2, hidden_channels=4
    )
    upsampler, feats = upsampler.double(), feats.double()
    guidance = leaf(guidance[..., :5, :6])
    assert gradcheck(lambda g: upsampler(feats, g, (4, 4)), (guidance,))
    parameters = tuple(upsampler.parameters())
    assert gradcheck(
        lambda *_: upsampler(feats, guidance.detach(), (2, 4)),
        parameters,
        fast_mode=True,
    )


def test_every_parameter_gets_a_gradient():
    upsampler, feats, guidance = prepared()
    out = upsampler.train()(feats, guidance)
    (out * torch.randn_like(out)).sum().backward()
    assert_all_parameters_get_gradients(upsampler)


def test_training_drops_features_of_the_whole_image():
    upsampler, feats, guidance = prepared(dropout=0.5)
    assert torch.equal(*(upsampler(feats, guidance) for _ in range(2)))
    upsampler.train()
    assert not torch.equal(*(upsampler(feats, guidance) for _ in range(2)))
    dropped = upsampler.network[1](torch.ones(50, 400)) == 0
    assert torch.equal(dropped, dropped[:1].expand(50, -1))
    assert 0.4 < dropped.float().mean() < 0.6


def test_what_belongs_to_the_image_is_part_of_the_state():
    upsampler, feats, guidance = prepared()
    other = ImplicitUpsampler(12, dim=5, num_frequencies=6).eval()
    assert not other.prepared
    other.load_state_dict(upsampler.state_dict())
    assert other.prepared
    assert torch.equal(other(feats, guidance), upsampler(feats, guidance))


@pytest.mark.parametrize('size', [(24, 32), (48, 64), (20, 30), (240, 321)])
def test_an_image_is_known_at_any_size(size):
    guidance = F.interpolate(torch.rand(1, 3, 5, 6), (48, 64), mode='bilinear')
    upsampler, *_ = prepared()
    upsampler.prepare(torch.randn(1, 12, 3, 4), guidance)
    image = F.interpolate(guidance, size, mode='bilinear', antialias=True)
    assert upsampler.belongs_to(image)
    for other in (image.flip(-1), image.roll(3, -2), torch.rand_like(image)):
        assert not upsampler.belongs_to(other)
    # In the state, with the size of the image.
    loaded = ImplicitUpsampler(12, dim=5, num_frequencies=6)
    loaded.load_state_dict(upsampler.state_dict())
    assert loaded.belongs_to(image)
    assert loaded.image_size.tolist() == [48, 64]


def test_an_image_has_to_be_prepared():
    upsampler = ImplicitUpsampler(4)
    with pytest.raises(ValueError, match='no training image.*PrepareImplicit'):
        upsampler(torch.zeros(1, 4, 2, 2), torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_agrees(dtype):
    upsampler, feats, guidance = prepared(grid=(24, 32))
    wanted = upsampler(feats, guidance)
    out = upsampler.to(dtype)(feats.to(dtype), guidance.to(dtype))
    assert out.dtype == dtype
    # Colours, phases and weights are rounded; waves of 12 per range.
    tolerance = 16 * torch.finfo(dtype).eps * wanted.abs().max()
    assert (out.float() - wanted).abs().max() <= tolerance


def test_autocast_agrees():
    upsampler, feats, guidance = prepared()
    wanted = upsampler(feats, guidance)
    with torch.autocast('cpu', torch.bfloat16):
        out = upsampler(feats, guidance)
    tolerance = 8 * torch.finfo(torch.bfloat16).eps * wanted.abs().max()
    assert (out.float() - wanted).abs().max() <= tolerance


def test_one_network_is_one_image():
    upsampler, feats, guidance = prepared()
    with pytest.raises(ValueError, match=r'one image .* got 2: fit one'):
        upsampler(feats.repeat(2, 1, 1, 1), guidance.repeat(2, 1, 1, 1))


def test_bad_arguments_are_named():
    for key in ('dim', 'num_frequencies', 'hidden_channels', 'max_memory'):
        with pytest.raises(ValueError, match=f'{key} of .* got 0'):
            ImplicitUpsampler(4, **{key: 0})
    upsampler, feats, guidance = prepared()
    with pytest.raises(ValueError, match='in_channels=12'):
        upsampler(feats[:, :3], guidance)
    with pytest.raises(ValueError, match='features: NaN'):
        upsampler(feats * float('nan'), guidance)
    with pytest.raises(ValueError, match='two vectors or more of 12'):
        upsampler.prepare(feats[..., :1, :1], guidance)
