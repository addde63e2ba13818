"""FeatUp's upsampler.

C channels, h x h features, n doublings.

On a GPU the formula as published is not the only measure: the reference of
the cases that run there alone is the one by shifted multiply-adds, which is
what ``'torch'`` is on a GPU, and ``copy`` reads and writes as many bytes as
the inputs, kernels and outputs of all steps are.
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from mmplugins import featup
from mmplugins.ops import jbu_upsample
from mmplugins.ops.backends import BACKENDS

from .measure import (
    COPY,
    Aim,
    Call,
    Case,
    named,
    with_gradients,
    without_gradients,
)

# Numbers of a kernel.
_TAPS = 49


class _Size(NamedTuple):
    channels: int
    cells: int
    num_stages: int


def _backends(device: torch.device) -> list[str]:
    return named(BACKENDS, device)


def _fitting(device: torch.device) -> list[str]:
    copies = [COPY] if device.type == 'cuda' else []
    return [*_backends(device)[1:], *copies]


def _shifting(device: torch.device) -> list[str]:
    return [name for name in _backends(device) if name != 'torch']


def _shifting_and_copy(device: torch.device) -> list[str]:
    return [*_shifting(device), COPY]


def _stack(
    backend: str,
    device: torch.device,
    quick: bool,
    sizes: tuple[_Size, _Size],
    train: bool = False,
    dtype: torch.dtype = torch.float32,
    reference: str = 'reference',
) -> Call:
    """A stack without dropout, on one image.

    ``reference`` is the backend that the others are compared with. That of
    this name is the formula as published: bicubic, pad, unfold of keys and
    features, einsum, and the 1x1 convolution last.
    """
    size = sizes[quick]
    if backend == COPY:
        return _copy(size, device, dtype)
    if backend == 'reference':
        backend = reference
    model = featup.JBUStack(size.channels, size.num_stages, backend=backend)
    model = model.to(device, dtype).eval()
    pixels = size.cells * 2**size.num_stages
    feats = torch.randn(1, size.channels, size.cells, size.cells)
    guidance = torch.randn(1, 3, pixels, pixels)
    feats, guidance = (x.to(device, dtype) for x in (feats, guidance))
    forward = partial(model, feats, guidance)
    if not train:
        return without_gradients(forward)
    shape = torch.Size([1, size.channels, pixels, pixels])
    return with_gradients(forward, [feats, *model.parameters()], shape)


def _steps(
    backend: str,
    device: torch.device,
    quick: bool,
    dtype: torch.dtype,
    reference: str = 'torch',
) -> Call:
    """The steps of a stack alone, from features and kernels that are there."""
    size = (_LARGE, _SMALL)[quick]
    if backend == COPY:
        return _copy(size, device, dtype)
    if backend == 'reference':
        backend = reference
    cells = size.cells
    feats = torch.randn(1, size.channels, cells, cells).to(device, dtype)
    kernels = []
    for _ in range(size.num_stages):
        cells *= 2
        kernel = torch.randn(1, _TAPS, cells, cells).softmax(1)
        kernels.append(kernel.to(device, dtype))

    def steps() -> Tensor:
        x = feats
        for kernel in kernels:
            x = jbu_upsample(x, kernel, backend)
        return x

    return without_gradients(steps)


def _copy(size: _Size, device: torch.device, dtype: torch.dtype) -> Call:
    """Read half as many bytes as all steps read and write; write as many."""
    numbers = 0
    for stage in range(size.num_stages):
        before = (size.cells * 2**stage) ** 2
        after = 4 * before
        numbers += size.channels * (before + after) + _TAPS * after
    source = torch.ones(numbers // 2, device=device, dtype=dtype)
    target = torch.empty_like(source)
    return without_gradients(partial(target.copy_, source))


_SMALL = _Size(8, 5, 2)
_LARGE = _Size(384, 28, 4)
# Four steps, each of which rounds to eight bits.
_ROUNDED = 0.05
CASES = (
    Case(
        'jbu_forward',
        _backends,
        partial(_stack, sizes=(_Size(384, 14, 4), _SMALL)),
        aims=dict(cpu=Aim(time=60, memory=12)),
    ),
    Case(
        'jbu_train',
        _backends,
        partial(_stack, sizes=(_Size(384, 14, 3), _SMALL), train=True),
        tolerance=1e-3,
        aims=dict(cpu=Aim(time=25, memory=8)),
    ),
    # The reference would need 15 GB for the windows of the last stage alone.
    Case(
        'jbu_large',
        _fitting,
        partial(_stack, sizes=(_LARGE, _SMALL)),
        budget=1536,
    ),
    Case(
        'jbu_large_bf16',
        _shifting_and_copy,
        partial(
            _stack,
            sizes=(_LARGE, _SMALL),
            dtype=torch.bfloat16,
            reference='torch',
        ),
        tolerance=_ROUNDED,
        devices=['cuda'],
    ),
    Case(
        'jbu_large_train',
        _shifting,
        partial(_stack, sizes=(_LARGE, _SMALL), train=True, reference='torch'),
        # Gradients of one number sum over 200,000 pixels in another order.
        tolerance=1e-2,
        aims=dict(cuda=Aim(time=10)),
        devices=['cuda'],
    ),
    Case(
        'jbu_steps',
        _shifting_and_copy,
        partial(_steps, dtype=torch.float32),
        aims=dict(cuda=Aim(copies=3)),
        devices=['cuda'],
    ),
    Case(
        'jbu_steps_bf16',
        _shifting_and_copy,
        partial(_steps, dtype=torch.bfloat16),
        tolerance=_ROUNDED,
        aims=dict(cuda=Aim(copies=3)),
        devices=['cuda'],
    ),
)
