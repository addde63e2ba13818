import cv2
import numpy as np
import pytest

from mmplugins.apis.inference import read_image, write_pictures


def image(height=45, width=66):
    """Two flat parts of one colour each."""
    picture = np.full((height, width, 3), (200, 120, 40), np.uint8)
    cv2.circle(picture, (width // 2, height // 2), 9, (30, 60, 220), -1)
    return picture


class TestReadImage:
    @pytest.mark.parametrize('suffix', ['png', 'jpg', 'bmp', 'tif'])
    def test_grey_becomes_colour(self, tmp_path, suffix):
        path = str(tmp_path / f'a.{suffix}')
        cv2.imwrite(path, image()[..., 0])
        found = read_image(path)
        assert found.shape == (45, 66, 3)
        assert (found == found[..., :1]).all()

    def test_transparency_is_left_out(self, tmp_path):
        path = str(tmp_path / 'a.png')
        alpha = np.full((45, 66, 1), 128, np.uint8)
        cv2.imwrite(path, np.concatenate([image(), alpha], 2))
        np.testing.assert_array_equal(read_image(path), image())

    def test_sixteen_bits_become_eight(self, tmp_path):
        path = str(tmp_path / 'a.png')
        cv2.imwrite(path, image().astype(np.uint16) * 256)
        np.testing.assert_array_equal(read_image(path), image())

    def test_photographs_stand_upright(self, tmp_path):
        pillow = pytest.importorskip('PIL.Image')
        path = str(tmp_path / 'a.png')
        picture = pillow.fromarray(image()[..., ::-1].copy())
        exif = picture.getexif()
        exif[0x0112] = 6  # a quarter turn clockwise
        picture.save(path, exif=exif)
        wanted = cv2.rotate(image(), cv2.ROTATE_90_CLOCKWISE)
        np.testing.assert_array_equal(read_image(path), wanted)

    @pytest.mark.parametrize('content', [b'', b'text', b'\x89PNG\r\n\x1a\n'])
    def test_other_files_are_named(self, tmp_path, content):
        path = tmp_path / 'a.png'
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r'a\.png is not an image'):
            read_image(str(path))
        with pytest.raises(ValueError, match=r'b\.png does not exist'):
            read_image(str(tmp_path / 'b.png'))


class TestWritePictures:
    def test_colour_grey_and_sixteen_bits(self, tmp_path):
        deep = image()[..., 0].astype(np.uint16) * 257
        write_pictures(
            {
                tmp_path / 'colour.png': image(),
                tmp_path / 'grey.png': image()[..., 0],
                tmp_path / 'deep.png': deep,
            }
        )
        found = {
            path.stem: cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            for path in tmp_path.iterdir()
        }
        np.testing.assert_array_equal(found['colour'], image()[..., ::-1])
        np.testing.assert_array_equal(found['grey'], image()[..., 0])
        np.testing.assert_array_equal(found['deep'], deep)

    def test_all_or_none(self, tmp_path):
        (tmp_path / 'a.png').write_text('before')
        pictures = {
            tmp_path / 'a.png': image(),
            tmp_path / 'none' / 'b.png': image(),
        }
        with pytest.raises(OSError, match='none'):
            write_pictures(pictures)
        assert [path.name for path in tmp_path.iterdir()] == ['a.png']
        assert (tmp_path / 'a.png').read_text() == 'before'
