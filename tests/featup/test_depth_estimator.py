"""Depth estimation in mmsegmentation, through the host's own interfaces."""

import copy
from pathlib import Path

import cv2
import numpy as np
import prepare_data
import pytest
import torch
import torch.nn.functional as F
from helpers import assert_all_parameters_get_gradients
from mmengine.config import ConfigDict
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, MODELS
from mmengine.runner import Runner
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from mmplugins.compat import load_config
from mmplugins.featup.depth import scale_and_shift_invariant_loss

ROOT = Path(__file__).parents[2]
PROBES = ROOT / 'configs/featup/probes'
SIZE = (71, 97)  # divided by no stride
UPSAMPLERS = {
    'jbu': dict(type='mmplugins.JBUStack', num_stages=2, key_channels=4),
    'bilinear': dict(type='mmplugins.BilinearUpsampler', num_stages=2),
}


def config(upsampler='jbu', head=None, **changes):
    cfg = dict(
        type='mmplugins.GuidedDepthEstimator',
        data_preprocessor=dict(
            type='SegDataPreProcessor',
            mean=[128.0] * 3,
            std=[64.0] * 3,
            size=SIZE,
        ),
        backbone=dict(
            type='mmpretrain.ResNet', depth=18, base_channels=4, norm_eval=True
        ),
        neck=dict(
            type='mmplugins.FeatUpNeck',
            in_channels=32,
            upsampler=copy.deepcopy(UPSAMPLERS[upsampler]),
        ),
        decode_head=dict(
            type='mmplugins.LinearDepthHead', in_channels=32, **(head or {})
        ),
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


def batch(size=SIZE, count=2):
    """Images and depths of 1 to 5 with holes, as from a data loader."""
    images, samples = [], []
    for _ in range(count):
        info = dict(img_shape=size, ori_shape=size, flip=False)
        sample = SegDataSample(metainfo=info)
        depth = 1 + 4 * torch.rand(1, *size)
        depth[torch.rand(1, *size) < 0.2] = 0
        sample.gt_depth_map = PixelData(data=depth)
        images.append(torch.randint(0, 256, (3, *size), dtype=torch.uint8))
        samples.append(sample)
    return dict(inputs=images, data_samples=samples)


def losses_of(model, data):
    data = model.data_preprocessor(copy.deepcopy(data), training=True)
    return model.loss(**data)


def predict(model, data):
    with torch.no_grad():
        samples = model.eval().test_step(copy.deepcopy(data))
    return torch.stack([sample.pred_depth_map.data for sample in samples])


@pytest.mark.parametrize('linear_head', [False, True])
@pytest.mark.parametrize('upsampler', list(UPSAMPLERS))
def test_trains(build, upsampler, linear_head):
    model = build(config(upsampler, linear_head=linear_head)).train()
    losses = losses_of(model, batch())
    assert losses.keys() == {'decode.loss_ssi'}
    losses['decode.loss_ssi'].backward()
    assert_all_parameters_get_gradients(model)


@pytest.mark.parametrize('linear_head', [False, True])
def test_is_the_neck_a_convolution_and_the_loss(build, linear_head):
    """Each part called on its own, the image handed to the neck."""
    model = build(config(linear_head=linear_head)).eval()
    data = batch()
    images = torch.stack(data['inputs']).float().sub(128).div(64)
    conv = model.decode_head.conv_seg
    with torch.no_grad():
        loss = losses_of(model, data)['decode.loss_ssi']
        feats = model.neck(model.backbone(images), images)[-1]
        pred = F.conv2d(feats, conv.weight, conv.bias)
        pred = F.interpolate(pred, SIZE, mode='bilinear')
        raw = model._forward(images)
    assert raw.shape == (2, 1, *feats.shape[-2:])
    torch.testing.assert_close(
        predict(model, data), pred, rtol=1e-4, atol=1e-6
    )
    depth = torch.stack([s.gt_depth_map.data for s in data['data_samples']])
    known = depth > 0
    target = 1 / depth.where(known, torch.tensor(1.0))
    low = torch.where(known, target, 9).amin((1, 2, 3), True)
    high = torch.where(known, target, -9).amax((1, 2, 3), True)
    wanted = scale_and_shift_invariant_loss(
        pred, (target - low) / (high - low), known
    )
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-4)


