import random
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModule
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from mmengine.visualization import Visualizer
from torch.utils.data import Dataset

from mmplugins.featup import (
    CAMVisualizationHook,
    FeatUp,
    FeatUpVisualizationHook,
)
from mmplugins.featup.hooks import undisturbed

HOOK = 'mmplugins.FeatUpVisualizationHook'


class Backbone(BaseModule):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 9, 8, 8)
        self.norm = torch.nn.BatchNorm2d(9)

    def forward(self, x):
        return (self.norm(self.conv(x)).relu(),)


class Photos(Dataset):
    """Images that a random pipeline disturbs."""

    def __init__(self, sizes=((32, 48),)):
        generator = torch.Generator().manual_seed(0)
        self.images = [
            torch.randint(0, 256, (3, *size), generator=generator)
            for size in sizes
        ]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        noise = random.randrange(9) + np.random.randint(9)
        image = self.images[index] + noise + torch.randint(0, 9, ())
        return dict(inputs=image.clamp(0, 255).to(torch.uint8))


class Nothing(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        return {}


class Spy(Hook):
    """What the training looks like from outside."""

    priority = 'LOWEST'

    def __init__(self):
        self.losses, self.modes = [], []

    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        self.losses.append(outputs['loss'].item())
        self.modes.append([m.training for m in runner.model.modules()])


def model():
    return FeatUp(
        dict(type=Backbone),
        dict(type='mmplugins.JBUStack', num_stages=2),
        dict(type='mmplugins.AttentionDownsampler', kernel_size=4, stride=4),
        9,
        views=dict(max_pad=4),
        data_preprocessor=dict(
            type='ImgDataPreprocessor', mean=[128.0] * 3, std=[64.0] * 3
        ),
    )


def train(folder, *hooks, backend='LocalVisBackend', val=True, **kwargs):
    """Four iterations with a validation after the second and the last."""
    spy = Spy()
    torch.manual_seed(0)
    loader = dict(batch_size=1, num_workers=0)
    sizes = ((32, 48), (32, 40), (200, 300))
    more = dict(
        val_dataloader=dict(
            dataset=Photos(sizes),
            sampler=dict(type='DefaultSampler', shuffle=False),
            **loader,
        ),
        val_cfg=dict(),
        val_evaluator=dict(type=Nothing),
    )
    runner = Runner(
        model(),
        str(folder),
        train_dataloader=dict(
            dataset=Photos(),
            sampler=dict(type='InfiniteSampler', shuffle=True),
            **loader,
        ),
        train_cfg=dict(by_epoch=False, max_iters=4, val_interval=2),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        default_hooks=dict(
            logger=None,
            timer=None,
            checkpoint=None,
            param_scheduler=None,
            sampler_seed=None,
        ),
        custom_hooks=[*hooks, spy],
        visualizer=dict(type='Visualizer', vis_backends=[dict(type=backend)]),
        log_level='WARNING',
        randomness=dict(seed=0),
        experiment_name=f'{folder.name}-{len(list(folder.iterdir()))}',
        **(more if val else {}),
        **kwargs,
    )
    runner.train()
    return spy


def pictures(folder):
    return {path.name: path for path in folder.rglob('*.png')}


def test_sheets_of_every_interval(tmp_path):
    train(tmp_path, dict(type=HOOK, interval=3, indices=(1,)))
    assert set(pictures(tmp_path)) == {'featup_1_3.png'}


def test_sheets_after_each_validation(tmp_path):
    train(tmp_path, dict(type=HOOK, max_size=60))
    found = pictures(tmp_path)
    assert set(found) == {
        f'featup_{index}_{step}.png' for index in (0, 1) for step in (2, 4)
    }
    before, after = (
        cv2.imread(str(found[f'featup_0_{step}.png'])) for step in (2, 4)
    )
    assert before.shape == after.shape
    assert (before != after).any()
    assert before.std() > 10


def test_large_images_are_reduced(tmp_path, monkeypatch):
    import mmplugins.featup.hooks as module

    seen, inspect = [], module.inspect_image

    def spy(model, image):
        seen.append((image.dtype, image.shape))
        return inspect(model, image)

    monkeypatch.setattr(module, 'inspect_image', spy)
    train(tmp_path, dict(type=HOOK, interval=4, indices=[-1, 0], max_size=60))
    assert seen == [(torch.uint8, (3, 40, 60)), (torch.uint8, (3, 32, 48))]


@pytest.mark.parametrize('interval', [None, 1])
def test_the_training_is_not_disturbed(tmp_path, interval):
    """The same losses and modes as without, though the pipeline draws."""
    plain = train(tmp_path)
    shown = train(tmp_path, dict(type=HOOK, interval=interval))
    assert shown.losses == plain.losses
    assert shown.modes == plain.modes
    assert len(set(map(tuple, plain.modes))) == 1
    # The spy sees training modules and the frozen backbone's.
    assert set(plain.modes[0]) == {True, False}
    assert pictures(tmp_path)


def test_modes_and_random_numbers_survive_an_error():
    net = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Dropout())
    net[1].eval()
    states = random.getstate(), np.random.get_state()[1].copy()
    torch_state = torch.get_rng_state()

    def draw():
        with undisturbed(net):
            assert not any(module.training for module in net.modules())
            random.random(), np.random.rand(), torch.rand(1)
            raise RuntimeError('inside')

    with pytest.raises(RuntimeError, match='inside'):
        draw()
    assert [module.training for module in net.modules()] == [True, True, False]
    assert random.getstate() == states[0]
    assert (np.random.get_state()[1] == states[1]).all()
    assert (torch.get_rng_state() == torch_state).all()


