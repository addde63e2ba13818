"""The adapter in mmpretrain, through the host's own interfaces."""

import copy

import pytest
import torch
from helpers import assert_all_parameters_get_gradients
from mmengine.config import ConfigDict
from mmengine.evaluator import Evaluator
from mmengine.registry import METRICS, MODELS
from mmpretrain.models import ImageClassifier
from mmpretrain.structures import DataSample
from torch import nn

from mmplugins.featup.cam import normalize_map

CLASSES = 6
SIZE = (97, 131)  # divided by no stride
MEAN, STD = [120.0, 110.0, 100.0], [60.0, 50.0, 40.0]
RESNET = dict(type='ResNet', depth=18, base_channels=8)
VIT = dict(
    type='VisionTransformer',
    arch=dict(
        embed_dims=24, num_layers=2, num_heads=2, feedforward_channels=48
    ),
    img_size=96,
    patch_size=16,
    out_type='featmap',
)
CONVNEXT = dict(
    type='ConvNeXt',
    arch=dict(depths=[1, 1, 1, 1], channels=[8, 16, 32, 64]),
    gap_before_final_norm=False,
)
JBU = dict(type='mmplugins.JBUStack', num_stages=2)
LINEAR = dict(type='LinearClsHead', num_classes=CLASSES, in_channels=64)
STACKED = dict(
    type='StackedLinearClsHead',
    num_classes=CLASSES,
    in_channels=64,
    mid_channels=[16],
)


def config(channels=64, **changes):
    cfg = dict(
        type='mmplugins.GuidedImageClassifier',
        data_preprocessor=dict(mean=MEAN, std=STD, to_rgb=True),
        backbone=RESNET,
        neck=dict(type='GlobalAveragePooling'),
        head={**LINEAR, 'in_channels': channels},
        featup=dict(
            type='mmplugins.FeatUpNeck', in_channels=channels, upsampler=JBU
        ),
    )
    return ConfigDict(copy.deepcopy({**cfg, **changes}))


@pytest.fixture
def build(in_scope):
    def build(cfg):
        with in_scope('mmpretrain'):
            return MODELS.build(cfg).eval()

    return build


@pytest.fixture
def images():
    return torch.randn(2, 3, *SIZE)


def tell_apart(model, images):
    """Make two images two classes, their masked ones others."""
    layers = [m for m in model.head.modules() if isinstance(m, nn.Linear)]
    for layer in layers:
        nn.init.normal_(layer.weight)
    with torch.no_grad():
        # Of two points and their mean, one is above it and one below.
        layers[-1].bias -= model(images).mean(0)
        spread = model(images)[0].abs().max()
        layers[-1].weight /= spread
        layers[-1].bias /= spread
    assert len(model(images).argmax(1).unique()) == 2


def pixels(size=SIZE):
    return [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for _ in 'ab']


def predict(model, images):
    with torch.no_grad():
        samples = model(images, mode='predict')
    labels = torch.stack([s.pred_score for s in samples]).argmax(1)
    return samples, labels


def cams(samples, key='cam'):
    return torch.stack([sample.get(key) for sample in samples])


@pytest.mark.parametrize('head', [LINEAR, STACKED], ids=['linear', 'stacked'])
def test_it_classifies_and_learns_as_the_host(build, images, head):
    guided = build(config(head=head))
    cfg = config(type='ImageClassifier', head=head)
    del cfg.featup
    host = build(cfg)
    assert type(host) is ImageClassifier
    result = guided.load_state_dict(host.state_dict(), strict=False)
    assert result.unexpected_keys == []
    assert result.missing_keys
    assert all(key.startswith('featup.') for key in result.missing_keys)
    assert guided.featup.strides == [32]

    samples, wanted = predict(guided, images)[0], predict(host, images)[0]
    for sample, one in zip(samples, wanted):
        assert torch.equal(sample.pred_score, one.pred_score)
        assert torch.equal(sample.pred_label, one.pred_label)
    assert torch.equal(guided(images), host(images))
    labelled = [DataSample().set_gt_label(k) for k in (1, 4)]
    losses = [m(images, labelled, mode='loss')['loss'] for m in (guided, host)]
    assert torch.equal(*losses)
    losses[0].backward()
    assert_all_parameters_get_gradients(guided.backbone)
    assert_all_parameters_get_gradients(guided.head)


