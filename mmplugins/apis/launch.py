"""From a command line to a config that a runner can run.

``tools/train.py`` and ``tools/test.py`` share these; each flag has the zoo's
own name and one meaning for configs of mmseg, mmpretrain and mmagic.
"""

import os
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.device import get_device
from mmengine.registry import MODELS, RUNNERS, DefaultScope
from mmengine.runner import CheckpointLoader, Runner

from mmplugins.compat import load_config

from .checkpoints import require_fit
from .inputs import check_inputs

_REFINED = 'mmplugins.RefinedSegmentor'
_REFINEMENT = 'mmplugins.MaskRefinementMetric'
_SHEETS = 'mmplugins.RefinementVisualizationHook'


class KeyValueAction(DictAction):
    """KEY=VALUE, or a usage error where mmengine has a traceback."""

    def __call__(
        self,
        parser: ArgumentParser,
        namespace: Namespace,
        values: Sequence[str],
        option_string: str | None = None,
    ) -> None:
        """Add the options to those that are there."""
        for value in values:
            if '=' not in value:
                parser.error(f'{option_string} {value}: give KEY=VALUE')
        super().__call__(parser, namespace, values, option_string)


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments that training and testing share.

    Args:
        parser (ArgumentParser): Parser to extend.
    """
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--work-dir',
        help='folder for logs and checkpoints; work_dirs/<config> by default',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=KeyValueAction,
        metavar='KEY=VALUE',
        help='override keys of the config, e.g. optim_wrapper.optimizer.lr=1',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='job launcher; none by default',
    )
    # torch.distributed.launch passes it, torchrun sets the variable.
    parser.add_argument(
        '--local_rank', '--local-rank', type=int, default=0, help='internal'
    )


def read_config(args: Namespace) -> Config:
    """Read the config that the shared arguments name.

    Args:
        args (Namespace): Arguments of :func:`add_arguments`.

    Returns:
        Config: The config with its overrides, launcher and work_dir.

    Raises:
        ValueError: If the config does not exist or does not read, or names
            weights or data that do not exist.
    """
    require_file('config', args.config)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = load_config(args.config, args.cfg_options)
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    if cfg.get('work_dir') is None:
        cfg.work_dir = f'./work_dirs/{Path(args.config).stem}'
    if cfg.get('default_scope') == 'mmpretrain':
        # As mmpretrain's own tools do; its datasets rely on it.
        for key in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
            if cfg.get(key):
                cfg[key].setdefault('collate_fn', dict(type='default_collate'))
    check_inputs(cfg, args)
    return cfg


def require_file(what: str, path: str) -> None:
    """Check that a file exists.

    Args:
        what (str): What the file is to the user.
        path (str): Its path.

    Raises:
        ValueError: If it does not exist.
    """
    if not Path(path).is_file():
        raise ValueError(f'{what} {path} does not exist')


def require_checkpoint(path: str) -> None:
    """Check that a checkpoint exists; ``'none'`` is for models without one.

    Args:
        path (str): Its path.

    Raises:
        ValueError: If it does not exist.
    """
    if path != 'none':
        require_file('checkpoint', path)


def require_folder(flag: str, path: str | None) -> None:
    """Check that a folder is there or can be made, before the work starts.

    Args:
        flag (str): Flag that names it.
        path (str, optional): Its path; None is fine.

    Raises:
        ValueError: If the path or a parent of it is a file.
    """
    for folder in [Path(path), *Path(path).parents] if path else ():
        if folder.exists() and not folder.is_dir():
            raise ValueError(f'{flag} {path}: {folder} is not a folder')


def require_writable(flag: str, path: str | None) -> None:
    """Check that a file can be written, before the work starts.

    Args:
        flag (str): Flag that names it.
        path (str, optional): Its path; None is fine.

    Raises:
        ValueError: If the path is a folder or its parent cannot be one.
    """
    if path and Path(path).is_dir():
        raise ValueError(f'{flag} {path} is a folder, not a file')
    require_folder(flag, str(Path(path).parent) if path else None)


def enable_amp(cfg: Config) -> None:
    """Train in mixed precision (``--amp``), on a CPU in bfloat16.

    Args:
        cfg (Config): Config to change; several optimizers are fine.

    Raises:
        ValueError: If an optimizer's wrapper is missing or cannot be replaced.
    """
    wrapper = cfg.get('optim_wrapper')
    if not wrapper:
        raise ValueError('--amp needs optim_wrapper in the config')
    on_cpu = get_device() == 'cpu'
    amp = 'mmplugins.BFloat16OptimWrapper' if on_cpu else 'AmpOptimWrapper'
    known = ('OptimWrapper', 'AmpOptimWrapper', 'BFloat16OptimWrapper')
    several = [v for v in wrapper.values() if 'optimizer' in _as_dict(v)]
    for one in several or [wrapper]:
        kind = one.setdefault('type', 'OptimWrapper')
        # A class in configs of pure Python, a prefix where scopes mix.
        name = kind if isinstance(kind, str) else kind.__name__
        name = name.rpartition('.')[-1]
        if name not in known:
            raise ValueError(
                f'--amp replaces optim_wrapper.type OptimWrapper, got {kind!r}'
            )
        if name == 'BFloat16OptimWrapper':
            continue
        one.type = amp
        if on_cpu:
            for key in ('loss_scale', 'dtype'):
                one.pop(key, None)
        else:
            one.setdefault('loss_scale', 'dynamic')


def enable_auto_scale_lr(cfg: Config) -> None:
    """Scale the learning rate with the batch size (``--auto-scale-lr``).

    Args:
        cfg (Config): Config to change.

    Raises:
        ValueError: If the config does not say its ``base_batch_size``.
    """
    if 'base_batch_size' not in _as_dict(cfg.get('auto_scale_lr')):
        raise ValueError(
            '--auto-scale-lr needs auto_scale_lr = dict(base_batch_size=...) '
            'in the config'
        )
    cfg.auto_scale_lr.enable = True


def enable_resume(cfg: Config, checkpoint: str) -> None:
    """Continue a training (``--resume``).

    Args:
        cfg (Config): Config to change.
        checkpoint (str): Checkpoint, or ``'auto'`` for the newest one in the
            work_dir; a training without one starts anew.

    Raises:
        ValueError: If the checkpoint does not exist.
    """
    cfg.resume = True
    if checkpoint == 'auto':
        cfg.load_from = None
    else:
        require_file('checkpoint', checkpoint)
        cfg.load_from = checkpoint


def enable_tta(cfg: Config) -> None:
    """Test with augmentation (``--tta``).

    Args:
        cfg (Config): Config to change.

    Raises:
        ValueError: If the config has no ``tta_model`` or ``tta_pipeline``, or
            draws with mmpretrain's hook, which cannot show several views.
    """
    keys = ('tta_model', 'tta_pipeline', 'test_dataloader')
    missing = [key for key in keys if not cfg.get(key)]
    if missing:
        raise ValueError(f'--tta needs {", ".join(missing)} in the config')
    hook = _as_dict(cfg.get('default_hooks')).get('visualization')
    if _as_dict(hook).get('type') == 'VisualizationHook' and hook.get(
        'enable'
    ):
        raise ValueError(
            "--tta does not go with --show-dir here: mmpretrain's "
            'VisualizationHook draws one view of an image'
        )
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    module = cfg.model
    cfg.model = ConfigDict(**cfg.tta_model, module=module)
    if 'data_preprocessor' in module:
        # Else the runner hands over data_preprocessor of the config's top
        # level, which is the base's, without what the config changes in it.
        cfg.model.data_preprocessor = module.data_preprocessor


def enable_refine(cfg: Config, config: str, checkpoint: str) -> None:
    """Test with refined predictions (``--refine``).

    Wraps the model in :class:`mmplugins.crm.segmentor.RefinedSegmentor`, with
    its options from ``refined_model`` of the config, and adds figures before
    and after refinement where there is ground truth.

    Args:
        cfg (Config): Config of mmseg to change.
        config (str): Config file whose ``model`` refines, one of CRM.
        checkpoint (str): Checkpoint of that model; ``'none'`` for one that
            has no weights.

    Raises:
        ValueError: If the config is not one of mmseg or already refines, or
            the refiner does not build, or its checkpoint does not fit.
    """
    scope = cfg.get('default_scope')
    if scope != 'mmseg':
        raise ValueError(
            f"--refine needs default_scope = 'mmseg', got {scope!r}"
        )
    if not cfg.get('model'):
        raise ValueError('--refine needs model in the config')
    kind = cfg.model.get('type')
    if kind == _REFINED:
        raise ValueError(f'--refine: model of the config is {_REFINED} itself')
    if _is_refiner(kind):
        raise ValueError(
            f'--refine needs a config of a segmentor, model of {cfg.filename} '
            f'is {kind}, which refines by itself: test it without --refine'
        )
    refiner = _read_refiner(config, checkpoint)
    options = {'type': _REFINED, **_as_dict(cfg.get('refined_model'))}
    cfg.model = ConfigDict(**options, module=cfg.model, refiner=refiner)
    if cfg.get('test_evaluator'):
        cfg.test_evaluator = _with_metric(cfg)


def _is_refiner(kind: object) -> bool:
    """Whether a type of model refines given masks, as CRM's does."""
    if isinstance(kind, str):
        with MODELS.switch_scope_and_registry('mmseg') as registry:
            kind = registry.get(kind)
    return callable(getattr(kind, 'refine', None))