@pytest.mark.parametrize('upsampler', list(UPSAMPLERS))
@pytest.mark.parametrize('max_depth', [None, 10.0])
def test_a_head_before_the_upsampling_is_the_same(build, upsampler, max_depth):
    cfg = config(upsampler, head=dict(max_depth=max_depth))
    plain = build(cfg)
    first = build({**cfg, 'linear_head': True})
    plain.init_weights()
    first.load_state_dict(plain.state_dict())
    data = batch()
    grads = []
    for model in (plain.eval(), first.eval()):
        loss = losses_of(model, data)['decode.loss_ssi']
        loss.backward()
        grads.append({n: p.grad for n, p in model.named_parameters()})
        grads[-1]['loss'] = loss.detach()
    for name, grad in grads[0].items():
        torch.testing.assert_close(
            grads[1][name], grad, rtol=1e-3, atol=1e-5, msg=name
        )
    torch.testing.assert_close(predict(first, data), predict(plain, data))


def test_predictions_follow_the_image(build):
    """The same features, another image, another depth."""
    model = build(config(linear_head=True)).eval()
    images = torch.randn(2, 3, *SIZE)
    feats = model.backbone(images[:1])
    model.backbone.forward = lambda x: tuple(
        f.expand(2, -1, -1, -1) for f in feats
    )
    first, second = model._forward(images)
    assert (first - second).abs().max() > 1e-3 * first.std()


def test_mean_of_an_image_and_its_mirror(build):
    """The host's slide_flip hands windows of the image to the neck."""
    cfg = config(linear_head=True)
    cfg.test_cfg = ConfigDict(
        mode='slide_flip', crop_size=(64, 64), stride=(32, 32)
    )
    model = build(cfg).eval()
    data = batch(count=1)
    out = predict(model, data)
    assert out.shape == (1, 1, *SIZE)
    mirrored = copy.deepcopy(data)
    mirrored['inputs'][0] = mirrored['inputs'][0].flip(-1)
    # Windows at the right edge do not mirror those at the left.
    assert torch.equal(predict(model, data), out)
    assert not torch.equal(predict(model, mirrored).flip(-1), out)
    cfg.test_cfg.crop_size = SIZE
    model = build(cfg).eval()
    torch.testing.assert_close(
        predict(model, mirrored).flip(-1), predict(model, data)
    )


@pytest.mark.parametrize('seg_pad_val', [255, 0])
def test_padding_has_no_depth(build, seg_pad_val):
    """255, the host's default, would be a place very far away."""
    data = batch(size=(40, 97))
    seen = []
    for size in (SIZE, (40, 97)):
        cfg = config()
        cfg.data_preprocessor.update(size=size, seg_pad_val=seg_pad_val)
        model = build(cfg).eval()
        model.decode_head.loss_decode.register_forward_pre_hook(
            lambda _, args: seen.append(args[1])
        )
        with torch.no_grad():
            losses_of(model, data)
    padded, plain = seen
    assert padded.shape[-2:] == SIZE
    assert plain.all(1).any()
    assert torch.equal(padded[..., :40, :], plain)
    assert not padded[..., 40:, :].any()


def test_depth_itself_with_the_parts_of_the_host(build):
    head = dict(
        max_depth=10.0,
        loss_decode=[
            dict(type='SiLogLoss'),
            dict(type='SiLogLoss', loss_weight=2.0),
        ],
    )
    model = build(config(head=head)).train()
    data = batch()
    losses = losses_of(model, data)
    assert losses.keys() == {'decode.loss_silog'}
    losses['decode.loss_silog'].backward()
    assert_all_parameters_get_gradients(model)
    model.eval()
    silog, twice = model.decode_head.loss_decode
    with torch.no_grad():
        value = losses_of(model, data)['decode.loss_silog']
        pred = predict(model, data)
        depth = torch.stack(
            [s.gt_depth_map.data for s in data['data_samples']]
        )
    assert ((pred > 0) & (pred < 10)).all()
    wanted = silog(pred, depth) + twice(pred, depth)
    assert value.item() == pytest.approx(wanted.item(), rel=1e-5)


