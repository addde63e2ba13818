"""``tools/infer.py`` from the command line to the files."""

import subprocess
import sys
from pathlib import Path

import cv2
import infer
import numpy as np
import pytest
import torch

from mmplugins.apis.featup import FeatUpInferencer
from mmplugins.apis.inference import build_model
from mmplugins.apis.refine import MaskRefiner

TOOL = Path(infer.__file__)
CONFIG = """
default_scope = 'mmpretrain'
model = dict(
    type='mmplugins.FeatUp',
    backbone=dict(
        type='ResNet', depth=18, base_channels=4, out_indices=(1,)
    ),
    in_channels=8,
    upsampler=dict(type='mmplugins.JBUStack', num_stages=2),
    downsampler=dict(
        type='mmplugins.AttentionDownsampler', kernel_size=4, stride=4
    ),
    data_preprocessor=dict(
        type='ImgDataPreprocessor', mean=[128] * 3, std=[64] * 3
    ),
)
"""

REFINER = """
model = dict(
    type='mmplugins.CRM',
    backbone=dict(type='mmplugins.CRMBackbone', depth=18),
    decode_head=dict(
        type='mmplugins.CRMHead',
        in_channels=(64, 64, 256),
        channels=(4, 4, 4),
        hidden_channels=(4,),
    ),
    scales=(0.5, 1),
    data_preprocessor=dict(
        type='ImgDataPreprocessor', mean=[128] * 3, std=[64] * 3
    ),
)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to work in, with a config, its weights and drawn images."""
    monkeypatch.chdir(tmp_path)
    Path('config.py').write_text(CONFIG)
    torch.save(FeatUpInferencer('config.py').model.state_dict(), 'a.pth')
    picture = np.full((40, 60, 3), (200, 120, 40), np.uint8)
    cv2.circle(picture, (20, 20), 9, (30, 60, 220), -1)
    cv2.imwrite('colour.png', picture)
    cv2.imwrite('grey.jpg', picture[..., 0])
    cv2.imwrite('tiny.png', picture[:8])
    np.save('vector.npy', np.ones(8))
    np.save('short.npy', np.ones(7))
    np.save('text.npy', np.array(['a']))
    Path('notes.txt').write_text('no image')
    return tmp_path


COMMON = ['--config', 'config.py', '--checkpoint', 'a.pth']


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, 'argv', ['infer.py', 'featup', *arguments])
    infer.main()


def names(path):
    return sorted(file.name for file in Path(path).rglob('*'))


def test_from_the_shell(folder):
    result = subprocess.run(
        [
            *(sys.executable, TOOL, 'featup', 'colour.png', *COMMON),
            *('--out-dir', 'out/deep', '--pixel', '20', '20'),
        ],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert names('out') == ['colour.png', 'deep']
    sheet = cv2.imread('out/deep/colour.png')
    assert sheet.shape[1] == 3 * 480
    assert sheet.std() > 20
    line = result.stdout.splitlines()[-1]
    assert line == (
        'out/deep/colour.png: image 40 x 60, features 8 x 5 x 8 to 20 x '
        '30, at most 8 channels at a time'
    )


def test_several_images_and_their_features(folder, monkeypatch, capsys):
    run(monkeypatch, 'colour.png', 'grey.jpg', *COMMON, '--save-features')
    out = folder / 'work_dirs/infer'
    assert names(out) == [
        f'{stem}{suffix}'
        for stem in ('colour', 'grey')
        for suffix in ('.png', '_high.npy', '_low.npy')
    ]
    assert np.load(out / 'grey_low.npy').shape == (8, 5, 8)
    assert np.load(out / 'grey_high.npy').shape == (8, 20, 30)
    assert 'no --checkpoint' not in capsys.readouterr().out


def test_a_vector_adds_a_row(folder, monkeypatch):
    run(monkeypatch, 'colour.png', *COMMON, '--out-dir', 'plain')
    arguments = ['--text-embedding', 'vector.npy', '--out-dir', 'vector']
    run(monkeypatch, 'colour.png', *COMMON, *arguments)
    plain, vector = (
        cv2.imread(f'{name}/colour.png') for name in ('plain', 'vector')
    )
    assert len(vector) > len(plain)


def test_large_images_are_reduced(folder, monkeypatch, capsys):
    run(monkeypatch, 'colour.png', *COMMON, '--max-size', '48')
    assert 'image 32 x 48' in capsys.readouterr().out


def test_without_a_checkpoint_it_says_so(folder, monkeypatch, capsys):
    run(monkeypatch, 'colour.png', '--config', 'config.py')
    out = capsys.readouterr().out
    assert out.startswith('no --checkpoint: weights as the config')
    # One line for the image, none for each parameter.
    assert len(out.splitlines()) == 2


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['none.png'], 'image none.png does not exist'),
        (['colour.png', 'notes.txt'], 'notes.txt is not an image'),
        (['colour.png', './colour.png'], 'would have the same'),
        (['colour.png', '--pixel', '40', '0'], 'pixel 40 0 .* 40 x 60'),
        (['colour.png', '--max-size', '0'], '--max-size must be 1 or more'),
        (['colour.png', 'tiny.png'], 'image tiny.png: .* a larger image'),
        (['colour.png', '--out-dir', 'a.pth/b'], 'a.pth is not a folder'),
        (['colour.png', '--config', 'b.py'], 'config b.py does not exist'),
        (['colour.png', '--checkpoint', 'b'], 'checkpoint b does not exist'),
        (
            ['colour.png', '--checkpoint', 'notes.txt'],
            'checkpoint notes.txt does not read',
        ),
        (
            ['colour.png', '--text-embedding', 'short.npy'],
            r'shape \(8,\), got \(7,\)',
        ),
        (
            ['colour.png', '--text-embedding', 'text.npy'],
            'text.npy is not an .npy of numbers',
        ),
        (
            ['colour.png', '--text-embedding', 'notes.txt'],
            'notes.txt is not an .npy of numbers',
        ),
        (['colour.png', '--text-embedding', 'b.npy'], 'b.npy does not exist'),
    ],
)
def test_errors_are_one_line_and_leave_nothing(
    folder, monkeypatch, arguments, message
):
    before = names(folder)
    with pytest.raises(SystemExit, match=f'^error: .*{message}') as error:
        run(monkeypatch, *COMMON, *arguments)
    assert '\n' not in str(error.value)
    assert names(folder) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_a_missing_gpu_is_named(folder, monkeypatch):
    with pytest.raises(SystemExit, match='no GPU that torch can use'):
        run(monkeypatch, 'colour.png', *COMMON, '--device', 'cuda')


