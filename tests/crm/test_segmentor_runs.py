"""RefinedSegmentor in mmseg's runner, with CRM and checkpoints of both."""

import copy
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import nn

from mmplugins.apis.predictions import SavePredictionsHook
from mmplugins.compat import load_config

CONFIGS = Path(__file__).parents[2] / 'configs'
BN = dict(type='BN')
SEGMENTOR = dict(
    type='EncoderDecoder',
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
        num_classes=3,
        norm_cfg=BN,
    ),
    test_cfg=dict(mode='whole'),
)
PREPROCESSOR = dict(
    type='SegDataPreProcessor',
    mean=[128.0] * 3,
    std=[64.0] * 3,
    bgr_to_rgb=True,
    test_cfg=dict(size_divisor=32),
)
REFINER = dict(
    type='mmplugins.CRM',
    data_preprocessor=dict(
        type='ImgDataPreprocessor',
        mean=[128.0] * 3,
        std=[128.0] * 3,
        bgr_to_rgb=True,
    ),
    backbone=dict(
        type='mmplugins.CRMBackbone',
        backbone=dict(
            type='mmpretrain.MobileNetV2',
            widen_factor=0.1,
            out_indices=(0, 1, 2),
        ),
    ),
    decode_head=dict(
        type='mmplugins.CRMHead', in_channels=(8, 8, 8), channels=(4, 4, 4)
    ),
    scales=(0.5, 1.0),
    padding=8,
)


def config(folder, **more):
    """A whole config: three images of two sizes, resized by its pipeline."""
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='Resize', scale=(64, 64), keep_ratio=True),
        dict(type='LoadAnnotations', reduce_zero_label=True),
        dict(type='PackSegInputs'),
    ]
    dataset = dict(
        type='BaseSegDataset',
        data_root=str(folder),
        data_prefix=dict(img_path='images', seg_map_path='labels'),
        metainfo=dict(classes=('a', 'b', 'c'), palette=[[0] * 3] * 3),
        reduce_zero_label=True,
        img_suffix='.png',
        seg_map_suffix='.png',
        pipeline=pipeline,
    )
    return Config(
        dict(
            default_scope='mmseg',
            work_dir=str(folder / 'work'),
            # As mmseg's bases have it, for the runner to hand over.
            data_preprocessor=PREPROCESSOR,
            model=SEGMENTOR,
            test_dataloader=dict(
                batch_size=1,
                num_workers=0,
                sampler=dict(type='DefaultSampler', shuffle=False),
                dataset=dataset,
            ),
            test_cfg=dict(type='TestLoop'),
            test_evaluator=[
                dict(type='IoUMetric', iou_metrics=['mIoU']),
                dict(type='mmplugins.MaskRefinementMetric'),
            ],
            experiment_name=folder.name,
            log_level='WARNING',
            **copy.deepcopy(more),
        )
    )


@pytest.fixture
def folder(tmp_path):
    """Images, labels from 1 up, and a checkpoint of each of the models."""
    for part in ('images', 'labels'):
        (tmp_path / part).mkdir()
    rng = np.random.default_rng(0)
    for i, (height, width) in enumerate([(48, 80), (48, 80), (70, 50)]):
        few = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        image = cv2.resize(few, (width, height))
        few = rng.integers(1, 4, (5, 7), dtype=np.uint8)
        labels = cv2.resize(
            few, (width, height), interpolation=cv2.INTER_NEAREST
        )
        assert cv2.imwrite(str(tmp_path / 'images' / f'{i}.png'), image)
        assert cv2.imwrite(str(tmp_path / 'labels' / f'{i}.png'), labels)
    return tmp_path


@pytest.fixture
def build(in_scope):
    def build(cfg):
        with in_scope('mmseg'):
            return MODELS.build(ConfigDict(copy.deepcopy(cfg)))

    return build


@pytest.fixture
def weights(folder, build):
    """Random weights that make both models predict all there is."""
    paths = {}
    for name, cfg in dict(segmentor=SEGMENTOR, refiner=REFINER).items():
        model = build(cfg)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
        paths[name] = str(folder / f'{name}.pth')
        torch.save(dict(state_dict=model.state_dict()), paths[name])
    return paths


