import cv2
import numpy as np
import pytest
from scipy import ndimage
from skimage import data

from mmplugins.crm.visualization import (
    COARSE,
    MISSING,
    REFINED,
    TOO_MUCH,
    error_image,
    find_change,
    label_image,
    label_sheet,
    mask_image,
    outline_image,
    refinement_sheet,
)

HEIGHT, WIDTH = 60, 80


@pytest.fixture(scope='module')
def image():
    return data.astronaut()[:HEIGHT, 100 : 100 + WIDTH].copy()


def disc(y=30, x=40, radius=15, shape=(HEIGHT, WIDTH)):
    rows, columns = np.indices(shape)
    inside = (rows - y) ** 2 + (columns - x) ** 2 <= radius**2
    return inside.astype(np.float32)


def painted(picture, colour):
    return (picture == np.array(colour)).all(-1)


class TestOutlines:
    @pytest.mark.parametrize('thickness', [1, 2])
    def test_lie_inside_along_the_edge(self, image, thickness):
        mask = disc() > 0.5
        picture = outline_image(image, [(disc(), COARSE)], thickness=thickness)
        inner = ndimage.binary_erosion(
            mask, np.ones((2 * thickness + 1,) * 2), border_value=1
        )
        line = painted(picture, COARSE)
        np.testing.assert_array_equal(line, mask & ~inner)
        np.testing.assert_array_equal(picture[~line], image[~line])

    def test_border_of_the_image_is_none(self, image):
        mask = np.zeros((HEIGHT, WIDTH), np.float32)
        mask[:, :40] = 1
        picture = outline_image(image, [(mask, COARSE)], thickness=1)
        rows, columns = painted(picture, COARSE).nonzero()
        assert set(columns) == {39}
        assert len(rows) == HEIGHT

    def test_follow_the_pixels_of_an_enlarged_image(self, image):
        picture = outline_image(
            image, [(disc(), REFINED)], (3 * HEIGHT, 3 * WIDTH), thickness=1
        )
        large = disc().repeat(3, 0).repeat(3, 1) > 0.5
        inner = ndimage.binary_erosion(large, np.ones((3, 3)), border_value=1)
        np.testing.assert_array_equal(
            painted(picture, REFINED), large & ~inner
        )
        plain = image.repeat(3, 0).repeat(3, 1)
        np.testing.assert_array_equal(picture[inner], plain[inner])

    def test_last_one_is_on_top_and_the_image_stays(self, image):
        before = image.copy()
        both = [(disc(), COARSE), (disc(), REFINED)]
        picture = outline_image(image, both)
        assert painted(picture, REFINED).any()
        assert not painted(picture, COARSE).any()
        np.testing.assert_array_equal(image, before)

    def test_labels_have_one_line_between_two(self, image):
        labels = np.zeros((HEIGHT, WIDTH), np.int64)
        labels[:, 20:50], labels[:, 50:] = 300, 7
        picture = outline_image(image, [(labels, COARSE)], thickness=1)
        assert set(painted(picture, COARSE).nonzero()[1]) == {20, 49}


class TestMasks:
    def test_grey_is_the_share(self):
        mask = np.array([[0, 0.25, 0.5, 1]], np.float32)
        picture = mask_image(mask)
        assert picture.dtype == np.uint8
        np.testing.assert_array_equal(
            picture, np.array([[0, 64, 128, 255]])[..., None].repeat(3, -1)
        )

    def test_a_smaller_picture_averages(self):
        mask = np.zeros((8, 8), np.float32)
        mask[:, ::2] = 1
        assert (mask_image(mask, (2, 2)) == 128).all()

    def test_labels_have_colours_of_their_own(self):
        labels = np.arange(24).reshape(4, 6)
        picture = label_image(labels)
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) == 24
        assert (picture[0, 0] == 0).all()
        # Whatever else is in the map, and never mixed.
        np.testing.assert_array_equal(label_image(labels[:1]), picture[:1])
        large = label_image(labels, (8, 12))
        np.testing.assert_array_equal(large, picture.repeat(2, 0).repeat(2, 1))


class TestErrors:
    def test_have_the_colour_of_their_kind(self, image):
        mask = np.array([[0.9, 0.9, 0.1, 0.1, 0.9, 0.1]], np.float32)
        truth = np.array([[1, 0, 1, 0, 255, 255]], np.uint8)
        picture = error_image(image[:1, :6], mask, truth)
        assert painted(picture, TOO_MUCH).tolist() == [[0, 1, 0, 0, 0, 0]]
        assert painted(picture, MISSING).tolist() == [[0, 0, 1, 0, 0, 0]]
        # The rest is grey.
        rest = picture[:, [0, 3, 4, 5]]
        assert (rest == rest[..., :1]).all()

    def test_a_single_pixel_shows_in_a_small_picture(self):
        image = np.zeros((600, 800, 3), np.uint8)
        truth = np.zeros((600, 800), np.uint8)
        mask = truth.astype(np.float32)
        mask[300, 399], truth[7, 799] = 1, 1
        picture = error_image(image, mask, truth, (30, 40))
        assert np.argwhere(painted(picture, TOO_MUCH)).tolist() == [[15, 19]]
        assert np.argwhere(painted(picture, MISSING)).tolist() == [[0, 39]]

    def test_the_greater_share_gives_the_colour(self):
        image = np.zeros((4, 4, 3), np.uint8)
        truth = np.array([[1] * 4, [1] * 4, [1] * 4, [0] * 4], np.uint8)
        mask = 1 - truth.astype(np.float32)
        assert painted(error_image(image, mask, truth, (1, 1)), MISSING).all()


