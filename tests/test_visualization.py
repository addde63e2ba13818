import cv2
import numpy as np
import torch

from mmplugins.visualization import Panel, contact_sheet


def test_a_row_shares_the_width():
    grey = Panel('', torch.full((3, 10, 20), 0.5))
    sheet = contact_sheet([[grey, None, grey], [grey, grey]], 300)
    assert sheet.shape[1:] == (300, 3)
    assert sheet.dtype == np.uint8
    rows = (sheet == 128).all(2).sum(1)
    widths = sorted(set(rows.tolist()) - {0})
    # Two of three columns, then two of two.
    assert widths == [2 * ((300 - 8) // 3 - 8), 2 * ((300 - 8) // 2 - 8)]


def test_an_enlarged_picture_keeps_its_cells():
    image = torch.rand(3, 3, 4)
    sheet = contact_sheet([[Panel('', image)]], 8 + 8 + 80)
    shown = sheet[24 : 24 + 60, 8 : 8 + 80]
    wanted = (255 * image).round().byte().permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(shown, wanted.repeat(20, 0).repeat(20, 1))


def test_a_picture_of_another_shape_fits():
    tall = Panel('tall', torch.zeros(3, 400, 1))
    wide = Panel('wide', torch.zeros(3, 1, 4000))
    assert contact_sheet([[tall, wide]], 64).shape[1] == 64


def test_a_point_is_marked():
    image = torch.full((3, 100, 100), 0.5)
    plain, marked = (
        contact_sheet([[Panel('', image, point)]], 116)
        for point in (None, (0.25, 0.75))
    )
    y, x = np.nonzero((plain != marked).any(2))
    assert abs(y.mean() - (24 + 25)) < 1
    assert abs(x.mean() - (8 + 75)) < 1


def test_a_long_caption_stays_in_its_column():
    image = torch.ones(3, 8, 8)
    panels = [Panel('a caption that is much too long ' * 4, image), None]
    sheet = contact_sheet([panels], 400)
    assert (sheet[:24, :200] < 128).any()
    assert (sheet[:, 200:] == 255).all()


def test_opencv_writes_it(tmp_path):
    sheet = contact_sheet([[Panel('a', torch.rand(3, 5, 5))]], 64)
    assert cv2.imwrite(str(tmp_path / 'a.png'), sheet)