@pytest.mark.parametrize(
    ('backbone', 'channels'),
    [(RESNET, 64), (VIT, 24), (CONVNEXT, 64)],
    ids=['resnet', 'vit', 'convnext'],
)
@pytest.mark.parametrize('size', [SIZE, (96, 96)])
def test_cam_is_that_of_the_upsampled_features(
    build, backbone, channels, size
):
    """Every channel upsampled, then weighed by the class."""
    model = build(config(channels, backbone=backbone))
    images = torch.randn(2, 3, *size)
    tell_apart(model, images)
    samples, labels = predict(model, images)
    with torch.no_grad():
        feats = model.featup(model.backbone(images), images)[-1]
        weight = model.head.fc.weight[labels]
        maps = (weight[:, :, None, None] * feats).sum(1)
    got = cams(samples)
    assert got.shape == (2, *size)
    wanted = normalize_map(maps, size)
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=0)
    assert got.std((1, 2)).max() > 0.01


@pytest.mark.parametrize('resize', ['bilinear', 'nearest'])
def test_without_featup_it_is_the_low_resolution_map(build, images, resize):
    model = build(config(featup=None, resize=resize))
    tell_apart(model, images)
    samples, labels = predict(model, images)
    with torch.no_grad():
        feats = model.backbone(images)[-1]
        maps = torch.stack(
            [
                model.head.fc(x.movedim(0, -1))[..., k]
                for x, k in zip(feats, labels)
            ]
        )
        maps = maps - model.head.fc.bias[labels].view(-1, 1, 1)
    wanted = normalize_map(maps, SIZE, resize)
    torch.testing.assert_close(cams(samples), wanted, atol=1e-4, rtol=0)
    values = [len(x.unique()) for x in cams(samples)]
    assert (max(values) <= 4 * 5) == (resize == 'nearest')


@pytest.mark.parametrize('featup', [None, config().featup])
def test_grad_cam_by_hand(build, images, featup):
    """For a head of two layers: autograd once for each image."""
    model = build(config(head=STACKED, featup=featup))
    tell_apart(model, images)
    samples, labels = predict(model, images)
    for image, label, sample in zip(images.split(1), labels, samples):
        feats = model.backbone(image)[-1].detach().requires_grad_()
        model.head(model.neck((feats,)))[0, label].backward()
        weight = feats.grad.mean((2, 3), keepdim=True)
        with torch.no_grad():
            if featup is not None:
                feats = model.featup((feats,), image)[-1]
            wanted = normalize_map((weight * feats).sum(1), SIZE)[0]
        torch.testing.assert_close(sample.cam, wanted, atol=1e-4, rtol=0)


def test_grad_cam_of_a_linear_head_is_cam(build, images):
    cam = build(config())
    tell_apart(cam, images)
    grad_cam = build(config(method='grad_cam'))
    grad_cam.load_state_dict(cam.state_dict())
    assert cam.linear
    assert not grad_cam.linear
    assert cams(predict(cam, images)[0]).std((1, 2)).max() > 0.01
    for key in ('cam', 'masked_cam'):
        torch.testing.assert_close(
            cams(predict(grad_cam, images)[0], key),
            cams(predict(cam, images)[0], key),
            atol=1e-4,
            rtol=0,
        )


def test_grad_cam_leaves_no_gradients(build, images):
    model = build(config(head=STACKED))
    samples, _ = predict(model, images)
    assert all(p.grad is None for p in model.parameters())
    assert not samples[0].cam.requires_grad


def test_pooling_that_is_not_linear_takes_grad_cam(build, images):
    """Powers of the features must not be negative, nor are they here."""
    neck = dict(type='GeneralizedMeanPooling', p=3.0)
    model = build(config(neck=neck))
    assert not model.linear
    tell_apart(model, images)
    assert cams(predict(model, images)[0]).std((1, 2)).max() > 0.01


@pytest.mark.parametrize('head', [LINEAR, STACKED], ids=['linear', 'stacked'])
def test_the_masked_image_is_predicted_for_the_same_class(build, images, head):
    model = build(config(head=head))
    tell_apart(model, images)
    samples, labels = predict(model, images)
    masked = images * cams(samples)[:, None]
    with torch.no_grad():
        scores = model(masked).softmax(1)
        maps = model.class_maps(masked, model.backbone(masked), labels)
    for i, sample in enumerate(samples):
        torch.testing.assert_close(sample.masked_score, scores[i])
        torch.testing.assert_close(
            sample.masked_cam, maps[i], atol=1e-5, rtol=0
        )
    others = cams(samples, 'masked_score').argmax(1)
    assert not torch.equal(others, labels)