def _read_refiner(config: str, checkpoint: str) -> ConfigDict:
    """Model of a config with a checkpoint that fills it."""
    require_file('config', config)
    require_checkpoint(checkpoint)
    cfg = load_config(config)
    refiner = cfg.get('model')
    if not refiner:
        raise ValueError(f'--refine needs model in {config}')
    if 'data_preprocessor' in cfg:  # as a runner does it
        refiner.setdefault('data_preprocessor', cfg.data_preprocessor)
    # All weights come from the checkpoint; nothing else is downloaded.
    refiner = _without_weights(refiner)
    try:
        with DefaultScope.overwrite_default_scope('mmseg'):
            model = MODELS.build(deepcopy(refiner))
    except Exception as error:  # a model is code: anything may happen
        reason = str(error).partition('\n')[0]
        raise ValueError(
            f'--refine: model of {config} does not build: '
            f'{type(error).__name__}: {reason}'
        ) from error
    if not callable(getattr(model, 'refine', None)):
        raise ValueError(
            f'--refine needs a model that refines, as mmplugins.CRM, {config} '
            f'has {type(model).__name__}'
        )
    if checkpoint == 'none':
        if [*model.parameters()]:
            raise ValueError(
                f'--refine: model of {config} has weights and needs a '
                'checkpoint, got none'
            )
        return refiner
    try:
        state = CheckpointLoader.load_checkpoint(checkpoint, 'cpu', 'silent')
        state = state.get('state_dict', state)
        state = {key.removeprefix('module.'): x for key, x in state.items()}
        require_fit(model, state)
    except Exception as error:  # pickle and zip have many
        reason = str(error).partition('\n')[0]
        raise ValueError(
            f'checkpoint {checkpoint} does not fit {config}: {reason}'
        ) from error
    refiner.init_cfg = dict(type='Pretrained', checkpoint=checkpoint)
    return refiner


