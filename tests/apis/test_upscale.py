from argparse import ArgumentParser
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from skimage import data

from mmplugins.apis import upscale
from mmplugins.apis.inference import build_model
from mmplugins.apis.upscale import ReferenceUpscaler

CONFIG = """
model = dict(
    type='mmplugins.SSENNet',
    mid_channels=4,
    num_blocks=1,
    num_extract_blocks=1,
    num_layers=1,
    upscale_factor=2,
)
"""
COMMON = ['--config', 'config.py', '--checkpoint', 'a.pth', '--out-dir', 'out']


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('config.py').write_text(CONFIG)
    torch.save(build_model('config.py').state_dict(), 'a.pth')
    photo = data.astronaut()[..., ::-1]
    for name, image in dict(
        small=photo[:20, 100:130], other=photo[:9, :12], ref=photo[50:99, :77]
    ).items():
        assert cv2.imwrite(f'{name}.png', image)
    cv2.imwrite('grey.jpg', photo[:12, :16, 0])
    return tmp_path


def run(*arguments):
    parser = ArgumentParser()
    upscale.add_arguments(parser)
    upscale.run(parser.parse_args([*arguments, *COMMON]))


def names(path):
    return sorted(file.name for file in Path(path).rglob('*.png'))


def test_one_image(folder, capsys):
    run('small.png', '--ref', 'ref.png', 'other.png')
    assert names('out') == ['small_x2.png']
    line = capsys.readouterr().out
    assert line.startswith('out/small_x2.png: 20 x 30 to 40 x 60, ')
    assert line.endswith(' s\n')
    wanted = ReferenceUpscaler('config.py', 'a.pth').upscale(
        'small.png', ['ref.png', 'other.png']
    )
    np.testing.assert_array_equal(cv2.imread('out/small_x2.png'), wanted)


def test_several_images_without_a_reference(folder, capsys):
    run('small.png', 'grey.jpg')
    assert names('out') == ['grey_x2.png', 'small_x2.png']
    note, *lines = capsys.readouterr().out.splitlines()
    assert note == 'no --ref: each image is its own reference'
    assert len(lines) == 2
    assert cv2.imread('out/grey_x2.png').shape == (24, 32, 3)


def test_tiles_change_nothing(folder):
    run('small.png', '--ref', 'ref.png')
    whole = cv2.imread('out/small_x2.png').astype(int)
    run('small.png', '--ref', 'ref.png', '--tile', '6')
    tiled = cv2.imread('out/small_x2.png')
    assert np.abs(tiled - whole).max() <= 1  # where rounding is a tie


def test_pictures(folder):
    run('small.png', '--ref', 'ref.png', '--pictures', 'drawn')
    assert names('out') == ['small_x2.png']
    assert names('drawn') == ['small_sheet.png']
    middle = cv2.imread('drawn/small_sheet.png')
    run('small.png', '--ref', 'ref.png', '--point', '3', '29')
    assert names('out') == ['small_sheet.png', 'small_x2.png']
    other = cv2.imread('out/small_sheet.png')
    assert other.shape == middle.shape
    assert (other != middle).any()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['gone.png'], 'image gone.png does not exist'),
        (['config.py'], 'config.py is not an image'),
        (['small.png', '--ref', 'gone.png'], 'gone.png does not exist'),
        (['small.png', '--tile', '0'], 'tile must be 1 or more'),
        (['small.png', '--point', '20', '0'], r'20 x 30 of them'),
        (['small.png', './small.png'], 'would have the same'),
        (['small.png', '--pictures', 'a.pth'], 'a.pth is not a folder'),
        (['small.png', '--config', 'gone.py'], 'gone.py does not exist'),
        (['small.png', '--checkpoint', 'ref.png'], 'ref.png does not read'),
    ],
)
def test_errors_come_before_the_first_file(folder, arguments, message):
    parser = ArgumentParser()
    upscale.add_arguments(parser)
    with pytest.raises(ValueError, match=message):
        upscale.run(parser.parse_args([*COMMON, *arguments]))
    assert not Path('out').exists()


def test_nothing_is_written_over_what_is_read(folder):
    Path('out').mkdir()
    Path('small.png').rename('out/small_x2.png')
    Path('out/small_x2.png').rename('small.png')
    Path('out/small_x2.png').write_bytes(Path('ref.png').read_bytes())
    with pytest.raises(ValueError, match='small_x2.png would be written'):
        run('small.png', '--ref', 'out/small_x2.png')


def test_a_network_without_references(folder):
    text = CONFIG.replace('4,', '4, reference=False,', 1)
    Path('config.py').write_text(text)
    torch.save(build_model('config.py').state_dict(), 'a.pth')
    with pytest.raises(ValueError, match=r'--ref: config.py takes no ref'):
        run('small.png', '--ref', 'ref.png')
    with pytest.raises(ValueError, match=r'config.py aligns nothing'):
        run('small.png', '--pictures', 'drawn')
    run('small.png')
    assert names('out') == ['small_x2.png']


def test_a_network_of_the_image_alone(folder, capsys):
    text = CONFIG.replace('4,', "4, reference='self',", 1)
    Path('config.py').write_text(text)
    torch.save(build_model('config.py').state_dict(), 'a.pth')
    with pytest.raises(ValueError, match=r'--ref: config.py takes no ref'):
        run('small.png', '--ref', 'ref.png')
    run('small.png', '--pictures', 'out')
    assert names('out') == ['small_sheet.png', 'small_x2.png']
    assert '--ref' not in capsys.readouterr().out
