"""What ``tools/benchmark.py`` says of measured rows; nothing is measured."""

import sys
from pathlib import Path

import benchmark
import pytest
import torch
from benchmarks import report
from benchmarks.measure import Aim, Case

ROOT = Path(__file__).parents[2]
CPU = torch.device('cpu')
ROWS = [
    dict(case='a', backend=name, ms=ms, peak_mib=peak, max_rel_diff=diff)
    for name, ms, peak, diff in (
        ('reference', 1235.0, 100.0, 0.0),
        ('auto', 10.0, 0.0, 1.23e-6),
    )
] + [dict(case='b', backend='auto', ms=1, peak_mib=None, max_rel_diff=None)]


@pytest.fixture
def run(monkeypatch):
    """The tool with these arguments."""

    def call(*args):
        monkeypatch.setattr(sys, 'argv', ['benchmark.py', *map(str, args)])
        benchmark.main()

    return call


def selected(*given, device='cpu'):
    return [case.name for case in benchmark.select(given, device)]


def test_summary_has_ratios():
    result = report.summary('cpu', ROWS)
    assert result['rows'] == ROWS
    assert result['speedup'] == dict(a=123.5)
    assert result['memory'] == dict(a=100 / report.PAGE)


def judged(rows=ROWS, device='cpu', resolve=None, budget=1024, **aims):
    """Cells of the row of `auto`, and the last line."""
    case = Case(
        'a',
        list,
        None,
        budget=budget,
        aims=dict(cpu=Aim(**aims)),
        resolve=resolve,
    )
    verdicts = report.judge([case], device, rows)
    lines = {line[1]: line for line in report.table(rows[:2], verdicts)}
    assert lines['reference'][-1] == ''
    return lines['auto'][-1], report.missed(verdicts)


@pytest.mark.parametrize(
    ('aims', 'cell', 'line'),
    [
        (dict(), '', ''),
        (dict(time=123.5), '123.5 x', 'none'),
        (dict(time=124), '124 x (missed)', 'a 124 x (aim 124 x)'),
        (dict(time=2, memory=3), '2 x, 3 x memory', 'none'),
        (
            dict(time=200, memory=1e5),
            '200 x (missed), 100000 x memory (missed)',
            'a 124 x (aim 200 x); a 2.56e+04 x memory (aim 100000 x memory)',
        ),
        (dict(ms=11), '11 ms', 'none'),
        (dict(ms=10), '10 ms (missed)', 'a 10 ms (aim 10 ms)'),
    ],
)
def test_aims_are_judged(aims, cell, line):
    found = judged(budget=float('inf'), **aims)
    assert found == (cell, line and f'aims missed: {line}')


def test_aims_of_another_device_are_not_judged():
    assert judged(device='cuda', budget=float('inf'), time=200) == ('', '')


def test_an_aim_without_a_figure_is_open():
    rows = [dict(row, peak_mib=None) for row in ROWS]
    cell, line = judged(rows, budget=float('inf'), time=2, memory=3)
    assert cell == '2 x, 3 x memory (?)'
    assert line == 'aims missed: none'
    # The reference did not fit.
    case = Case('b', list, None, aims=dict(cpu=Aim(time=2)))
    verdicts = report.judge([case], 'cpu', ROWS)
    assert report.table(ROWS, verdicts)[-1][-1] == '2 x (?)'
    assert report.missed(verdicts) == ''


def test_a_budget_is_an_aim():
    assert judged() == ('1024 MiB', 'aims missed: none')


@pytest.mark.parametrize(('ms', 'met'), [(4.0, True), (3.0, False)])
def test_copies_are_an_aim(ms, met):
    rows = [*ROWS, dict(ROWS[0], backend='copy', ms=ms)]
    cell, line = judged(rows, budget=float('inf'), copies=3)
    assert cell == ('3 copies' if met else '3 copies (missed)')
    assert line.endswith('none' if met else 'a 3.33 copies (aim 3 copies)')


