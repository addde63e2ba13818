from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_all_parameters_get_gradients
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, MODELS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement, PixelData
from small_crm import build, config, pair, samples

from mmplugins.crm import CRM


def test_predictions_of_a_padded_batch():
    """Each as alone, and nothing of the padding."""
    model = build(
        double=False, data_preprocessor=dict(type='ImgDataPreprocessor')
    )
    sizes = [(40, 61), (52, 33)]
    images = [torch.randn(3, *size) for size in sizes]
    data = dict(inputs=images, data_samples=samples(*sizes))
    out = model.test_step(data)
    for sample, image, given in zip(out, images, data['data_samples']):
        coarse = given.coarse_sem_seg.data
        prob = model.refine(image[None], 2 * coarse[None] - 1)[0]
        torch.testing.assert_close(sample.refined_prob.data, prob)
        pred = sample.pred_sem_seg.data
        assert pred.dtype == torch.uint8
        assert torch.equal(pred, (sample.refined_prob.data > 0.5).byte())
        assert pred.shape == coarse.shape


def truth(sample, size, ignored=0.1):
    """Ground truth of 0 and 1, some of it ignored."""
    data = (torch.rand(1, *size) > 0.5).byte()
    data[torch.rand(1, *size) < ignored] = 255
    sample.gt_sem_seg = PixelData(data=data)
    return sample


@pytest.mark.parametrize('residual', [None, 2.0])
def test_all_weights_learn(residual):
    model = MODELS.build(config(residual=residual)).train()
    targets = [truth(sample, (64, 64)) for sample in samples(*[(64, 64)] * 3)]
    losses = model(torch.randn(3, 3, 64, 64), targets, mode='loss')
    assert set(losses) == {'loss_ce', 'loss_l1', 'loss_l2', 'loss_grad'}
    sum(losses.values()).backward()
    assert_all_parameters_get_gradients(model)
    mask = model.backbone.net.stages[0][0].mask_weight
    assert not mask.any()
    assert mask.grad.any()


@pytest.mark.parametrize('residual', [None, 2.0])
@pytest.mark.parametrize('target_size', [(40, 48), (97, 61)])
def test_queries_are_a_window_of_the_whole(target_size, residual):
    """And their loss is that of the window, pixels of 255 apart."""
    model = build(residual=residual)
    image = torch.randn(2, 3, 40, 48).double()
    windows = [(3, 5, 20, 30), (17, 18, 20, 30)]
    queries = [
        truth(sample, (20, 30)) for sample in samples((40, 48), (40, 48))
    ]
    for sample, window in zip(queries, windows):
        sample.set_metainfo(dict(target_size=target_size, query_window=window))
    losses = model.loss(image, queries)
    mask = torch.stack([s.coarse_sem_seg.data for s in queries]).double()
    logits = model.forward_stage(image, 2 * mask - 1, target_size)
    parts = torch.cat(
        [
            logits[k : k + 1, :, y : y + h, x : x + w]
            for k, (y, x, h, w) in enumerate(windows)
        ]
    )
    target = torch.stack([s.gt_sem_seg.data for s in queries])
    error = F.binary_cross_entropy_with_logits(
        parts, (target == 1).double(), reduction='none'
    )
    wanted = error[target != 255].mean()
    torch.testing.assert_close(losses['loss_ce'], wanted)


def test_the_residual_of_queries_is_their_coarse_mask():
    """That of the targets' resolution where a sample has it."""
    model = build(residual=2.0)
    image = torch.randn(1, 3, 40, 48).double()
    query = truth(samples((40, 48))[0], (20, 30))
    query.set_metainfo(dict(target_size=(80, 96), query_window=(3, 5, 20, 30)))
    fine = torch.rand(1, 20, 30).double()
    query.coarse_query = PixelData(data=fine)
    loss = model.loss(image, [query])['loss_ce']
    mask = 2 * query.coarse_sem_seg.data[None].double() - 1
    logits = model.decode_head.decoder(model.encode(image, mask), (80, 96))
    logits = logits[..., 3:23, 5:35] + 2 * (2 * fine - 1)
    target = query.gt_sem_seg.data[None]
    error = F.binary_cross_entropy_with_logits(
        logits, (target == 1).double(), reduction='none'
    )
    torch.testing.assert_close(loss, error[target != 255].mean())


def test_nothing_valid_gives_no_loss():
    model = MODELS.build(config()).train()
    targets = [truth(s, (32, 32), 2) for s in samples((32, 32), (32, 32))]
    losses = model.loss(torch.randn(2, 3, 32, 32), targets)
    assert all(value == 0 for value in losses.values())


