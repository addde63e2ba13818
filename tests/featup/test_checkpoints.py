"""Official keys against a literal reading of what they mean."""

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS

from mmplugins.featup.checkpoints import convert

NORM_LINE = "norm=dict(type='mmplugins.ChannelNorm')"


def stage_of(radius, width):
    """Random weights of one stage in the official layout."""
    taps = (2 * radius + 1) ** 2
    return {
        'range_temp': 0.3 * torch.randn(()),
        'sigma_spatial': 0.5 + torch.rand(()),
        'range_proj.0.weight': torch.randn(width, 3, 1, 1),
        'range_proj.0.bias': torch.randn(width),
        'range_proj.3.weight': torch.randn(width, width, 1, 1) / width,
        'range_proj.3.bias': torch.randn(width),
        'fixup_proj.0.weight': torch.randn(taps, taps + 3, 1, 1) / 5,
        'fixup_proj.0.bias': torch.randn(taps),
        'fixup_proj.3.weight': torch.randn(taps, taps, 1, 1) / taps,
        'fixup_proj.3.bias': torch.randn(taps),
    }


def upsampler_of(channels, stages=('1', '2', '3', '4'), radius=3, width=32):
    """Random weights of an upsampler in the official layout."""
    official = {
        'fixup_proj.1.weight': torch.randn(channels, channels, 1, 1),
        'fixup_proj.1.bias': torch.randn(channels),
    }
    for number in stages:
        for key, value in stage_of(radius, width).items():
            official[f'up{number}.{key}'] = value
    return official


def lightning(upsampler, norm=True):
    """The same among what a published checkpoint holds besides."""
    channels = len(upsampler['fixup_proj.1.bias'])
    backbone = 'model.0.model.' if norm else 'model.model.'
    return {
        f'{backbone}cls_token': torch.randn(1, 1, channels),
        f'{backbone}blocks.0.norm1.weight': torch.randn(channels),
        **({'model.1.norm.weight': torch.ones(channels)} if norm else {}),
        **({'model.1.norm.bias': torch.zeros(channels)} if norm else {}),
        **{f'upsampler.{key}': value for key, value in upsampler.items()},
        'downsampler.w': torch.randn(14, 14),
        'scale_net.net.weight': torch.randn(1, channels, 1, 1),
        'scale_net.net.bias': torch.randn(1),
    }


def published(official, feats, image, stages=('1', '2', '3', '4')):
    """What the official keys stand for, section by section."""

    def conv(x, name):
        return F.conv2d(
            x, official[f'{name}.weight'], official[f'{name}.bias']
        )

    for up in (f'up{number}' for number in stages):
        size = (2 * feats.shape[-2], 2 * feats.shape[-1])
        g = F.adaptive_avg_pool2d(image, size)
        keys = conv(
            F.gelu(conv(g, f'{up}.range_proj.0')), f'{up}.range_proj.3'
        )
        window = round(len(official[f'{up}.fixup_proj.3.bias']) ** 0.5)
        around = [window // 2] * 4
        near = F.unfold(F.pad(keys, around, mode='reflect'), window)
        near = near.view(len(g), keys.shape[1], window**2, *size)
        temperature = official[f'{up}.range_temp'].exp().clamp(1e-4, 1e4)
        alike = (near * keys[:, :, None]).sum(1)
        kernel = (temperature * alike).softmax(1)
        line = torch.linspace(-1, 1, window)
        far = line[:, None] ** 2 + line[None, :] ** 2
        sigma = official[f'{up}.sigma_spatial']
        kernel = kernel * (-far / (2 * sigma**2)).exp().view(1, -1, 1, 1)
        kernel = kernel / kernel.sum(1, keepdim=True).clamp_min(1e-7)
        hidden = conv(torch.cat([kernel, g], 1), f'{up}.fixup_proj.0')
        kernel = kernel + 0.1 * conv(F.gelu(hidden), f'{up}.fixup_proj.3')
        x = F.interpolate(feats, size, mode='bicubic', align_corners=False)
        x = F.unfold(F.pad(x, around, mode='reflect'), window)
        x = x.view(*feats.shape[:2], window**2, *size)
        feats = (x * kernel[:, None]).sum(2)
    return feats + 0.1 * conv(feats, 'fixup_proj.1')


def loaded(official):
    """The module that the converted weights fill, and the notes."""
    cfg, ours, notes = convert(official)
    stack = MODELS.build(cfg).eval()
    stack.load_state_dict(ours, strict=True)
    return stack, notes


@pytest.mark.parametrize('backend', ['auto', 'reference'])
@pytest.mark.parametrize(
    'size',
    [
        dict(channels=6),
        dict(channels=3, stages=('1', '2'), radius=1, width=5),
        dict(channels=5, stages=('1',), radius=2, width=4),
    ],
)
def test_the_module_does_what_the_keys_say(size, backend):
    official = upsampler_of(**size)
    cfg, ours, _ = convert(lightning(official))
    stack = MODELS.build({**cfg, 'backend': backend}).eval()
    stack.load_state_dict(ours, strict=True)
    feats = torch.randn(2, size['channels'], 2, 3)
    image = torch.randn(2, 3, 37, 50)
    wanted = published(
        official, feats, image, size.get('stages', ('1', '2', '3', '4'))
    )
    with torch.no_grad():
        out = stack(feats, image)
    assert out.shape == wanted.shape
    torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-4)


