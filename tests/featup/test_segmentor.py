"""The adapter in mmsegmentation, through the host's own interfaces."""

import copy

import pytest
import torch
from helpers import assert_all_parameters_get_gradients
from mmengine.config import ConfigDict
from mmengine.registry import MODELS
from mmengine.structures import PixelData
from mmseg.engine.optimizers import LearningRateDecayOptimizerConstructor
from mmseg.models import EncoderDecoder, SegTTAModel
from mmseg.structures import SegDataSample

CLASSES = 3
SIZE = (97, 131)  # divided by no stride
BN = dict(type='BN')

# mmpretrain backbones, the channels of their last map, and what they need.
BACKBONES = {
    'resnet': (dict(type='mmpretrain.ResNet', depth=18), 512),
    'four_levels': (
        dict(
            type='mmpretrain.ResNet',
            depth=18,
            base_channels=4,
            out_indices=(0, 1, 2, 3),
        ),
        32,
    ),
    'mobilenet_v2': (
        dict(type='mmpretrain.MobileNetV2', out_indices=(7,)),
        1280,
    ),
    'convnext': (
        dict(
            type='mmpretrain.ConvNeXt',
            arch=dict(depths=[1, 1, 1, 1], channels=[8, 16, 32, 64]),
            gap_before_final_norm=False,
        ),
        64,
    ),
    'swin': (
        dict(
            type='mmpretrain.SwinTransformer',
            arch=dict(
                embed_dims=12, depths=[1, 1, 1, 1], num_heads=[1, 2, 3, 4]
            ),
            pad_small_map=True,
        ),
        96,
    ),
    'vit': (
        dict(
            type='mmpretrain.VisionTransformer',
            arch=dict(
                embed_dims=24,
                num_layers=2,
                num_heads=2,
                feedforward_channels=48,
            ),
            img_size=96,
            patch_size=16,
            out_type='featmap',
        ),
        24,
    ),
    'dinov2': (
        dict(
            type='mmpretrain.VisionTransformer',
            arch=dict(
                embed_dims=24,
                num_layers=2,
                num_heads=2,
                feedforward_channels=48,
            ),
            img_size=98,
            patch_size=14,
            layer_scale_init_value=1e-5,
            out_type='featmap',
        ),
        24,
    ),
}


def head(channels, index=-1, **kwargs):
    return dict(
        type='FCNHead',
        in_channels=channels,
        in_index=index,
        channels=8,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0,
        num_classes=CLASSES,
        norm_cfg=BN,
        **kwargs,
    )


def config(backbone='resnet', **changes):
    backbone, channels = copy.deepcopy(BACKBONES[backbone])
    cfg = dict(
        type='mmplugins.GuidedEncoderDecoder',
        data_preprocessor=dict(
            type='SegDataPreProcessor',
            mean=[128.0] * 3,
            std=[64.0] * 3,
            size=SIZE,
        ),
        backbone=backbone,
        neck=dict(
            type='mmplugins.FeatUpNeck',
            in_channels=channels,
            out_channels=16,
            upsampler=dict(type='mmplugins.JBUStack', num_stages=2),
        ),
        decode_head=head(16),
        train_cfg=dict(),
        test_cfg=dict(mode='whole'),
    )
    cfg.update(changes)
    return ConfigDict(cfg)


def batch(size=SIZE, count=2):
    samples = []
    for _ in range(count):
        sample = SegDataSample(
            metainfo=dict(
                img_shape=size, ori_shape=size, pad_shape=size, flip=False
            )
        )
        label = torch.randint(0, CLASSES, (1, *size))
        sample.gt_sem_seg = PixelData(data=label)
        samples.append(sample)
    images = [
        torch.randint(0, 256, (3, *size), dtype=torch.uint8) for _ in samples
    ]
    return dict(inputs=images, data_samples=samples)


@pytest.fixture
def build(in_scope):
    def build(cfg):
        with in_scope('mmseg'):
            return MODELS.build(cfg)

    return build


def losses_of(model, data):
    data = model.data_preprocessor(data, training=True)
    return model(**data, mode='loss')


