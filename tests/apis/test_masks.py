import cv2
import numpy as np
import pytest
from PIL import Image

from mmplugins.apis.masks import (
    Files,
    as_probability,
    find_files,
    fit_mask,
    read_labels,
    read_probability,
    read_truth,
)

BINARY = np.array([[0, 1, 1], [0, 0, 1]])
SOFT = np.array([[0, 100, 255], [7, 128, 127]], np.uint8)


def save(path, values, palette=False):
    image = Image.fromarray(values)
    if palette:
        image.putpalette([*range(256)] * 3)
    image.save(path)
    return str(path)


class TestProbability:
    @pytest.mark.parametrize(
        'mask',
        [
            BINARY.astype(bool),
            BINARY.astype(np.uint8),
            BINARY,
            BINARY.astype(np.float64),
            BINARY.astype(np.uint8) * 255,
            BINARY.astype(np.uint16) * 65535,
            BINARY.astype(np.uint16) * 255,
            BINARY.astype(np.int32) * 255,
        ],
        ids=lambda mask: f'{mask.dtype}-{mask.max()}',
    )
    def test_one_is_the_full_value(self, mask):
        prob = as_probability(mask)
        assert prob.dtype == np.float32
        np.testing.assert_array_equal(prob, BINARY)

    def test_soft_ones_stay_soft(self):
        np.testing.assert_allclose(as_probability(SOFT), SOFT / 255, 1e-6)
        deep = SOFT.astype(np.uint16) * 257
        np.testing.assert_allclose(as_probability(deep), SOFT / 255, 1e-6)
        half = np.full((2, 3), 0.5, np.float16)
        assert (as_probability(half) == 0.5).all()

    @pytest.mark.parametrize(
        ('mask', 'message'),
        [
            (np.array([[0.0, 1.5]]), r'in \[0, 1\], got 0 to 1.5'),
            (np.array([[-0.1, 1]]), 'got -0.1 to 1'),
            (np.array([[np.nan, 1]]), 'got nan to nan'),
            (np.array([[0, -1]]), 'int64 of -1 to 0'),
            (np.array([[0, 65536]]), 'to 65535, got int64 of 0 to 65536'),
        ],
    )
    def test_other_values_are_named(self, mask, message):
        with pytest.raises(ValueError, match=message):
            as_probability(mask)


class TestReading:
    def test_grey_and_one_bit_and_deep(self, tmp_path):
        path = tmp_path / 'a.png'
        for values in (SOFT, SOFT.astype(np.uint16) * 257):
            np.testing.assert_allclose(
                read_probability(save(path, values)), SOFT / 255, 1e-6
            )
        for values in (BINARY.astype(bool), BINARY.astype(np.uint8)):
            found = read_probability(save(path, values))
            np.testing.assert_array_equal(found, BINARY)

    def test_equal_channels_and_transparency(self, tmp_path):
        path = tmp_path / 'a.png'
        colour = np.stack([SOFT] * 3 + [SOFT.T.reshape(2, 3)], -1)
        found = read_probability(save(path, colour))
        np.testing.assert_allclose(found, SOFT / 255, 1e-6)
        with pytest.raises(ValueError, match='equal channels, got RGB'):
            read_probability(save(path, colour[..., 1:]))

    def test_an_index_above_zero_is_foreground(self, tmp_path):
        path = save(tmp_path / 'a.png', (3 * BINARY).astype(np.uint8), True)
        np.testing.assert_array_equal(read_probability(path), BINARY)
        np.testing.assert_array_equal(read_truth(path), BINARY)
        np.testing.assert_array_equal(read_labels(path), 3 * BINARY)

    def test_truth_is_cut_at_a_half(self, tmp_path):
        found = read_truth(save(tmp_path / 'a.png', SOFT))
        assert found.dtype == np.uint8
        assert found.tolist() == [[0, 0, 1], [0, 1, 0]]

    def test_truth_of_three_values_ignores_one(self, tmp_path):
        values = np.array([[0, 1, 255]], np.uint8)
        found = read_truth(save(tmp_path / 'a.png', values))
        assert found.tolist() == [[0, 1, 255]]
        values[0, 1] = 0
        found = read_truth(save(tmp_path / 'a.png', values))
        assert found.tolist() == [[0, 0, 1]]

    def test_many_labels(self, tmp_path):
        values = np.array([[0, 300, 65535]], np.uint16)
        found = read_labels(save(tmp_path / 'a.png', values))
        assert found.tolist() == values.tolist()

    def test_files_of_other_values_are_named(self, tmp_path):
        path = save(tmp_path / 'a.png', np.array([[0, 1, 255]], np.uint8))
        with pytest.raises(ValueError, match=r'a\.png: .* is a label map'):
            read_probability(path)

    @pytest.mark.parametrize('content', [b'', b'text', b'\x89PNG\r\n\x1a\n'])
    @pytest.mark.parametrize(
        'read', [read_probability, read_truth, read_labels]
    )
    def test_other_files_are_named(self, tmp_path, read, content):
        (tmp_path / 'a.png').write_bytes(content)
        with pytest.raises(ValueError, match=r'a\.png is not a mask that'):
            read(str(tmp_path / 'a.png'))
        with pytest.raises(ValueError, match=r'b\.png does not exist'):
            read(str(tmp_path / 'b.png'))


