"""``tools/test.py --refine``, from the flag to the figures."""

import json
import runpy
import sys
from pathlib import Path

import cv2
import numpy as np
import prepare_data
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from mmplugins.apis import launch
from mmplugins.compat import load_config

TOOL = Path(prepare_data.__file__).with_name('test.py')
METRIC = 'mmplugins.MaskRefinementMetric'

SEGMENTOR = f"""
_base_ = 'mmseg::_base_/default_runtime.py'
log_level = 'WARNING'
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor', mean=[128] * 3, std=[64] * 3
    ),
    backbone=dict(
        type='mmpretrain.MobileNetV2', widen_factor=0.1, out_indices=(2,)
    ),
    decode_head=dict(
        type='FCNHead',
        in_channels=8,
        in_index=-1,
        channels=8,
        num_convs=1,
        concat_input=False,
        num_classes={len(prepare_data.CLASSES)},
        norm_cfg=dict(type='BN'),
    ),
    test_cfg=dict(mode='whole'),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='BaseSegDataset',
        data_root='data',
        data_prefix=dict(img_path='images/val', seg_map_path='labels/val'),
        metainfo=dict(
            classes={prepare_data.CLASSES}, palette={prepare_data.PALETTE}
        ),
        img_suffix='.png',
        seg_map_suffix='.png',
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations'),
            dict(type='PackSegInputs'),
        ],
    ),
)
test_cfg = dict(type='TestLoop')
test_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
"""
REFINER = """
default_scope = 'mmseg'
data_preprocessor = dict(
    type='ImgDataPreprocessor',
    mean=[128.0] * 3,
    std=[128.0] * 3,
    bgr_to_rgb=True,
)
model = dict(
    type='mmplugins.CRM',
    backbone=dict(
        type='mmplugins.CRMBackbone',
        backbone=dict(
            type='mmpretrain.MobileNetV2',
            widen_factor=0.1,
            out_indices=(0, 1, 2),
            # As of a base, where a machine has no such file.
            init_cfg=dict(type='Pretrained', checkpoint='gone.pth'),
        ),
    ),
    decode_head=dict(
        type='mmplugins.CRMHead', in_channels=(8, 8, 8), channels=(4, 4, 4)
    ),
    scales=(0.5, 1.0),
    padding=8,
)
"""


def write_model(name, text, in_scope):
    """A config and random weights that predict several classes."""
    Path(f'{name}.py').write_text(text)
    with in_scope('mmseg'):
        model = MODELS.build(load_config(f'{name}.py').model)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    if name == 'segmentor':
        torch.nn.init.zeros_(model.decode_head.conv_seg.bias)
    # As of a run that trained it, in several processes.
    state = {f'module.{k}': v for k, v in model.state_dict().items()}
    torch.save(dict(state_dict=state, meta=dict(iter=4)), f'{name}.pth')


@pytest.fixture
def folder(tmp_path, monkeypatch, in_scope):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('LOCAL_RANK', '0')
    write_model('segmentor', SEGMENTOR, in_scope)
    write_model('refiner', REFINER, in_scope)
    return tmp_path


def run(monkeypatch, in_scope, *args):
    arguments = ['test.py', 'segmentor.py', 'segmentor.pth', *args]
    monkeypatch.setattr(sys, 'argv', arguments)
    # Formatting the config takes longer than all else.
    monkeypatch.setattr(Config, 'pretty_text', '')
    with in_scope(None):
        runpy.run_path(str(TOOL), run_name='__main__')


def figures(monkeypatch, in_scope, name, *args):
    outputs = ['--metrics', f'{name}.json', '--out', name]
    run(monkeypatch, in_scope, *outputs, '--work-dir', f'{name}_work', *args)
    return json.loads(Path(f'{name}.json').read_text())


def predictions(name):
    return np.stack(
        [
            cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            for path in sorted(Path(name).glob('*.png'))
        ]
    )


CRM = ('--refine', 'refiner.py', 'refiner.pth')