def test_one_stage_for_all_is_applied_four_times():
    """SimFeatUp's keys: up, of radius 5."""
    official = upsampler_of(4, stages=('',), radius=5)
    stack, _ = loaded(
        {f'upsampler.{key}': value for key, value in official.items()}
    )
    feats, image = torch.randn(1, 4, 3, 4), torch.randn(1, 3, 40, 61)
    with torch.no_grad():
        out = stack(feats, image)
    wanted = published(official, feats, image, [''] * 4)
    torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-4)


def test_an_upsampler_alone_is_the_same():
    official = upsampler_of(4, stages=('1', '2'), radius=1)
    assert convert(official)[:2] == convert(lightning(official))[:2]


def test_sizes_are_read_from_the_shapes():
    cfg, _, _ = convert(upsampler_of(7, ('1', '2', '3'), radius=2, width=9))
    assert cfg == dict(
        type='mmplugins.JBUStack',
        in_channels=7,
        num_stages=3,
        radius=2,
        key_channels=9,
        guidance_channels=3,
    )


def test_what_is_dropped_is_said():
    _, notes = loaded(lightning(upsampler_of(4, stages=('1',))))
    assert notes[:3] == [
        'dropped model.* (backbone): 4 tensors',
        'dropped downsampler.* (downsampler): 1 tensors',
        'dropped scale_net.* (uncertainty): 2 tensors',
    ]


def test_the_family_is_told():
    official = upsampler_of(4, stages=('1',))
    (line,) = loaded(lightning(official))[1][3:]
    assert 'after layer normalisation' in line
    assert f'set {NORM_LINE} in FeatUpNeck' in line
    (line,) = loaded(lightning(official, norm=False))[1][3:]
    assert 'no_norm' in line
    assert NORM_LINE not in line
    (line,) = loaded(official)[1]
    assert 'does not tell' in line
    assert NORM_LINE in line


def test_a_norm_that_was_trained_is_told():
    official = lightning(upsampler_of(4, stages=('1',)))
    official['model.1.norm.bias'] = torch.full((4,), 0.5)
    assert 'model.1.norm.* also scale' in convert(official)[2][-1]


@pytest.mark.parametrize(
    'key',
    [
        'upsampler.up1.extra',
        'upsampler.up0.range_temp',
        'upsampler.up1.range_proj.2.weight',
        'upsampler.fixup_proj.0.weight',
        'up1.range_temp',
        'projection.weight',
    ],
)
def test_a_key_without_a_place_is_named(key):
    official = lightning(upsampler_of(4, stages=('1',)))
    official[key] = torch.zeros(())
    with pytest.raises(ValueError, match=rf'^{key} has no place'):
        convert(official)


def test_a_backbone_alone_is_refused():
    with pytest.raises(ValueError, match=r'^model.0.cls_token has no place'):
        convert({'model.0.cls_token': torch.zeros(1)})


@pytest.mark.parametrize(
    ('key', 'named'),
    [
        ('fixup_proj.1.bias', 'fixup_proj.1.bias'),
        ('up1.fixup_proj.3.bias', 'stages.0.fixup_proj.3.bias'),
        ('up1.range_proj.0.weight', 'stages.0.range_proj.0.weight'),
    ],
)
def test_a_size_that_no_key_tells_is_named(key, named):
    official = upsampler_of(4, stages=('1', '2'), radius=1)
    del official[key]
    with pytest.raises(ValueError, match=f'no key fills {named}'):
        convert(official)


def test_shapes_that_are_no_stage_are_named():
    official = upsampler_of(4, stages=('1',), radius=1)
    with pytest.raises(ValueError, match='16 values, which are no window'):
        convert({**official, 'up1.fixup_proj.3.bias': torch.zeros(16)})
    with pytest.raises(ValueError, match=r'\(9,\), no convolution'):
        convert({**official, 'up1.range_proj.0.weight': torch.zeros(9)})


def test_both_kinds_of_stages_are_refused():
    official = upsampler_of(4, stages=('1', ''), radius=1)
    with pytest.raises(ValueError, match='up, one stage for all'):
        convert(official)