@pytest.mark.parametrize('backbone', list(BACKBONES))
def test_any_backbone_trains_and_predicts(build, backbone):
    model = build(config(backbone)).train()
    losses = losses_of(model, batch())
    losses['decode.loss_ce'].backward()
    assert_all_parameters_get_gradients(model.neck)
    assert_all_parameters_get_gradients(model.decode_head)
    with torch.no_grad():
        results = model.eval().test_step(batch())
    for result in results:
        assert result.pred_sem_seg.data.shape == (1, *SIZE)
        assert result.seg_logits.data.shape == (CLASSES, *SIZE)
        assert result.seg_logits.data.isfinite().all()


@pytest.mark.parametrize('backbone', ['vit', 'dinov2'])
def test_a_vit_without_maps_is_told_the_key(build, backbone):
    cfg = config(backbone)
    cfg.backbone.out_type = 'cls_token'
    with pytest.raises(ValueError, match="out_type='featmap'"):
        losses_of(build(cfg), batch())


def test_a_convnext_without_maps_is_told_the_key(build):
    cfg = config('convnext')
    del cfg.backbone.gap_before_final_norm
    with pytest.raises(ValueError, match='gap_before_final_norm=False'):
        losses_of(build(cfg), batch())


def test_features_are_those_of_neck_and_image(build):
    model = build(config()).eval()
    image = torch.randn(1, 3, *SIZE)
    with torch.no_grad():
        feats = model.extract_feat(image)
        wanted = model.neck(model.backbone(image), image)
    assert model.neck.strides == [32]
    assert feats[0].shape == (1, 16, 13, 17)  # stride 32 / 4
    assert torch.equal(feats[0], wanted[0])


def test_a_checkpoint_of_the_host_loads_unchanged(build):
    host = config(type='EncoderDecoder', neck=None, decode_head=head(512))
    host = build(host)
    assert type(host) is EncoderDecoder
    neck = config().neck
    neck.out_channels = None
    guided = build(config(neck=neck, decode_head=head(512)))
    result = guided.load_state_dict(host.state_dict(), strict=False)
    assert result.unexpected_keys == []
    assert result.missing_keys
    assert all(key.startswith('neck.') for key in result.missing_keys)


def test_slide_inference(build):
    """Patches of the whole image's size give the whole image's logits."""
    model = build(config()).eval()
    image = torch.randn(1, 3, 96, 128)
    meta = [dict(img_shape=(96, 128), ori_shape=(96, 128), flip=False)]
    with torch.no_grad():
        whole = model.inference(image, meta)
        model.test_cfg = ConfigDict(
            mode='slide', crop_size=(96, 128), stride=(64, 64)
        )
        torch.testing.assert_close(model.inference(image, meta), whole)
        model.test_cfg = ConfigDict(
            mode='slide', crop_size=(64, 64), stride=(48, 48)
        )
        slid = model.inference(image, meta)
    assert slid.shape == whole.shape
    assert not torch.allclose(slid, whole)


def test_test_time_augmentation(build, in_scope):
    """The mean of an image and its mirror image is mirror symmetric."""
    tta = dict(type='SegTTAModel', module=config())
    model = build(ConfigDict(tta)).eval()
    assert isinstance(model, SegTTAModel)
    # Large enough for several classes to win somewhere.
    torch.nn.init.normal_(model.module.decode_head.conv_seg.weight)
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)

    def predict(first):
        samples = []
        for flip in (False, True):
            sample = SegDataSample(
                metainfo=dict(
                    img_path='image.png',
                    img_shape=(64, 96),
                    ori_shape=(64, 96),
                    flip=flip,
                    flip_direction='horizontal' if flip else None,
                )
            )
            samples.append([sample])
        views = [[first], [first.flip(-1)]]
        data = dict(inputs=views, data_samples=samples)
        with torch.no_grad():
            return model.test_step(data)[0].pred_sem_seg.data

    classes = predict(image)
    assert len(classes.unique()) > 1
    same = classes == predict(image.flip(-1)).flip(-1)
    assert same.float().mean() > 0.999  # all but ties


def test_auxiliary_heads_see_the_levels_they_saw(build):
    cfg = config(auxiliary_head=[head(256, 2), head(128, 1)])
    cfg.backbone.out_indices = (0, 1, 2, 3)
    model = build(cfg).train()
    losses = losses_of(model, batch())
    names = {'decode.loss_ce', 'aux_0.loss_ce', 'aux_1.loss_ce'}
    assert names <= losses.keys()
    sum(losses[name] for name in names).backward()
    assert_all_parameters_get_gradients(model)