def test_tensor_mode_gives_the_logits_of_one_stage():
    model = build(double=False)
    image, coarse = torch.randn(2, 3, 32, 40), samples((32, 40), (32, 40))
    mask = torch.stack([s.coarse_sem_seg.data for s in coarse])
    wanted = model.forward_stage(image, 2 * mask - 1)
    assert torch.equal(model(image, coarse), wanted)
    assert wanted.shape == (2, 1, 32, 40)


@pytest.mark.parametrize('align_corners', [True, False])
def test_a_residual_is_the_mask_among_the_logits(align_corners):
    model = build(align_corners=align_corners, residual=3.0)
    plain = build(align_corners=align_corners)
    plain.load_state_dict(
        {k: v for k, v in model.state_dict().items() if k != 'residual'}
    )
    image, mask = pair(30, 44)
    for size in ((30, 44), (71, 60)):
        resized = F.interpolate(
            mask, size, mode='bilinear', align_corners=align_corners
        )
        wanted = plain.forward_stage(image, mask, size) + 3 * resized
        out = model.forward_stage(image, mask, size)
        torch.testing.assert_close(out, wanted)
    assert model.residual.requires_grad


def test_autocast_agrees():
    model = build(double=False, tile=40)
    image, mask = pair(50, 60, dtype=torch.float32)
    wanted = model.refine(image, mask)
    with torch.autocast('cpu', torch.bfloat16):
        out = model.refine(image, mask)
    assert (out - wanted).abs().mean() < 0.03


@DATASETS.register_module()
class Halves(BaseDataset):
    """Images whose right half is bright; coarse masks are off by pixels."""

    def load_data_list(self):
        return [dict(seed=seed) for seed in range(4)]

    def prepare_data(self, index):
        generator = torch.Generator().manual_seed(index)
        image = 40 * torch.rand(3, 48, 48, generator=generator)
        image[..., 24:] += 180
        coarse = torch.zeros(1, 48, 48)
        coarse[..., 21:] = 1
        sample = BaseDataElement(coarse_sem_seg=PixelData(data=coarse))
        gt = torch.zeros(1, 48, 48, dtype=torch.uint8)
        gt[..., 24:] = 1
        sample.gt_sem_seg = PixelData(data=gt)
        return dict(inputs=image.byte(), data_samples=sample)


def test_a_runner_trains_it(tmp_path, in_scope):
    given = config(
        data_preprocessor=dict(
            type='ImgDataPreprocessor',
            mean=[123.675, 116.28, 103.53],
            std=[58.395, 57.12, 57.375],
            bgr_to_rgb=True,
        )
    )
    cfg = deepcopy(given)
    with in_scope('mmengine'):
        runner = Runner(
            model=cfg,
            work_dir=str(tmp_path),
            train_dataloader=dict(
                batch_size=2,
                sampler=dict(type='DefaultSampler', shuffle=False),
                dataset=dict(type='Halves'),
            ),
            train_cfg=dict(by_epoch=True, max_epochs=1),
            optim_wrapper=dict(optimizer=dict(type='Adam', lr=1e-3)),
            default_hooks=dict(logger=None),
            randomness=dict(seed=0),
            log_level='ERROR',
            experiment_name=tmp_path.name,
        )
        before = deepcopy(runner.model.state_dict())
        runner.train()
    assert cfg == given
    assert runner.iter == 2
    changed = runner.model.state_dict()
    key = 'backbone.net.stages.0.0.mask_weight'
    assert not torch.equal(changed[key], before[key])
    saved = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)
    assert set(saved['state_dict']) == set(before)
    assert isinstance(runner.model, CRM)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(scales=()), r'scales .* above 0, got \(\)'),
        (dict(scales=(0.5, 0)), r'scales .* above 0, got \(0.5, 0\)'),
        (dict(padding=-1), 'padding of 0 or more .* got -1 and 1024'),
        (dict(tile=0), 'tile of 1 or more, or None, got 32 and 0'),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(**kwargs)


def test_bad_inputs_are_named():
    model, image = build(double=False), torch.zeros(1, 3, 16, 16)
    mask = torch.zeros(1, 1, 16, 16)
    with pytest.raises(ValueError, match=r'above 0, got \[-1\]'):
        model.refine(image, mask, [-1])
    with pytest.raises(ValueError, match=r'16\) and \(1, 1, 16, 15\)'):
        model.forward_stage(image, mask[..., :15])
    with pytest.raises(ValueError, match=r'got \(1, 4, 16, 16\)'):
        model.encode(torch.zeros(1, 4, 16, 16), mask)
    with pytest.raises(ValueError, match="or 'predict', got 'train'"):
        model(image, mode='train')
    for mode in ('loss', 'tensor', 'predict'):
        with pytest.raises(ValueError, match='needs coarse_sem_seg in every'):
            model(image, [BaseDataElement()], mode=mode)
        with pytest.raises(ValueError, match='needs coarse_sem_seg in every'):
            model(image, mode=mode)
