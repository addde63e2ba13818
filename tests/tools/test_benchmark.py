"""``tools/benchmark.py`` on small sizes. No test depends on a time."""

import json
import sys
from functools import partial
from pathlib import Path

import benchmark
import pytest
import torch
from benchmarks import measure, ssen
from benchmarks.measure import Case

ROOT = Path(__file__).parents[2]
CPU = torch.device('cpu')
CASES = dict(
    jbu=['jbu_forward', 'jbu_train', 'jbu_large'],
    deform_conv=['deform_conv_forward', 'deform_conv_train'],
    non_local=['non_local', 'non_local_large'],
    crm=['crm_decode', 'crm_refine'],
    ssen=['ssen_align', 'ssen_forward'],
)
CASES['import'] = ['import']
ALONE = {'jbu_large', 'non_local_large', 'import'}  # without a reference
BACKENDS = ('reference', 'auto', 'torch')


@pytest.fixture
def run(monkeypatch):
    """The tool with these arguments."""

    def call(*args):
        monkeypatch.setattr(sys, 'argv', ['benchmark.py', *map(str, args)])
        benchmark.main()

    return call


@pytest.fixture
def alone(monkeypatch):
    """No other processes; a backend's peak is in the dict."""
    peaks = dict.fromkeys(BACKENDS, 1.0)
    monkeypatch.setattr(measure, 'peak_of', lambda _, b, *args: peaks[b])
    return peaks


def made(results, counts=None, **kwargs):
    """Case whose backends return these tensors."""
    counts = {} if counts is None else counts

    def prepare(backend, device, quick):
        def call():
            counts[backend] = counts.get(backend, 0) + 1
            return (results[backend],)

        return call

    return Case('made', lambda device: list(results), prepare, **kwargs)


def test_knows_all_cases():
    assert list(CASES) == list(benchmark.NAMES)
    for group, cases in benchmark.GROUPS.items():
        assert [case.name for case in cases] == CASES[group]


@pytest.mark.parametrize(
    'device', ['cpu', pytest.param('cuda', marks=pytest.mark.gpu)]
)
@pytest.mark.parametrize('group', CASES)
def test_quick_run(group, device, run, tmp_path, capsys):
    path = tmp_path / 'out' / 'figures.json'
    run(group, '--quick', '--device', device, '--json', path)
    result = json.loads(path.read_text())
    assert list(result) == ['device', 'rows', 'speedup', 'memory']
    assert result['device'] == device
    rows = result['rows']
    assert list(dict.fromkeys(r['case'] for r in rows)) == CASES[group]
    printed = capsys.readouterr().out
    for row in rows:
        assert list(row) == list(
            ('case', 'backend', 'ms', 'peak_mib', 'max_rel_diff')
        )
        assert f'{row["case"]:<20}{row["backend"]}' in printed
        if row['case'] == 'import':
            continue
        assert row['ms'] > 0
        assert row['peak_mib'] >= 0
        if row['case'] in ALONE:
            assert row['max_rel_diff'] is None
        else:
            assert 0 <= row['max_rel_diff'] < 1e-3
    for case in CASES[group]:
        backends = [r['backend'] for r in rows if r['case'] == case]
        wanted = ['auto'] if case in ALONE else ['reference', 'auto']
        assert backends[: len(wanted)] == wanted
    compared = [case for case in CASES[group] if case not in ALONE]
    assert list(result['speedup']) == list(result['memory']) == compared
    figures = {(r['case'], r['backend']): r['ms'] for r in rows}
    for case in compared:
        assert result['speedup'][case] == pytest.approx(
            figures[case, 'reference'] / figures[case, 'auto']
        )


@pytest.mark.parametrize('wrong', [0.01, float('nan')])
def test_a_wrong_result_is_an_error(wrong, run, alone, monkeypatch):
    right = ssen.NonLocal2d.forward
    monkeypatch.setattr(
        ssen.NonLocal2d, 'forward', lambda self, x: right(self, x) + wrong
    )
    with pytest.raises(SystemExit) as error:
        run('non_local', '--quick')
    message = str(error.value)
    assert "error: non_local: the result of backend 'auto'" in message
    assert '\n' not in message


def test_difference_is_relative_to_the_largest_value():
    expected = torch.tensor([1.0, -10.0]), torch.tensor([1e-3])
    outputs = torch.tensor([1.5, -10.0]), torch.tensor([1.1e-3])
    close = pytest.approx(0.1, rel=1e-5)
    assert measure.max_rel_diff(outputs, expected) == close
    assert measure.max_rel_diff(outputs[:1], expected) == float('inf')
    flat = outputs[0][None], outputs[1]
    assert measure.max_rel_diff(flat, expected) == float('inf')


@pytest.mark.parametrize('slow', [True, False])
def test_a_slow_reference_is_timed_once(slow, alone, monkeypatch):
    monkeypatch.setattr(measure, 'SLOW', -1.0 if slow else 1e9)
    monkeypatch.setattr(measure, 'SECONDS', 1e9)
    counts = {}
    case = made(dict.fromkeys(BACKENDS, torch.ones(2)), counts)
    rows = measure.measure(case, CPU, False)
    assert all(row['ms'] > 0 for row in rows)
    often = 1 + measure.RUNS  # the first warms up
    once = 1 if slow else often
    assert counts == dict(reference=once, auto=often, torch=often)


def test_a_slow_backend_is_timed_at_least_once(alone, monkeypatch):
    monkeypatch.setattr(measure, 'SECONDS', 1e-12)
    counts = {}
    case = made(dict.fromkeys(BACKENDS, torch.ones(2)), counts)
    measure.measure(case, CPU, False)
    assert counts == dict.fromkeys(BACKENDS, 2)


