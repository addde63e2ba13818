from copy import deepcopy

import pytest
import torch
from helpers import assert_all_parameters_get_gradients
from mmengine.registry import MODELS

from mmplugins.crm import CRMBackbone
from mmplugins.crm.backbone import MaskedConv2d, RefinementResNet

MOBILE = dict(
    type='mmpretrain.MobileNetV2', out_indices=(0, 1, 2), widen_factor=0.25
)
# Backbones, and the strides of their maps.
OTHERS = [
    (MOBILE, (2, 4, 8)),
    ({**MOBILE, 'out_indices': (0, 1, 2, 4)}, (2, 4, 8, 16)),
    (
        dict(
            type='mmpretrain.MobileNetV3', arch='small', out_indices=(0, 1, 3)
        ),
        (2, 4, 8),
    ),
    (dict(type='mmpretrain.ResNet', depth=18, out_indices=(0, 1)), (4, 8)),
    (
        dict(
            type='mmpretrain.ResNetV1d',
            depth=18,
            out_indices=(0,),
            norm_eval=True,
        ),
        (4,),
    ),
    (dict(type='mmpretrain.VGG', depth=11, out_indices=(0, 1, 2)), (2, 4, 8)),
]  # fmt: skip
OTHER_IDS = [f'{cfg["type"]}-{len(strides)}' for cfg, strides in OTHERS]


def shaken(model, seed=1):
    """Weights and statistics as after a training, in evaluation."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith('running_var'):
                value.copy_(1 + noise.abs())
            elif value.is_floating_point():
                value.add_(0.1 * noise)
    model.eval()  # mmpretrain's return nothing
    return model


def assert_equal(maps, wanted):
    assert len(maps) == len(wanted)
    for out, level in zip(maps, wanted):
        torch.testing.assert_close(out, level, rtol=1e-4, atol=1e-4)


def test_a_resnet_starts_as_without_mask():
    plain = shaken(RefinementResNet(18))
    backbone = CRMBackbone(18).eval()
    assert not backbone.net.conv1.mask_weight.any()
    found = backbone.net.load_state_dict(plain.state_dict(), strict=False)
    assert found.missing_keys == ['conv1.mask_weight']
    assert not found.unexpected_keys
    x = torch.randn(2, 4, 41, 32)
    with torch.no_grad():
        maps = backbone(x)
        assert_equal(maps, plain(x[:, :3]))
        # And learns to see it.
        backbone.net.conv1.mask_weight.fill_(0.1)
        assert all(
            (a - b).abs().max() > 0.01 for a, b in zip(backbone(x), maps)
        )


@pytest.mark.parametrize(('cfg', 'strides'), OTHERS, ids=OTHER_IDS)
def test_other_backbones_start_as_without_mask(cfg, strides):
    plain = shaken(MODELS.build(cfg))
    backbone = CRMBackbone(backbone=cfg).eval()
    found = backbone.net.load_state_dict(plain.state_dict(), strict=False)
    (missing,) = found.missing_keys
    assert missing.endswith('mask_weight')
    # Weights left over are those behind the last map.
    x = torch.randn(1, 4, 64, 96)
    with torch.no_grad():
        maps = backbone(x)
        assert_equal(maps, plain(x[:, :3]))
    sizes = [tuple(level.shape[-2:]) for level in maps]
    assert sizes == [(64 // s, 96 // s) for s in strides]


@pytest.mark.parametrize(
    'kwargs',
    # Not VGG, whose layers have no names.
    [dict(depth=18), *[dict(backbone=cfg) for cfg, _ in OTHERS[:-1]]],
    ids=['ResNet', *OTHER_IDS[:-1]],
)
def test_nothing_is_computed_in_vain(kwargs):
    backbone = CRMBackbone(**kwargs).train()
    maps = backbone(torch.randn(2, 4, 64, 64))
    sum((level * torch.randn_like(level)).sum() for level in maps).backward()
    assert_all_parameters_get_gradients(backbone)


def test_pretrained_weights_of_another_backbone_load(tmp_path):
    """By its own init_cfg, with the image's weights in their place."""
    plain = shaken(MODELS.build(MOBILE))
    state = {f'backbone.{k}': v for k, v in plain.state_dict().items()}
    torch.save(dict(state_dict=state), tmp_path / 'a.pth')
    init = dict(
        type='Pretrained', checkpoint=f'{tmp_path}/a.pth', prefix='backbone'
    )
    backbone = CRMBackbone(backbone={**MOBILE, 'init_cfg': init})
    backbone.init_weights()
    conv = backbone.net.conv1.conv
    assert torch.equal(conv.weight, plain.conv1.conv.weight)
    assert not conv.mask_weight.any()


def test_initial_weights_leave_the_mask_at_zero():
    for backbone in (CRMBackbone(18), CRMBackbone(backbone=MOBILE)):
        backbone.init_weights()
        mask = dict(backbone.named_parameters())
        (name,) = [key for key in mask if key.endswith('mask_weight')]
        assert not mask[name].any()
        assert mask[name.replace('mask_weight', 'weight')].std() > 0.01


def test_maps_are_those_of_torchvision():
    """Strides 2, 4 and 8, and the first dilated block's dilation."""
    torchvision = pytest.importorskip('torchvision')
    wanted = shaken(
        torchvision.models.resnet50(
            replace_stride_with_dilation=[False, True, False]
        )
    )
    backbone = CRMBackbone().eval()
    found = backbone.net.load_state_dict(wanted.state_dict(), strict=False)
    assert found.missing_keys == ['conv1.mask_weight']
    assert {key.split('.')[0] for key in found.unexpected_keys} == {
        'layer4',
        'fc',
    }
    x = torch.randn(1, 4, 45, 66)
    with torch.no_grad():
        stem = wanted.relu(wanted.bn1(wanted.conv1(x[:, :3])))
        first = wanted.layer1(wanted.maxpool(stem))
        third = wanted.layer3(wanted.layer2(first))
        scale = third.abs().max()
        maps = [*backbone(x)]
    assert_equal(maps[:2], [stem, first])
    assert_equal([maps[2] / scale], [third / scale])


