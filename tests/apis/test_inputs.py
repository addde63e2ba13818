"""What has to be there before a run starts."""

from argparse import Namespace

import pytest
from mmengine.config import Config

from mmplugins.apis.inputs import check_inputs, require_data, require_weights

TRAINING = Namespace()


def of_a_test(**flags):
    return Namespace(checkpoint='a.pth', **flags)


def pretrained(path):
    return dict(type='Pretrained', checkpoint=path)


def complaint(check, *args):
    """What a check says; None if it lets its arguments pass."""
    try:
        check(*args)
    except ValueError as error:
        return str(error)
    return None


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'here').touch()


class TestWeights:
    @pytest.mark.parametrize(
        'part',
        [
            None,
            dict(type='Net', init_cfg=None),
            dict(init_cfg=pretrained('here')),
            dict(init_cfg=pretrained('torchvision://resnet50')),
            dict(init_cfg=[dict(type='Kaiming'), pretrained('here')]),
            dict(backbone=dict(init_cfg=pretrained('https://a/b.pth'))),
        ],
    )
    def test_that_are_there(self, part):
        assert complaint(require_weights, part) is None

    @pytest.mark.parametrize(
        ('part', 'name'),
        [
            (dict(init_cfg=pretrained('gone')), 'model'),
            (dict(neck=dict(init_cfg=pretrained('gone'))), 'model.neck'),
            (
                dict(heads=[{}, dict(init_cfg=[{}, pretrained('gone')])]),
                'model.heads.1',
            ),
        ],
    )
    def test_that_are_not(self, part, name):
        message = f'^checkpoint gone of {name}.init_cfg does not exist$'
        with pytest.raises(ValueError, match=message):
            require_weights(Config(dict(model=part)).model)

    def test_that_have_to_be_trained_first(self):
        path = 'work_dirs/small-net/iter_5.pth'
        message = 'train it first, with the config small-net.py$'
        with pytest.raises(ValueError, match=message):
            require_weights(dict(init_cfg=pretrained(path)))

    def test_are_those_that_the_run_reads(self):
        """A test has most of them in its checkpoint."""
        lacking = dict(init_cfg=pretrained('gone'))
        cfg = Config(dict(model=dict(neck=lacking)))
        check_inputs(cfg, of_a_test())
        with pytest.raises(ValueError, match='of model.neck.init_cfg'):
            check_inputs(cfg, TRAINING)
        cfg.model.featup = dict(upsampler=lacking)
        with pytest.raises(ValueError, match='of model.featup.upsampler.init'):
            check_inputs(cfg, of_a_test())


class TestData:
    @pytest.mark.parametrize(
        'dataset',
        [
            dict(data_root='.'),
            dict(data_root='', data_prefix=dict(img_path='gone')),
            dict(data_root='s3://bucket'),
            dict(data_root=None, data_prefix='.'),
            dict(type='mmpretrain.CIFAR10', data_prefix='gone'),
        ],
    )
    def test_that_are_there(self, dataset):
        cfg = Config(dict(loader=dict(dataset=dataset)))
        assert complaint(require_data, cfg, 'loader') is None

    @pytest.mark.parametrize(
        ('dataset', 'name'),
        [
            (dict(data_root='gone/'), 'dataset.data_root'),
            (dict(data_prefix='gone/'), 'dataset.data_prefix'),
            (
                dict(type='RepeatDataset', dataset=dict(data_root='gone/')),
                'dataset.dataset.data_root',
            ),
            (
                dict(
                    type='ConcatDataset',
                    datasets=[dict(data_root='.'), dict(data_root='gone/')],
                ),
                'dataset.datasets.1.data_root',
            ),
        ],
    )
    def test_that_are_not(self, dataset, name):
        cfg = Config(dict(loader=dict(dataset=dataset)))
        message = f'^gone/ of loader.{name} does not exist$'
        with pytest.raises(ValueError, match=message):
            require_data(cfg, 'loader')

    def test_of_several_loaders(self):
        loaders = [dict(dataset=dict(data_root=x)) for x in ('.', 'gone')]
        message = r'^gone of loader\.1\.dataset\.data_root does not exist$'
        with pytest.raises(ValueError, match=message):
            require_data(Config(dict(loader=loaders)), 'loader')

    @pytest.mark.parametrize(
        ('part', 'reads'), [('train', 0), ('val', 0), ('test', 1)]
    )
    def test_are_those_that_the_run_reads(self, part, reads):
        loader = dict(dataset=dict(data_root='gone'))
        cfg = Config({f'{part}_dataloader': loader})
        runs = [TRAINING, of_a_test()]
        check_inputs(cfg, runs[1 - reads])
        with pytest.raises(ValueError, match=f'{part}_dataloader.dataset'):
            check_inputs(cfg, runs[reads])


@pytest.mark.parametrize('flag', ['out', 'show_dir'])
def test_predictions_of_a_model_that_makes_none(flag):
    cfg = Config(dict(model=dict(type='mmplugins.FeatUp')))
    check_inputs(cfg, of_a_test(**{flag: None}))
    name = flag.replace('_', '-')
    with pytest.raises(ValueError, match=f'^--{name} is for .*infer.py'):
        check_inputs(cfg, of_a_test(**{flag: 'there'}))


def test_a_training_goes_on_from_what_is_there():
    cfg = Config(dict(load_from='work_dirs/first/iter_9.pth'))
    message = 'iter_9.pth of load_from .*: train it first, .* first.py$'
    with pytest.raises(ValueError, match=message):
        check_inputs(cfg, TRAINING)
    assert complaint(check_inputs, cfg, of_a_test()) is None
    cfg.resume = True
    assert complaint(check_inputs, cfg, TRAINING) is None
