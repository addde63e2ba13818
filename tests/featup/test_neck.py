import copy

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_all_parameters_get_gradients

from mmplugins.featup import BilinearUpsampler, ChannelNorm, FeatUpNeck
from mmplugins.featup.grids import cover

JBU = dict(type='mmplugins.JBUStack', num_stages=2, key_channels=4)
BILINEAR = dict(type='mmplugins.BilinearUpsampler', num_stages=2)


def maps():
    """Maps of strides 8, 16 and 32 of a 64 x 96 image."""
    return [
        torch.randn(2, 4, 8, 12),
        torch.randn(2, 6, 4, 6),
        torch.randn(2, 8, 2, 3),
    ]


IMAGE = torch.randn(2, 3, 64, 96)


def test_named_levels_are_upsampled_and_others_pass():
    neck = FeatUpNeck([8, 4], levels=(-1, 0), upsampler=JBU).eval()
    feats = maps()
    outs = neck(feats, IMAGE)
    assert isinstance(outs, tuple)
    assert outs[1] is feats[1]
    assert outs[0].shape == (2, 4, 32, 48)
    assert outs[2].shape == (2, 8, 8, 12)
    wanted = neck.upsamplers[0](feats[2], IMAGE)
    torch.testing.assert_close(outs[2], wanted)


def test_each_level_its_own_upsampler():
    bilinear = {**BILINEAR, 'num_stages': 3}
    neck = FeatUpNeck([6, 8], levels=(1, 2), upsampler=[JBU, bilinear])
    assert isinstance(neck.upsamplers[1], BilinearUpsampler)
    outs = neck.eval()(maps(), IMAGE)
    assert [tuple(o.shape[-2:]) for o in outs] == [(8, 12), (16, 24), (16, 24)]


def test_reduction_and_norm_come_first():
    norm = dict(type='mmplugins.ChannelNorm')
    neck = FeatUpNeck(8, upsampler=BILINEAR, out_channels=5, norm=norm).eval()
    feats = maps()
    x = F.layer_norm(feats[-1].permute(0, 2, 3, 1), (8,)).permute(0, 3, 1, 2)
    conv = neck.reductions[0].conv
    wanted = F.interpolate(
        F.conv2d(x, conv.weight, conv.bias), scale_factor=4, mode='bilinear'
    )
    out = neck(feats, IMAGE)[-1]
    torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-5)
    assert sum(p.numel() for p in ChannelNorm(384).parameters()) == 768


def test_reduction_may_be_any_convolution():
    reduction = dict(kernel_size=3, padding=1, norm_cfg=dict(type='BN'))
    neck = FeatUpNeck(
        8, upsampler=BILINEAR, out_channels=5, reduction=reduction
    ).eval()
    feats = maps()
    conv = neck.reductions[0].conv
    x = F.conv2d(feats[-1], conv.weight, padding=1).relu()
    x = x / (1 + neck.reductions[0].norm.eps) ** 0.5
    wanted = F.interpolate(x, scale_factor=4, mode='bilinear')
    torch.testing.assert_close(neck(feats, IMAGE)[-1], wanted)


@pytest.mark.parametrize('size', [(64, 96), (61, 90)])
@pytest.mark.parametrize('upsampler', [JBU, BILINEAR])
@pytest.mark.parametrize('each', [False, True])
def test_linear_is_a_convolution_of_what_forward_gives(upsampler, size, each):
    """By the same weights for all samples, or by weights of each."""
    neck = FeatUpNeck(
        [8, 4],
        levels=(-1, 0),
        upsampler=upsampler,
        out_channels=5,
        norm=dict(type='mmplugins.ChannelNorm'),
    )
    neck = neck.double().eval()
    feats, image = [x.double() for x in maps()], IMAGE.double()
    image = image[..., : size[0], : size[1]]
    weight = torch.randn(2, 3, 5).double()[slice(None) if each else 0]
    bias = torch.randn(3).double()
    for level in (0, 2, -1):
        wanted = neck(feats, image)[level]
        pattern = 'bkc,bchw->bkhw' if each else 'kc,bchw->bkhw'
        wanted = torch.einsum(pattern, weight, wanted)
        out = neck.linear(feats, image, weight, bias, level)
        torch.testing.assert_close(out, wanted + bias.view(-1, 1, 1))
        out = neck.linear(feats, image, weight, level=level)
        torch.testing.assert_close(out, wanted)
    with pytest.raises(ValueError, match=r'\(-1, 0\) of 3 maps do not name 1'):
        neck.linear(feats, image, weight, bias, 1)


