import os
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import assert_all_parameters_get_gradients
from mmengine.dataset import BaseDataset
from mmengine.hooks import EMAHook
from mmengine.registry import DATASETS, MODELS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import nn

from mmplugins.featup import FeatUp, ViewReconstruction

STRIDE = 8


@MODELS.register_module()
class PatchMeans(nn.Module):
    """A backbone whose fine features are known: colours and their products.

    A cell holds the mean of its pixels.
    """

    def __init__(self, extra=0):
        super().__init__()
        self.extra = nn.Parameter(torch.ones(1) * extra)

    @staticmethod
    def fine(x):
        r, g, b = x.split(1, dim=1)
        return torch.cat([x, r * g, g * b, r * b, x.square()], 1)

    def forward(self, x):
        return (F.avg_pool2d(self.fine(x), STRIDE, ceil_mode=True),)


@DATASETS.register_module()
class Discs(BaseDataset):
    """Random discs of random colours over random colours."""

    def load_data_list(self):
        return [dict(seed=seed) for seed in range(12)]

    def prepare_data(self, index):
        rng = np.random.default_rng(self.get_data_info(index)['seed'])
        y, x = np.mgrid[:64, :64]
        image = np.ones((3, 64, 64)) * rng.uniform(-1, 1, (3, 1, 1))
        for _ in range(5):
            cy, cx, r = rng.uniform(0, 64, 3) * [1, 1, 0.3]
            inside = (y - cy) ** 2 + (x - cx) ** 2 < r**2
            image[:, inside] = rng.uniform(-1, 1, (3, 1))
        return dict(
            inputs=torch.from_numpy(image).float(),
            data_samples=BaseDataElement(),
        )


def config(**kwargs):
    cfg = dict(
        type='mmplugins.FeatUp',
        backbone=dict(type='PatchMeans'),
        in_channels=9,
        upsampler=dict(type='mmplugins.JBUStack', num_stages=2),
        downsampler=dict(
            type='mmplugins.AttentionDownsampler', kernel_size=6, stride=4
        ),
        views=dict(max_pad=8),
        num_views=2,
        data_preprocessor=dict(type='ImgDataPreprocessor'),
    )
    return {**cfg, **kwargs}


def build(**kwargs):
    return MODELS.build(config(**kwargs))


def total(losses):
    return sum(v for k, v in losses.items() if k.startswith('loss'))


SIMPLE = dict(type='mmplugins.SimpleDownsampler', kernel_size=5, stride=4)
ALL_PRIORS = [
    dict(type=f'mmplugins.{name}')
    for name in ('TotalVariationLoss', 'BlurLoss', 'CRFLoss')
]
VARIANTS = [
    dict(),
    dict(downsampler=SIMPLE),
    dict(projection_channels=None),
    dict(projection_channels=None, downsampler=SIMPLE),
    dict(projection_channels=None, magnitude_weight=1e-3),
    dict(norm=dict(type='mmplugins.ChannelNorm'), priors=ALL_PRIORS),
    dict(uncertainty=False),
]


@pytest.mark.parametrize('kwargs', VARIANTS)
def test_what_should_learn_learns_and_nothing_else(kwargs):
    model = build(**kwargs).train()
    before = deepcopy(model.backbone.state_dict())
    total(model.loss(torch.randn(4, 3, 64, 48))).backward()
    assert_all_parameters_get_gradients(model)
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert {n.split('.')[0] for n in frozen} <= {'backbone', 'norm'}
    assert 'backbone.module.extra' in frozen
    for key, value in model.backbone.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize('num_views', [1, 4])
def test_the_upsampler_runs_once_whatever_the_number_of_views(num_views):
    model, counts = build(num_views=num_views), dict(forward=0, backward=0)

    def count(key):
        counts[key] += 1

    stage = model.upsampler.stages[1]
    stage.register_forward_hook(lambda *_: count('forward'))
    stage.register_full_backward_hook(lambda *_: count('backward'))
    total(model.loss(torch.randn(2, 3, 64, 64))).backward()
    assert counts == dict(forward=1, backward=1)


def test_projections_stand_for_the_features():
    """Their expected loss is that of all channels, up to its scale.

    A random unit vector sees 1 / C of a squared length on average, as the
    mean over C channels does.
    """
    model = build(uncertainty=False, num_views=1, projection_channels=4000)
    model.eval()
    images = Discs(test_mode=True)[0]['inputs'][None]
    torch.manual_seed(3)
    projected = model.loss(images)['loss_view']
    model.projection_channels = None
    # The same view: the projection is drawn before it.
    torch.manual_seed(3)
    torch.randn(4000, 9)
    plain = model.loss(images)['loss_view']
    assert projected.item() == pytest.approx(plain.item(), rel=0.1)


