"""``tools/benchmark.py`` on small sizes. No test depends on a time."""

import json
import sys
from functools import partial
from pathlib import Path

import benchmark
import pytest
import torch
from benchmarks import featup, measure, report, ssen, startup
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
# Cases that a GPU has besides, behind which of the others.
ON_GPU = dict(
    jbu_large=[
        'jbu_large_bf16',
        'jbu_large_train',
        'jbu_steps',
        'jbu_steps_bf16',
    ],
    crm_decode=['crm_decode_4k'],
)


def names(group, device):
    """Cases of a group on a device."""
    if device == 'cpu':
        return CASES[group]
    return [n for case in CASES[group] for n in (case, *ON_GPU.get(case, ()))]


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


def selected(*given, device='cpu'):
    return [case.name for case in benchmark.select(given, device)]


@pytest.mark.parametrize('device', ['cpu', 'cuda'])
def test_knows_all_cases(device):
    assert list(CASES) == list(benchmark.GROUPS)
    for group in CASES:
        assert selected(group, device=device) == names(group, device)
    everything = [name for group in CASES for name in names(group, device)]
    assert selected(device=device) == everything


def test_groups_and_cases_go_together():
    assert selected('crm_decode') == ['crm_decode']
    assert selected('import', 'jbu_train', 'jbu', 'jbu_train') == [
        'jbu_forward',
        'jbu_train',
        'jbu_large',
        'import',
    ]
    # The name of a group and of one of its cases.
    assert selected('non_local') == CASES['non_local']


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
    cases = names(group, device)
    assert list(dict.fromkeys(r['case'] for r in rows)) == cases
    printed = capsys.readouterr().out
    assert 'missed' not in printed
    for row in rows:
        assert list(row) == list(
            ('case', 'backend', 'ms', 'peak_mib', 'max_rel_diff')
        )
        assert f'{row["case"]:<20}{row["backend"]}' in printed
        assert row['ms'] > 0
        if row['case'] == 'import':
            continue
        assert row['peak_mib'] >= 0
        if row['case'] in ALONE or row['backend'] == 'copy':
            assert row['max_rel_diff'] is None
        else:
            limit = 0.05 if 'bf16' in row['case'] else 1e-3
            assert 0 <= row['max_rel_diff'] < limit
    for case in cases:
        backends = [r['backend'] for r in rows if r['case'] == case]
        wanted = ['auto'] if case in ALONE else ['reference', 'auto']
        assert backends[: len(wanted)] == wanted
    compared = [case for case in cases if case not in ALONE]
    assert list(result['speedup']) == list(result['memory']) == compared
    figures = {(r['case'], r['backend']): r['ms'] for r in rows}
    for case in compared:
        assert result['speedup'][case] == pytest.approx(
            figures[case, 'reference'] / figures[case, 'auto']
        )


@pytest.mark.parametrize('name', [n for new in ON_GPU.values() for n in new])
def test_what_only_a_gpu_measures_runs_on_a_cpu(name):
    (case,) = benchmark.select([name], 'cuda')
    rows = measure.measure(case, CPU, True)
    backends = [row['backend'] for row in rows]
    assert backends[:2] == ['reference', 'auto']
    assert all(row['ms'] > 0 for row in rows)
    assert all(
        (row['max_rel_diff'] is None) == (row['backend'] == 'copy')
        for row in rows
    )
    # Its aims can be judged by what there is.
    (verdicts,) = report.judge([case], 'cuda', rows).values()
    assert all(verdict.found for verdict in verdicts)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_steps_are_those_of_the_formula(dtype):
    torch.manual_seed(0)
    found = featup._steps('auto', CPU, True, dtype)()
    torch.manual_seed(0)
    formula = featup._steps('reference', CPU, True, dtype, 'reference')()
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    assert measure.max_rel_diff(found, formula) < tolerance


@pytest.mark.parametrize(
    ('dtype', 'bytes_'), [(torch.float32, 564.1e6), (torch.bfloat16, 282e6)]
)
def test_a_copy_moves_what_the_steps_do(dtype, bytes_):
    (target,) = featup._copy(featup._LARGE, CPU, dtype)()
    assert target.eq(1).all()
    moved = 2 * target.numel() * target.element_size()  # read and written
    assert moved == pytest.approx(bytes_, rel=1e-3)


def test_a_copy_is_not_compared(alone):
    alone['copy'] = 0.0
    results = dict(
        reference=torch.ones(2), auto=torch.ones(2), copy=torch.zeros(3)
    )
    rows = measure.measure(made(results), CPU, True)
    assert [row['max_rel_diff'] for row in rows] == [0, 0, None]


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
    result = report.summary('cpu', rows)
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
        (
            ['jbu', 'jub'],
            "names must be of .*'jbu', .*'jbu_train', .* on cpu, got 'jub'",
        ),
        (['crm_decode_4k'], "on cpu, got 'crm_decode_4k'"),
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
        startup.measure_import(True, name)


def test_import_is_timed_without_the_start(tmp_path, monkeypatch):
    (tmp_path / 'sitecustomize.py').write_text('import time; time.sleep(1)\n')
    (tmp_path / 'slow.py').write_text('import time; time.sleep(0.1)\n')
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    # At least the sleep; the upper bound only tells the start from it.
    assert 100 <= startup.measure_import(True, 'slow')['ms'] < 1000
