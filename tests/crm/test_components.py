"""Components of a mask against scipy and against boxes counted by hand."""

import numpy as np
import pytest
from scipy import ndimage

from mmplugins.crm.components import components


def drawn():
    mask = np.zeros((40, 60), np.uint8)
    mask[10:20, 20:40] = 1  # 10 rows, 20 columns
    mask[0:4, 0:6] = 1  # in a corner
    mask[36:40, 52:60] = 1  # in the opposite one
    mask[30, 10] = 1
    return mask


@pytest.mark.parametrize(
    ('expand', 'window'),
    [
        (0, np.s_[10:20, 20:40]),
        (0.25, np.s_[8:22, 17:43]),  # 1.25 and 2.5 on each side, rounded up
        (1.0, np.s_[5:25, 10:50]),
    ],
)
def test_boxes_grow_by_a_share_of_their_sides(expand, window):
    found = [
        part for box, part in components(drawn(), expand, 0) if box == window
    ]
    assert len(found) == 1
    assert (found[0] == drawn()[window]).all()


def test_boxes_end_with_the_image():
    mask = drawn()
    for window, part in components(mask, 4.0, 0):
        assert part.shape == mask[window].shape
        assert window[0].start >= 0
        assert window[1].start >= 0


@pytest.mark.parametrize('min_area', [0, 2, 25, 200, 201])
def test_parts_are_the_components_that_are_large_enough(min_area):
    mask = drawn()
    together = np.zeros(mask.shape, int)
    for window, part in components(mask, 0.5, min_area):
        assert part.sum() >= min_area
        together[window] += part
    ids, count = ndimage.label(mask, np.ones((3, 3)))
    areas = ndimage.sum_labels(mask, ids, range(count + 1))
    assert (together == mask * (areas[ids] >= min_area)).all()


def test_corners_connect():
    mask = np.eye(5, dtype=np.uint8)
    ((window, part),) = components(mask, 0, 0)
    assert (part == mask).all()
    assert window == np.s_[0:5, 0:5]


def test_an_empty_mask_has_none():
    assert not [*components(np.zeros((4, 4), np.uint8), 0.25, 0)]
