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