OTHER_HEAD = dict(
    type='FCNHead',
    in_channels=32,
    channels=32,
    num_classes=3,
    num_convs=0,
    concat_input=False,
)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(neck=None), r'neck of GuidedDepthEstimator .*FeatUpNeck'),
        (
            dict(linear_head=True, head=dict(dropout_ratio=0.1)),
            r'linear_head=True needs .*dropout_ratio=0\), got LinearDepthHead',
        ),
        (
            dict(linear_head=True, decode_head=OTHER_HEAD),
            'linear_head=True needs .*LinearDepthHead.* got FCNHead',
        ),
        (
            dict(
                linear_head=True,
                auxiliary_head=dict(
                    type='mmplugins.LinearDepthHead', in_channels=32
                ),
            ),
            'linear_head=True .* no auxiliary_head',
        ),
        (dict(head=dict(max_depth=0.0)), 'max_depth of .* above 0, got 0.0'),
    ],
)
def test_what_does_not_fit_is_named(build, changes, message):
    with pytest.raises(ValueError, match=message):
        build(config(**changes))


def test_a_backbone_that_asks_for_more_is_named(build):
    from mmpretrain.models import ResNet

    @MODELS.register_module(name='TextResNet', force=True)
    class TextResNet(ResNet):
        class_embed_select = True

    try:
        cfg = config()
        cfg.backbone.type = 'mmengine.TextResNet'
        with pytest.raises(ValueError, match='class_embed_select=False'):
            build(cfg)
    finally:
        MODELS.module_dict.pop('TextResNet')


def motorcycle(folder):
    """The config of the probe on a few small crops, without its weights."""
    prepare_data.main(
        ['depth', str(folder), '--num-train', '4', '--size', '128', '320']
    )
    (path,) = PROBES.glob('featup-jbu-e2e_*_motorcycle-160x352.py')
    cfg = load_config(str(path))
    cfg.model.backbone.backbone.update(init_cfg=None, widen_factor=0.25)
    cfg.model.data_preprocessor.size = (128, 320)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.data_root = str(folder)
    cfg.train_dataloader.batch_size = 4
    return cfg


def test_depth_reaches_the_model_in_metres(tmp_path, in_scope):
    cfg = motorcycle(tmp_path)
    unknown = 0
    with in_scope('mmseg'):
        for loader in (cfg.train_dataloader, cfg.val_dataloader):
            dataset = DATASETS.build(loader.dataset)
            for item in dataset:
                sample = item['data_samples']
                path = sample.img_path.replace('images', 'depth')
                wanted = cv2.imread(path, cv2.IMREAD_UNCHANGED) / 1000
                image = cv2.imread(sample.img_path)
                if sample.get('flip'):
                    wanted, image = wanted[:, ::-1], image[:, ::-1]
                depth = sample.gt_depth_map.data[0].numpy()
                assert depth.dtype == np.float32
                np.testing.assert_allclose(depth, wanted, rtol=1e-6)
                pixels = item['inputs'].permute(1, 2, 0).numpy()
                np.testing.assert_array_equal(pixels, image)
                assert 2 < depth.max() < 5.1
                unknown += (depth == 0).sum()
    assert unknown > 100


class Losses(Hook):
    def __init__(self):
        self.values = []

    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        self.values.append(outputs['loss'].item())


def test_the_probe_learns(tmp_path, in_scope):
    """A run of the config, from files to metrics."""
    cfg = motorcycle(tmp_path / 'data')
    cfg.train_cfg.update(max_iters=12, val_interval=12)
    cfg.param_scheduler = None
    cfg.optim_wrapper.optimizer.lr = 0.01
    cfg.default_hooks.checkpoint = None
    cfg.work_dir = str(tmp_path)
    cfg.experiment_name = 'depth'
    hook = Losses()
    with in_scope('mmseg'):
        runner = Runner.from_cfg(cfg)
        runner.register_hook(hook)
        runner.train()
    # The upsampler drops channels at random while it trains.
    assert np.mean(hook.values[-3:]) < 0.97 * np.mean(hook.values[:3])
    metrics = runner.message_hub.get_scalar('val/rmse').data[0]
    assert 0 < metrics[0] < 8