def wrapped(weights, **options):
    init_cfg = dict(type='Pretrained', checkpoint=weights['refiner'])
    return dict(
        type='mmplugins.RefinedSegmentor',
        module=SEGMENTOR,
        refiner=dict(REFINER, init_cfg=init_cfg),
        min_area=0,
        **options,
    )


class Collect(SavePredictionsHook):
    """Keeps the samples too."""

    def after_test_iter(self, runner, batch_idx, data_batch, outputs):
        super().after_test_iter(runner, batch_idx, data_batch, outputs)
        self.samples = [*getattr(self, 'samples', []), *outputs]


def run(cfg, name):
    runner = Runner.from_cfg(cfg)
    hook = Collect(Path(cfg.work_dir) / name)
    runner.register_hook(hook)
    return runner, runner.test(), hook


class TestRunner:
    @pytest.fixture(autouse=True)
    def _scope(self, in_scope, monkeypatch):
        # Formatting the config takes longer than all else.
        monkeypatch.setattr(Config, 'pretty_text', '')
        with in_scope('mmseg'):
            yield

    def test_refines_what_the_segmentor_predicts(self, folder, weights):
        plain = config(folder, load_from=weights['segmentor'])
        plain.test_evaluator = plain.test_evaluator[0]
        _, before, coarse = run(plain, 'plain')
        cfg = config(folder, load_from=weights['segmentor'])
        cfg.model = ConfigDict(wrapped(weights))
        runner, after, result = run(cfg, 'refined')

        for name, module in [
            ('segmentor', runner.model.module),
            ('refiner', runner.model.refiner),
        ]:
            state = torch.load(weights[name])['state_dict']
            given = module.state_dict()
            assert all(torch.equal(given[k], v) for k, v in state.items())
        assert after['coarse/mIoU'] == pytest.approx(before['mIoU'], abs=0.02)
        assert after['refined/mIoU'] == pytest.approx(after['mIoU'], abs=0.02)
        changed = 0
        for first, second in zip(coarse.samples, result.samples):
            old = first.pred_sem_seg.data
            new = second.pred_sem_seg.data
            assert torch.equal(second.coarse_sem_seg.data, old)
            assert new.shape == old.shape == (1, *second.ori_shape)
            changed += (old != new).sum()
            written = cv2.imread(
                str(result.out_dir / Path(second.img_path).name),
                cv2.IMREAD_UNCHANGED,
            )
            assert (written == new[0].numpy() + 1).all()  # as in the files
        assert changed > 100

    def test_components_and_a_veto(self, folder, weights):
        cfg = config(folder, load_from=weights['segmentor'])
        cfg.model = ConfigDict(wrapped(weights, per='component', band=2))
        _, _, result = run(cfg, 'refined')
        changed = 0
        for sample in result.samples:
            old = sample.coarse_sem_seg.data[0].numpy().astype(np.uint8)
            new = sample.pred_sem_seg.data[0].numpy()
            square = np.ones((5, 5), np.uint8)
            far = cv2.dilate(old, square) == cv2.erode(old, square)
            assert far.any()
            assert (new[far] == old[far]).all()
            changed += (old != new).sum()
        assert changed > 0

    def test_a_segmentor_of_one_channel(self, folder, weights, build):
        head = dict(SEGMENTOR['decode_head'], num_classes=2, out_channels=1)
        head['threshold'] = 0.4
        head['loss_decode'] = dict(type='CrossEntropyLoss', use_sigmoid=True)
        cfg = dict(SEGMENTOR, decode_head=head)
        plain = dict(PREPROCESSOR, test_cfg=None)
        module = build(dict(cfg, data_preprocessor=plain)).eval()
        image = cv2.imread(str(folder / 'images' / '0.png'))
        image = torch.from_numpy(image).permute(2, 0, 1)
        (sample,) = module.test_step(dict(inputs=[image]))
        # About half of the pixels shall be foreground.
        logits = sample.seg_logits.data.double().logit()
        last = module.decode_head.conv_seg
        last.weight.data /= logits.std()
        last.bias.data -= logits.median()
        last.bias.data /= logits.std()
        torch.save(module.state_dict(), folder / 'one.pth')

        model = dict(wrapped(weights), module=cfg)
        cfg = config(folder, load_from=str(folder / 'one.pth'))
        cfg.model = ConfigDict(model)
        metainfo = dict(classes=('a', 'b'), palette=[[0] * 3] * 2)
        cfg.test_dataloader.dataset.metainfo = ConfigDict(metainfo)
        _, figures, result = run(cfg, 'refined')
        changed = 0
        for sample in result.samples:
            old = sample.coarse_sem_seg.data
            assert torch.equal(old, (sample.seg_logits.data > 0.4).float())
            new = sample.pred_sem_seg.data
            assert set(new.unique().tolist()) <= {0, 1}
            changed += (old != new).sum()
        assert changed > 100
        assert figures['refined/IoU'] != figures['coarse/IoU']

    def test_without_ground_truth(self, folder, weights):
        cfg = config(folder, load_from=weights['segmentor'])
        cfg.model = ConfigDict(wrapped(weights))
        del cfg.test_dataloader.dataset.pipeline[2]
        cfg.test_evaluator = dict(
            type='IoUMetric', format_only=True, output_dir=str(folder / 'out')
        )
        _, _, result = run(cfg, 'refined')
        assert len(result.samples) == 3
        assert all('gt_sem_seg' not in sample for sample in result.samples)

    def test_batches_go_with_images_of_one_size(self, folder, weights):
        cfg = config(folder, load_from=weights['segmentor'])
        cfg.model = ConfigDict(wrapped(weights))
        _, _, single = run(cfg, 'single')
        cfg = config(folder, load_from=weights['segmentor'])
        cfg.model = ConfigDict(wrapped(weights))
        cfg.test_dataloader.batch_size = 2
        _, _, double = run(cfg, 'double')
        for one, two in zip(single.samples, double.samples):
            agree = one.pred_sem_seg.data == two.pred_sem_seg.data
            assert agree.float().mean() > 0.999