class TestFit:
    image = np.zeros((40, 60, 3), np.uint8)

    def test_another_size_is_an_error(self):
        mask = np.zeros((20, 30), np.float32)
        with pytest.raises(
            ValueError,
            match='mask m is of 20 x 30 pixels, its image i of 40 x 60: '
            '--resize-mask',
        ):
            fit_mask('mask', 'm', mask, 'i', self.image)
        with pytest.raises(ValueError, match='--truth t .* 40 x 60$'):
            fit_mask('--truth', 't', mask, 'i', self.image)

    def test_a_soft_mask_is_interpolated(self):
        mask = np.zeros((20, 30), np.float32)
        mask[:, 15:] = 1
        found = fit_mask('mask', 'm', mask, 'i', self.image, True)
        assert found.shape == (40, 60)
        assert found[0, 28:32].tolist() == [0, 0.25, 0.75, 1]
        large = mask.repeat(4, 0).repeat(4, 1)
        large[:, 60] = 0
        found = fit_mask('mask', 'm', large, 'i', self.image, True)
        assert found[0, 29:32].tolist() == [0, 0.5, 1]

    def test_labels_are_not_mixed(self):
        labels = np.array([[0, 9], [5, 0]], np.int32)
        found = fit_mask('mask', 'm', labels, 'i', self.image, True)
        np.testing.assert_array_equal(
            found, labels.repeat(20, 0).repeat(30, 1)
        )

    def test_an_image_that_exif_turns_is_told(self, tmp_path):
        path = str(tmp_path / 'a.jpg')
        picture = Image.new('RGB', (40, 60))
        exif = picture.getexif()
        exif[0x0112] = 6
        picture.save(path, exif=exif)
        turned = np.zeros((60, 40), np.float32)
        with pytest.raises(ValueError, match='EXIF turns it: turn the mask'):
            fit_mask('mask', 'm', turned, path, self.image)


class TestFiles:
    @pytest.fixture
    def folder(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for name in ('a.jpg', 'b.PNG', '.c.jpg', 'notes.txt'):
            self.touch('images', name)
        for name in ('a.png', 'b.png', 'd.png'):
            self.touch('masks', name)
            self.touch('truth', name)
        return tmp_path

    def touch(self, folder, name):
        from pathlib import Path

        Path(folder).mkdir(exist_ok=True)
        Path(folder, name).touch()

    def test_pairs_of_files(self, folder):
        paths = ['images/a.jpg', 'masks/b.png', 'images/b.PNG', 'masks/a.png']
        assert find_files(paths) == [
            Files('images/a.jpg', 'masks/b.png'),
            Files('images/b.PNG', 'masks/a.png'),
        ]

    def test_folders_go_by_names(self, folder):
        wanted = [
            Files('images/a.jpg', 'masks/a.png', 'truth/a.png'),
            Files('images/b.PNG', 'masks/b.png', 'truth/b.png'),
        ]
        assert find_files(['images', 'masks'], None, 'truth') == wanted
        assert find_files(['images'], 'masks', 'truth') == wanted
        images = [files.image for files in wanted]
        assert find_files(images, 'masks', 'truth') == wanted
        assert find_files(['images/a.jpg', 'masks'], None, 'truth') == [
            wanted[0]
        ]

    def test_single_files_may_have_any_name(self, folder):
        found = find_files(['images/a.jpg'], 'masks/d.png', 'truth/b.png')
        assert found == [Files('images/a.jpg', 'masks/d.png', 'truth/b.png')]

    @pytest.mark.parametrize(
        ('arguments', 'message'),
        [
            ((['images/a.jpg'],), 'come in pairs, got 1 paths: .* --masks'),
            ((['none.jpg', 'masks/a.png'],), 'image none.jpg does not exist'),
            ((['images/a.jpg', 'no.png'],), 'mask no.png does not exist'),
            ((['images', 'masks/a.png'],), 'images need a folder of masks'),
            ((['images', 'images'],), 'in one folder, images: name the'),
            ((['images'], 'none'), 'need a folder of masks, got none'),
            ((['images/a.jpg'] * 2, 'masks/a.png'), 'one file for several'),
            (
                (['images'], 'masks', 'truth/a.png'),
                '--truth truth/a.png is no folder',
            ),
            (
                (['images/a.jpg'], 'masks', 'none'),
                '--truth none does not exist',
            ),
        ],
    )
    def test_what_is_not_clear_is_an_error(self, folder, arguments, message):
        with pytest.raises(ValueError, match=message):
            find_files(*arguments)

    def test_each_image_has_one_mask(self, folder):
        self.touch('images', 'e.jpg')
        with pytest.raises(
            ValueError, match=r'images/e.jpg: one file e\.\* .*masks.* none'
        ):
            find_files(['images', 'masks'])
        for name in ('e.png', 'e.jpg'):
            self.touch('masks', name)
        with pytest.raises(ValueError, match=r'there is e\.jpg and e\.png'):
            find_files(['images', 'masks'])

    def test_a_folder_without_images_is_named(self, folder):
        (folder / 'empty').mkdir()
        with pytest.raises(ValueError, match='no image in empty'):
            find_files(['empty', 'masks'])


def test_opencv_reads_what_is_made_here(tmp_path):
    path = save(tmp_path / 'a.png', SOFT)
    np.testing.assert_array_equal(cv2.imread(path, cv2.IMREAD_UNCHANGED), SOFT)