@pytest.mark.parametrize('backend', ['mmcv', 'torch'])
def test_a_backend_is_an_aim(backend):
    cell, line = judged(
        resolve=lambda device: backend, budget=float('inf'), backend='mmcv'
    )
    met = backend == 'mmcv'
    assert cell == ('mmcv' if met else 'mmcv (missed)')
    assert line.endswith('none' if met else 'a torch (aim mmcv)')


def test_deform_conv_says_what_it_is():
    for case in benchmark.select(['deform_conv'], 'cuda'):
        assert case.resolve(CPU) == 'torch'
        assert case.aims['cuda'].backend == 'mmcv'


def test_missed_aims_do_not_fail(run, monkeypatch, capsys):
    rows = [dict(ROWS[2], case='import', ms=1e6)]
    monkeypatch.setattr(benchmark, 'run', lambda *args: rows)
    run('import')
    assert capsys.readouterr().out.splitlines() == [
        'aims missed: import 1e+06 ms (aim 20 ms)'
    ]


@pytest.fixture
def document(tmp_path):
    """Tables of two devices, yet to be measured."""
    path = tmp_path / 'page.md'
    path.write_text(
        ''.join(
            f'# {device}\n<!-- benchmark: {device} -->\nold\n'
            '<!-- end -->\nbelow\n'
            for device in ('cpu', 'cuda')
        )
    )
    return path


def figures(monkeypatch, ms=1.0):
    """Let every case take so long, by one backend."""

    def run(cases, device, quick):
        return [dict(ROWS[2], case=case.name, ms=ms) for case in cases]

    monkeypatch.setattr(benchmark, 'run', run)


def test_table_replaces_that_of_its_device(run, document, monkeypatch):
    figures(monkeypatch)
    for _ in range(2):  # what is there already is replaced
        run('--markdown', document)
        text = document.read_text()
        assert text.startswith('# cpu\n<!-- benchmark: cpu -->\n')
        assert text.endswith(
            '<!-- end -->\nbelow\n# cuda\n<!-- benchmark: cuda -->\nold\n'
            '<!-- end -->\nbelow\n'
        )
        assert text.count('old') == 1
        assert f'torch {torch.__version__}' in text
        assert text.count('| auto | 1.0 |') == len(selected())
        assert '| import | auto | 1.0 |  |  |  |  | 20 ms |\n' in text


def test_some_rows_are_replaced_in_order(run, document, monkeypatch):
    figures(monkeypatch)
    run('crm', 'jbu', '--markdown', document)  # there is nothing to keep
    figures(monkeypatch, 2.0)
    run('deform_conv_train', 'jbu_train', '--markdown', document)
    rows = [
        line.split(' | ')[::2][:2]
        for line in document.read_text().splitlines()
        if line.startswith('| ') and ' auto ' in line
    ]
    assert rows == [
        ['| jbu_forward', '1.0'],
        ['| jbu_train', '2.0'],
        ['| jbu_large', '1.0'],
        ['| deform_conv_train', '2.0'],
        ['| crm_decode', '1.0'],
        ['| crm_refine', '1.0'],
    ]


@pytest.mark.parametrize('part', ['machine', 'columns'])
def test_rows_of_two_tables_do_not_mix(part, run, document, monkeypatch):
    figures(monkeypatch)
    run('--markdown', document)
    before = document.read_text()
    if part == 'machine':
        monkeypatch.setattr(report, 'machine', lambda device: 'another')
    else:
        monkeypatch.setattr(report, 'COLUMNS', (*report.COLUMNS, 'new'))
    monkeypatch.setattr(benchmark, 'run', None)  # not to be called
    with pytest.raises(SystemExit, match=r'^error: --markdown .* keep rows'):
        run('jbu', '--markdown', document)
    assert document.read_text() == before
    figures(monkeypatch, 2.0)
    if part == 'machine':
        run('--markdown', document)
        assert '\nanother\n' in document.read_text()


def test_the_document_names_all_cases(monkeypatch):
    path = ROOT / 'docs' / 'performance.md'
    text = path.read_text()
    monkeypatch.setattr(report, 'machine', lambda device: device)
    for device in ('cpu', 'cuda'):
        cases = selected(device=device)
        assert all(f'`{case}`' in text for case in cases)
        assert report.updated(str(path), device, [], cases, cases) != text
