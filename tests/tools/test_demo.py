import re
import subprocess
import sys
from html.parser import HTMLParser

import cv2
import demo
import numpy as np
import pytest


def test_iou_of_two_folders(tmp_path):
    """Against counting: two images, one class missed in the second."""
    folders = [tmp_path / 'predictions', tmp_path / 'labels']
    labels = np.arange(6, dtype=np.uint8).repeat(4).reshape(4, 6)
    predictions = labels.copy()
    predictions[labels == 5] = 4
    for folder, maps in zip(folders, ([labels, predictions], [labels] * 2)):
        folder.mkdir()
        for index, classes in enumerate(maps):
            cv2.imwrite(str(folder / f'{index}.png'), classes)
    iou = demo.class_iou(*folders)
    np.testing.assert_allclose(iou, [100] * 4 + [800 / 12, 400 / 8])


def test_the_table_ends_with_the_mean():
    rows = demo.table({'a': np.arange(6.0), 'b': np.full(6, 50.0)})
    assert rows[0] == ['', 'a', 'b']
    assert rows[1] == ['background', '0.0', '50.0']
    assert rows[-1] == ['mean', '2.5', '50.0']


@pytest.mark.parametrize('number', ['0', '20', '-5'])
def test_too_few_iterations_are_refused(number, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['demo.py', '--iterations', number])
    with pytest.raises(SystemExit) as error:
        demo.parse_args()
    assert error.value.code == 2
    assert f'must be 21 or more: {number}' in capsys.readouterr().err


class Images(HTMLParser):
    """Collects what a page shows."""

    def __init__(self, page):
        super().__init__()
        self.sources = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag == 'img':
            self.sources.append(dict(attrs)['src'])


@pytest.mark.slow
def test_from_nothing_to_a_page(tmp_path):
    result = subprocess.run(
        [sys.executable, demo.ROOT / 'tools/demo.py', '--iterations', '21'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    folder = tmp_path / 'work_dirs/demo'
    assert str(folder / 'index.html') in result.stdout
    sources = Images((folder / 'index.html').read_text()).sources
    assert len(sources) == 6
    for source in sources:
        picture = cv2.imread(str(folder / source))
        assert picture.shape == (256, 384, 3)
        # So early a network may still see nothing but background.
        assert picture.std() > 0 or source.startswith('prediction')
    # The table shows what the two test runs found.
    mean = re.search(r'^mean +(\S+) +(\S+)$', result.stdout, re.MULTILINE)
    for shown, config in zip(mean.groups(), demo.RUNS.values()):
        figures = (folder / config / 'metrics.json').read_text()
        miou = float(re.search(r'"mIoU": ([\d.]+)', figures)[1])
        assert abs(float(shown) - miou) <= 0.06
