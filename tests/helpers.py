"""Checks that several test files share."""

from torch import Tensor, nn


def assert_all_parameters_get_gradients(model: nn.Module) -> None:
    """Every trainable parameter has a finite gradient that is not all zero."""
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert trainable, 'no trainable parameter'
    missing = [n for n, p in trainable.items() if p.grad is None]
    assert not missing, f'no gradient: {missing}'
    dead = [n for n, p in trainable.items() if not p.grad.any()]
    assert not dead, f'zero gradient: {dead}'
    wild = [n for n, p in trainable.items() if not p.grad.isfinite().all()]
    assert not wild, f'gradient not finite: {wild}'


def leaf(x: Tensor) -> Tensor:
    """A double precision leaf that collects gradients."""
    return x.detach().double().requires_grad_()
