import pytest
import torch
from helpers import leaf
from torch.autograd import gradcheck, gradgradcheck

from mmplugins.ops import adaptive_conv_blocks as blocks
from mmplugins.ops import trilinear
from mmplugins.ops.adaptive_conv import scaled_conv

# Cells of maps: of one tile, of tiles of two sizes, thinner than a tile.
CELLS = [(4, 4), (9, 13), (1, 6), (5, 1)]


def literal(x, kernel, size, scale):
    """The formula, index by index."""
    batch, _, height, width = kernel.shape
    out = torch.zeros(batch, x.shape[1], height, width, dtype=x.dtype)
    for i in range(size):
        for j in range(size):
            for y in range(height):
                for z in range(width):
                    weight = kernel[:, i * size + j, y, z, None]
                    source = x[:, :, y // scale + i, z // scale + j]
                    out[:, :, y, z] += weight * source
    return out


def operands(cells, size, scale, channels=3):
    """Source, kernels and a result, in double precision."""
    height, width = (n * scale for n in cells)
    padded = [n + size - 1 for n in cells]
    return (
        torch.randn(2, channels, *padded).double(),
        torch.randn(2, size**2, height, width).double(),
        torch.randn(2, channels, height, width).double(),
    )


@pytest.mark.parametrize('cells', CELLS)
@pytest.mark.parametrize(('size', 'scale'), [(1, 1), (3, 1), (2, 2), (7, 2)])
def test_all_three_are_the_formula_and_its_derivatives(cells, size, scale):
    x, kernel, g = operands(cells, size, scale)
    out = literal(leaf(x), leaf(kernel), size, scale)
    torch.testing.assert_close(blocks.gather(x, kernel, size, scale), out)
    x, kernel = leaf(x), leaf(kernel)
    wanted = torch.autograd.grad(
        literal(x, kernel, size, scale), (x, kernel), g
    )
    torch.testing.assert_close(
        blocks.scatter(g, kernel.detach(), size, scale), wanted[0]
    )
    torch.testing.assert_close(
        blocks.correlate(g, x.detach(), size, scale), wanted[1]
    )


@pytest.mark.parametrize('block', [1, 2000, 9000])
def test_parts_make_the_whole(monkeypatch, block):
    """Tiles one by one, some of a row, and some rows at once."""
    x, kernel, g = operands((11, 18), 5, 2)
    calls = (
        (blocks.gather, x, kernel),
        (blocks.correlate, g, x),
        (blocks.scatter, g, kernel),
    )
    wanted = [op(*args, 5, 2) for op, *args in calls]
    monkeypatch.setattr(blocks, '_BLOCK', block)
    for (op, *args), whole in zip(calls, wanted):
        torch.testing.assert_close(op(*args, 5, 2), whole)


@pytest.mark.parametrize('channels', [1, 5])
def test_any_order_in_memory(channels):
    x, kernel, g = operands((6, 7), 3, 2, channels)
    for op, args in (
        (blocks.gather, (x, kernel)),
        (blocks.correlate, (g, x)),
        (blocks.scatter, (g, kernel)),
    ):
        wanted = op(*args, 3, 2)
        last = [t.to(memory_format=torch.channels_last) for t in args]
        assert torch.equal(op(*last, 3, 2), wanted)
        turned = [t.mT.contiguous().mT for t in args]
        assert torch.equal(op(*turned, 3, 2), wanted)
        # Every second of larger maps, and the same one for all.
        apart = [torch.stack([t, t], 2).flatten(1, 2)[:, ::2] for t in args]
        assert torch.equal(op(*apart, 3, 2), wanted)
        same = [t[:, :1, :1, :1].expand_as(t) for t in args]
        assert torch.equal(
            op(*same, 3, 2), op(*[t.contiguous() for t in same], 3, 2)
        )


@pytest.mark.parametrize('scale', [1, 2])
def test_gradients_of_both_orders(monkeypatch, scale):
    monkeypatch.setattr(trilinear, '_FEW', 1)
    x, kernel, _ = operands((2, 3), 3, scale)
    x, kernel = leaf(x[:1]), leaf(kernel[:1])

    def call(x, kernel):
        return scaled_conv(x, kernel, scale, 'torch')

    assert gradcheck(call, (x, kernel))
    assert gradgradcheck(call, (x, kernel), fast_mode=True)


def test_single_precision_is_kept_under_autocast():
    x, kernel, g = (t.float() for t in operands((9, 9), 7, 2, 16))
    with torch.autocast('cpu', torch.bfloat16):
        out = blocks.gather(x, kernel, 7, 2)
        taps = blocks.correlate(g, x, 7, 2)
        source = blocks.scatter(g, kernel, 7, 2)
    for single, op, args in (
        (out, blocks.gather, (x, kernel)),
        (taps, blocks.correlate, (g, x)),
        (source, blocks.scatter, (g, kernel)),
    ):
        wanted = op(*[t.double() for t in args], 7, 2)
        torch.testing.assert_close(
            single.double(), wanted, rtol=1e-5, atol=2e-5
        )
