"""Tests of mixed precision in bfloat16."""

import torch
from mmengine.optim import build_optim_wrapper
from torch import nn


def test_forward_in_bfloat16_weights_in_float32():
    model = nn.Linear(3, 1)
    with torch.no_grad():
        model.weight.fill_(1.0)
        model.bias.zero_()
    wrapper = build_optim_wrapper(
        model,
        dict(
            type='mmplugins.BFloat16OptimWrapper',
            optimizer=dict(type='SGD', lr=0.5),
        ),
    )
    x = torch.tensor([[1.0, 2.0, 1 + 2**-10]])
    with wrapper.optim_context(model):
        y = model(x)
    # The last input lies between two numbers of bfloat16.
    assert y.dtype == torch.bfloat16
    assert y.item() == 4.0
    wrapper.update_params(y.float().sum())
    assert model.weight.dtype == torch.float32
    torch.testing.assert_close(
        model.weight.detach(), 1 - 0.5 * x.bfloat16().float()
    )
    assert model(x).dtype == torch.float32
