"""What a run reads, looked for before it starts."""

from argparse import Namespace
from pathlib import Path

from mmengine.config import Config

_FEATUP = 'mmplugins.FeatUp'
# Datasets that fetch what is not there.
_FETCHED = {'CIFAR10', 'CIFAR100', 'FashionMNIST', 'MNIST'}


def check_inputs(cfg: Config, args: Namespace) -> None:
    """Check what a training or a test reads, and that a test has results.

    Args:
        cfg (Config): Config of the run.
        args (Namespace): Arguments of ``tools/train.py`` or
            ``tools/test.py``; only the latter have a ``checkpoint``.

    Raises:
        ValueError: If weights or data do not exist, or predictions are asked
            of a model that makes none.
    """
    model = _as_dict(cfg.get('model'))
    if not hasattr(args, 'checkpoint'):
        require_weights(model)
        if not (cfg.get('resume') or getattr(args, 'resume', None)):
            _require_checkpoint(cfg.get('load_from'), 'load_from')
        require_data(cfg, 'train_dataloader')
        require_data(cfg, 'val_dataloader')
        return
    for flag in ('out', 'show_dir'):
        if getattr(args, flag, None) and model.get('type') == _FEATUP:
            raise ValueError(
                f'--{flag.replace("_", "-")} is for predictions, of which '
                f'{_FEATUP} makes none: tools/infer.py featup draws its '
                'features'
            )
    # The one part that a test initialises, for no checkpoint has it.
    require_weights(model.get('featup'), 'model.featup')
    require_data(cfg, 'test_dataloader')


def require_weights(part: object, name: str = 'model') -> None:
    """Check that the checkpoints which a model starts from exist.

    Args:
        part (object): Config of the model or of a part of it; all but
            containers is fine.
        name (str): Its dotted key. Defaults to ``'model'``.

    Raises:
        ValueError: If a checkpoint that is a path does not exist.
    """
    if isinstance(part, (list, tuple)):
        for index, one in enumerate(part):
            require_weights(one, f'{name}.{index}')
    for key, value in _as_dict(part).items():
        if key != 'init_cfg':
            require_weights(value, f'{name}.{key}')
            continue
        for one in value if isinstance(value, (list, tuple)) else [value]:
            path = _as_dict(one).get('checkpoint')
            _require_checkpoint(path, f'{name}.init_cfg')


def _require_checkpoint(path: object, key: str) -> None:
    """Raise if something is a path and not there."""
    if not _lacks(path):
        return
    folder = Path(path).parent
    hint = ''
    if folder.parent.name == 'work_dirs':
        hint = f': train it first, with the config {folder.name}.py'
    raise ValueError(f'checkpoint {path} of {key} does not exist{hint}')


def require_data(cfg: Config, key: str) -> None:
    """Check that the folders of datasets exist.

    Args:
        cfg (Config): Config.
        key (str): Key of a dataloader, or of several; it may be missing.

    Raises:
        ValueError: If ``data_root``, or ``data_prefix`` without one, is a
            path that does not exist.
    """
    loaders = cfg.get(key)
    if not isinstance(loaders, (list, tuple)):
        _require_folders(_as_dict(loaders).get('dataset'), f'{key}.dataset')
        return
    for index, one in enumerate(loaders):
        name = f'{key}.{index}.dataset'
        _require_folders(_as_dict(one).get('dataset'), name)


def _require_folders(dataset: object, name: str) -> None:
    """Check the folder of a dataset, or of those that it joins or repeats."""
    dataset = _as_dict(dataset)
    if not dataset:
        return
    for place in ('data_root', 'data_prefix'):
        folder = dataset.get(place)
        if folder:
            break
    kind = dataset.get('type')
    kind = kind if isinstance(kind, str) else getattr(kind, '__name__', '')
    if kind.rpartition('.')[-1] not in _FETCHED and _lacks(folder):
        raise ValueError(f'{folder} of {name}.{place} does not exist')
    _require_folders(dataset.get('dataset'), f'{name}.dataset')
    for index, one in enumerate(dataset.get('datasets') or ()):
        _require_folders(one, f'{name}.datasets.{index}')


def _lacks(path: object) -> bool:
    """Whether something is a path, not an address, and not there."""
    text = isinstance(path, str) and path and '://' not in path
    return bool(text) and not Path(path).exists()


def _as_dict(value: object) -> dict:
    return value if isinstance(value, dict) else {}
