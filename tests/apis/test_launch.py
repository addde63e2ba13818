"""From flags to configs."""

import os
from argparse import ArgumentParser

import pytest
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner

from mmplugins.apis import launch


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(launch, 'get_device', lambda: 'cuda')


def wrapper(**kwargs):
    return dict(optimizer=dict(type='SGD', lr=0.1), **kwargs)


def parse(*args):
    parser = ArgumentParser()
    launch.add_arguments(parser)
    return parser.parse_args(args)


class TestReadConfig:
    @pytest.fixture
    def read(self, tmp_path, monkeypatch):
        monkeypatch.setenv('LOCAL_RANK', '0')

        def read(text, *args):
            path = tmp_path / 'small.net.py'
            path.write_text(text)
            return launch.read_config(parse(str(path), *args))

        return read

    @pytest.mark.parametrize(
        ('text', 'args', 'expected'),
        [
            ('x = 1', [], './work_dirs/small.net'),
            ('work_dir = None', [], './work_dirs/small.net'),
            ("work_dir = 'mine'", [], 'mine'),
            ("work_dir = 'mine'", ['--work-dir', 'yours'], 'yours'),
        ],
    )
    def test_work_dir(self, text, args, expected, read):
        assert read(text + '\n', *args).work_dir == expected

    def test_options_and_launcher(self, read):
        options = ['--cfg-options', 'a.b=2', 'c=[1,2]', 'd=none']
        cfg = read('a = dict(b=1, z=0)\n', '--launcher', 'slurm', *options)
        assert cfg.a == dict(b=2, z=0)
        assert (cfg.c, cfg.d, cfg.launcher) == ([1, 2], 'none', 'slurm')

    def test_collates_for_mmpretrain_as_its_own_tools_do(self, read):
        cfg = read(
            "default_scope = 'mmpretrain'\n"
            'train_dataloader = dict(batch_size=2)\n'
            "test_dataloader = dict(collate_fn=dict(type='pseudo_collate'))\n"
            'val_dataloader = None\n'
        )
        assert cfg.train_dataloader.collate_fn.type == 'default_collate'
        assert cfg.test_dataloader.collate_fn.type == 'pseudo_collate'
        assert cfg.val_dataloader is None

    def test_leaves_the_loaders_of_others_alone(self, read):
        cfg = read("default_scope = 'mmseg'\ntrain_dataloader = dict(n=2)\n")
        assert cfg.train_dataloader == dict(n=2)

    def test_keeps_the_rank_that_torchrun_sets(self, read, monkeypatch):
        monkeypatch.setenv('LOCAL_RANK', '3')
        read('x = 1\n', '--local-rank', '1')
        assert os.environ['LOCAL_RANK'] == '3'
        monkeypatch.delenv('LOCAL_RANK')
        read('x = 1\n', '--local_rank', '1')
        assert os.environ['LOCAL_RANK'] == '1'

    def test_options_without_a_value_are_wrong_usage(self, capsys):
        with pytest.raises(SystemExit) as error:
            parse('a.py', '--cfg-options', 'a=1', 'b.c')
        assert error.value.code == 2
        assert '--cfg-options b.c: give KEY=VALUE' in capsys.readouterr().err

    def test_what_is_not_there_is_named(self, read):
        with pytest.raises(ValueError, match='gone of .* does not exist'):
            read("train_dataloader = dict(dataset=dict(data_root='gone'))\n")

    def test_missing(self):
        with pytest.raises(ValueError, match='config gone.py does not exist'):
            launch.read_config(parse('gone.py'))


