"""From a command line to a config that a runner can run.

``tools/train.py`` and ``tools/test.py`` share these; each flag has the zoo's
own name and one meaning for configs of mmseg, mmpretrain and mmagic.
"""

import os
from argparse import ArgumentParser, Namespace
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.device import get_device
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mmplugins.compat import load_config


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
        action=DictAction,
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
        ValueError: If the config does not exist or does not read.
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
    """Train in mixed precision (``--amp``).

    Args:
        cfg (Config): Config to change; several optimizers are fine.

    Raises:
        ValueError: If there is no device for it or an optimizer's wrapper
            cannot be replaced.
    """
    if get_device() == 'cpu':
        raise ValueError(
            "--amp needs an accelerator: mmengine's AmpOptimWrapper does not "
            'run on a CPU'
        )
    wrapper = cfg.get('optim_wrapper')
    if not wrapper:
        raise ValueError('--amp needs optim_wrapper in the config')
    several = [v for v in wrapper.values() if 'optimizer' in _as_dict(v)]
    for one in several or [wrapper]:
        kind = one.setdefault('type', 'OptimWrapper')
        # A class in configs of pure Python, a prefix where scopes mix.
        name = kind if isinstance(kind, str) else kind.__name__
        if name.rpartition('.')[-1] not in ('OptimWrapper', 'AmpOptimWrapper'):
            raise ValueError(
                f'--amp replaces optim_wrapper.type OptimWrapper, got {kind!r}'
            )
        one.type = 'AmpOptimWrapper'
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


def enable_pictures(cfg: Config, folder: str) -> None:
    """Draw predictions with the host's own hook (``--show-dir``).

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
    if scope == 'mmpretrain':
        hooks.visualization = dict(
            type='VisualizationHook', enable=True, interval=1, out_dir=folder
        )
        return
    if scope == 'mmseg':
        hooks.visualization = dict(
            type='SegVisualizationHook', draw=True, interval=1
        )
    elif scope == 'mmagic':
        others = [
            hook
            for hook in cfg.get('custom_hooks') or []
            if hook.get('type') != 'BasicVisualizationHook'
        ]
        hook = dict(type='BasicVisualizationHook', interval=1)
        cfg.custom_hooks = [*others, hook]
    else:
        raise ValueError(
            '--show-dir draws for default_scope mmseg, mmpretrain or mmagic, '
            f'got {scope!r}'
        )
    cfg.visualizer.save_dir = folder
    cfg.visualizer.vis_backends = [dict(type='LocalVisBackend')]


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