def _without_weights(value: object) -> object:
    """A config without the checkpoints that it initialises from."""
    if isinstance(value, dict):
        return ConfigDict(
            (key, _without_weights(one))
            for key, one in value.items()
            if key not in ('init_cfg', 'pretrained')
        )
    if isinstance(value, (list, tuple)):
        return type(value)(_without_weights(one) for one in value)
    return value


def _with_metric(cfg: Config) -> list | ConfigDict:
    """Evaluator of a test, and figures before and after refinement."""
    evaluator = cfg.test_evaluator
    whole = isinstance(evaluator, dict) and 'metrics' in evaluator
    metrics = _metrics(cfg)
    if not any(
        one.get('type') == _REFINEMENT or one.get('format_only')
        for one in metrics
    ):
        ignored = _ignored_label(cfg)
        metrics.append(ConfigDict(type=_REFINEMENT, ignore_index=ignored))
    return ConfigDict({**evaluator, 'metrics': metrics}) if whole else metrics


def _ignored_label(cfg: Config) -> int:
    """Label that the metrics of a test ignore."""
    dataset = _as_dict(_as_dict(cfg.get('test_dataloader')).get('dataset'))
    known = [one.get('ignore_index') for one in [*_metrics(cfg), dataset]]
    return next((index for index in known if index is not None), 255)


