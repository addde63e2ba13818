"""From checkpoint to checkpoint: read with care, check, write whole files."""

import io
import os
import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor, nn

# Names that an error lists before it only counts.
_LISTED = 8


def read_state_dict(path: str) -> dict[str, Tensor]:
    """Tensors of a checkpoint; nothing in the file is run.

    Args:
        path (str): Checkpoint, a state dict or a dict with one under
            ``state_dict``.

    Returns:
        dict[str, Tensor]: The tensors on the CPU, without ``module.`` in
        front of their names.

    Raises:
        ValueError: If the file does not read, needs more than tensors and
            containers, or holds no state dict.
    """
    try:
        loaded = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # whatever a damaged file leads to
        # Not all of torch's text: it says how to run the file all the same.
        found = re.search(r'GLOBAL (\S+)', str(error))
        if found:
            raise ValueError(
                f'checkpoint {path} is not read: it needs more than tensors '
                f'and containers ({found.group(1)}), and such a file can run '
                'anything'
            ) from error
        reason = 'no tensors and containers in it'
        if not isinstance(error, UnpicklingError):
            text = re.split(r'\.\s', str(error))[0]
            reason = f'{type(error).__name__} {text}'.strip()
        raise ValueError(
            f'checkpoint {path} does not read: {reason}'
        ) from error
    if isinstance(loaded, Mapping) and 'state_dict' in loaded:
        loaded = loaded['state_dict']
    if not isinstance(loaded, Mapping) or not loaded:
        raise ValueError(
            f'checkpoint {path} holds no state dict but '
            f'{type(loaded).__name__}'
        )
    tensors = {}
    for key, value in loaded.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(
                f'checkpoint {path}: {key!r} is {type(value).__name__}, not '
                'a tensor with a name'
            )
        name = key.removeprefix('module.')
        if name in tensors:
            raise ValueError(f'checkpoint {path} has {name} twice')
        tensors[name] = value
    return tensors


def require_fit(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Check that a state dict fills a module, all of it and nothing else.

    Args:
        model (nn.Module): Module, on any device.
        state_dict (Mapping[str, Tensor]): Tensors under the module's names.

    Raises:
        ValueError: Naming what is not filled, what has no place or what has
            another shape.
    """
    name = type(model).__name__
    wanted = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    given = {k: tuple(v.shape) for k, v in state_dict.items()}
    missing = [key for key in wanted if key not in given]
    if missing:
        raise ValueError(f'no key fills {_listed(missing)} of {name}')
    unknown = [key for key in given if key not in wanted]
    if unknown:
        raise ValueError(f'{_listed(unknown)} have no place in {name}')
    wrong = [
        f'{key} is {given[key]}, not {shape}'
        for key, shape in wanted.items()
        if given[key] != shape
    ]
    if wrong:
        raise ValueError(f'shapes do not fit {name}: {_listed(wrong)}')


def write_state_dict(state_dict: Mapping[str, Tensor], path: str) -> None:
    """Write a plain state dict; the file appears whole or not at all.

    Args:
        state_dict (Mapping[str, Tensor]): Tensors.
        path (str): File to write; its folder is made.

    Raises:
        OSError: If it cannot be written; a file of that name stays.
    """
    buffer = io.BytesIO()
    # Copies, for a view would bring along all that it is a view of.
    torch.save(
        {k: v.detach().clone().contiguous() for k, v in state_dict.items()},
        buffer,
    )
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f'.{target.name}.{os.getpid()}.partial')
    try:
        partial.write_bytes(buffer.getbuffer())
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def _listed(names: list[str]) -> str:
    more = len(names) - _LISTED
    text = ', '.join(names[:_LISTED])
    return f'{text} and {more} more' if more > 0 else text