class TestAmp:
    @pytest.mark.parametrize(
        'given',
        [
            {},
            {'type': 'AmpOptimWrapper', 'loss_scale': 512.0},
            {'type': 'mmplugins.BFloat16OptimWrapper'},
        ],
    )
    def test_on_a_cpu(self, given, monkeypatch):
        monkeypatch.setattr(launch, 'get_device', lambda: 'cpu')
        cfg = Config(dict(optim_wrapper=wrapper(**given)))
        launch.enable_amp(cfg)
        assert cfg.optim_wrapper == wrapper(
            type='mmplugins.BFloat16OptimWrapper'
        )

    @pytest.mark.parametrize(
        'given',
        [
            {},
            {'type': 'OptimWrapper'},
            {'type': 'AmpOptimWrapper'},
            {'type': 'mmengine.OptimWrapper'},
            {'type': OptimWrapper},
        ],
    )
    def test_of_one_optimizer(self, given, gpu):
        cfg = Config(dict(optim_wrapper=wrapper(**given)))
        launch.enable_amp(cfg)
        assert cfg.optim_wrapper == wrapper(
            type='AmpOptimWrapper', loss_scale='dynamic'
        )

    def test_of_several_optimizers(self, gpu):
        several = dict(
            constructor='MultiOptimWrapperConstructor',
            generator=wrapper(type='OptimWrapper'),
            discriminator=wrapper(loss_scale=512.0),
        )
        cfg = Config(dict(optim_wrapper=several))
        launch.enable_amp(cfg)
        assert cfg.optim_wrapper == dict(
            constructor='MultiOptimWrapperConstructor',
            generator=wrapper(type='AmpOptimWrapper', loss_scale='dynamic'),
            discriminator=wrapper(type='AmpOptimWrapper', loss_scale=512.0),
        )

    def test_needs_an_optimizer(self, gpu):
        for given in ({}, {'optim_wrapper': None}):
            with pytest.raises(ValueError, match='--amp needs optim_wrapper'):
                launch.enable_amp(Config(given))

    def test_refuses_other_wrappers(self, gpu):
        cfg = Config(dict(optim_wrapper=wrapper(type='ApexOptimWrapper')))
        with pytest.raises(ValueError, match="got 'ApexOptimWrapper'"):
            launch.enable_amp(cfg)


class TestAutoScaleLr:
    def test_is_turned_on(self):
        cfg = Config(dict(auto_scale_lr=dict(base_batch_size=16)))
        launch.enable_auto_scale_lr(cfg)
        assert cfg.auto_scale_lr == dict(base_batch_size=16, enable=True)

    @pytest.mark.parametrize(
        'given', [{}, {'auto_scale_lr': None}, {'auto_scale_lr': {}}]
    )
    def test_needs_a_base(self, given):
        with pytest.raises(ValueError, match='base_batch_size'):
            launch.enable_auto_scale_lr(Config(given))


class TestResume:
    def test_auto_ignores_what_the_config_loads(self):
        cfg = Config(dict(load_from='weights.pth'))
        launch.enable_resume(cfg, 'auto')
        assert (cfg.resume, cfg.load_from) == (True, None)

    def test_path(self, tmp_path):
        path = tmp_path / 'iter_2.pth'
        path.touch()
        cfg = Config(dict(load_from=None))
        launch.enable_resume(cfg, str(path))
        assert (cfg.resume, cfg.load_from) == (True, str(path))

    def test_missing_path(self):
        with pytest.raises(ValueError, match=r'gone\.pth does not exist'):
            launch.enable_resume(Config(), 'gone.pth')


class TestTta:
    def config(self, **more):
        return Config(
            dict(
                model=dict(type='Net'),
                test_dataloader=dict(dataset=dict(pipeline=['plain'])),
                tta_model=dict(type='Mean'),
                tta_pipeline=['many'],
                **more,
            )
        )

    def test_wraps_the_model_and_changes_the_pipeline(self):
        cfg = self.config()
        launch.enable_tta(cfg)
        assert cfg.model == dict(type='Mean', module=dict(type='Net'))
        assert cfg.test_dataloader.dataset.pipeline == ['many']

    def test_keeps_the_preprocessor_of_the_model(self):
        # The runner would set the base's, left at the top level.
        cfg = self.config(data_preprocessor=dict(mean=1))
        cfg.model.data_preprocessor = dict(mean=2)
        launch.enable_tta(cfg)
        assert cfg.model.data_preprocessor == dict(mean=2)
        assert cfg.model.module.data_preprocessor == dict(mean=2)

    @pytest.mark.parametrize(
        'key', ['tta_model', 'tta_pipeline', 'test_dataloader']
    )
    def test_names_the_key_that_is_missing(self, key):
        cfg = self.config()
        cfg[key] = None
        with pytest.raises(ValueError, match=f'^--tta needs {key} in the'):
            launch.enable_tta(cfg)

    def test_does_not_draw_with_mmpretrain(self):
        cfg = self.config(default_scope='mmpretrain', visualizer=dict(a=1))
        launch.enable_pictures(cfg, 'there')
        with pytest.raises(ValueError, match='does not go with --show-dir'):
            launch.enable_tta(cfg)