def test_the_loss_is_the_formula():
    """Warp, shrink, compare, written down once more for one view."""
    from mmplugins.featup.views import apply_views, sample_views

    model = build(projection_channels=None, num_views=1).eval()
    image = torch.randn(2, 3, 64, 48)
    torch.manual_seed(1)
    loss = model.loss(image)['loss_view']
    torch.manual_seed(1)
    theta = sample_views(2, (64, 48), max_pad=8)
    fine = model.upsampler(model.backbone(image)[0], image)
    pred = model.downsampler(apply_views(fine, theta), (8, 6))
    target = model.backbone(apply_views(image, theta))[0]
    s = (model.scale_net(target) + 0.1).exp()
    wanted = ((pred - target) ** 2 / (2 * s**2) + s.log()).mean()
    torch.testing.assert_close(loss, wanted)


def test_uncertainty_has_a_floor_and_is_off_on_request():
    model = build()
    with torch.no_grad():
        model.scale_net.bias.fill_(-50)
    feats = model.extract_feat(torch.randn(1, 3, 64, 64))
    assert (model.uncertainty(feats) == 1e-4).all()
    assert (build(uncertainty=False).uncertainty(feats) == 1).all()


def test_evaluation_is_deterministic_and_leaves_the_seed_alone():
    model = build().eval()
    images = torch.randn(2, 3, 64, 64)
    state = torch.get_rng_state()
    first, second = model.predict(images), model.predict(images)
    assert torch.equal(torch.get_rng_state(), state)
    assert [s.view_errors for s in first] == [s.view_errors for s in second]
    assert torch.equal(model(images), model(images))


@pytest.mark.parametrize('size', [(16, 16), (61, 83), (17, 90)])
def test_fine_features_of_images_of_any_size(size):
    model = build().eval()
    out = model(torch.randn(2, 3, *size))
    # Cells of two pixels.
    assert out.shape[-2:] == tuple(-(-n // 2) for n in size)
    assert model.loss(torch.randn(2, 3, *size))['loss_view'].isfinite()


def test_a_perfect_fine_map_has_no_error():
    """Features that are means of pixels, and an upsampler that knows them."""
    model = build(downsampler=dict(SIMPLE, kernel_size=8, stride=8)).eval()

    class Oracle(nn.Module):
        output_size = model.upsampler.output_size

        def linear(self, feats, guidance, weight, bias=None):
            fine = PatchMeans.fine(guidance)
            return F.conv2d(fine, weight[..., None, None], bias)

    model.views = dict(max_pad=8, max_zoom=1.0)
    model.upsampler = Oracle()
    image = Discs(test_mode=True)[3]['inputs'][None]
    errors = model.predict(image)[0].view_errors
    assert errors['upsampler'] < 1e-6 * errors['variance']
    assert errors['bilinear'] > 0.02 * errors['variance']
    assert errors['upsampler_mean'] < 1e-6 * errors['variance']


def test_metric_sums_before_it_divides():
    metric = ViewReconstruction()
    samples = [
        dict(view_errors=dict(variance=1.0, upsampler=0.5, nearest=1.0)),
        dict(view_errors=dict(variance=3.0, upsampler=0.5, nearest=2.0)),
    ]
    metric.process(None, samples)
    assert metric.evaluate(2) == {
        'view/upsampler': 0.25,
        'view/nearest': 0.75,
    }


def test_autocast_agrees():
    model = build().eval()
    images = torch.randn(2, 3, 64, 64)
    torch.manual_seed(0)
    wanted = total(model.loss(images))
    torch.manual_seed(0)
    with torch.autocast('cpu', torch.bfloat16):
        out = total(model.loss(images))
    assert out.dtype == torch.float32
    assert out.item() == pytest.approx(wanted.item(), rel=0.05)


def runner(tmp_path, max_iters, resume=False, hooks=()):
    loader = dict(
        batch_size=4,
        num_workers=0,
        sampler=dict(type='InfiniteSampler', shuffle=True),
        dataset=dict(type='Discs', indices=8),
    )
    held_out = dict(
        batch_size=2,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dict(type='Discs', indices=-4, test_mode=True),
    )
    return Runner(
        model=config(
            upsampler=dict(
                type='mmplugins.JBUStack', num_stages=2, channel_fixup=False
            )
        ),
        work_dir=str(tmp_path),
        train_dataloader=loader,
        val_dataloader=held_out,
        val_cfg=dict(),
        val_evaluator=dict(type='mmplugins.ViewReconstruction'),
        train_cfg=dict(by_epoch=False, max_iters=max_iters, val_interval=1000),
        optim_wrapper=dict(optimizer=dict(type='NAdam', lr=5e-3)),
        default_hooks=dict(
            logger=None,
            checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2),
        ),
        custom_hooks=list(hooks),
        resume=resume,
        randomness=dict(seed=0),
        log_level='ERROR',
        experiment_name=f'{tmp_path.name}-{max_iters}-{resume}',
    )


def test_training_explains_views_that_nobody_saw(tmp_path, in_scope):
    """On images that are held out."""
    with in_scope('mmengine'):
        run = runner(tmp_path, 20)
        before = run.val()
        run.train()
        after = run.val()
    assert after['view/upsampler'] < 0.6 * before['view/upsampler']
    assert after['view/upsampler_mean'] < 0.6 * before['view/upsampler_mean']
    # The yardsticks do not move with the upsampler.
    for key in ('view/bilinear_mean', 'view/nearest_mean'):
        assert after[key] == pytest.approx(before[key])


def test_a_resumed_training_has_all_it_had(tmp_path, in_scope):
    with in_scope('mmengine'):
        first = runner(tmp_path, 2)
        first.train()
        second = runner(tmp_path, 3, resume=True)
        second.train()
    assert second.iter == 3
    saved = torch.load(tmp_path / 'iter_2.pth', weights_only=False)
    steps = {s['step'].item() for s in saved['optimizer']['state'].values()}
    assert steps == {2}
    keys = set(second.model.state_dict())
    assert set(saved['state_dict']) == keys
    assert {key.split('.')[0] for key in keys} == {
        'backbone', 'upsampler', 'downsampler', 'scale_net',
    }  # fmt: skip


def test_ema_follows_the_upsampler(tmp_path, in_scope):
    with in_scope('mmengine'):
        hook = dict(type='EMAHook', momentum=0.5)
        run = runner(tmp_path, 3, hooks=[hook])
        start = deepcopy(run.model.upsampler.state_dict())
        run.train()
    ema = next(h for h in run.hooks if isinstance(h, EMAHook)).ema_model
    key = 'stages.0.sigma_spatial'
    now = run.model.upsampler.state_dict()[key]
    mean = ema.module.upsampler.state_dict()[key]
    low, high = sorted([start[key].item(), now.item()])
    assert low < mean.item() < high


def test_trained_weights_go_into_a_neck(tmp_path, in_scope):
    with in_scope('mmengine'):
        run = runner(tmp_path, 2)
        run.train()
        cfg = dict(
            type='mmplugins.FeatUpNeck',
            in_channels=5,
            frozen=True,
            upsampler=dict(
                type='mmplugins.JBUStack',
                num_stages=2,
                channel_fixup=False,
                init_cfg=dict(
                    type='Pretrained',
                    checkpoint=str(tmp_path / 'iter_2.pth'),
                    prefix='upsampler',
                ),
            ),
        )
        neck = MODELS.build(cfg)
        neck.init_weights()
    wanted = run.model.upsampler.state_dict()
    loaded = neck.upsamplers[0].state_dict()
    assert loaded.keys() == wanted.keys()
    for key, value in loaded.items():
        assert torch.equal(value, wanted[key]), key


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(num_views=0), 'num_views of FeatUp must be 1 or more, got 0'),
        (dict(projection_channels=0), 'projection_channels.*got 0'),
        (dict(magnitude_weight=1.0), 'magnitude_weight=1.0.*got 30'),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(**kwargs)