@pytest.mark.parametrize(
    'arguments',
    [
        [],
        ['featup', 'colour.png'],
        ['featup', '--config', 'config.py'],
        ['featup', 'a.png', *COMMON, '--device', 'tpu'],
        ['featup', 'a.png', *COMMON, '--pixel', '3'],
        ['featup', 'a', *COMMON, '--pixel', '1', '1', '--text-embedding', 'b'],
    ],
)
def test_wrong_usage_has_status_two(arguments, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['infer.py', *arguments])
    with pytest.raises(SystemExit) as error:
        infer.main()
    assert error.value.code == 2


def test_memory_that_runs_out_is_named(folder, monkeypatch):
    def full(self, *args):
        raise torch.cuda.OutOfMemoryError('CUDA out of memory')

    monkeypatch.setattr(FeatUpInferencer, '__call__', full)
    with pytest.raises(SystemExit, match='give a smaller --max-size'):
        run(monkeypatch, 'colour.png', *COMMON)


class TestRefine:
    @pytest.fixture(autouse=True)
    def _refiner(self, folder):
        Path('refiner.py').write_text(REFINER)
        torch.save(build_model('refiner.py').state_dict(), 'crm.pth')
        mask = np.zeros((40, 60), np.uint8)
        cv2.circle(mask, (23, 20), 9, 255, -1)
        cv2.imwrite('mask.png', mask)
        cv2.imwrite('small.png', mask[:20])

    arguments = ('--config', 'refiner.py', '--checkpoint', 'crm.pth')

    def run(self, monkeypatch, *arguments):
        words = ['infer.py', 'refine', *arguments, *self.arguments]
        monkeypatch.setattr(sys, 'argv', words)
        infer.main()

    def test_from_the_shell(self, folder):
        result = subprocess.run(
            [
                *(sys.executable, TOOL, 'refine', 'colour.png', 'mask.png'),
                *(*self.arguments, '--out-dir', 'out', '--scales', '1'),
            ],
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        assert names('out') == [
            f'colour_{name}.png' for name in ('mask', 'refined', 'sheet')
        ]
        line = result.stdout.splitlines()[-1]
        assert line.startswith('out/colour_refined.png: image 40 x 60, ')

    @pytest.mark.parametrize(
        ('arguments', 'message'),
        [
            (['colour.png', 'small.png'], 'small.png is of 20 x 60 pixels'),
            (['colour.png'], 'come in pairs'),
            (['notes.txt', 'mask.png'], 'notes.txt is not an image'),
            (['colour.png', 'notes.txt'], 'notes.txt is not a mask'),
            (['colour.png', 'mask.png', '--band', '-1'], 'band must be 0 or'),
        ],
    )
    def test_errors_are_one_line_and_leave_nothing(
        self, folder, monkeypatch, arguments, message
    ):
        before = names(folder)
        with pytest.raises(SystemExit, match=f'^error: .*{message}') as error:
            self.run(monkeypatch, *arguments)
        assert '\n' not in str(error.value)
        assert names(folder) == before

    def test_memory_that_runs_out_is_named(self, folder, monkeypatch):
        def full(self, *args, **kwargs):
            raise torch.cuda.OutOfMemoryError('CUDA out of memory')

        monkeypatch.setattr(MaskRefiner, 'refine', full)
        with pytest.raises(SystemExit, match='give a smaller --tile'):
            self.run(monkeypatch, 'colour.png', 'mask.png')
        assert names(folder / 'work_dirs') == ['infer']
