"""Which implementation of an operator runs."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .operators import is_compiling

BACKENDS = ('auto', 'reference', 'torch', 'triton')

# What kernels of Triton are for, where no backend is named.
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def check_backend(
    name: str, backend: str, backends: Sequence[str] = BACKENDS
) -> None:
    """Raise ValueError if an operator has no such backend.

    Args:
        name (str): Of the operator.
        backend (str): What was asked for.
        backends (Sequence[str]): What there is. Defaults to
            :data:`BACKENDS`.
    """
    if backend not in backends:
        raise ValueError(
            f'backend of {name} must be one of {tuple(backends)}, got '
            f'{backend!r}'
        )


def has_tangent(*tensors: Tensor) -> bool:
    """Whether some are differentiated in forward mode.

    Then it is the formula's turn, for torch knows no tangents of tangents of
    functions with derivatives of their own.
    """
    if is_compiling():
        return False
    return any(
        isinstance(t, Tensor) and forward_ad.unpack_dual(t).tangent is not None
        for t in tensors
    )


def choose_backend(
    name: str, backend: str, kernels: str, *tensors: Tensor
) -> str:
    """Backend to run, with ``'auto'`` resolved.

    Args:
        name (str): Of the operator.
        backend (str): One of :data:`BACKENDS`.
        kernels (str): Module of this package with its kernels, imported only
            where they may run. It has ``INTERPRETED``, whether they run on a
            CPU, and ``probe(device, dtype)``, which launches them on a little
            work and fails where they cannot run.
        *tensors (Tensor): What they are to run on.

    Returns:
        str: The backend, never ``'auto'``: ``'triton'`` for tensors of single
        or half precision on a GPU that can run it, else ``'torch'``; and
        ``'reference'`` in forward mode, whatever was asked for.

    Raises:
        ValueError: If there is no such backend, or it cannot run on those
            tensors.
    """
    check_backend(name, backend)
    if has_tangent(*tensors):
        return 'reference'
    device = tensors[0].device
    if backend == 'auto':
        fits = device.type == 'cuda' and all(
            t.device == device and t.dtype in _DTYPES for t in tensors
        )
        if not fits:
            return 'torch'
        from .triton_probe import runs

        fits = all(runs(kernels, device.index, t.dtype) for t in tensors)
        return 'triton' if fits else 'torch'
    if backend == 'triton':
        from .triton_probe import reason_against

        reason = reason_against(kernels, device.type)
        if reason:
            others = tuple(n for n in BACKENDS if n != 'triton')
            raise ValueError(
                f'backend of {name} must be one of {others} {reason}, got '
                f'{backend!r}'
            )
        if any(t.device != device for t in tensors):
            places = [str(t.device) for t in tensors]
            raise ValueError(f'{name} needs one device, got {places}')
    return backend