def test_too_much_memory_is_an_error(alone):
    results = dict(auto=torch.ones(2**18))  # 1 MiB
    case = made(results, budget=10)
    for peak in (1.0, 11.0):
        alone['auto'] = peak
        assert measure.measure(case, CPU, True)[0]['peak_mib'] == peak
    alone['auto'] = 11.5
    with pytest.raises(ValueError, match="'auto' needs 10 MiB beyond its in"):
        measure.measure(case, CPU, True)


@pytest.mark.parametrize('short', ['reference', 'auto'])
def test_only_a_reference_may_not_fit(short, monkeypatch, capsys):
    def peak_of(case, backend, device, quick):
        if backend == short:
            raise MemoryError
        return 1.0

    monkeypatch.setattr(measure, 'peak_of', peak_of)
    case = made(dict.fromkeys(BACKENDS, torch.ones(2)))
    if short == 'auto':
        with pytest.raises(ValueError, match="'auto' needs more memory"):
            measure.measure(case, CPU, True)
        return
    rows = measure.measure(case, CPU, True)
    assert [row['backend'] for row in rows] == ['auto', 'torch']
    assert 'made: the reference does not fit' in capsys.readouterr().out
    result = benchmark.summary('cpu', rows)
    assert result['speedup'] == result['memory'] == {}


@pytest.mark.skipif(
    not Path('/proc/self/clear_refs').exists(), reason='needs Linux'
)
def test_peak_memory_is_seen():
    def transient():
        torch.ones(2**24)  # 64 MiB, freed at once
        return (torch.ones(2**10),)

    def kept():
        return (torch.ones(2**24),)

    rises = [
        measure.peak_rise(call, CPU) for call in (transient, kept, transient)
    ]
    assert all(60 < rise < 70 for rise in rises), rises


@pytest.mark.gpu
def test_peak_memory_of_a_gpu_is_seen():
    device = torch.device('cuda')
    call = partial(torch.ones, 2**24, device=device)
    assert measure.peak_rise(lambda: (call(),), device) == 64


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['jbu', 'jub'], "names must be of .*'jbu', .*, got 'jub'"),
        (['--device', 'tpu'], "--device must be of .*, got 'tpu'"),
        (['--json', ROOT], '--json .* is a folder, not a file'),
        (['--markdown', 'no.md'], '--markdown no.md does not exist'),
        (['--markdown', ROOT / 'LICENSE'], 'has no <!-- benchmark: cpu -->'),
        (['--markdown', 'no.md', '--quick'], 'of a full run, got --quick'),
    ],
)
def test_bad_options_are_one_line(args, message, run):
    with pytest.raises(SystemExit, match=f'^error: .*{message}') as error:
        run(*args)
    assert '\n' not in str(error.value)


def test_cuda_needs_a_gpu(run, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(SystemExit, match='error: --device cuda needs a GPU'):
        run('--device', 'cuda')


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('heavy', 'import heavy imports torch'),
        ('broken', 'import broken: Nam'),
    ],
)
def test_import_is_checked(name, message, tmp_path, monkeypatch):
    (tmp_path / 'torch.py').touch()
    (tmp_path / 'heavy.py').write_text('import torch\n')
    (tmp_path / 'broken.py').write_text('missing\n')
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    with pytest.raises(ValueError, match=message):
        benchmark.measure_import(True, name)


ROWS = [
    dict(case='a', backend=name, ms=ms, peak_mib=peak, max_rel_diff=diff)
    for name, ms, peak, diff in (
        ('reference', 1235.0, 100.0, 0.0),
        ('auto', 10.0, 0.0, 1.23e-6),
    )
] + [dict(case='b', backend='auto', ms=1, peak_mib=None, max_rel_diff=None)]


def test_summary_has_ratios():
    result = benchmark.summary('cpu', ROWS)
    assert result['rows'] == ROWS
    assert result['speedup'] == dict(a=123.5)
    assert result['memory'] == dict(a=100 / benchmark.PAGE)


def test_table_replaces_that_of_its_device(run, tmp_path, monkeypatch):
    path = tmp_path / 'page.md'
    for device in ('cpu', 'cuda'):
        with path.open('a') as file:
            file.write(f'# {device}\n<!-- benchmark: {device} -->\nold\n')
            file.write('<!-- end -->\nbelow\n')
    monkeypatch.setattr(benchmark, 'run', lambda *args: ROWS)
    for _ in range(2):  # what is there already is replaced
        run('--markdown', path)
        text = path.read_text()
        assert text.startswith('# cpu\n<!-- benchmark: cpu -->\n')
        assert text.endswith(
            '<!-- end -->\nbelow\n# cuda\n<!-- benchmark: cuda -->\nold\n'
            '<!-- end -->\nbelow\n'
        )
        assert text.count('old') == 1
        assert f'torch {torch.__version__}' in text
        assert '| a | reference | 1235.0 | 100.0 | 0.0e+00 |  |  |' in text
        assert '| a | auto | 10.0 | 0.0 | 1.2e-06 | 123.5 x |' in text
        assert '| b | auto | 1.0 |  |  |  |  |' in text


def test_the_document_names_all_cases():
    path = ROOT / 'docs' / 'performance.md'
    text = path.read_text()
    for cases in CASES.values():
        assert all(f'`{case}`' in text for case in cases)
    for device in benchmark.DEVICES:
        assert benchmark.updated(str(path), device, '') != text