def test_deep_supervision_in_a_cascade(build):
    ocr = dict(
        type='OCRHead',
        in_channels=16,
        in_index=-1,
        channels=8,
        ocr_channels=8,
        num_classes=CLASSES,
        norm_cfg=BN,
    )
    cfg = config(
        type='mmplugins.GuidedCascadeEncoderDecoder',
        num_stages=2,
        decode_head=[head(16), ocr],
    )
    model = build(cfg).train()
    losses = losses_of(model, batch())
    names = {'decode_0.loss_ce', 'decode_1.loss_ce'}
    assert names <= losses.keys()
    sum(losses[name] for name in names).backward()
    assert_all_parameters_get_gradients(model.neck)
    with torch.no_grad():
        result = model.eval().test_step(batch(count=1))[0]
    assert result.pred_sem_seg.data.shape == (1, *SIZE)


def test_layer_wise_learning_rates_find_the_backbone(build):
    """The rates of the backbone are those of the same model without neck."""

    def rates(cfg):
        model = build(cfg)
        constructor = LearningRateDecayOptimizerConstructor(
            dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1.0)),
            dict(num_layers=6, decay_rate=0.5, decay_type='stage_wise'),
        )
        optimizer = constructor(model).optimizer
        names = {id(p): n for n, p in model.named_parameters()}
        return {
            names[id(p)]: group['lr']
            for group in optimizer.param_groups
            for p in group['params']
        }

    guided = rates(config('convnext'))
    host = rates(
        config(
            'convnext',
            type='EncoderDecoder',
            neck=None,
            decode_head=head(64),
        )
    )
    backbone = {n: lr for n, lr in host.items() if n.startswith('backbone.')}
    assert backbone
    assert backbone == {n: guided[n] for n in backbone}
    assert len(set(backbone.values())) > 1
    assert {lr for n, lr in guided.items() if n.startswith('neck.')} == {1.0}


def test_a_level_that_no_head_reads_is_named(build):
    cfg = config()
    cfg.backbone.out_indices = (2, 3)
    cfg.neck.update(levels=(0,), in_channels=256)
    cfg.decode_head = head(512)
    with pytest.raises(ValueError, match=r'no head reads \[0\].*\[1\] of 2'):
        build(cfg)


def test_the_other_class_is_named(build):
    with pytest.raises(ValueError, match='GuidedCascadeEncoderDecoder'):
        build(config(num_stages=2))
    cfg = config(type='mmplugins.GuidedCascadeEncoderDecoder')
    with pytest.raises(ValueError, match='takes num_stages.*all else'):
        build(cfg)


FPN = dict(type='FPN', in_channels=[512], out_channels=16, num_outs=1)


@pytest.mark.parametrize('neck', [None, FPN])
def test_another_neck_is_refused(build, neck):
    with pytest.raises(ValueError, match=r'neck of .*mmplugins\.FeatUpNeck'):
        build(config(neck=neck))


# Upsamplers and the sizes of the images they are tried with.
LINEAR = {
    'jbu': dict(type='mmplugins.JBUStack', num_stages=2, key_channels=4),
    'jbu without residuals': dict(
        type='mmplugins.JBUStack',
        num_stages=2,
        key_channels=4,
        kernel_fixup=False,
        channel_fixup=False,
    ),
    'jbu to the image': dict(
        type='mmplugins.JBUStack', num_stages=2, key_channels=4, scale='image'
    ),
    'bilinear': dict(type='mmplugins.BilinearUpsampler', num_stages=2),
    'bilinear by three': dict(type='mmplugins.BilinearUpsampler', scale=3),
}


