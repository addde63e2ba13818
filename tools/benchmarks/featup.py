"""FeatUp's upsampler.

C channels, h x h features, n doublings.
"""

from functools import partial
from typing import NamedTuple

import torch

from mmplugins import featup
from mmplugins.ops.adaptive_conv import BACKENDS

from .measure import Call, Case, named, with_gradients, without_gradients


class _Size(NamedTuple):
    channels: int
    cells: int
    num_stages: int


def _backends(device: torch.device) -> list[str]:
    return named(BACKENDS, device)


def _fitting(device: torch.device) -> list[str]:
    return _backends(device)[1:]


def _stack(
    backend: str,
    device: torch.device,
    quick: bool,
    sizes: tuple[_Size, _Size],
    train: bool = False,
) -> Call:
    """A stack without dropout, on one image.

    ``backend='reference'`` is the formula as published: bicubic, pad, unfold
    of keys and features, einsum, and the 1x1 convolution last.
    """
    size = sizes[quick]
    model = featup.JBUStack(size.channels, size.num_stages, backend=backend)
    model = model.to(device).eval()
    pixels = size.cells * 2**size.num_stages
    feats = torch.randn(1, size.channels, size.cells, size.cells).to(device)
    guidance = torch.randn(1, 3, pixels, pixels).to(device)
    forward = partial(model, feats, guidance)
    if not train:
        return without_gradients(forward)
    shape = torch.Size([1, size.channels, pixels, pixels])
    return with_gradients(forward, [feats, *model.parameters()], shape)


_SMALL = _Size(8, 5, 2)
CASES = (
    Case(
        'jbu_forward',
        _backends,
        partial(_stack, sizes=(_Size(384, 14, 4), _SMALL)),
    ),
    Case(
        'jbu_train',
        _backends,
        partial(_stack, sizes=(_Size(384, 14, 3), _SMALL), train=True),
        tolerance=1e-3,
    ),
    # The reference would need 15 GB for the windows of the last stage alone.
    Case(
        'jbu_large',
        _fitting,
        partial(_stack, sizes=(_Size(384, 28, 4), _SMALL)),
        budget=1536,
    ),
)
