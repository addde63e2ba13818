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
                figure = float(str(value).split(' ± ')[0])
                assert 0 <= figure <= 100, f'{model["Name"]}: {name}'


def test_the_model_index_names_every_metafile():
    root = update_readme.CONFIGS.parent
    index = load(root / 'model-index.yml')['Import']
    assert sorted(root / name for name in index) == METAFILES


def test_a_table_of_figures(tmp_path):
    folder = tmp_path / 'configs' / 'x'
    folder.mkdir(parents=True)
    (folder / 'metafile.yml').write_text(
        'Models:\n'
        '  - Name: a\n'
        '    Config: configs/x/part/a.py\n'
        '    Results:\n'
        '      - {Task: T, Dataset: D, Metrics: {mIoU: 12.5}}\n'
        '      - {Task: U, Dataset: D, Metrics: {RMSE: 0.5}}\n'
        '  - Name: b\n'
        '    Config: configs/x/b.py\n'
        '    Results:\n'
        '      - {Task: T, Dataset: E, Metrics: {mIoU: 1.5 ± 0.2, F: 2}}\n'
    )
    readme = folder / 'README.md'
    text = 'before\n<!-- results: {} -->\nold\n<!-- end -->\nafter\n'
    readme.write_text(text.format('T') + text.format('U'))
    assert update_readme.updated(readme) == (
        'before\n<!-- results: T -->\n'
        '| config | data | mIoU | F |\n'
        '| --- | --- | ---: | ---: |\n'
        '| [a](part/a.py) | D | 12.5 |  |\n'
        '| [b](b.py) | E | 1.5 ± 0.2 | 2 |\n'
        '<!-- end -->\nafter\n'
        'before\n<!-- results: U -->\n'
        '| config | data | RMSE |\n'
        '| --- | --- | ---: |\n'
        '| [a](part/a.py) | D | 0.5 |\n'
        '<!-- end -->\nafter\n'
    )
    readme.write_text(text.format('V'))
    with pytest.raises(ValueError, match="no results of task 'V'"):
        update_readme.updated(readme)
    readme.write_text('no table\n')
    with pytest.raises(ValueError, match='has no <!-- results: TASK -->'):
        update_readme.updated(readme)


@pytest.mark.parametrize('metafile', METAFILES, ids=lambda p: p.parent.name)
def test_every_result_is_in_a_table(metafile):
    text = metafile.with_name('README.md').read_text()
    for model in load(metafile)['Models']:
        for result in model['Results']:
            assert f'<!-- results: {result["Task"]} -->' in text