def linear_config(upsampler='jbu', out_channels=None, **changes):
    """A 1x1 head on the deepest of four levels, another one upsampled too."""
    width = out_channels or 32
    cfg = config(
        'four_levels',
        neck=dict(
            type='mmplugins.FeatUpNeck',
            in_channels=[32, 16],
            levels=(-1, 2),
            upsampler=LINEAR[upsampler],
            norm=dict(type='mmplugins.ChannelNorm'),
        ),
        decode_head={**head(width), 'num_convs': 0, 'channels': width},
        auxiliary_head=[head(width if out_channels else 16, 2), head(8, 1)],
    )
    if out_channels:
        cfg.neck.out_channels = out_channels
        cfg.neck.reduction = dict(kernel_size=3, padding=1, norm_cfg=BN)
    cfg.update(changes)
    return cfg


def both_ways(build, cfg):
    """The same model in double precision, with the head last and first."""
    usual = build(cfg).double()
    first = build(ConfigDict(linear_head=True, **cfg)).double()
    torch.nn.init.normal_(usual.decode_head.conv_seg.bias)
    first.load_state_dict(usual.state_dict())
    for model in (usual, first):
        for module in model.neck.modules():
            if isinstance(module, torch.nn.Dropout2d):
                module.p = 0.0
    return usual, first


def assert_same_training(usual, first, size=(67, 97)):
    """The same losses and the same gradient of every parameter."""
    image = torch.randn(2, 3, *size, dtype=torch.double)
    samples = batch(size)['data_samples']
    results = []
    for model in (usual, first):
        torch.manual_seed(0)  # dropout of the head
        losses = model.train().loss(image, samples)
        sum(v for k, v in losses.items() if 'loss' in k).backward()
        results.append(losses)
    assert results[0].keys() == results[1].keys()
    for name, value in results[0].items():
        torch.testing.assert_close(
            results[1][name], value, rtol=1e-10, atol=1e-12
        )
    assert_all_parameters_get_gradients(first)
    gradients = dict(first.named_parameters())
    for name, parameter in usual.named_parameters():
        torch.testing.assert_close(
            gradients[name].grad, parameter.grad, rtol=1e-7, atol=1e-10
        )
    for name, value in usual.named_buffers():  # running means, once a step
        torch.testing.assert_close(first.get_buffer(name), value)


@pytest.mark.parametrize(
    ('upsampler', 'size', 'out_channels'),
    [(name, (67, 97), None) for name in LINEAR]
    + [('jbu', (64, 96), 12), ('bilinear', (97, 65), 12)],
)
def test_a_linear_head_may_come_first(build, upsampler, size, out_channels):
    usual, first = both_ways(build, linear_config(upsampler, out_channels))
    assert_same_training(usual, first, size)
    image = torch.randn(2, 3, *size, dtype=torch.double)
    with torch.no_grad():
        wanted = usual.eval()(image)
        out = first.eval()(image)
        feats = first.extract_feat(image)
    assert wanted.std() > 0.01
    torch.testing.assert_close(out, wanted, rtol=1e-10, atol=1e-12)
    assert feats[-1].shape[1] == (out_channels or 32)  # still features


def test_dropout_of_a_linear_head_is_the_same(build):
    """Also behind a residual convolution, which mixes what it dropped."""
    cfg = linear_config(auxiliary_head=None)
    cfg.neck.update(frozen=True, levels=(-1,), in_channels=32)
    cfg.decode_head.dropout_ratio = 0.5
    usual, first = both_ways(build, cfg)
    assert_same_training(usual, first)
    image = torch.randn(2, 3, *SIZE, dtype=torch.double)
    with torch.no_grad():
        assert not torch.equal(first(image), first(image))


def test_a_level_that_another_head_reads_goes_the_usual_way(build):
    """And its batch norms see it once."""
    cfg = linear_config(out_channels=12, auxiliary_head=[head(12, 3)])
    cfg.neck.update(levels=(-1,), in_channels=32)
    usual, first = both_ways(build, cfg)
    assert_same_training(usual, first)
    assert first.neck.reductions[0].bn.num_batches_tracked == 1


def test_a_linear_head_upsamples_its_classes_only(build):
    cfg = linear_config(auxiliary_head=None)
    cfg.neck.update(levels=(-1,), in_channels=32)
    data = batch()
    for model, width in zip(both_ways(build, cfg), (32, CLASSES)):
        model.float()
        seen = []
        for stage in model.neck.upsamplers[0].stages:
            stage.register_forward_pre_hook(
                lambda _, args, seen=seen: seen.append(args[0].shape[1])
            )
        losses_of(model.train(), data)
        with torch.no_grad():
            model.eval().test_step(data)
        assert seen == [width] * 4  # two stages, two calls


