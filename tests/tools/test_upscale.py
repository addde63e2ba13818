"""``tools/infer.py upscale`` from the shell to the files."""

import subprocess
import sys
from pathlib import Path

import cv2
import infer
import numpy as np
import pytest
import torch

from mmplugins.apis.inference import build_model
from mmplugins.apis.upscale import ReferenceUpscaler

TOOL = Path(infer.__file__)
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

COMMON = ['--config', 'config.py', '--checkpoint', 'a.pth']


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('config.py').write_text(CONFIG)
    torch.save(build_model('config.py').state_dict(), 'a.pth')
    rng = np.random.default_rng(0)
    for name, size in dict(small=(6, 8), ref=(11, 17)).items():
        image = rng.integers(0, 256, (*size, 3), np.uint8)
        assert cv2.imwrite(f'{name}.png', image)
    return tmp_path


def test_the_command(folder):
    words = [
        *('upscale', 'small.png', '--ref', 'ref.png', *COMMON),
        *('--out', 'out', '--point', '2', '3'),
    ]
    done = subprocess.run(
        [sys.executable, TOOL, *words], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('out/small_x2.png: 6 x 8 to 12 x 16, ')
    wanted = ReferenceUpscaler('config.py', 'a.pth').upscale(
        'small.png', 'ref.png'
    )
    np.testing.assert_array_equal(cv2.imread('out/small_x2.png'), wanted)
    assert Path('out/small_sheet.png').is_file()


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        ('gone.png', 'error: image gone.png does not exist'),
        ('small.png --point 9 9', 'error: point must be a pixel'),
        ('small.png --device cuda', 'error: --device cuda: no GPU'),
    ],
)
def test_errors_are_one_line(folder, monkeypatch, words, message):
    if 'cuda' in words:
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    argv = ['infer.py', 'upscale', *words.split(), *COMMON]
    monkeypatch.setattr(sys, 'argv', argv)
    with pytest.raises(SystemExit) as caught:
        infer.main()
    assert str(caught.value).startswith(message)
    assert '\n' not in str(caught.value)


def test_memory_that_runs_out_is_told_what_to_do(folder, monkeypatch):
    def fail(*args):
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(ReferenceUpscaler, 'upscale', fail)
    argv = ['infer.py', 'upscale', 'small.png', *COMMON]
    monkeypatch.setattr(sys, 'argv', argv)
    with pytest.raises(SystemExit, match='give a smaller --tile'):
        infer.main()