class TestBuilding:
    def test_leaves_its_config_as_it_is(self, weights, build, in_scope):
        cfg = ConfigDict(wrapped(weights), data_preprocessor=PREPROCESSOR)
        given = copy.deepcopy(cfg)
        with in_scope('mmseg'):
            MODELS.build(cfg)
        assert cfg == given

    def test_the_preprocessor_of_a_segmentor_stays(self, weights, build):
        cfg = wrapped(weights, data_preprocessor=PREPROCESSOR)
        assert build(cfg).module.data_preprocessor.mean[0] == 128
        own = dict(PREPROCESSOR, mean=[7.0] * 3)
        cfg['module'] = dict(SEGMENTOR, data_preprocessor=own)
        assert build(cfg).module.data_preprocessor.mean[0] == 7

    def test_a_checkpoint_of_another_refiner_is_refused(
        self, weights, build, capsys
    ):
        cfg = wrapped(dict(weights, refiner=weights['segmentor']))
        with pytest.raises(RuntimeError, match='do not match exactly'):
            build(cfg)

    def test_random_weights_are_reported(self, weights, build, monkeypatch):
        said = []
        monkeypatch.setattr(
            'mmplugins.crm.segmentor.print_log',
            lambda text, **kwargs: said.append(text),
        )
        build(wrapped(weights))
        assert not said
        cfg = wrapped(weights)
        del cfg['refiner']['init_cfg']
        build(cfg)
        assert len(said) == 1
        assert 'random weights' in said[0]

    def test_belongs_to_mmseg(self, weights, in_scope):
        with (
            in_scope('mmpretrain'),
            pytest.raises(ValueError, match="set default_scope = 'mmseg'"),
        ):
            MODELS.build(ConfigDict(wrapped(weights)))

    def test_is_none_to_train(self, weights, build):
        model = build(wrapped(weights, data_preprocessor=PREPROCESSOR))
        assert isinstance(model, BaseModel)
        with pytest.raises(NotImplementedError):
            model(torch.zeros(1, 3, 32, 32), mode='loss')
        with pytest.raises(NotImplementedError, match='without augmentation'):
            model.merge_preds([])


def without_weights(cfg):
    if not isinstance(cfg, dict):
        return cfg
    return {k: without_weights(v) for k, v in cfg.items() if k != 'init_cfg'}


@pytest.mark.parametrize(
    'path',
    sorted((CONFIGS / 'crm').glob('refined_*.py')),
    ids=lambda p: p.stem,
)
def test_refiners_of_configs_are_those_that_are_trained(path):
    cfg = load_config(str(path)).model
    base = load_config(str(CONFIGS / 'crm/_base_/crm_mobilenet-v2.py')).model
    assert without_weights(cfg.refiner) == without_weights(base)
