import pytest
import torch
import torch.nn.functional as F
from helpers import leaf
from torch.autograd import gradcheck

from mmplugins.ops import resize_window

# Map -> result: twice, four times, odd, fewer, one cell, one of the result.
SIZES = [
    ((6, 8), (12, 16)),
    ((6, 8), (24, 32)),
    ((7, 5), (13, 19)),
    ((9, 12), (4, 7)),
    ((1, 1), (5, 3)),
    ((1, 7), (4, 14)),
    ((6, 8), (1, 1)),
    ((5, 6), (5, 6)),
]


def interpolate(x, size, align_corners):
    return F.interpolate(x, size, mode='bilinear', align_corners=align_corners)


@pytest.mark.parametrize('align_corners', [True, False])
@pytest.mark.parametrize(('grid', 'size'), SIZES)
def test_the_whole_is_torchs(grid, size, align_corners):
    x = torch.randn(2, 3, *grid).double()
    out = resize_window(x, size, (0, 0, *size), grid, (0, 0), align_corners)
    wanted = interpolate(x, size, align_corners)
    torch.testing.assert_close(out, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('align_corners', [True, False])
@pytest.mark.parametrize(
    ('grid', 'size'), [((12, 16), (48, 64)), ((13, 11), (50, 43))]
)
def test_a_window_needs_one_cell_around_it(grid, size, align_corners):
    """The cells of the window, and one more than align_corners moves them."""
    x = torch.randn(1, 2, *grid).double()
    whole = interpolate(x, size, align_corners)
    for top in range(0, size[0] - 10, 7):
        for left in (0, 9, size[1] - 10):
            starts = [t // 4 - 2 for t in (top, left)]
            stops = [(t + 10) // 4 + 2 for t in (top, left)]
            y, h = max(starts[0], 0), min(stops[0], grid[0])
            z, w = max(starts[1], 0), min(stops[1], grid[1])
            out = resize_window(
                x[..., y:h, z:w],
                size,
                (top, left, 10, 10),
                grid,
                (y, z),
                align_corners,
            )
            wanted = whole[..., top : top + 10, left : left + 10]
            torch.testing.assert_close(out, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('align_corners', [True, False])
def test_a_large_map_keeps_its_place(align_corners):
    """A ramp, whose values are the places."""
    x = torch.arange(4000.0)[None, None, None]
    size = (1, 16000)
    window = (0, 15000, 1, 1000)
    out = resize_window(
        x[..., 3700:], size, window, (1, 4000), (0, 3700), align_corners
    )
    wanted = interpolate(x.double(), size, align_corners)[..., 15000:]
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.double(), wanted, rtol=0, atol=5e-4)


def test_cells_that_are_not_there_are_the_nearest():
    """Of the part, so that a border needs no case of its own."""
    x = torch.arange(8.0).view(1, 1, 1, 8)
    out = resize_window(
        x[..., 2:5], (1, 8), (0, 0, 1, 8), (1, 8), (0, 2), True
    )
    assert out.flatten().tolist() == [2, 2, 2, 3, 4, 4, 4, 4]


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_agrees(dtype):
    x = torch.rand(1, 2, 6, 8).to(dtype)
    out = resize_window(x, (23, 31), (0, 0, 23, 31), (6, 8), (0, 0))
    assert out.dtype == dtype
    wanted = interpolate(x.float(), (23, 31), False)
    torch.testing.assert_close(out.float(), wanted, rtol=0, atol=0.02)


@pytest.mark.parametrize('align_corners', [True, False])
def test_gradients(align_corners):
    def function(x):
        return resize_window(
            x, (9, 10), (3, 2, 4, 5), (5, 6), (0, 0), align_corners
        )

    assert gradcheck(function, leaf(torch.randn(2, 2, 5, 6)))
