from collections.abc import Sequence

import cv2
import numpy as np
import pytest
import torch
from mmengine.runner import Runner
from small_editor import NET, WGAN, as_input, photos

from mmplugins import compat

pytestmark = pytest.mark.usefixtures('mmagic_scope')


def write(folder, names: Sequence[str]):
    for name, sample in zip(names, photos(count=len(names))):
        for key, image in sample.items():
            (folder / key).mkdir(exist_ok=True)
            assert cv2.imwrite(str(folder / key / f'{name}.png'), image)


def psnr(one, two, border):
    """Of two images (H, W, C) in [0, 255]."""
    inner = np.s_[border:-border, border:-border] if border else np.s_[:, :]
    error = (one[inner].astype(float) - two[inner].astype(float)) ** 2
    return 10 * np.log10(255**2 / error.mean())


def luma(image):
    """Y of BT.601 of BGR in [0, 255]."""
    return 16 + image @ np.array([24.966, 128.553, 65.481]) / 255


@pytest.mark.parametrize('stage', ['reconstruction', 'adversarial'])
def test_a_runner_trains_and_tests(tmp_path, stage):
    compat.import_mmagic()
    write(tmp_path, ['a', 'b', 'c'])
    pipeline = [
        *(
            dict(type='LoadImageFromFile', key=key)
            for key in ('img', 'gt', 'ref')
        ),
        dict(type='PackInputs', keys=['img', 'ref']),
    ]
    dataset = dict(
        type='BasicImageDataset',
        metainfo=dict(dataset_type='photos', task_name='refsr'),
        data_root=str(tmp_path),
        data_prefix=dict(img='img', gt='gt', ref='ref'),
        pipeline=pipeline,
    )
    loader = dict(
        batch_size=1,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dataset,
    )
    model = dict(type='mmplugins.RefSREditor', generator=NET)
    optim = dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=1e-4))
    if stage == 'adversarial':
        model.update(WGAN)
        optim = dict(
            constructor='MultiOptimWrapperConstructor',
            generator=optim,
            discriminator=optim,
        )

    def metrics(name):
        return dict(
            type='Evaluator',
            metrics=[
                dict(type='PSNR', crop_border=4, prefix=f'{name}/RGB-b4'),
                dict(type='PSNR', convert_to='Y', prefix=f'{name}/Y-b0'),
            ],
        )

    figures = {}

    class Keep(Runner):
        def call_hook(self, name, **kwargs):
            if name == 'after_test_epoch':
                figures.update(kwargs['metrics'])
            super().call_hook(name, **kwargs)

    runner = Keep(
        model=model,
        work_dir=str(tmp_path / 'work'),
        train_dataloader={**loader, 'batch_size': 3},
        val_dataloader=loader,
        test_dataloader=[loader, loader],
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=2, val_interval=2),
        val_cfg=dict(type='MultiValLoop'),
        test_cfg=dict(type='MultiTestLoop'),
        val_evaluator=metrics('one'),
        test_evaluator=[metrics('one'), metrics('two')],
        optim_wrapper=optim,
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2),
            logger=dict(type='LoggerHook', interval=1),
        ),
        custom_hooks=[dict(type='mmplugins.RobustnessTableHook')],
        log_processor=dict(type='LogProcessor', by_epoch=False),
        default_scope='mmagic',
        log_level='WARNING',
        experiment_name=f'editor-{stage}',
        randomness=dict(seed=0),
    )
    runner.train()
    assert (tmp_path / 'work' / 'iter_2.pth').is_file()
    runner.test()
    wanted = []
    for name in ('a', 'b', 'c'):
        img, gt, ref = (
            cv2.imread(str(tmp_path / key / f'{name}.png'))
            for key in ('img', 'gt', 'ref')
        )
        with torch.no_grad():
            x = runner.model.generator(as_input(img), as_input(ref))
        x = 255 * x[0].clamp(0, 1).flip(0).permute(1, 2, 0).numpy()
        wanted.append([psnr(x, gt, 4), psnr(luma(x), luma(gt), 0)])
    found = [
        [figures[f'{row}/{column}/PSNR'] for column in ('RGB-b4', 'Y-b0')]
        for row in ('one', 'two')
    ]
    np.testing.assert_allclose(found, [np.mean(wanted, 0)] * 2, rtol=1e-3)
