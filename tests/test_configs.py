"""Every file under configs/ parses, and every whole one builds."""

import copy
from pathlib import Path

import prepare_data
import pytest
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS, MODELS

from mmplugins.compat import load_config

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
FILES = sorted(CONFIGS.rglob('*.py'))
LEAVES = [path for path in FILES if '_base_' not in path.parts]


def name(path):
    return str(path.relative_to(CONFIGS))


def depth(path):
    """Levels of inheritance within this project."""
    bases = Config._get_base_files(str(path))
    files = [path.parent / base for base in bases if '::' not in base]
    return max((1 + depth(file) for file in files), default=0)


def without_weights(cfg):
    """The same model without checkpoints to read."""
    if isinstance(cfg, dict):
        return type(cfg)(
            (key, without_weights(value))
            for key, value in cfg.items()
            if key not in ('init_cfg', 'pretrained')
        )
    if isinstance(cfg, list):
        return [without_weights(value) for value in cfg]
    return cfg


def leaves_of(dataset):
    """Data sets of a config, without those that only join or repeat them."""
    if dataset is None:
        return []
    wrapped = dataset.get('datasets') or [dataset.get('dataset')]
    if wrapped == [None]:
        return [dataset]
    return [leaf for one in wrapped for leaf in leaves_of(one)]


def test_there_are_configs():
    assert len(LEAVES) >= 4
    assert len(FILES) > len(LEAVES)


@pytest.mark.parametrize('path', FILES, ids=name)
def test_parses(path):
    assert len(load_config(str(path))) > 0


@pytest.mark.parametrize('path', LEAVES, ids=name)
def test_builds_and_stays_as_it_is(path, in_scope):
    cfg = load_config(str(path))
    model = without_weights(cfg.model)
    given = copy.deepcopy(model)
    with in_scope(cfg.default_scope):
        first, second = MODELS.build(model), MODELS.build(model)
        for key in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
            for dataset in leaves_of((cfg.get(key) or {}).get('dataset')):
                dataset = {**dataset, 'lazy_init': True}
                assert len(DATASETS.build(dataset).pipeline.transforms) > 0
        assert Evaluator(cfg.test_evaluator).metrics
    assert model == given
    shapes = [
        {k: v.shape for k, v in model.state_dict().items()}
        for model in (first, second)
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize('path', LEAVES, ids=name)
def test_is_short(path):
    assert len(path.read_text().splitlines()) <= 60
    assert depth(path) <= 3


@pytest.mark.parametrize('path', FILES, ids=name)
def test_names_no_place_of_one_machine(path):
    text = path.read_text()
    assert "'/" not in text
    assert '..' not in text.replace("'../../", '').replace("'../", '')


def test_shapes_are_those_of_the_generator():
    cfg = load_config(str(CONFIGS / '_base_/datasets/shapes-128x192.py'))
    assert cfg.metainfo.classes == prepare_data.CLASSES
    assert cfg.metainfo.palette == prepare_data.PALETTE


def upsamplers_of(cfg):
    """Every upsampler of a config that names a checkpoint."""
    if isinstance(cfg, dict):
        checkpoint = (cfg.get('init_cfg') or {}).get('checkpoint', '')
        if 'work_dirs/' in checkpoint:
            yield cfg, Path(checkpoint)
        for value in cfg.values():
            yield from upsamplers_of(value)
    elif isinstance(cfg, list):
        for value in cfg:
            yield from upsamplers_of(value)


@pytest.mark.parametrize('path', LEAVES, ids=name)
def test_trained_upsamplers_are_those_of_their_training(path):
    """Kernels of another formula would load without a word."""
    for cfg, checkpoint in upsamplers_of(load_config(str(path)).model):
        training = load_config(
            str(CONFIGS / 'featup' / f'{checkpoint.parent.name}.py')
        )
        assert checkpoint.stem == f'iter_{training.train_cfg.max_iters}'
        given = {k: v for k, v in cfg.items() if k != 'init_cfg'}
        assert given == training.model.upsampler