@pytest.mark.parametrize(
    ('depth', 'channels', 'millions'),
    [(18, 64, 2.79), (34, 64, 8.17), (50, 256, 8.55), (101, 256, 27.54)],
)
def test_depths(depth, channels, millions):
    """On no device at all: only shapes. ResNet-50: 8.55 M, layer4 apart."""
    with torch.device('meta'):
        backbone = CRMBackbone(depth)
        maps = backbone(torch.zeros(1, 4, 101, 64))
    assert [tuple(level.shape) for level in maps] == [
        (1, 64, 51, 32),
        (1, channels, 26, 16),
        (1, 4 * channels, 13, 8),
    ]
    assert backbone.net.out_channels == (64, channels, 4 * channels)
    count = sum(p.numel() for p in backbone.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.01)


@pytest.mark.parametrize(
    ('depth', 'field'),
    # What each kernel adds: stem and pooling, then the layers; the last has
    # the dilation of its second block on.
    [
        (18, 7 + 4 + 4 * 8 + (8 + 3 * 16) + (16 + 16 + 32 + 16)),
        (50, 7 + 4 + 3 * 8 + (8 + 3 * 16) + (16 + 5 * 32)),
    ],
)
def test_reach_of_a_resnet_is_its_receptive_field(depth, field):
    reach = CRMBackbone(depth).reach()
    assert reach.strides == (2, 4, 8)
    # Rounded up to cells.
    assert field // 2 <= reach.radius < field // 2 + 8


@pytest.mark.parametrize('cfg', [MOBILE, OTHERS[1][0], None], ids=str)
def test_no_pixel_beyond_the_reach_changes_a_cell(cfg):
    """One pixel far from all the others, wherever it falls on a cell."""
    backbone = shaken(CRMBackbone(18, cfg).double())
    radius, strides = backbone.reach()
    assert strides == ((2, 4, 8) if cfg is not OTHERS[1][0] else (2, 4, 8, 16))
    x = torch.randn(1, 4, 48, 400).double()
    with torch.no_grad():
        before = backbone(x)
        for place in (190, 195, 203):
            changed = x.clone()
            changed[..., 21, place] += 50
            after = backbone(changed)
            for a, b, stride in zip(before, after, strides):
                columns = (a != b).any(1).any(1).flatten().nonzero() * stride
                assert len(columns)
                assert columns.min() + stride - 1 >= place - radius
                assert columns.max() <= place + radius
                assert (columns.max() - columns.min()).item() > stride


def test_reach_leaves_the_backbone_as_it_was():
    backbone = CRMBackbone(backbone=MOBILE).train()
    before, state = deepcopy(backbone.state_dict()), torch.get_rng_state()
    first = backbone.reach()
    assert backbone.training
    assert backbone.net.conv1.training
    assert torch.equal(torch.get_rng_state(), state)
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert backbone.reach() is first


def test_a_pooling_of_the_image_cannot_be_tiled():
    """MobileNetV3's squeeze-and-excitation."""
    backbone = CRMBackbone(backbone=OTHERS[2][0])
    message = 'MobileNetV3 in CRMBackbone looks at the whole.*tile=None'
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            backbone.reach()


def test_a_widened_convolution_keeps_its_settings():
    conv = torch.nn.Conv2d(3, 5, (3, 5), 2, (1, 2), padding_mode='reflect')
    masked = MaskedConv2d(conv)
    with torch.no_grad():
        masked.mask_weight.normal_()
        x = torch.randn(2, 4, 9, 11)
        of_mask = torch.nn.Conv2d(1, 5, (3, 5), 2, (1, 2), bias=False,
                                  padding_mode='reflect')  # fmt: skip
        of_mask.weight.copy_(masked.mask_weight)
        wanted = conv(x[:, :3]) + of_mask(x[:, 3:])
    torch.testing.assert_close(masked(x), wanted)
    assert set(masked.state_dict()) == {'weight', 'bias', 'mask_weight'}


def test_a_config_stays_as_it_is():
    cfg = dict(type='mmplugins.CRMBackbone', backbone=deepcopy(MOBILE))
    given = deepcopy(cfg)
    assert isinstance(MODELS.build(cfg), CRMBackbone)
    assert cfg == given


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(depth=20), r'depth .* one of \[18, 34, 50, 101, 152\], got 20'),
        (
            dict(backbone=MOBILE, init_cfg=dict(type='Constant', val=1)),
            "give it to backbone='mmpretrain.MobileNetV2'",
        ),
        (
            dict(backbone={**MOBILE, 'frozen_stages': 0}),
            'frozen_stages .* must be -1: .* got 0',
        ),
        (
            dict(backbone=dict(type='mmpretrain.LeNet5')),
            'begins with a convolution of 3 channels, got LeNet5',
        ),
        (
            dict(backbone=dict(type='BN', num_features=3)),
            'got BatchNorm2d',
        ),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        CRMBackbone(**kwargs)


@pytest.mark.parametrize('shape', [(1, 3, 32, 32), (4, 32, 32)])
def test_bad_inputs_are_named(shape):
    with pytest.raises(ValueError, match=r'3 \+ 1, H, W\), got \('):
        CRMBackbone(18)(torch.zeros(shape))
