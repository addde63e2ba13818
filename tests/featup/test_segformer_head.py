"""SegFormer's head guided by the image, against the host's own."""

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_all_parameters_get_gradients
from mmengine.config import ConfigDict
from mmengine.registry import MODELS
from mmengine.structures import PixelData
from mmseg.models import SegformerHead
from mmseg.structures import SegDataSample

CLASSES, WIDTHS = 3, [4, 8, 12, 16]
JBU = dict(type='mmplugins.JBUStack', key_channels=4, channel_fixup=False)
BILINEAR = dict(type='mmplugins.BilinearUpsampler')


def head(**changes):
    cfg = dict(
        type='mmplugins.GuidedSegformerHead',
        in_channels=WIDTHS,
        in_index=[0, 1, 2, 3],
        channels=6,
        dropout_ratio=0,
        num_classes=CLASSES,
        norm_cfg=dict(type='BN'),
        upsampler=JBU,
    )
    cfg.update(changes)
    return cfg


def host_head(**changes):
    cfg = head(type='SegformerHead', **changes)
    del cfg['upsampler']
    return cfg


def config(**changes):
    cfg = dict(
        type='mmplugins.GuidedEncoderDecoder',
        data_preprocessor=dict(type='SegDataPreProcessor'),
        backbone=dict(
            type='MixVisionTransformer',
            embed_dims=4,
            num_layers=[1, 1, 1, 1],
            num_heads=[1, 2, 3, 4],
            out_indices=(0, 1, 2, 3),
        ),
        decode_head=head(),
        train_cfg=dict(),
        test_cfg=dict(mode='whole'),
    )
    cfg.update(changes)
    return ConfigDict(cfg)


@pytest.fixture
def build(in_scope):
    def build(cfg):
        with in_scope('mmseg'):
            return MODELS.build(cfg)

    return build


def pair(build, **changes):
    """The host's model and the guided one, of the same weights."""
    host = config(type='EncoderDecoder', decode_head=host_head())
    host = build(host).double()
    guided = build(config(decode_head=head(**changes))).double()
    for parameter in host.decode_head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    result = guided.load_state_dict(host.state_dict(), strict=False)
    assert result.unexpected_keys == []
    return host, guided, result.missing_keys


def samples(size, count=2):
    out = []
    for _ in range(count):
        sample = SegDataSample(
            metainfo=dict(img_shape=size, ori_shape=size, pad_shape=size)
        )
        label = torch.randint(0, CLASSES, (1, *size))
        sample.gt_sem_seg = PixelData(data=label)
        out.append(sample)
    return out


