import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from skimage import data
from torch.utils.data import Dataset

from mmplugins.ssen import RCAN, ReferenceVisualizationHook, SSENNet
from mmplugins.ssen import hooks as module

HOOK = 'mmplugins.ReferenceVisualizationHook'


class Photos(Dataset):
    """Parts of a photograph, every second one with a reference."""

    metainfo = dict()

    def __init__(self, count=5, references=1):
        self.count = count
        self.references = references
        image = data.astronaut()[:64, 100:190, ::-1].copy()
        self.image = torch.from_numpy(image).permute(2, 0, 1)

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        gt = self.image[:, index : index + 24, :32]
        inputs = dict(img=gt[:, ::2, ::2])
        if self.references:
            inputs['ref'] = self.image[:, 3:33, 40:76]
        sample = BaseDataElement(
            metainfo=dict(gt_path=f'd/photo{index}.png'), gt_img=gt
        )
        return dict(inputs=inputs, data_samples=sample)


class Preprocessor(BaseDataPreprocessor):
    """As that of the adapter, without its host."""

    def forward(self, data, training=False):
        inputs = data['inputs']
        if isinstance(inputs, list):
            inputs = {key: [x[key] for x in inputs] for key in inputs[0]}
        inputs = {
            key: torch.stack(x).flip(1) / 255 for key, x in inputs.items()
        }
        if 'ref' in inputs:
            inputs['ref'] = [inputs['ref']]
        return {**data, 'inputs': inputs}


class Editor(BaseModel):
    def __init__(self, generator):
        super().__init__(data_preprocessor=Preprocessor())
        self.generator = generator

    def forward(self, inputs, data_samples, mode):
        results = self.generator(inputs['img'], inputs.get('ref'))
        for sample, result in zip(data_samples, results):
            image = 255 * result.flip(0).clamp(0, 1)
            sample.output = BaseDataElement(pred_img=image)
        return data_samples


class Nothing(torch.nn.Module):
    pass


def net(**kwargs):
    torch.manual_seed(0)
    return SSENNet(
        mid_channels=8,
        num_blocks=1,
        num_extract_blocks=1,
        num_layers=2,
        upscale_factor=2,
        **kwargs,
    )


def run(folder, model, hook, dataset=None):
    from mmengine.evaluator import BaseMetric

    class Count(BaseMetric):
        def process(self, data_batch, data_samples):
            self.results.append(0)

        def compute_metrics(self, results):
            return {}

    loader = dict(
        batch_size=2,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dataset or Photos(),
    )
    runner = Runner(
        model,
        work_dir=str(folder),
        test_dataloader=loader,
        test_cfg=dict(type='TestLoop'),
        test_evaluator=[Count()],
        custom_hooks=[hook],
        visualizer=dict(
            type='Visualizer',
            vis_backends=[dict(type='LocalVisBackend')],
            name=folder.name,
        ),
        log_level='WARNING',
        experiment_name=folder.name,
    )
    runner.test()
    return sorted(path.name for path in folder.rglob('*.png'))


@pytest.mark.parametrize('references', [1, 0])
def test_draws_every_so_many_images(tmp_path, references):
    found = run(
        tmp_path / f'run{references}',
        Editor(net()),
        dict(type=HOOK, interval=2, size=64),
        Photos(references=references),
    )
    assert found == [f'test_{k}_photo{k}_0.png' for k in (0, 2, 4)]


@pytest.mark.parametrize('references', [1, 0])
def test_shows_what_the_prediction_is_made_of(monkeypatch, references):
    """Panels and alignment are those of the sample itself."""
    dataset, model = Photos(references=references), Editor(net()).eval()
    items = [dataset[k] for k in range(2)]
    batch = dict(
        inputs={
            key: [item['inputs'][key] for item in items]
            for key in items[0]['inputs']
        },
        data_samples=[item['data_samples'] for item in items],
    )
    outputs = model.test_step(batch)
    given = {}
    monkeypatch.setattr(
        module,
        'alignment_sheet',
        lambda *args, **kwargs: given.update(args=args, **kwargs),
    )
    hook = ReferenceVisualizationHook(size=99)
    hook.draw(model, batch, 1, outputs[1])
    image, result, shown, truth = given['args']
    rgb = {key: x.flip(0) / 255 for key, x in items[1]['inputs'].items()}
    torch.testing.assert_close(image, rgb['img'])
    torch.testing.assert_close(
        truth, dataset[1]['data_samples'].gt_img.flip(0) / 255
    )
    assert result.shape == truth.shape == (3, 24, 32)
    ((reference, aux),) = shown
    with torch.no_grad():
        refs = [rgb['ref'][None]] if references else None
        _, (wanted,) = model.generator(rgb['img'][None], refs, True)
    for one, other in zip(aux, wanted):
        for x, y in zip(one, other):
            torch.testing.assert_close(x, y)
    assert reference.shape == ((3, 24, 32) if references else (3, 12, 16))
    if not references:
        torch.testing.assert_close(reference, image)
    assert given['size'] == 99


def test_a_net_without_references_has_a_sheet_too(tmp_path):
    found = run(
        tmp_path / 'plain',
        Editor(net(reference=False)),
        dict(type=HOOK, size=64),
    )
    assert len(found) == 1


def test_a_training_has_no_pictures():
    """The hook has nothing to do there, but is called all the same."""
    hook = ReferenceVisualizationHook()
    for name in ('before_train_iter', 'after_train_iter'):
        getattr(hook, name)(None, 0)
    for mode in ('val', 'test'):
        getattr(hook, f'before_{mode}_iter')(None, 0)
    assert hook._seen == 0


@pytest.mark.parametrize('generator', [RCAN(1, 1, 8), Nothing()])
def test_another_generator_is_an_error(generator):
    runner = SimpleNamespace(model=SimpleNamespace(generator=generator))
    name = type(generator).__name__
    with pytest.raises(ValueError, match=f'aligns, got {name}'):
        ReferenceVisualizationHook().before_run(runner)


def test_another_model_is_an_error():
    with pytest.raises(ValueError, match='aligns, got NoneType'):
        ReferenceVisualizationHook().before_run(
            SimpleNamespace(model=Nothing())
        )


@pytest.mark.parametrize('name', ['interval', 'size'])
def test_arguments(name):
    with pytest.raises(ValueError, match=f'{name} of .* 1 or more, got 0'):
        ReferenceVisualizationHook(**{name: 0})


FIGURES = {
    'XH/b0/PSNR': 26.78,
    'XH/b0/SSIM': 0.791,
    'unrelated/b0/PSNR': 26.123456,
    'unrelated/b4/PSNR': np.float32(7),
    'loss': 3.0,
}


def test_table():
    assert module.metric_table(FIGURES).splitlines() == [
        '           b0/PSNR  b0/SSIM  b4/PSNR',
        'XH         26.7800   0.7910         ',
        'unrelated  26.1235            7.0000',
    ]
    for few in ({}, dict(PSNR=3.0), {'XH/PSNR': 1.0, 'XH/SSIM': 1.0}):
        assert module.metric_table(few) == ''


def test_table_is_logged():
    lines = []
    logger = logging.getLogger('table')
    logger.info = lines.append
    hook = module.RobustnessTableHook()
    runner = SimpleNamespace(logger=logger)
    hook.after_test_epoch(runner, FIGURES)
    hook.after_val_epoch(runner, FIGURES)
    hook.after_val_epoch(runner, {'PSNR': 1.0})
    assert lines == ['\n' + module.metric_table(FIGURES)] * 2