class TestPictures:
    def config(self, scope, **more):
        visualizer = dict(type='V', vis_backends=[dict(type='Other')])
        return Config(dict(default_scope=scope, visualizer=visualizer, **more))

    def test_of_mmseg(self):
        cfg = self.config('mmseg')
        launch.enable_pictures(cfg, 'there')
        hook = cfg.default_hooks.visualization
        assert hook == dict(type='SegVisualizationHook', draw=True, interval=1)
        assert 'custom_hooks' not in cfg
        assert cfg.visualizer == self.local('there')

    def test_of_mmpretrain(self):
        old = dict(visualization=dict(type='VisualizationHook', enable=False))
        cfg = self.config('mmpretrain', default_hooks=old)
        launch.enable_pictures(cfg, 'there')
        assert cfg.default_hooks.visualization == dict(
            type='VisualizationHook', enable=True, interval=1, out_dir='there'
        )

    @pytest.mark.parametrize(
        'evaluator', [None, dict(type='A', ignore_index=11)]
    )
    def test_of_refined_ones_show_what_was_before(self, evaluator):
        sheets = 'mmplugins.RefinementVisualizationHook'
        cfg = self.config(
            'mmseg',
            model=dict(type='mmplugins.RefinedSegmentor'),
            custom_hooks=[dict(type=sheets), dict(type='EMAHook')],
            test_evaluator=evaluator,
        )
        launch.enable_pictures(cfg, 'there')
        ignored = 11 if evaluator else 255
        assert cfg.custom_hooks == [
            dict(type='EMAHook'),
            dict(type=sheets, interval=1, ignore_index=ignored),
        ]
        assert cfg.default_hooks.visualization.draw

    @pytest.mark.parametrize('hooks', [None, [dict(type='EMAHook')]])
    def test_of_activation_maps(self, hooks):
        model = dict(type='mmplugins.GuidedImageClassifier')
        cfg = self.config('mmpretrain', model=model, custom_hooks=hooks)
        launch.enable_pictures(cfg, 'there')
        hook = dict(type='mmplugins.CAMVisualizationHook')
        assert cfg.custom_hooks == [*(hooks or []), hook]
        assert cfg.visualizer == self.local('there')
        assert 'visualization' not in cfg.default_hooks

    @pytest.mark.parametrize('hooks', [None, [], ['Other'], ['Basic']])
    def test_of_mmagic(self, hooks):
        types = {'Other': 'EMAHook', 'Basic': 'BasicVisualizationHook'}
        given = hooks and [dict(type=types[name]) for name in hooks]
        cfg = self.config('mmagic', custom_hooks=given)
        launch.enable_pictures(cfg, 'there')
        kept = [dict(type='EMAHook')] if hooks == ['Other'] else []
        hook = dict(type='BasicVisualizationHook', interval=1)
        assert cfg.custom_hooks == [*kept, hook]
        assert cfg.visualizer == self.local('there')

    def local(self, folder):
        """Pictures go to files whatever the config logs to."""
        backends = [dict(type='LocalVisBackend')]
        return dict(type='V', save_dir=folder, vis_backends=backends)

    @pytest.mark.parametrize('scope', ['mmdet', None])
    def test_of_other_hosts(self, scope):
        with pytest.raises(ValueError, match=f'got {scope!r}'):
            launch.enable_pictures(self.config(scope), 'there')

    def test_need_a_visualizer(self):
        with pytest.raises(ValueError, match='needs visualizer'):
            launch.enable_pictures(Config(dict(default_scope='mmseg')), 'a')


class TestPaths:
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / 'file').touch()
        (tmp_path / 'folder').mkdir()

    @pytest.mark.parametrize('path', [None, 'folder', 'new/deep'])
    def test_folders(self, path):
        launch.require_folder('--out', path)
        assert sorted(os.listdir()) == ['file', 'folder']  # nothing made

    @pytest.mark.parametrize('path', ['file', 'file/deep/er'])
    def test_no_folders(self, path):
        message = f'^--out {path}: file is not a folder$'
        with pytest.raises(ValueError, match=message):
            launch.require_folder('--out', path)

    @pytest.mark.parametrize('path', [None, 'file', 'new', 'new/deep.json'])
    def test_files(self, path):
        launch.require_writable('--metrics', path)
        assert sorted(os.listdir()) == ['file', 'folder']

    @pytest.mark.parametrize('path', ['folder', 'file/m.json'])
    def test_no_files(self, path):
        with pytest.raises(ValueError, match='^--metrics f'):
            launch.require_writable('--metrics', path)


@pytest.mark.parametrize(
    ('more', 'built'),
    [({}, 'mmengine'), ({'runner_type': 'OtherRunner'}, 'registry')],
)
def test_runner_type_chooses_the_runner(more, built, monkeypatch):
    cfg = Config(dict(x=1, **more))
    monkeypatch.setattr(Runner, 'from_cfg', lambda cfg: ('mmengine', cfg))
    monkeypatch.setattr(launch.RUNNERS, 'build', lambda cfg: ('registry', cfg))
    assert launch.build_runner(cfg) == (built, cfg)