def test_half_precision_agrees():
    """As bfloat16 does: three digits of the largest value."""
    neck = FeatUpNeck(8, upsampler=JBU, out_channels=5).eval()
    weight, bias = torch.randn(3, 5), torch.randn(3)
    feats = maps()
    with torch.no_grad():
        wanted = neck.linear(feats, IMAGE, weight, bias)
        with torch.autocast('cpu', torch.bfloat16):
            out = neck.linear(feats, IMAGE, weight, bias)
    tolerance = 0.03 * wanted.abs().max().item()
    torch.testing.assert_close(out.float(), wanted, rtol=0, atol=tolerance)


def test_a_named_level_may_be_skipped():
    neck = FeatUpNeck([8, 4], levels=(-1, 0), upsampler=JBU).eval()
    feats = maps()
    wanted = neck(feats, IMAGE)
    outs = neck(feats, IMAGE, skip=2)
    assert outs[1] is feats[1]
    assert outs[2] is feats[2]
    assert torch.equal(outs[0], wanted[0])


@pytest.mark.parametrize('out_channels', [None, 5])
def test_every_parameter_gets_a_gradient(out_channels):
    neck = FeatUpNeck(
        8, upsampler=JBU, out_channels=out_channels, norm=dict(type='BN')
    )
    out = neck(maps(), IMAGE)[-1]
    (out * torch.randn_like(out)).sum().backward()
    assert_all_parameters_get_gradients(neck)


def test_frozen_upsamplers_stay_as_they_are():
    neck = FeatUpNeck(8, upsampler=JBU, out_channels=5, frozen=True).train()
    before = copy.deepcopy(neck.upsamplers.state_dict())
    feats = maps()
    out = neck(feats, IMAGE)[-1]
    assert torch.equal(out, neck(feats, IMAGE)[-1])  # no dropout
    out.sum().backward()
    torch.optim.SGD(
        [p for p in neck.parameters() if p.requires_grad], lr=1.0
    ).step()
    assert_all_parameters_get_gradients(neck)
    assert all(p.grad is None for p in neck.upsamplers.parameters())
    assert not any(m.training for m in neck.upsamplers.modules())
    after = neck.upsamplers.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_weights_by_init_cfg(tmp_path):
    source = FeatUpNeck(8, upsampler=JBU)
    path = tmp_path / 'jbu.pth'
    torch.save({'state_dict': source.state_dict()}, path)
    whole = FeatUpNeck(
        8,
        upsampler=JBU,
        init_cfg=dict(type='Pretrained', checkpoint=str(path)),
    )
    part = FeatUpNeck(
        8,
        upsampler={
            **JBU,
            'init_cfg': dict(
                type='Pretrained',
                checkpoint=str(path),
                prefix='upsamplers.0',
            ),
        },
    )
    for neck in (whole, part):
        neck.init_weights()
        for key, value in source.upsamplers.state_dict().items():
            torch.testing.assert_close(
                neck.upsamplers.state_dict()[key], value
            )


def test_the_config_is_not_changed():
    upsampler, norm = dict(JBU), dict(type='mmplugins.ChannelNorm')
    levels = [-1, 1]
    given = copy.deepcopy((upsampler, norm, levels))
    first = FeatUpNeck([8, 6], levels, upsampler, norm=norm)
    second = FeatUpNeck([8, 6], levels, upsampler, norm=norm)
    assert (upsampler, norm, levels) == given
    shapes = [
        {k: v.shape for k, v in neck.state_dict().items()}
        for neck in (first, second)
    ]
    assert shapes[0] == shapes[1]


def ramp(stride, grid):
    """Cells that hold the (y, x) of their centres.

    Linear, so that linear interpolation is exact away from the edges.
    """
    y = (torch.arange(grid[0]) + 0.5) * stride
    x = (torch.arange(grid[1]) + 0.5) * stride
    return torch.stack(torch.meshgrid(y, x, indexing='ij'))[None]


