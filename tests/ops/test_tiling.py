"""Windows of a map."""

import pytest
import torch

from mmplugins.ops.tiling import crop, tiles


@pytest.mark.parametrize('tile', [None, 1, 4, 7, 100])
@pytest.mark.parametrize('size', [(7, 10), (1, 1)])
def test_windows_cover_each_pixel_once(size, tile):
    count = torch.zeros(size)
    for window in tiles(size, tile):
        count[window.slices] += 1
        assert max(window.height, window.width) <= (tile or 10)
    assert (count == 1).all()


@pytest.mark.parametrize(
    ('window', 'rows', 'columns'),
    [
        ((2, 3, 2, 4), (0, 6), (1, 9)),
        ((0, 0, 7, 10), (0, 7), (0, 10)),
        ((6, 9, 1, 1), (4, 7), (7, 10)),
    ],
)
def test_a_crop_ends_where_the_map_does(window, rows, columns):
    x = torch.arange(70).view(1, 1, 7, 10)
    part, top, left = crop(x, window, 2)
    assert torch.equal(part, x[..., slice(*rows), slice(*columns)])
    height, width = window[2:]
    inner = part[..., top : top + height, left : left + width]
    assert inner[0, 0, 0, 0] == 10 * window[0] + window[1]
    assert inner.shape[-2:] == (height, width)


@pytest.mark.parametrize('window', [(-1, 0, 2, 2), (6, 0, 2, 2), (0, 0, 0, 1)])
def test_a_window_lies_inside(window):
    with pytest.raises(ValueError, match='inside of the map of'):
        crop(torch.zeros(1, 1, 7, 10), window, 1)