@pytest.mark.slow
def test_figures_before_and_after_in_one_run(folder, monkeypatch, in_scope):
    prepare_data.write_shapes('data', {'train': 1, 'val': 3}, (48, 64), 0)
    plain = figures(monkeypatch, in_scope, 'plain')
    both = figures(monkeypatch, in_scope, 'both', *CRM)
    assert set(plain) < set(both)
    assert both['coarse/mIoU'] == pytest.approx(plain['mIoU'], abs=0.02)
    assert both['refined/mIoU'] == pytest.approx(both['mIoU'], abs=0.02)
    assert both['coarse/IoU.disc'] is not None
    before, after = predictions('plain'), predictions('both')
    assert len(np.unique(before)) > 1
    assert before.shape == after.shape == (3, 48, 64)
    assert (before != after).mean() > 0.01

    options = ['refined_model.per=component', 'refined_model.band=1']
    near = figures(
        monkeypatch, in_scope, 'near', *CRM, '--cfg-options', *options
    )
    assert near['coarse/mIoU'] == both['coarse/mIoU']
    square = np.ones((3, 3), np.uint8)
    for old, new in zip(before, predictions('near')):
        far = cv2.dilate(old, square) == cv2.erode(old, square)
        assert far.any()
        assert (new[far] == old[far]).all()


@pytest.mark.slow
def test_pictures_before_and_after(folder, monkeypatch, in_scope):
    prepare_data.write_shapes('data', {'train': 1, 'val': 2}, (48, 64), 0)
    # mmengine keeps the visualizer of a name, here that of another test.
    name = ['--cfg-options', 'visualizer.name=both']
    figures(monkeypatch, in_scope, 'out', *CRM, '--show-dir', 'seen', *name)
    pictures = {path.name: path for path in Path('seen').rglob('*.png')}
    stems = sorted(path.stem for path in Path('data/images/val').iterdir())
    assert {
        f'test_{i}_{stem}_0.png' for i, stem in enumerate(stems)
    } < pictures.keys()
    assert len(pictures) == 2 * len(stems)  # and the host's own


class TestConfig:
    @pytest.fixture(autouse=True)
    def _folder(self, folder):
        pass

    def enabled(self, **more):
        cfg = load_config('segmentor.py')
        cfg.merge_from_dict(more)
        launch.enable_refine(cfg, 'refiner.py', 'refiner.pth')
        return cfg

    def test_wraps_the_model(self):
        cfg = self.enabled()
        plain = load_config('segmentor.py')
        assert cfg.model.type == 'mmplugins.RefinedSegmentor'
        assert cfg.model.module == plain.model
        assert set(cfg.model) == {'type', 'module', 'refiner'}

    def test_reads_the_refiner(self):
        refiner = self.enabled().model.refiner
        given = load_config('refiner.py')
        assert refiner.init_cfg == dict(
            type='Pretrained', checkpoint='refiner.pth'
        )
        assert refiner.data_preprocessor == given.data_preprocessor
        # One file has all the weights.
        assert 'init_cfg' not in refiner.backbone.backbone
        assert refiner.decode_head == given.model.decode_head
        assert refiner.scales == (0.5, 1.0)

    def test_takes_options_of_the_config(self):
        cfg = self.enabled(refined_model=dict(band=3, classes=[1, 2]))
        assert (cfg.model.band, cfg.model.classes) == (3, [1, 2])
        assert cfg.model.type == 'mmplugins.RefinedSegmentor'

    @pytest.mark.parametrize(
        'evaluator',
        [
            dict(type='A'),
            [dict(type='A')],
            dict(metrics=dict(type='A'), type='Evaluator'),
            dict(metrics=[dict(type='A')]),
        ],
    )
    def test_keeps_the_metrics_and_adds_one(self, evaluator):
        result = self.evaluator(evaluator)
        whole = isinstance(evaluator, dict) and 'metrics' in evaluator
        if whole:
            assert result.get('type') == evaluator.get('type')
            result = result.metrics
        metric = dict(type=METRIC, ignore_index=255)
        assert result == [dict(type='A'), metric]

    def evaluator(self, evaluator, **dataset):
        cfg = load_config('segmentor.py')
        cfg.test_evaluator = evaluator
        cfg.val_evaluator = cfg.test_evaluator
        given = cfg.val_evaluator.copy()
        cfg.test_dataloader.dataset.update(dataset)
        launch.enable_refine(cfg, 'refiner.py', 'refiner.pth')
        assert cfg.val_evaluator == given
        return cfg.test_evaluator

    def test_metric_ignores_what_the_others_ignore(self):
        metric = dict(type='A', ignore_index=11)
        assert self.evaluator(metric)[1].ignore_index == 11
        metric = dict(type='A')
        result = self.evaluator(metric, ignore_index=0)
        assert result[1].ignore_index == 0

    @pytest.mark.parametrize(
        'metric', [dict(type=METRIC), dict(type='A', format_only=True)]
    )
    def test_adds_no_metric_twice_or_without_truth(self, metric):
        assert self.evaluator([metric]) == [metric]


