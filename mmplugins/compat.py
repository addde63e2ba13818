"""What today's hosts need to run side by side, as functions.

Tools and tests call these; importing this module changes nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from importlib import import_module
from unittest import mock

from mmengine.config import Config
from mmengine.config import utils as config_utils
from mmengine.utils import import_modules_from_strings

# The newest mmcv that mmagic 1.2.0 admits at import.
_MMCV_OF_MMAGIC = '2.1.0'


def enable_mmseg_bases() -> None:
    """Let configs inherit with ``_base_ = 'mmseg::...'``.

    mmengine looks for a distribution called ``mmsegmentation``; the maintained
    fork is called ``onedl-mmsegmentation``. Looking for the module finds both.
    """
    config_utils.MODULE2PACKAGE['mmseg'] = 'mmseg'


@contextmanager
def _world_of_mmagic() -> Iterator[None]:
    """Show mmagic 1.2.0 the names and versions that its import reads."""
    import mmcv
    import numpy as np

    with (
        mock.patch.object(mmcv, '__version__', _MMCV_OF_MMAGIC),
        mock.patch.object(np, 'bool8', np.bool_, create=True),
    ):
        yield


def import_mmagic() -> None:
    """Import mmagic next to a newer mmcv and numpy.

    numpy and mmcv look as before once this returns or raises.

    Raises:
        ImportError: If mmagic is not installed or does not import.
    """
    with _world_of_mmagic():
        try:
            import_module('mmagic')
            import_module('mmagic.utils')
        except Exception as error:
            raise ImportError(
                f'mmagic does not import: {type(error).__name__}: {error}'
            ) from error


def load_config(path: str, options: dict | None = None) -> Config:
    """Read a config and make its host importable.

    Args:
        path (str): Config file; it may inherit with ``mmseg::...``.
        options (dict, optional): Dotted keys to override, as from
            ``--cfg-options``. Defaults to None.

    Returns:
        Config: The config.

    Raises:
        ImportError: If the config's host is mmagic and it does not import, or
            a custom import fails.
        ValueError: If the config or a base does not read, or the options do
            not fit it.
    """
    enable_mmseg_bases()
    try:
        # mmagic has to be there before a config imports parts of it.
        cfg = Config.fromfile(path, import_custom_modules=False)
    except Exception as error:  # a config is code: anything may happen
        raise ValueError(
            f'config {path} does not read: {type(error).__name__}: {error}'
        ) from error
    try:
        cfg.merge_from_dict(deepcopy(options or {}))
    except (KeyError, TypeError) as error:
        raise ValueError(f'options do not fit {path}: {error}') from error
    if cfg.get('default_scope') == 'mmagic':
        import_mmagic()
    if cfg.get('custom_imports'):
        import_modules_from_strings(**cfg.custom_imports)
    return cfg
