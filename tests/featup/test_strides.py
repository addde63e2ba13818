import copy

import pytest
import torch
from mmengine.registry import MODELS
from torch import nn

from mmplugins.featup import FrozenBackbone
from mmplugins.featup.strides import (
    fits,
    infer_stride,
    measure_maps,
    measure_offset,
    measure_strides,
)

VIT = dict(
    type='mmpretrain.VisionTransformer',
    arch=dict(
        embed_dims=24, num_layers=1, num_heads=2, feedforward_channels=48
    ),
    img_size=98,
    out_type='featmap',
)
# What chains of rounding up, down and both have in common is their product.
BACKBONES = [
    (dict(type='mmpretrain.ResNet', depth=18, out_indices=(1, 3)), [8, 32]),
    (dict(type='mmpretrain.PoolFormer', arch='s12'), [32]),
    (dict(type='mmpretrain.DenseNet', arch='121'), [32]),
    ({**VIT, 'patch_size': 14}, [14]),
    ({**VIT, 'patch_size': 16, 'img_size': 96}, [16]),
    ({**VIT, 'patch_size': 14, 'out_type': 'cls_token'}, [None]),
]


@pytest.mark.parametrize(('cfg', 'strides'), BACKBONES)
def test_strides_of_backbones(cfg, strides, in_scope):
    with in_scope('mmpretrain'):
        backbone = MODELS.build(cfg)
    backbone.train()  # some return nothing
    before = copy.deepcopy(backbone.state_dict())
    modes = [module.training for module in backbone.modules()]
    state = torch.get_rng_state()
    assert measure_strides(backbone) == strides
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in backbone.modules()] == modes
    after = backbone.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_channels_are_measured_too():
    backbone = MODELS.build(BACKBONES[0][0])
    assert measure_maps(backbone) == [(128, 8), (512, 32)]


def test_a_backbone_of_one_size_is_not_measured():
    linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4))
    assert measure_strides(linear) is None


# image, grid, stride: with padding (up), without (down), both, patches of 14.
@pytest.mark.parametrize(
    ('image', 'grid', 'stride'),
    [
        ((97, 131), (4, 5), 32),
        ((97, 131), (3, 4), 32),
        ((97, 131), (3, 5), 32),
        ((97, 131), (6, 8), 16),
        ((97, 131), (6, 9), 14),
        ((97, 131), (25, 33), 4),
        ((98, 98), (7, 7), 14),
        ((224, 224), (16, 16), 14),
        ((224, 224), (7, 7), 32),
        ((518, 518), (37, 37), 14),
        ((1080, 1920), (34, 60), 32),
    ],
)
def test_stride_of_a_grid(image, grid, stride):
    assert infer_stride(image, grid) == stride
    assert fits(stride, image, grid)


def test_a_grid_without_explanation_is_named():
    with pytest.raises(ValueError, match='30 x 7 cells .* set strides'):
        infer_stride((100, 200), (30, 7))


class OneLevel(nn.Sequential):
    """Convolutions of ones as a backbone."""

    def __init__(self, *convs):
        super().__init__(*convs)
        for conv in convs:
            nn.init.ones_(conv.weight)

    def forward(self, x):
        return (super().forward(x),)


@pytest.mark.parametrize(
    ('layer', 'offset'),
    [
        # Taps at 4 i .. 4 i + 3: the cell's own pixels.
        (dict(kernel_size=4, stride=4), 0.0),
        # Taps at 2 i - 1 .. 2 i + 1: half a pixel before 2 i + 1/2.
        (dict(kernel_size=3, stride=2, padding=1), -0.5),
        # Taps at 4 i - 3 .. 4 i + 3: one and a half before 4 i + 3/2.
        (dict(kernel_size=7, stride=4, padding=3), -1.5),
        (dict(kernel_size=2, stride=2), 0.0),
    ],
)
def test_offsets_are_those_of_the_taps(layer, offset):
    backbone = OneLevel(nn.Conv2d(3, 8, **layer))
    images = torch.randn(2, 3, 48, 64)
    assert measure_offset(backbone, images) == pytest.approx(offset, abs=1e-3)


def test_offsets_add_up_over_layers():
    """Half a pixel, one, two: seven halves in the image."""
    backbone = OneLevel(*(nn.Conv2d(3, 3, 3, 2, 1) for _ in range(3)))
    measured = measure_offset(backbone, torch.randn(1, 3, 64, 64))
    assert measured == pytest.approx(-0.5 - 1 - 2, abs=1e-3)


def test_too_small_images_for_an_offset_are_named():
    conv = OneLevel(nn.Conv2d(3, 4, 8, 8))
    with pytest.raises(ValueError, match='4 x 4 cells or more, got 2 x 8'):
        measure_offset(conv, torch.zeros(1, 3, 16, 64))


def test_offsets_of_a_frozen_backbone():
    MODELS.register_module('OneLevel', module=OneLevelOfOnes, force=True)
    frozen = FrozenBackbone(dict(type='OneLevel'))
    with torch.no_grad():
        measured = measure_offset(frozen, torch.randn(1, 3, 32, 32))
    assert measured == pytest.approx(-0.5, abs=1e-3)


class OneLevelOfOnes(OneLevel):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3, 2, 1))