def test_masking_the_image_turns_pixels_black(build):
    """The same as a test of the masked photograph itself."""
    model = build(config(masking='image'))
    data = dict(inputs=pixels(), data_samples=[DataSample(), DataSample()])
    with torch.no_grad():
        samples = model.test_step(copy.deepcopy(data))
        masked = [x * s.cam for x, s in zip(data['inputs'], samples)]
        wanted = model.test_step(dict(data, inputs=masked))
    for sample, one in zip(samples, wanted):
        torch.testing.assert_close(sample.masked_score, one.pred_score)


def test_no_masking_saves_the_second_pass(build, images):
    model = build(config(masking=None))
    calls = []
    model.backbone.register_forward_hook(lambda *_: calls.append(1))
    samples, _ = predict(model, images)
    assert len(calls) == 1
    for sample in samples:
        assert 'cam' in sample
        assert not {'masked_score', 'masked_cam'} & set(sample.keys())


def test_figures_of_a_test_run(build):
    """Samples of a loader, results kept in them, figures by their names."""
    model = build(config())
    data = dict(
        inputs=pixels(),
        data_samples=[DataSample(metainfo=dict(img_path=p)) for p in 'ab'],
    )
    evaluator = Evaluator(METRICS.build(dict(type='mmplugins.CAMMetric')))
    with torch.no_grad():
        samples = model.test_step(data)
    assert [sample.img_path for sample in samples] == ['a', 'b']
    evaluator.process(samples, data)
    figures = evaluator.evaluate(2)
    drops = []
    for sample in samples:
        label = int(sample.pred_label)
        y, o = (
            float(sample.get(key)[label])
            for key in ('pred_score', 'masked_score')
        )
        drops.append(max(0, y - o) / y)
    assert figures['cam/average_drop'] == pytest.approx(50 * sum(drops))


def test_an_upsampler_comes_from_a_checkpoint(build, tmp_path):
    """At once, for a test initialises nothing; the residual may stay out."""
    trained = MODELS.build({**JBU, 'in_channels': 64})
    state = {f'upsampler.{k}': v for k, v in trained.state_dict().items()}
    path = str(tmp_path / 'iter_1.pth')
    others = {'downsampler.kernel': torch.zeros(1)}
    torch.save(dict(state_dict={**state, **others}), path)
    init = dict(type='Pretrained', checkpoint=path, prefix='upsampler')
    for fixup in (True, False):
        cfg = config()
        cfg.featup.upsampler = dict(JBU, init_cfg=init, channel_fixup=fixup)
        model = build(cfg)
        loaded = model.featup.upsamplers[0].state_dict()
        assert ('fixup_proj.1.weight' in loaded) == fixup
        for key, value in loaded.items():
            assert torch.equal(value, state[f'upsampler.{key}'])


def test_the_config_stays_as_it_is(build):
    cfg = config()
    given = copy.deepcopy(cfg)
    build(cfg)
    assert cfg == given


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(featup=dict(type='GlobalAveragePooling')), 'FeatUpNeck'),
        (dict(method='cam', head=STACKED), "method='grad_cam'"),
        (dict(method='score_cam'), "'grad_cam'.*'score_cam'"),
        (dict(resize='area'), "'nearest'.*'area'"),
        (dict(masking='pixels'), "'normalized', 'image'.*'pixels'"),
    ],
)
def test_what_does_not_fit_is_refused(build, changes, message):
    with pytest.raises(ValueError, match=message):
        build(config(**changes))


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('norm', dict(type='mmplugins.ChannelNorm')),
        ('out_channels', 8),
        ('levels', (0,)),
    ],
)
def test_a_neck_that_does_not_fit_the_classifier_is_refused(build, key, value):
    cfg = config()
    cfg.featup[key] = value
    with pytest.raises(ValueError, match=f'{key} of FeatUpNeck'):
        build(cfg)


def test_a_class_token_is_told_the_key(build, images):
    backbone = dict(VIT, out_type='cls_token')
    head = dict(type='LinearClsHead', num_classes=CLASSES, in_channels=24)
    cfg = config(24, backbone=backbone, neck=None, head=head)
    with pytest.raises(ValueError, match="out_type='featmap'"):
        predict(build(cfg), images)
