"""SSEN: its two operators, its extractor and the whole network.

The references are mmcv's operators. ``formula`` is backend ``'reference'`` of
the deformable convolution here, the plain formula.
"""

from functools import partial

import torch
from mmcv.cnn import NonLocal2d as MmcvNonLocal2d
from torch import nn

from mmplugins import ssen
from mmplugins.ops import (
    ModulatedDeformConv2d,
    NonLocal2d,
    attention,
    deform_conv,
    modulated_deform_conv2d,
)

from .measure import (
    Aim,
    Call,
    Case,
    named,
    with_gradients,
    without_gradients,
)

_CHANNELS = 64
# Small images, rows and columns.
_SIZES = (125, 16)


def _deform_backends(device: torch.device) -> list[str]:
    names = named(deform_conv.BACKENDS, device)
    names = [name for name in names if name not in ('reference', 'mmcv')]
    return [*['reference'] * _has_mmcv_op(device), *names, 'formula']


def _non_local_backends(device: torch.device) -> list[str]:
    return named(attention.BACKENDS, device)


def _only_auto(device: torch.device) -> list[str]:
    return ['auto']


def _networks(device: torch.device) -> list[str]:
    return [*['reference'] * _has_mmcv_op(device), 'auto']


def _has_mmcv_op(device: torch.device) -> bool:
    """Whether mmcv was compiled with its operators, for this device."""
    try:
        from mmcv.ops import get_compiling_cuda_version
    except ImportError:
        return False
    compiled = get_compiling_cuda_version() != 'not available'
    return compiled or device.type == 'cpu'


def _deform(
    backend: str, device: torch.device, quick: bool, train: bool = False
) -> Call:
    """3x3, offsets of some pixels."""
    backend = {'reference': 'mmcv', 'formula': 'reference'}.get(
        backend, backend
    )
    size = (_SIZES[quick],) * 2
    x = torch.randn(1, _CHANNELS, *size)
    offset = 2 * torch.randn(1, 18, *size)
    mask = torch.rand(1, 9, *size)
    weight = torch.randn(_CHANNELS, _CHANNELS, 3, 3) / 24
    inputs = [t.to(device) for t in (x, offset, mask, weight)]
    forward = partial(
        modulated_deform_conv2d, *inputs, padding=1, backend=backend
    )
    if train:
        return with_gradients(forward, inputs, x.shape)
    return without_gradients(forward)


def _non_local(
    backend: str, device: torch.device, quick: bool, sizes: tuple[int, int]
) -> Call:
    """The block on a map of so many rows and columns."""
    x = torch.randn(1, _CHANNELS, sizes[quick], sizes[quick]).to(device)
    published = backend == 'reference'
    block = NonLocal2d(_CHANNELS, backend='auto' if published else backend)
    for parameter in block.parameters():
        # Else all positions would be averaged alike, or nothing added.
        nn.init.normal_(parameter, std=_CHANNELS**-0.5)
    if published:
        block = _mmcv_block(block)
    return without_gradients(partial(block.to(device), x))


def _mmcv_block(block: NonLocal2d) -> MmcvNonLocal2d:
    """The block of mmcv with the same weights."""
    published = MmcvNonLocal2d(block.in_channels)
    published.load_state_dict(block.state_dict())
    return published


def _align(backend: str, device: torch.device, quick: bool) -> Call:
    """The extractor on two maps."""
    maps = torch.randn(2, 1, _CHANNELS, *(_SIZES[quick],) * 2).to(device)
    model = _network(ssen.SSEN(_CHANNELS), backend).to(device)
    return without_gradients(partial(model, *maps))


def _forward(backend: str, device: torch.device, quick: bool) -> Call:
    """The whole network on an image and a reference four times its size."""
    size = _SIZES[quick]
    small = torch.rand(1, 3, size, size).to(device)
    reference = torch.rand(1, 3, 4 * size, 4 * size).to(device)
    model = ssen.SSENNet(mid_channels=_CHANNELS, num_blocks=16)
    # Else the reference hardly counts.
    nn.init.kaiming_normal_(model.fusion.weight, nonlinearity='linear')
    model = _network(model, backend).to(device)
    return without_gradients(partial(model, small, reference))


def _network(model: nn.Module, backend: str) -> nn.Module:
    """Random where it begins with zeros; the reference as published.

    It has mmcv's operators, and maps in torch's usual order.
    """
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    if backend != 'reference':
        return model
    for name, module in list(model.named_modules()):
        if isinstance(module, ModulatedDeformConv2d):
            module.backend = 'mmcv'
        elif isinstance(module, NonLocal2d):
            parent, _, leaf = name.rpartition('.')
            block = _mmcv_block(module)
            setattr(model.get_submodule(parent), leaf, block)
    return model.to(memory_format=torch.contiguous_format)


_resolve = partial(deform_conv.check_backend, 'auto')
DEFORM_CONV = (
    Case(
        'deform_conv_forward',
        _deform_backends,
        _deform,
        aims=dict(cpu=Aim(time=4), cuda=Aim(backend='mmcv')),
        resolve=_resolve,
    ),
    Case(
        'deform_conv_train',
        _deform_backends,
        partial(_deform, train=True),
        aims=dict(cpu=Aim(time=8), cuda=Aim(backend='mmcv')),
        resolve=_resolve,
    ),
)
NON_LOCAL = (
    Case(
        'non_local',
        _non_local_backends,
        partial(_non_local, sizes=(128, 16)),
        aims=dict(cpu=Aim(time=1.7, memory=10)),
    ),
    # The reference would need 31 GB; what grows with the pixels, not with
    # their square, stays far below the budget.
    Case(
        'non_local_large',
        _only_auto,
        partial(_non_local, sizes=(250, 24)),
        budget=256,
    ),
)
CASES = (
    Case(
        'ssen_align',
        _networks,
        _align,
        tolerance=1e-3,
        aims=dict(cpu=Aim(time=3, memory=6)),
    ),
    Case(
        'ssen_forward',
        _networks,
        _forward,
        tolerance=1e-3,
        aims=dict(cpu=Aim(time=1.8)),
    ),
)