SETTINGS = {
    # Name of the file -> its text.
    'other.py': "default_scope = 'mmpretrain'\nmodel = dict(type='A')\n",
    'empty.py': "default_scope = 'mmseg'\n",
    'twice.py': (
        "default_scope = 'mmseg'\n"
        "model = dict(type='mmplugins.RefinedSegmentor')\n"
    ),
    'unknown.py': "model = dict(type='mmplugins.CRMM')\n",
    'norefine.py': (
        "model = dict(type='mmplugins.CRMHead', in_channels=[1, 1, 1])\n"
    ),
}
ERRORS = {
    ('segmentor.py', 'gone.py', 'refiner.pth'): 'gone.py does not exist',
    ('segmentor.py', 'refiner.py', 'gone.pth'): 'gone.pth does not exist',
    ('segmentor.py', 'empty.py', 'refiner.pth'): 'needs model in empty.py',
    ('segmentor.py', 'unknown.py', 'refiner.pth'): (
        'model of unknown.py does not build: '
    ),
    ('segmentor.py', 'norefine.py', 'refiner.pth'): (
        'needs a model that refines, as mmplugins.CRM, norefine.py has CRMHead'
    ),
    ('segmentor.py', 'refiner.py', 'segmentor.pth'): (
        'segmentor.pth does not fit refiner.py: no key fills '
    ),
    ('segmentor.py', 'refiner.py', 'broken.pth'): (
        'checkpoint broken.pth does not fit refiner.py: '
    ),
    ('segmentor.py', 'refiner.py', 'lacking.pth'): (
        'no key fills decode_head.fusion.conv.weight of CRM'
    ),
    ('other.py', 'refiner.py', 'refiner.pth'): (
        "--refine needs default_scope = 'mmseg', got 'mmpretrain'"
    ),
    ('empty.py', 'refiner.py', 'refiner.pth'): 'needs model in the config',
    ('refiner.py', 'refiner.py', 'refiner.pth'): (
        '--refine needs a config of a segmentor, model of refiner.py is '
        'mmplugins.CRM, which refines by itself: test it without --refine'
    ),
    ('twice.py', 'refiner.py', 'refiner.pth'): (
        'is mmplugins.RefinedSegmentor itself'
    ),
}


class TestErrors:
    @pytest.fixture(autouse=True)
    def _folder(self, folder):
        for name, text in SETTINGS.items():
            Path(name).write_text(text)
        Path('data').mkdir(exist_ok=True)
        Path('broken.pth').write_text('no checkpoint')
        state = torch.load('refiner.pth')['state_dict']
        del state['module.decode_head.fusion.conv.weight']
        torch.save(state, 'lacking.pth')

    @pytest.mark.parametrize(('config', 'crm', 'checkpoint'), ERRORS)
    def test_are_one_line(self, config, crm, checkpoint, monkeypatch):
        arguments = ['test.py', config, 'segmentor.pth']
        arguments += ['--refine', crm, checkpoint]
        monkeypatch.setattr(sys, 'argv', arguments)
        before = {*Path().iterdir()}
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(TOOL), run_name='__main__')
        message = str(stop.value.code)
        assert message.startswith('error: ')
        assert ERRORS[config, crm, checkpoint] in message
        assert '\n' not in message
        assert {*Path().iterdir()} == before

    def test_not_with_augmentation(self, monkeypatch, in_scope, capsys):
        with pytest.raises(SystemExit) as stop:
            run(monkeypatch, in_scope, *CRM, '--tta')
        assert stop.value.code == 2
        message = 'argument --tta: not allowed with argument --refine'
        assert message in capsys.readouterr().err
