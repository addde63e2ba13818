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


def listed(value):
    """One or several, as several."""
    return value if isinstance(value, list) else [value]


def evaluators_of(cfg):
    """Metrics of each test set; several sets need a loop of mmagic."""
    if not isinstance(cfg.test_dataloader, list):
        return [cfg.test_evaluator]
    assert len(cfg.test_evaluator) == len(cfg.test_dataloader)
    return cfg.test_evaluator


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
            for loader in listed(cfg.get(key) or []):
                for dataset in leaves_of(loader.get('dataset')):
                    dataset = {**dataset, 'lazy_init': True}
                    assert len(DATASETS.build(dataset).pipeline.transforms) > 0
        for metrics in evaluators_of(cfg):
            assert Evaluator(metrics).metrics
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


def trained_parts_of(cfg):
    """Parts of a config that name a checkpoint of a training here."""
    if isinstance(cfg, dict):
        checkpoint = (cfg.get('init_cfg') or {}).get('checkpoint', '')
        if 'work_dirs/' in checkpoint:
            yield cfg, Path(checkpoint)
        for value in cfg.values():
            yield from trained_parts_of(value)
    elif isinstance(cfg, list):
        for value in cfg:
            yield from trained_parts_of(value)


@pytest.mark.parametrize('path', LEAVES, ids=name)
def test_trained_parts_are_those_of_their_training(path):
    """Kernels of another formula would load without a word."""
    for cfg, checkpoint in trained_parts_of(load_config(str(path)).model):
        (file,) = CONFIGS.rglob(f'{checkpoint.parent.name}.py')
        training = load_config(str(file))
        assert checkpoint.stem == f'iter_{training.train_cfg.max_iters}'
        model = training.model.get('upsampler', training.model)
        assert without_weights(cfg) == without_weights(model)
