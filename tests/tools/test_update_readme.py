from pathlib import Path

import pytest
import update_readme
from mmengine.fileio import load

METAFILES = sorted(update_readme.CONFIGS.glob('*/metafile.yml'))


def test_there_are_metafiles():
    assert METAFILES


@pytest.mark.parametrize('metafile', METAFILES, ids=lambda p: p.parent.name)
def test_tables_are_up_to_date(metafile):
    readme = metafile.with_name('README.md')
    assert update_readme.updated(readme) == readme.read_text()


@pytest.mark.parametrize('metafile', METAFILES, ids=lambda p: p.parent.name)
def test_figures_are_in_their_range(metafile):
    """Per cent are per cent, and every config is there."""
    models = load(metafile)['Models']
    assert models
    for model in models:
        path = update_readme.CONFIGS.parent / model['Config']
        assert path.is_file()
        assert path.stem == model['Name']
        for result in model['Results']:
            for name, value in result['Metrics'].items():
                assert 0 <= value <= 100, f'{model["Name"]}: {name}'


def test_the_model_index_names_every_metafile():
    root = update_readme.CONFIGS.parent
    index = load(root / 'model-index.yml')['Import']
    assert sorted(root / name for name in index) == METAFILES


def test_a_table_of_figures(tmp_path):
    (tmp_path / 'metafile.yml').write_text(
        'Models:\n'
        '  - Name: a\n'
        '    Config: configs/x/a.py\n'
        '    Metadata: {Iterations: 10}\n'
        '    Results:\n'
        '      - {Dataset: D, Metrics: {mIoU: 12.5}}\n'
    )
    readme = Path(tmp_path / 'README.md')
    readme.write_text('before\n<!-- results -->\nold\n<!-- end -->\nafter\n')
    assert update_readme.updated(readme) == (
        'before\n<!-- results -->\n'
        '| config | data | iterations | mIoU |\n'
        '| --- | --- | --- | ---: |\n'
        '| [a](a.py) | D | 10 | 12.5 |\n'
        '<!-- end -->\nafter\n'
    )
    readme.write_text('no table\n')
    with pytest.raises(ValueError, match='has no <!-- results -->'):
        update_readme.updated(readme)
