import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import leaf
from scipy.ndimage import map_coordinates
from torch.autograd import gradcheck

from mmplugins.ops import cell_size, max_frequency, pixel_centers, sample_at

SIZES = [(1, 1), (2, 2), (3, 5), (7, 2), (1, 640), (97, 131)]


@pytest.mark.parametrize('size', SIZES)
def test_centres_are_those_of_the_formula(size):
    coords = pixel_centers(size, dtype=torch.float64)
    assert coords.shape == (*size, 2)
    for i in {0, size[0] // 2, size[0] - 1}:
        for j in {0, size[1] // 3, size[1] - 1}:
            wanted = [(2 * i + 1) / size[0] - 1, (2 * j + 1) / size[1] - 1]
            assert coords[i, j].tolist() == pytest.approx(wanted, abs=1e-15)


@pytest.mark.parametrize('size', SIZES)
def test_centres_are_those_of_torchs_identity(size):
    """affine_grid gives the same points as (x, y)."""
    theta = torch.eye(2, 3)[None].double()
    grid = F.affine_grid(theta, [1, 1, *size], align_corners=False)
    coords = pixel_centers(size, dtype=torch.float64)
    torch.testing.assert_close(coords, grid[0].flip(-1))


@pytest.mark.parametrize('size', SIZES)
def test_cells_tile_the_image(size):
    coords = pixel_centers(size, dtype=torch.float64)
    cell = cell_size(size, dtype=torch.float64)
    low, high = coords - cell / 2, coords + cell / 2
    torch.testing.assert_close(low[0, 0], -torch.ones(2).double())
    torch.testing.assert_close(high[-1, -1], torch.ones(2).double())
    torch.testing.assert_close(high[:-1, :, 0], low[1:, :, 0])
    torch.testing.assert_close(high[:, :-1, 1], low[:, 1:, 1])


@pytest.mark.parametrize('n', [5, 8, 31])
def test_a_faster_wave_looks_like_a_slower_one(n):
    """Waves w and 2 w_max - w agree on the pixels, in size and frequency."""
    top = max_frequency((n, 3))[0]
    assert top == pytest.approx(math.pi / cell_size((n, 3))[0].item())
    y = pixel_centers((n, 3), dtype=torch.float64)[:, 0, 0] + 1 - 1 / n
    for fraction in (0.1, 0.5, 0.9):
        slow, fast = fraction * top, (2 - fraction) * top
        torch.testing.assert_close((slow * y).cos(), (fast * y).cos())
        # Below the limit two waves differ.
        other = 0.7 * fraction * top
        assert ((slow * y).cos() - (other * y).cos()).abs().max() > 0.05


@pytest.mark.parametrize('size', [*SIZES, (2784, 5)])
@pytest.mark.parametrize('mode', ['nearest', 'bilinear', 'bicubic'])
def test_a_map_at_its_centres_is_itself(size, mode):
    x = torch.randn(2, 3, *size)
    out = sample_at(x, pixel_centers(size)[None], mode)
    if mode == 'nearest':
        assert torch.equal(out, x)
    else:
        # A coordinate is rounded to 6e-8, 8e-5 pixels of 2784.
        torch.testing.assert_close(out, x, rtol=0, atol=2e-3)


@pytest.mark.parametrize('padding_mode', ['border', 'reflection'])
def test_bilinear_is_scipys(padding_mode):
    x = torch.randn(1, 2, 6, 9).double()
    coords = torch.rand(1, 50, 2).double() * 2.4 - 1.2
    out = sample_at(x, coords, padding_mode=padding_mode)
    assert out.shape == (1, 2, 50)
    pixels = ((coords[0] + 1) * torch.tensor([6, 9]) - 1) / 2
    mode = {'border': 'nearest', 'reflection': 'reflect'}[padding_mode]
    for channel in range(2):
        wanted = map_coordinates(
            x[0, channel].numpy(), pixels.T.numpy(), order=1, mode=mode
        )
        np.testing.assert_allclose(out[0, channel].numpy(), wanted, atol=1e-12)


def test_rows_come_first():
    x = torch.arange(12.0).view(1, 1, 3, 4)
    corner = torch.tensor([[[1 / 3 * 2, -0.75]]])  # last row, first column
    assert sample_at(x, corner).item() == pytest.approx(8)


def test_a_grid_of_points_is_shared_by_a_batch():
    x = torch.randn(3, 2, 5, 4)
    coords = torch.rand(1, 7, 6, 2) * 2 - 1
    out = sample_at(x, coords)
    assert out.shape == (3, 2, 7, 6)
    alone = sample_at(x[2:], coords.flatten(1, 2)).view(1, 2, 7, 6)
    torch.testing.assert_close(out[2:], alone)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_place(dtype):
    """Coordinates of these types could not tell 1000 pixels apart."""
    x = torch.arange(1000.0).div(1000).view(1, 1, 1, -1)
    coords = pixel_centers((1, 1000))[None]
    out = sample_at(x.to(dtype), coords)
    assert out.dtype == dtype
    assert torch.equal(out, x.to(dtype))


def test_gradients():
    x, coords = leaf(torch.randn(2, 2, 4, 5)), leaf(torch.rand(2, 6, 2) - 0.5)
    assert gradcheck(sample_at, (x, coords))


@pytest.mark.parametrize('size', [(3,), (0, 4), (2, 3, 4)])
def test_bad_sizes_are_named(size):
    for function in (pixel_centers, cell_size, max_frequency):
        with pytest.raises(ValueError, match=r'size must be .* got \('):
            function(size)


@pytest.mark.parametrize(
    ('x', 'coords'),
    [((1, 4, 4), (1, 3, 2)), ((2, 1, 4, 4), (3, 3, 2)),
     ((1, 1, 4, 4), (1, 3, 3)), ((1, 1, 4, 4), (3, 2))],
)  # fmt: skip
def test_bad_shapes_are_named(x, coords):
    with pytest.raises(ValueError, match='sample_at needs a map .* got'):
        sample_at(torch.zeros(x), torch.zeros(coords))