def test_tensorboard_takes_the_sheets(tmp_path):
    events = pytest.importorskip(
        'tensorboard.backend.event_processing.event_accumulator'
    )
    train(
        tmp_path,
        dict(type=HOOK, interval=4, indices=(0,)),
        backend='TensorboardVisBackend',
    )
    (path,) = tmp_path.rglob('events.out*')
    accumulator = events.EventAccumulator(str(path))
    accumulator.Reload()
    assert accumulator.Tags()['images'] == ['featup_0']
    assert accumulator.Images('featup_0')[0].step == 4


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(interval=0), 'interval of .* 1 or more, or None, got 0'),
        (dict(indices=()), r'indices of .* such as \(0, 1\), got \(\)'),
        (dict(indices=3), 'indices of .*, got 3'),
        (dict(max_size=0), 'max_size of .* 1 or more, got 0'),
    ],
)
def test_arguments_are_checked(kwargs, message):
    with pytest.raises(ValueError, match=message):
        FeatUpVisualizationHook(**kwargs)


def test_there_have_to_be_images(tmp_path):
    message = r'validation set has 3 images, set .* indices=\(0, 1\)'
    with pytest.raises(ValueError, match=message):
        train(tmp_path, dict(type=HOOK, indices=(0, 3)))
    with pytest.raises(ValueError, match='set val_dataloader'):
        train(tmp_path, dict(type=HOOK), val=False)


class TestActivationMaps:
    """Blue images, on the right half of which the class is seen."""

    image = torch.tensor([250, 0, 0], dtype=torch.uint8).view(3, 1, 1)

    def draw(self, folder, **fields):
        sample = BaseDataElement(
            metainfo=dict(img_path='a/b.jpg'),
            pred_score=torch.tensor([0.25, 0.75]),
            **fields,
        )
        visualizer = Visualizer(
            vis_backends=[dict(type='LocalVisBackend')], save_dir=str(folder)
        )
        runner = SimpleNamespace(visualizer=visualizer)
        hook = CAMVisualizationHook()
        hook.before_test(runner)
        inputs = self.image.expand(2, 3, 32, 48)
        hook.after_test_iter(runner, 0, dict(inputs=inputs), [sample] * 2)

    def test_lie_over_the_image(self, tmp_path):
        cam = torch.zeros(40, 48)  # padded below
        cam[:, 24:] = 1
        self.draw(tmp_path, cam=cam)
        found = pictures(tmp_path)
        assert set(found) == {'b_0.png', 'b_1.png'}
        sheet = cv2.imread(str(found['b_1.png'])).astype(int)
        plain, over = sheet[100:200, :480], sheet[100:200, 480:]
        blue = plain[50, 100]
        assert (blue == [250, 0, 0]).all()
        # Half image, half viridis: dark violet to yellow, as BGR.
        for column, heat in ((100, (84, 1, 68)), (350, (37, 231, 253))):
            wanted = (blue + np.array(heat)) / 2
            np.testing.assert_allclose(over[50, column], wanted, atol=2)

    def test_have_to_be_there(self, tmp_path):
        with pytest.raises(ValueError, match='draws cam of'):
            self.draw(tmp_path)
