"""The configs of the published trainings, on a data set made on the spot."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import PARAM_SCHEDULERS
from mmengine.runner import Runner
from skimage import data
from skimage.metrics import peak_signal_noise_ratio

from mmplugins.compat import load_config

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
REC = CONFIGS / 'ssen' / 'ssen-rec_x4c64b16_1xb32-100k_cufed.py'
LEVELS = ['XH', 'H', 'M', 'L', 'XL', 'unrelated', 'upsampled', 'self']
SMALL = dict(mid_channels=4, num_blocks=1, num_extract_blocks=1)


def test_rate_restarts_with_a_tenth_less():
    """And falls as half a cosine between."""
    cfg = load_config(
        str(CONFIGS / '_base_/schedules/adam-cosine-restarts_100k.py')
    )
    schedule = {**cfg.param_scheduler}
    # In thousands, for brevity.
    schedule['periods'] = [n // 1000 for n in schedule['periods']]
    assert sum(schedule['periods']) == cfg.train_cfg.max_iters // 1000
    lr = cfg.optim_wrapper.optimizer.lr
    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr)
    schedule['optimizer'] = optimizer
    scheduler = PARAM_SCHEDULERS.build(schedule)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        scheduler.step()
    wanted = [
        1e-7
        + (1e-4 * 0.9 ** (k // 25) - 1e-7)
        * (1 + np.cos(np.pi * (k % 25) / 25))
        / 2
        for k in range(100)
    ]
    np.testing.assert_allclose(rates, wanted, rtol=1e-6)


@pytest.mark.parametrize('path', sorted((CONFIGS / 'ssen').glob('*.py')))
def test_stage_and_optimizers_fit(path):
    """The adversarial stage goes on where the first one ends."""
    cfg = load_config(str(path))
    several = 'constructor' in cfg.optim_wrapper
    assert several == ('discriminator' in cfg.model)
    if several:
        parts = set(cfg.optim_wrapper) - {'constructor'}
        assert parts == {'generator', 'discriminator'}
        folder, name = Path(cfg.load_from).parts[-2:]
        first = load_config(str(path.with_name(f'{folder}.py')))
        assert name == f'iter_{first.train_cfg.max_iters}.pth'
        assert first.model.generator == cfg.model.generator


@pytest.fixture
def cufed5(tmp_path, monkeypatch, in_scope):
    """Two groups of CUFED5, drawn from photographs."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / 'data' / 'CUFED' / 'CUFED5'
    folder.mkdir(parents=True)
    for group, image in enumerate([data.astronaut(), data.chelsea()]):
        cut = image[50:103, 60:121, ::-1]
        assert cv2.imwrite(str(folder / f'{group:03d}_0.png'), cut)
        for level in range(1, 6):
            move = 5 * level
            cut = image[50 + move : 95 + 3 * move, 60 + move : 130, ::-1]
            path = folder / f'{group:03d}_{level}.png'
            assert cv2.imwrite(str(path), cut)
    with in_scope('mmagic'):
        yield folder


def luma(image, border):
    """Y of BT.601 of BGR in [0, 255], without a border."""
    y = 16 + image.astype(float) @ [24.966, 128.553, 65.481] / 255
    return y[border:-border, border:-border] if border else y


@pytest.mark.slow
def test_robustness_is_one_table(cufed5, monkeypatch):
    options = {'log_level': 'WARNING', 'work_dir': 'work'}
    for key, value in SMALL.items():
        options[f'model.generator.{key}'] = value
    cfg = load_config(str(REC), options)
    for loader in cfg.test_dataloader:
        loader.num_workers = 0
    keep = [hook for hook in cfg.custom_hooks if 'Table' in hook.type]
    cfg.custom_hooks = [
        *keep,
        dict(type='mmplugins.ReferenceVisualizationHook', interval=5),
    ]
    for key in ('train_dataloader', 'train_cfg', 'optim_wrapper'):
        cfg.pop(key)
    for key in ('val_dataloader', 'val_cfg', 'val_evaluator'):
        cfg.pop(key)
    cfg.pop('param_scheduler')
    # Laying out its text for the log takes longer than all the rest.
    monkeypatch.setattr(Config, 'pretty_text', '')
    runner = Runner.from_cfg(cfg)
    # Off their start, where references are not moved.
    for parameter in runner.model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    lines, results = [], {}
    monkeypatch.setattr(runner.logger, 'info', lines.append)
    step = runner.model.test_step

    def watch(batch):
        (found,) = outputs = step(batch)
        results.setdefault(found.reference, []).append(found)
        return outputs

    monkeypatch.setattr(runner.model, 'test_step', watch)
    runner.test()
    (table,) = (line for line in lines if line.startswith('\n'))
    head, *rows = (line.split() for line in table.strip('\n').splitlines())
    assert [row[0] for row in rows] == LEVELS
    assert head == [
        f'{space}/{metric}'
        for space in ('Y-b0', 'Y-b4', 'RGB-b4')
        for metric in ('PSNR', 'SSIM')
    ]
    figures = {row[0]: dict(zip(head, map(float, row[1:]))) for row in rows}
    assert len({row['Y-b0/PSNR'] for row in figures.values()}) == len(LEVELS)
    for name in ('unrelated', 'upsampled', 'self'):
        for column, border in (('Y-b0/PSNR', 0), ('Y-b4/PSNR', 4)):
            scores = [
                peak_signal_noise_ratio(
                    *(
                        luma(x.permute(1, 2, 0).numpy(), border)
                        for x in (one.gt_img, one.output.pred_img)
                    ),
                    data_range=255,
                )
                for one in results[name]
            ]
            found = figures[name][column]
            assert found == pytest.approx(np.mean(scores), abs=1e-3)
    pictures = sorted(p.name for p in Path('work').rglob('test_*.png'))
    assert pictures == [
        f'test_{k}_{k % 2:03d}_0_0.png' for k in (0, 10, 15, 5)
    ]