class TestChange:
    def test_window_holds_the_most(self):
        before, after = disc(), disc()
        after[40:44, 60:68] = 1
        after[3, 3] = 1
        rows, columns = find_change(before, after, (10, 12))
        assert (rows.stop - rows.start, columns.stop - columns.start) == (
            *(10, 12),
        )
        assert rows.start <= 40
        assert rows.stop >= 44
        assert columns.start <= 60
        assert columns.stop >= 68

    def test_every_window_was_tried(self):
        """Against all sums, one by one."""
        rng = np.random.default_rng(0)
        before, after = rng.random((2, 9, 11), np.float32)
        change = np.rint(255 * np.abs(after - before))
        windows = np.lib.stride_tricks.sliding_window_view(change, (4, 3))
        sums = windows.sum((2, 3))
        y, x = np.unravel_index(sums.argmax(), sums.shape)
        assert find_change(before, after, (4, 3)) == (
            slice(y, y + 4),
            slice(x, x + 3),
        )

    def test_without_one_it_shows_the_outline(self):
        rows, columns = find_change(disc(), disc(), (12, 12))
        inside = disc()[rows, columns]
        assert 0 < inside.mean() < 1

    @pytest.mark.parametrize('value', [0, 1])
    def test_without_an_outline_it_shows_the_middle(self, value):
        mask = np.full((20, 30), value, np.float32)
        window = find_change(mask, mask, (4, 10))
        assert window == (slice(8, 12), slice(10, 20))

    def test_the_whole_is_a_window_too(self):
        mask = disc(shape=(5, 7))
        window = find_change(mask, 1 - mask, (5, 7))
        assert window == (slice(0, 5), slice(0, 7))


class TestSheet:
    def test_rows_are_what_there_is(self, image):
        masks = disc(), disc(radius=16)
        truth = disc(radius=17).astype(np.uint8)
        plain = refinement_sheet(image, *masks)
        true = refinement_sheet(image, *masks, truth=truth)
        stages = [(s, masks[1]) for s in (0.25, 0.5, 1, 1, 2)]
        full = refinement_sheet(image, *masks, stages, truth)
        row = len(plain) // 2
        assert plain.shape == (2 * row, 8 + 4 * (480 + 8), 3)
        assert row == 24 + 360 + 8
        assert len(true) == 3 * row
        assert len(full) == 5 * row
        for colour in (TOO_MUCH, MISSING):
            assert painted(full, colour).any() == (colour == MISSING)
        # The outlines, in the overview and enlarged.
        for part in (plain[:row], plain[row:]):
            for colour in (COARSE, REFINED):
                assert painted(part, colour).any()

    def test_stages_are_shown_in_turn(self, image):
        stages = [
            (scale, np.full((HEIGHT, WIDTH), level, np.float32))
            for scale, level in ((0.5, 0.2), (1, 0.8))
        ]
        sheet = refinement_sheet(image, disc(), disc(), stages)
        row = len(sheet) // 3
        middle = sheet[row + 200, [8 + 240, 8 + 488 + 240, 8 + 2 * 488 + 240]]
        assert middle[:, 0].tolist() == [51, 204, 255]  # and a blank

    @pytest.mark.parametrize(
        'shape', [(4000, 6000), (3000, 120), (120, 3000), (1, 1), (7, 2)]
    )
    def test_its_size_has_a_limit(self, shape):
        image = np.zeros((*shape, 3), np.uint8)
        mask = np.zeros(shape, np.float32)
        mask[: shape[0] // 2 + 1] = 1
        sheet = refinement_sheet(image, mask, 1 - mask, [(1, mask)])
        assert sheet.dtype == np.uint8
        assert sheet.size < 3 * 5e6
        assert sheet.shape[1] >= 4 * 200

    def test_a_tall_picture_keeps_its_shape(self):
        image = np.full((400, 40, 3), (90, 10, 200), np.uint8)
        mask = np.zeros((400, 40), np.float32)
        sheet = refinement_sheet(image, mask, mask)
        rows, columns = painted(sheet[:504, :208], (90, 10, 200)).nonzero()
        assert np.ptp(rows) + 1 == 480
        assert np.ptp(columns) + 1 == 48

    def test_labels(self, image):
        before = (disc() + 2 * disc(10, 10, 5)).astype(np.int32)
        after = (disc(radius=18) + 2 * disc(10, 10, 5)).astype(np.int32)
        truth = after.copy()
        truth[50:] = 255
        plain = label_sheet(image, before, after)
        full = label_sheet(image, before, after, truth)
        row = len(plain) // 2
        assert len(full) == 3 * row
        wrong = painted(full[row : 2 * row], TOO_MUCH)
        assert wrong[:, :488].any()
        assert not wrong[:, 488:].any()
        colours = np.unique(full[2 * row + 200, 3 * 488 + 9 :], axis=0)
        assert len(colours) > 1  # the place that changed, not the middle

    def test_other_sizes_are_named(self, image):
        with pytest.raises(ValueError, match=r'stage 1 .*\(60, 80\), got'):
            refinement_sheet(image, disc(), disc(), [(1, disc()[1:])])
        with pytest.raises(ValueError, match='true mask'):
            label_sheet(image, disc(), disc(), disc()[1:])

    def test_opencv_writes_it(self, image, tmp_path):
        sheet = refinement_sheet(image, disc(), disc())
        assert cv2.imwrite(str(tmp_path / 'a.png'), sheet)
