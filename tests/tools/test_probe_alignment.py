import json

import cv2
import numpy as np
import probe_alignment
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

CONFIG = """
default_scope = 'mmagic'
custom_imports = dict(imports='mmplugins.ssen')
model = dict(
    type='mmplugins.RefSREditor',
    generator=dict(
        type='mmplugins.SSENNet', mid_channels=16, num_blocks=1,
        num_extract_blocks=1, search=dict(type='mmplugins.LocalSearch'),
    ),
)
"""


@pytest.fixture
def pair(tmp_path, in_scope):
    """Smooth photographs sixteen pixels apart, a config and weights."""
    rng = np.random.default_rng(0)
    wide = cv2.GaussianBlur(rng.random((96, 176, 3)), (0, 0), 3)
    wide = (255 * (wide - wide.min()) / np.ptp(wide)).astype(np.uint8)
    cv2.imwrite(str(tmp_path / 'left.png'), wide[:, :160])
    cv2.imwrite(str(tmp_path / 'right.png'), wide[:, 16:])
    disparity = np.full((96, 160), 16.0)
    disparity[:40] = np.inf
    np.save(tmp_path / 'disparity.npy', disparity)
    (tmp_path / 'config.py').write_text(CONFIG)
    with in_scope('mmagic'):
        torch.manual_seed(0)
        model = MODELS.build(Config.fromfile(tmp_path / 'config.py').model)
    torch.save(model.state_dict(), tmp_path / 'model.pth')
    return tmp_path


def run(folder, monkeypatch, *more):
    names = ('config.py', 'model.pth', 'left.png', 'right.png')
    files = [str(folder / x) for x in (*names, 'disparity.npy')]
    monkeypatch.setattr('sys.argv', ['probe_alignment.py', *files, *more])
    probe_alignment.main()


def test_a_search_is_nearer_than_none(pair, monkeypatch, capsys):
    out = pair / 'out/figures.json'
    run(pair, monkeypatch, '--within', '1', '16', '--metrics', str(out))
    figures = json.loads(out.read_text())
    assert [*figures] == ['none', 'search', 'layer 1', 'layer 2', 'layer 3']
    none, last = figures['none'], figures['layer 3']
    assert figures['search'] == last  # layers begin with the regular grid
    assert none['mean'] == none['median'] == 16
    assert (none['within 1 px, %'], none['within 16 px, %']) == (0, 100)
    assert last['median'] < 0.1
    assert last['within 1 px, %'] > 60
    assert 'none: mean 16.0, median 16.0' in capsys.readouterr().out


def test_figures_by_hand():
    found = torch.zeros(2, 2, 3)
    found[1] = -1  # a cell, two pixels, to the left
    disparity = np.array([[np.nan, 2, 3], [5, 6, np.nan]])
    # At the first cell, 0.5 - 5 lies beyond the photograph.
    figures = probe_alignment.score(found, disparity, 2, [0.5, 1])
    assert figures['mean'] == pytest.approx((0 + 1) / 2)
    assert figures['within 0.5 px, %'] == 50
    assert figures['within 1 px, %'] == 100


def test_disparity_of_cells():
    disparity = np.arange(24.0).reshape(4, 6)
    disparity[:2, :2] = np.inf
    disparity[0, 2] = np.nan
    found = probe_alignment.cells(disparity[:, :5], 2)
    assert np.isnan(found[0, 0])
    np.testing.assert_array_equal(found[0, 1], np.median([3, 8, 9]))
    np.testing.assert_array_equal(found[1], [15.5, 17.5])


def test_one_line_says_what_is_wrong(pair, monkeypatch):
    np.save(pair / 'disparity.npy', np.zeros((3, 4)))
    with pytest.raises(SystemExit, match='of one size'):
        run(pair, monkeypatch)
    (pair / 'disparity.npy').write_text('no array')
    with pytest.raises(SystemExit, match='is no .npy file'):
        run(pair, monkeypatch)
    text = CONFIG.replace('mid_channels', 'reference=False, mid_channels')
    (pair / 'config.py').write_text(text)
    with pytest.raises(SystemExit, match='error: '):
        run(pair, monkeypatch)
