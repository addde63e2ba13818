import itertools

import pytest
import torch
from helpers import assert_all_parameters_get_gradients, literal_ensemble
from mmengine.registry import MODELS

from mmplugins.crm import ImplicitDecoder


def build(**kwargs):
    cfg = dict(type='mmplugins.ImplicitDecoder', in_channels=6)
    return MODELS.build({**cfg, **kwargs})


@pytest.mark.parametrize('backend', ['auto', 'torch', 'reference'])
@pytest.mark.parametrize('on', itertools.product([True, False], repeat=3))
def test_it_is_the_formula(on, backend):
    switches = dict(zip(('offset', 'coord', 'ratio'), on))
    decoder = build(out_channels=2, backend=backend, **switches).double()
    layers = [(layer.weight, layer.bias) for layer in decoder.layers]
    assert layers[0][0].shape == (32, 6 + 2 * sum(on))
    feats = torch.randn(2, 6, 5, 7).double()
    wanted = literal_ensemble(feats, (13, 40), layers, **switches)
    torch.testing.assert_close(decoder(feats, (13, 40)), wanted)


@pytest.mark.parametrize('name', ['offset', 'coord', 'ratio'])
def test_an_input_that_is_off_is_one_whose_weights_are_zero(name):
    """The ablation."""
    whole, less = build().double(), build(**{name: False}).double()
    start = 6 + 2 * ('offset', 'coord', 'ratio').index(name)
    kept = [k for k in range(12) if k not in (start, start + 1)]
    state = whole.state_dict()
    state['layers.0.weight'][:, start : start + 2] = 0
    less.load_state_dict(
        {**state, 'layers.0.weight': state['layers.0.weight'][:, kept]}
    )
    feats = torch.randn(1, 6, 4, 5).double()
    torch.testing.assert_close(whole(feats, (9, 9)), less(feats, (9, 9)))


def test_the_published_size():
    """262 -> 32 -> 32 -> 32 -> 32 -> 1: 11,617 parameters."""
    decoder = build(in_channels=256)
    assert sum(p.numel() for p in decoder.parameters()) == 11_617
    assert [tuple(layer.weight.shape) for layer in decoder.layers] == [
        (32, 262),
        *[(32, 32)] * 3,
        (1, 32),
    ]


def test_a_window_of_a_part_is_that_of_the_whole():
    decoder, feats = build().double(), torch.randn(2, 6, 9, 11).double()
    whole = decoder(feats, (30, 41))
    out = decoder(
        feats[..., 2:7, 3:], (30, 41), (12, 15, 7, 20), (9, 11), (2, 3)
    )
    torch.testing.assert_close(out, whole[..., 12:19, 15:35])


def test_all_weights_learn():
    decoder = build(hidden_channels=(16, 8))
    target = torch.randn(1, 1, 21, 16)
    (decoder(torch.randn(1, 6, 4, 5), (21, 16)) * target).sum().backward()
    assert_all_parameters_get_gradients(decoder)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(hidden_channels=()), r'hidden_channels .* got \(\)'),
        (dict(backend='triton'), "backend .* got 'triton'"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(**kwargs)(torch.zeros(1, 6, 4, 4), (8, 8))


def test_a_map_of_other_channels_is_named():
    message = r'first of 5 \+ 6 inputs, got weights \[\(32, 12\)'
    with pytest.raises(ValueError, match=message):
        ImplicitDecoder(6)(torch.zeros(1, 5, 4, 4), (8, 8))