@pytest.mark.parametrize('mode', ['whole', 'slide', 'flipped'])
def test_a_linear_head_predicts_the_same(build, mode):
    test_cfg = dict(mode='whole')
    if mode == 'slide':
        test_cfg = dict(mode='slide', crop_size=(64, 64), stride=(48, 48))
    data = batch(count=1)
    models = [m.float().eval() for m in both_ways(build, linear_config())]
    results = []
    for model in models:
        model.test_cfg = ConfigDict(test_cfg)
        if mode == 'flipped':
            tta = build(dict(type='SegTTAModel', module=linear_config()))
            tta.module = model
            images, samples = data['inputs'], data['data_samples']
            flipped = copy.deepcopy(samples)
            flipped[0].set_metainfo(
                dict(flip=True, flip_direction='horizontal')
            )
            for sample in (samples[0], flipped[0]):
                sample.set_metainfo(dict(img_path='image.png'))
            views = dict(
                inputs=[images, [images[0].flip(-1)]],
                data_samples=[samples, flipped],
            )
            with torch.no_grad():
                results.append(tta.eval().test_step(views)[0].pred_sem_seg)
        else:
            with torch.no_grad():
                results.append(model.test_step(data)[0].seg_logits)
    wanted, out = (result.data for result in results)
    assert out.shape[-2:] == SIZE
    if mode == 'flipped':
        assert len(wanted.unique()) > 1
        assert (out == wanted).float().mean() > 0.999  # all but ties
    else:
        torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(num_convs=1), "FCNHead {'num_convs': 1,"),
        (dict(concat_input=True), "'concat_input': True"),
        (
            dict(
                input_transform='resize_concat',
                in_index=[3, 1],
                in_channels=[32, 8],
                channels=40,
            ),
            "'input_transform': 'resize_concat'",
        ),
        (dict(type='PSPHead'), 'got PSPHead'),
        (
            dict(in_index=0, in_channels=4, channels=4),
            r'in_index=0 is not among levels=\(-1, 2\)',
        ),
    ],
)
def test_a_head_that_cannot_come_first_is_named(build, changes, message):
    cfg = linear_config(linear_head=True)
    cfg.auxiliary_head = [head(16, 2), head(32, 3)]
    cfg.decode_head.update(changes)
    if changes.get('type') == 'PSPHead':
        for key in ('num_convs', 'concat_input'):
            del cfg.decode_head[key]
    with pytest.raises(ValueError, match=message):
        build(cfg)


def test_channels_that_do_not_fit_are_named(build):
    with pytest.raises(
        ValueError, match=r'decode_head.in_channels is 512 .* makes 16 '
    ):
        build(config(decode_head=head(512)))
    cfg = linear_config(auxiliary_head=[head(16, 2), head(9, 2)])
    with pytest.raises(ValueError, match=r'auxiliary_head.in_channels is 9 '):
        build(cfg)


def test_channels_that_the_backbone_does_not_have_are_named(build):
    """Before what the head wants of the neck, which is no better."""
    cfg = config(decode_head=head(512))
    channels = cfg.neck.in_channels
    cfg.neck.update(in_channels=7, out_channels=None)
    message = f'in_channels=7 of FeatUpNeck .* set in_channels={channels}$'
    with pytest.raises(ValueError, match=message):
        build(cfg)


def test_a_level_that_deeplab_reads_unnamed(build):
    """DepthwiseSeparableASPPHead reads the first map for its details."""
    cfg = config(
        'four_levels',
        decode_head=dict(
            type='DepthwiseSeparableASPPHead',
            in_channels=32,
            in_index=3,
            channels=8,
            c1_in_channels=4,
            c1_channels=4,
            dilations=(1, 2),
            num_classes=CLASSES,
            norm_cfg=BN,
        ),
    )
    cfg.neck = dict(
        type='mmplugins.FeatUpNeck',
        in_channels=4,
        levels=(0,),
        upsampler=LINEAR['jbu'],
    )
    losses = losses_of(build(cfg).train(), batch())
    assert losses['decode.loss_ce'].isfinite()
