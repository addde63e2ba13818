"""Where kernels of Triton run; to be imported where somebody wants to know.

Compilers do not look into these functions: their answers are constants.
"""

from functools import lru_cache
from importlib import import_module

import torch


@torch.compiler.assume_constant_result
def reason_against(kernels: str, device: str) -> str:
    """Why a type of device cannot run kernels.

    Args:
        kernels (str): Their module, as of
            :func:`mmplugins.ops.backends.choose_backend`.
        device (str): Type of the device.

    Returns:
        str: For the end of an error; empty if it can run them.
    """
    try:
        module = import_module(f'.{kernels}', __package__)
    except ImportError:
        return 'where Triton cannot be imported'
    if device != 'cuda' and not module.INTERPRETED:
        return (
            f'on {device} unless TRITON_INTERPRET=1 is set before Triton is '
            'imported'
        )
    return ''


@torch.compiler.assume_constant_result
def runs(kernels: str, index: int, dtype: torch.dtype) -> bool:
    """Whether kernels can be compiled for a GPU, and run there.

    Args:
        kernels (str): As there.
        index (int): Which GPU.
        dtype (torch.dtype): Of the tensors.

    Returns:
        bool: False for one that Triton does not know, or without a compiler.
    """
    return _runs(kernels, index, dtype)


@lru_cache
def _runs(kernels: str, index: int, dtype: torch.dtype) -> bool:
    try:
        module = import_module(f'.{kernels}', __package__)
        if module.INTERPRETED:  # which would run on the host
            return False
        with torch.no_grad():
            module.probe(torch.device('cuda', index), dtype)
        torch.cuda.synchronize(index)
    # Whatever a compiler or a driver may raise, the other backend runs.
    except Exception:
        return False
    return True