def _metrics(cfg: Config) -> list:
    """Metrics of a test, however many."""
    evaluator = cfg.get('test_evaluator') or []
    if isinstance(evaluator, dict) and 'metrics' in evaluator:
        evaluator = evaluator.metrics
    return [evaluator] if isinstance(evaluator, dict) else [*evaluator]


def enable_pictures(cfg: Config, folder: str) -> None:
    """Draw predictions with the host's own hook (``--show-dir``).

    Class activation maps, and predictions before they were refined, which the
    hosts' do not draw, with ours.

    Args:
        cfg (Config): Config to change.
        folder (str): Where the pictures go.

    Raises:
        ValueError: If the config's host has no hook for it or the config no
            visualizer.
    """
    scope = cfg.get('default_scope')
    if not cfg.get('visualizer'):
        raise ValueError('--show-dir needs visualizer in the config')
    hooks = cfg.setdefault('default_hooks', ConfigDict())
    model = _as_dict(cfg.get('model')).get('type')
    if scope == 'mmpretrain' and model == 'mmplugins.GuidedImageClassifier':
        hook = dict(type='mmplugins.CAMVisualizationHook')
        cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), hook]
    elif scope == 'mmpretrain':
        hooks.visualization = dict(
            type='VisualizationHook', enable=True, interval=1, out_dir=folder
        )
        return
    elif scope == 'mmseg':
        hooks.visualization = dict(
            type='SegVisualizationHook', draw=True, interval=1
        )
        if model == _REFINED:
            hook = dict(type=_SHEETS, interval=1)
            _replace_hook(cfg, hook | dict(ignore_index=_ignored_label(cfg)))
    elif scope == 'mmagic':
        _replace_hook(cfg, dict(type='BasicVisualizationHook', interval=1))
    else:
        raise ValueError(
            '--show-dir draws for default_scope mmseg, mmpretrain or mmagic, '
            f'got {scope!r}'
        )
    cfg.visualizer.save_dir = folder
    cfg.visualizer.vis_backends = [dict(type='LocalVisBackend')]


def _replace_hook(cfg: Config, hook: dict) -> None:
    """Add a hook to the custom ones, in place of others of its type."""
    others = [
        one
        for one in cfg.get('custom_hooks') or []
        if one.get('type') != hook['type']
    ]
    cfg.custom_hooks = [*others, hook]


def build_runner(cfg: Config) -> Runner:
    """Build the runner that a config asks for.

    Args:
        cfg (Config): Config.

    Returns:
        Runner: The runner; mmengine's own without ``runner_type``.
    """
    if 'runner_type' in cfg:
        return RUNNERS.build(cfg)
    return Runner.from_cfg(cfg)


def leave_process_group() -> None:
    """End a distributed run; its threads may else abort the exit."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _as_dict(value: object) -> dict:
    return value if isinstance(value, dict) else {}