def test_bad_images_are_named():
    model = build()
    with pytest.raises(ValueError, match='at least 8.0 x 8.0 pixels.*4'):
        model.loss(torch.zeros(1, 3, 4, 64))
    with pytest.raises(ValueError, match="got 'train'"):
        model(torch.zeros(1, 3, 64, 64), mode='train')
    wrong = build(in_channels=8)
    with pytest.raises(
        ValueError, match=r'in_channels=8 of FeatUp.*set in_channels=9$'
    ):
        wrong.loss(torch.zeros(1, 3, 64, 64))


def test_a_config_stays_as_it_is():
    cfg = config(priors=ALL_PRIORS)
    given = deepcopy(cfg)
    MODELS.build(cfg)
    assert cfg == given
    assert isinstance(MODELS.build(cfg), FeatUp)


TWO_PROCESSES = """
import os
import sys

import torch
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS

sys.path[:0] = sys.argv[3:]
import test_model

rank = int(sys.argv[1])
torch.distributed.init_process_group(
    'gloo', init_method=f'file://{sys.argv[2]}/meet', rank=rank, world_size=2
)
torch.manual_seed(0)
model = test_model.build()
model = MMDistributedDataParallel(model, device_ids=None)
optim = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
torch.manual_seed(rank)
for _ in range(2):  # the second would miss parameters without a gradient
    losses = model.train_step(dict(inputs=torch.randn(2, 3, 64, 64)), optim)
torch.save(
    (losses['loss'], model.module.upsampler.state_dict()),
    f'{sys.argv[2]}/{rank}.pth',
)
torch.distributed.barrier()
sys.stdout.flush()
os._exit(0)  # gloo's threads sometimes abort a process whose work is done
"""


@pytest.mark.slow
def test_two_processes_train_one_model(tmp_path):
    here = Path(__file__).parent
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    processes = [
        subprocess.Popen(
            [
                sys.executable, '-c', TWO_PROCESSES, str(rank), str(tmp_path),
                str(here), str(here.parent),
            ],
            env=environment,
        )
        for rank in range(2)
    ]  # fmt: skip
    assert [p.wait(timeout=300) for p in processes] == [0, 0]
    (loss, first), (other, second) = (
        torch.load(tmp_path / f'{rank}.pth') for rank in range(2)
    )
    assert loss != other  # each saw images of its own
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


def test_a_class_token_is_named_with_what_to_do():
    model = build()
    model.backbone.module.forward = lambda x: (x.mean((2, 3)),)
    with pytest.raises(ValueError, match=r"\(2, 3\): set out_type='featmap'"):
        model.upsample(torch.zeros(2, 3, 64, 64))
