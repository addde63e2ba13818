"""Residual blocks against their formulas."""

import torch
import torch.nn.functional as F

from mmplugins.ssen.blocks import ResidualBlock, ResidualTrunk


def test_a_residual_block_is_the_formula():
    block = ResidualBlock(4).double()
    x = torch.randn(2, 4, 5, 6).double()
    before = x.clone()
    y = F.conv2d(x, block.conv1.weight, block.conv1.bias, padding=1)
    y = F.conv2d(
        y.clamp(min=0), block.conv2.weight, block.conv2.bias, padding=1
    )
    torch.testing.assert_close(block(x), x + y)
    assert torch.equal(x, before)
    # New ones add little.
    assert y.std() < 0.3 * x.std()


def test_a_trunk_adds_to_what_it_is_told():
    trunk = ResidualTrunk(4, 2)
    x, skip = torch.randn(2, 1, 4, 5, 6).unbind()
    inner = trunk.conv(trunk.blocks[1](trunk.blocks[0](x)))
    torch.testing.assert_close(trunk(x), inner + x)
    torch.testing.assert_close(trunk(x, skip), inner + skip)