@pytest.mark.parametrize(
    ('grid', 'stride'),
    [((4, 5), 32), ((3, 4), 32), ((6, 9), 14), ((7, 9), 16), ((13, 17), 8)],
)
def test_nothing_shifts_towards_the_edges(grid, stride):
    """What a head resizes to the image holds each pixel's own coordinates."""
    image = (97, 131)
    neck = FeatUpNeck(2, upsampler=BILINEAR, strides=stride)
    out = neck([ramp(stride, grid)], torch.zeros(1, 3, *image))[0]
    step = stride / 4
    assert out.shape[-2:] == tuple(-int(-n // step) for n in image)
    whole = F.interpolate(out, image, mode='bilinear')[0]
    y, x = (torch.arange(n) + 0.5 for n in image)
    # Away from the outermost half cells, where nothing is left to interpolate.
    inside_y = (y > stride) & (y < min(image[0], grid[0] * stride) - stride)
    inside_x = (x > stride) & (x < min(image[1], grid[1] * stride) - stride)
    assert inside_y.sum() > 20
    assert inside_x.sum() > 20
    inner = whole[:, inside_y][:, :, inside_x]
    wanted = torch.stack(
        torch.meshgrid(y[inside_y], x[inside_x], indexing='ij')
    )
    torch.testing.assert_close(inner, wanted, rtol=0, atol=0.01)


@pytest.mark.parametrize('name', ['JBUStack', 'BilinearUpsampler'])
@pytest.mark.parametrize(
    ('grid', 'stride'),
    [((4, 5), 32), ((3, 4), 32), ((6, 9), 14), ((4, 6), 24.9), ((13, 17), 8)],
)
def test_a_map_of_the_images_own_size(grid, stride, name):
    """Whatever the stride, and whether or not the cells cover the image."""
    image = (97, 131)
    upsampler = dict(type=f'mmplugins.{name}', num_stages=3, scale='image')
    neck = FeatUpNeck(2, upsampler=upsampler, strides=stride).eval()
    with torch.no_grad():
        out = neck([ramp(stride, grid)], torch.zeros(1, 3, *image))[0]
    assert out.shape[-2:] == image
    if name == 'JBUStack':
        assert out.isfinite().all()
        return
    inside = [
        slice(int(stride), int(min(n, k * stride) - stride))
        for n, k in zip(image, grid)
    ]
    y, x = (torch.arange(n) + 0.5 for n in image)
    wanted = torch.stack(torch.meshgrid(y, x, indexing='ij'))
    # A fractional stride is rounded to whole pixels over the image.
    torch.testing.assert_close(
        out[0][:, inside[0], inside[1]],
        wanted[:, inside[0], inside[1]],
        rtol=0,
        atol=0.01 if isinstance(stride, int) else 0.5,
    )


def test_any_number_of_cells_covers_the_image():
    """Ratios that floating point does not hold leave the map as it is."""
    for scale in range(1, 32):
        upsampler = dict(type='mmplugins.BilinearUpsampler', scale=scale)
        neck = FeatUpNeck(1, upsampler=upsampler, strides=32)
        x, image = torch.rand(1, 1, 3, 7), torch.zeros(1, 3, 96, 224)
        out = neck([x], image)[0]
        assert torch.equal(out, neck.upsamplers[0](x, image))


def test_a_multiple_of_the_stride_is_not_resampled():
    feats, image = torch.randn(2, 8, 2, 3), torch.randn(2, 3, 64, 96)
    neck = FeatUpNeck(8, upsampler=JBU).eval()
    wanted = neck.upsamplers[0](feats, image)
    assert torch.equal(neck([feats], image)[0], wanted)


def test_guidance_keeps_its_place():
    """The colour under a cell is that of the pixels the cell covers."""
    image = torch.rand(1, 3, 97, 131)
    _, guidance = cover(torch.zeros(1, 1, 4, 5), image, 32)
    assert guidance.shape[-2:] == (128, 160)
    torch.testing.assert_close(guidance[..., :97, :131], image)
    torch.testing.assert_close(
        guidance[..., 97:, :131], image[..., -1:, :].expand(-1, -1, 31, -1)
    )
    feats, guidance = cover(torch.rand(1, 1, 6, 9), image, 14)
    assert feats.shape[-2:] == (7, 10)
    assert guidance.shape[-2:] == (98, 140)


def test_strides_can_be_given():
    """Where a tiny grid leaves the stride open."""
    feats, image = torch.randn(1, 8, 2, 2), torch.randn(1, 3, 36, 36)
    inferred = FeatUpNeck(8, upsampler=BILINEAR)([feats], image)[0]
    given = FeatUpNeck(8, upsampler=BILINEAR, strides=32)([feats], image)[0]
    assert inferred.shape[-2:] == (8, 8)  # 36 px at 18 / 4, exactly
    assert given.shape[-2:] == (5, 5)  # 36 px at 32 / 4


def test_strides_are_measured_where_they_are_not_given():
    backbone = torch.nn.ModuleList([torch.nn.Conv2d(3, 8, 7, 14)])
    backbone.forward = lambda x: (backbone[0](x), backbone[0](x))
    neck = FeatUpNeck([8, 8], (0, 1), upsampler=BILINEAR, strides=[None, 15])
    neck.measure(backbone)
    assert neck.strides == [14, 15]
    with pytest.raises(ValueError, match='2 does not exist'):
        FeatUpNeck(8, levels=(2,), upsampler=BILINEAR).measure(backbone)


@pytest.mark.parametrize(
    ('stride', 'upsampler', 'warned'),
    [
        (8, dict(num_stages=4), True),
        (8, dict(num_stages=3), False),
        (14, dict(num_stages=4), False),  # as FeatUp upsamples DINOv2
        (8, dict(num_stages=4, scale='image'), False),
        (8, dict(num_stages=1, scale=24), True),
    ],
)
def test_cells_of_half_a_pixel_are_warned_of(
    stride, upsampler, warned, monkeypatch
):
    said = []
    monkeypatch.setattr(
        'mmplugins.featup.neck.print_log', lambda text, *_: said.append(text)
    )
    backbone = torch.nn.ModuleList([torch.nn.Conv2d(3, 8, stride, stride)])
    backbone.forward = lambda x: (backbone[0](x),)
    upsampler = {'type': 'mmplugins.BilinearUpsampler', **upsampler}
    FeatUpNeck(8, upsampler=upsampler).measure(backbone)
    assert len(said) == warned
    assert all('cells of 0.' in text for text in said)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(in_channels=8, levels=()), r'levels .* must be indices'),
        (dict(in_channels=8, levels=3), r'levels .* must be indices'),
        (dict(in_channels=[8, 4]), 'in_channels .* 2 entries for 1 levels'),
        (
            dict(in_channels=8, levels=(0, 1), strides=[8]),
            'strides .* 1 entries for 2 levels',
        ),
        (
            dict(in_channels=8, upsampler='mmplugins.JBUStack'),
            r"upsampler .* must be dict\(type=...\), got 'mmplugins",
        ),
        (dict(in_channels=8, levels='ab'), r'levels .* must be indices'),
        (dict(in_channels=8, strides=-4), r'strides .* above 0, got -4'),
        (dict(in_channels=8, strides=0), r'strides .* above 0, got 0'),
        (dict(in_channels=8, out_channels=0), 'out_channels .* got 0'),
        (
            dict(in_channels=8, reduction=dict(kernel_size=3)),
            'reduction=.* needs out_channels',
        ),
        (
            dict(in_channels=8, upsampler={**JBU, 'in_channels': 4}),
            'upsampler in_channels=4 .* input of 8 channels',
        ),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        FeatUpNeck(**arguments)


@pytest.mark.parametrize('level', [3, -4])
def test_a_level_that_does_not_exist(level):
    neck = FeatUpNeck(8, levels=(level,), upsampler=JBU)
    with pytest.raises(ValueError, match=f'levels.*{level} .*use -3 to 2'):
        neck(maps(), IMAGE)


def test_bad_input_is_named():
    neck = FeatUpNeck(8, upsampler=JBU)
    with pytest.raises(ValueError, match='GuidedEncoderDecoder'):
        neck(maps())
    with pytest.raises(ValueError, match=r'in_channels=8 .* has 6 channels'):
        neck(maps()[:2], IMAGE)
    with pytest.raises(ValueError, match=r"\(2, 8\): set out_type='featmap'"):
        neck([torch.zeros(2, 8)], IMAGE)
    with pytest.raises(ValueError, match='strides .* 64 does not make 4 x 6'):
        FeatUpNeck(8, upsampler=JBU, strides=64)(
            [torch.zeros(2, 8, 4, 6)], torch.zeros(2, 3, 64, 96)
        )
    with pytest.raises(ValueError, match='more than 3 x 3 cells'):
        neck([torch.zeros(1, 8, 1, 1)], torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match='name a map twice'):
        FeatUpNeck(8, levels=(-1, 2), upsampler=JBU)(maps(), IMAGE)


def test_bad_values_do_not_reach_the_norms():
    """Else the statistics would keep them after the error."""
    reduction = dict(kernel_size=3, padding=1, norm_cfg=dict(type='BN'))
    neck = FeatUpNeck(8, upsampler=JBU, out_channels=4, reduction=reduction)
    feats = maps()
    feats[-1][1, 0, 0, 0] = float('nan')
    before = copy.deepcopy(neck.state_dict())
    with pytest.raises(ValueError, match=r'level -1: NaN .*samples \[1\]'):
        neck.train()(feats, IMAGE)
    after = neck.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