@pytest.mark.parametrize('size', [(64, 96), (97, 131), (33, 70)])
def test_bilinear_is_the_host(build, size):
    """Logits, and every gradient, in double precision."""
    host, guided, missing = pair(build, upsampler=BILINEAR)
    assert missing == []
    image = torch.randn(2, 3, *size, dtype=torch.double)
    data = samples(size)
    for model in (host, guided):
        model.backbone.eval()  # drop path
        model.decode_head.train()
        losses = model.loss(image, copy.deepcopy(data))
        losses['decode.loss_ce'].backward()
    gradients = dict(guided.named_parameters())
    for name, parameter in host.named_parameters():
        torch.testing.assert_close(
            gradients[name].grad, parameter.grad, rtol=1e-7, atol=1e-10
        )
    assert isinstance(host.decode_head, SegformerHead)
    with torch.no_grad():
        wanted, out = host.eval()(image), guided.eval()(image)
    assert out.shape[-2:] == tuple(-(-n // 4) for n in size)
    assert wanted.std() > 0.1
    torch.testing.assert_close(out, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize('shared', [False, True])
def test_a_checkpoint_of_the_host_loads(build, shared):
    _, guided, missing = pair(build, shared=shared)
    assert missing
    assert all(k.startswith('decode_head.upsamplers.') for k in missing)
    stages = [len(u.stages) for u in guided.decode_head.upsamplers]
    assert stages == ([1, 1, 1] if shared else [1, 2, 3])


def inputs_of(model, size=(64, 96)):
    image = torch.randn(2, 3, *size, dtype=torch.double)
    return model.extract_feat(image), image


@pytest.mark.parametrize('size', [(64, 96), (67, 98)])
@pytest.mark.parametrize('channel_fixup', [False, True])
def test_levels_are_upsampled_and_convolved_together(
    build, size, channel_fixup
):
    """The host's order of things, with the upsamplers in between."""
    upsampler = {**JBU, 'channel_fixup': channel_fixup}
    model = build(config(decode_head=head(upsampler=upsampler)))
    model = model.double().eval()
    torch.nn.init.normal_(model.decode_head.conv_seg.weight)
    feats, image = inputs_of(model, size)
    assert isinstance(feats, tuple)
    own = model.decode_head
    fine = [conv(x) for conv, x in zip(own.convs, feats)]
    guidance = F.adaptive_avg_pool2d(image, fine[0].shape[-2:])
    fine[1:] = [u(x, guidance) for u, x in zip(own.upsamplers, fine[1:])]
    wanted = own.conv_seg(own.fusion_conv(torch.cat(fine, 1)))
    torch.testing.assert_close(own(feats), wanted)


def test_shared_levels_go_the_same_way(build):
    """As stages in a row: by the sum what each level gives on its own."""
    model = build(config(decode_head=head(shared=True))).double().eval()
    feats, image = inputs_of(model)
    own = model.decode_head
    weights = own.fusion_conv.conv.weight.flatten(1).split(own.channels, 1)
    total = 0
    for level, (conv, x) in enumerate(zip(own.convs, feats)):
        x = torch.einsum('kc,bchw->bkhw', weights[level], conv(x))
        for finer in range(level - 1, -1, -1):
            size = feats[finer].shape[-2:]
            guidance = F.adaptive_avg_pool2d(image, size)
            x = own.upsamplers[finer](x, guidance)
        total = total + x
    wanted = own.fusion_conv.norm(total).relu()
    torch.testing.assert_close(own(feats), own.conv_seg(wanted))


@pytest.mark.parametrize('shared', [False, True])
@pytest.mark.parametrize('norm_cfg', [None, dict(type='BN')])
def test_trains_and_predicts(build, shared, norm_cfg):
    size = (97, 131)
    model = build(
        config(decode_head=head(shared=shared, norm_cfg=norm_cfg))
    ).train()
    image = torch.randn(2, 3, *size)
    losses = model.loss(image, samples(size))
    losses['decode.loss_ce'].backward()
    assert_all_parameters_get_gradients(model.decode_head)
    with torch.no_grad():
        results = model.eval().predict(image, samples(size))
        again = model.predict(image, samples(size))
    for result, other in zip(results, again):
        assert result.pred_sem_seg.data.shape == (1, *size)
        assert torch.equal(result.seg_logits.data, other.seg_logits.data)


def test_the_image_guides(build):
    """And the one of this call: nothing stays in the model."""
    # Without that residual the kernels know no left and right.
    upsampler = {**JBU, 'kernel_fixup': False}
    model = build(config(decode_head=head(upsampler=upsampler)))
    model = model.double().eval()
    torch.nn.init.normal_(model.decode_head.conv_seg.weight)
    feats, image = inputs_of(model)
    first = model.decode_head(feats)
    other = type(feats)(feats, image.flip(-1))
    assert not torch.allclose(model.decode_head(other), first)
    assert torch.equal(model.decode_head(feats), first)
    flipped = type(feats)((x.flip(-1) for x in feats), image.flip(-1))
    torch.testing.assert_close(model.decode_head(flipped).flip(-1), first)


def test_sliding_windows_see_their_own_window(build):
    model = build(config()).eval()
    image = torch.randn(1, 3, 64, 128)
    meta = [dict(img_shape=(64, 128), ori_shape=(64, 128))]
    model.test_cfg = ConfigDict(
        mode='slide', crop_size=(64, 64), stride=(64, 64)
    )
    with torch.no_grad():
        slid = model.inference(image, copy.deepcopy(meta))
        model.test_cfg = ConfigDict(mode='whole')
        wanted = [
            model.inference(half, [dict(img_shape=(64, 64), ori_shape=0)])
            for half in image.split(64, -1)
        ]
    torch.testing.assert_close(slid, torch.cat(wanted, -1))


def test_with_a_neck(build):
    """FeatUpNeck and a guided head, an auxiliary head beside it."""
    neck = dict(
        type='mmplugins.FeatUpNeck',
        in_channels=16,
        upsampler={**JBU, 'num_stages': 2},
    )
    auxiliary = dict(
        type='FCNHead',
        in_channels=12,
        in_index=2,
        channels=4,
        num_convs=1,
        concat_input=False,
        num_classes=CLASSES,
        norm_cfg=dict(type='BN'),
    )
    model = build(config(neck=neck, auxiliary_head=auxiliary)).train()
    losses = model.loss(torch.randn(2, 3, 64, 96), samples((64, 96)))
    assert {'decode.loss_ce', 'aux.loss_ce'} <= losses.keys()
    sum(v for k, v in losses.items() if 'loss' in k).backward()
    assert_all_parameters_get_gradients(model.neck)


def test_with_a_neck_of_the_host(build):
    fpn = dict(type='FPN', in_channels=WIDTHS, out_channels=8, num_outs=4)
    model = build(config(neck=fpn, decode_head=head(in_channels=[8] * 4)))
    losses = model.train().loss(torch.randn(2, 3, 64, 96), samples((64, 96)))
    losses['decode.loss_ce'].backward()
    assert_all_parameters_get_gradients(model.decode_head)


def test_half_precision_agrees(build):
    """As bfloat16 does: three digits of the largest value."""
    model = build(config()).eval()
    torch.nn.init.normal_(model.decode_head.conv_seg.weight)
    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        feats = model.extract_feat(image)
        wanted = model.decode_head(feats)
        with torch.autocast('cpu', torch.bfloat16):
            out = model.decode_head(feats)
    tolerance = 0.05 * wanted.abs().max().item()
    torch.testing.assert_close(out.float(), wanted, rtol=0, atol=tolerance)


def test_a_host_that_gives_no_image_is_named(build):
    model = build(config(type='EncoderDecoder'))
    with pytest.raises(ValueError, match='mmplugins.GuidedEncoderDecoder'):
        model(torch.randn(1, 3, 64, 64))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(align_corners=True), 'align_corners=True of GuidedSeg'),
        (dict(interpolate_mode='nearest'), "interpolate_mode='nearest' of"),
        (dict(upsampler=[JBU]), '1 entries for 3 levels'),
        (dict(in_channels=[4], in_index=[0]), '0 levels coarser'),
    ],
)
def test_bad_arguments_are_named(build, changes, message):
    with pytest.raises(ValueError, match=message):
        build(head(**changes))


def test_each_level_its_own_upsampler(build):
    """And the config stays as it is."""
    cfg = head(upsampler=[BILINEAR, JBU, {**JBU, 'num_stages': 2}])
    given = copy.deepcopy(cfg)
    own = build(cfg)
    assert cfg == given
    names = [type(u).__name__ for u in own.upsamplers]
    assert names == ['BilinearUpsampler', 'JBUStack', 'JBUStack']
    assert [len(u.stages) for u in own.upsamplers[1:]] == [2, 2]
