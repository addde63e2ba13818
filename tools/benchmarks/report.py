"""What measured rows say: ratios, aims, and tables of them."""

import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import NamedTuple

import mmcv
import torch

from mmplugins.apis import launch

from .measure import COPY, Aim, Case

COLUMNS = (
    'case',
    'backend',
    'ms',
    'peak MiB',
    'difference',
    'time',
    'memory',
    'aim',
)
# No less memory than a page in a ratio, in MiB.
PAGE = 2**-8


class Verdict(NamedTuple):
    """Whether 'auto' meets an aim."""

    aim: str
    found: str | None
    """What it has instead; None where there is nothing to judge by."""
    met: bool


def summary(device: str, rows: Sequence[dict]) -> dict:
    """Rows, and for each case what 'auto' saves: reference / auto."""
    savings = dict(ms={}, peak_mib={})
    for row in rows:
        for key, values in savings.items():
            saved = ratio(rows, row, key)
            if row['backend'] == 'auto' and saved is not None:
                values[row['case']] = saved
    return dict(
        device=device,
        rows=rows,
        speedup=savings['ms'],
        memory=savings['peak_mib'],
    )


def ratio(rows: Sequence[dict], row: dict, key: str) -> float | None:
    """A figure of the reference over that of a row; None without either."""
    reference = _row(rows, row['case'], 'reference')
    if reference is None or None in (reference[key], row[key]):
        return None
    return reference[key] / max(row[key], PAGE)


def judge(
    cases: Sequence[Case], device: str, rows: Sequence[dict]
) -> dict[str, list[Verdict]]:
    """What became of the aims of each case on a device.

    Args:
        cases (Sequence[Case]): Cases with their aims.
        device (str): 'cpu' or 'cuda'.
        rows (Sequence[dict]): Rows of a full run.

    Returns:
        dict[str, list[Verdict]]: By the names of the cases.
    """
    return {case.name: list(_verdicts(case, device, rows)) for case in cases}


def _verdicts(
    case: Case, device: str, rows: Sequence[dict]
) -> Iterator[Verdict]:
    aim = case.aims.get(device, Aim())
    auto = _row(rows, case.name, 'auto')
    for wanted, key, unit in (
        (aim.time, 'ms', 'x'),
        (aim.memory, 'peak_mib', 'x memory'),
    ):
        if wanted is not None:
            found = ratio(rows, auto, key)
            yield _verdict(wanted, found, unit, found and found >= wanted)
    if aim.ms is not None:
        yield _verdict(aim.ms, auto['ms'], 'ms', auto['ms'] < aim.ms)
    if aim.copies is not None:
        found = auto['ms'] / _row(rows, case.name, COPY)['ms']
        yield _verdict(aim.copies, found, 'copies', found <= aim.copies)
    if aim.backend is not None:
        found = case.resolve(torch.device(device))
        yield Verdict(aim.backend, found, found == aim.backend)
    if isfinite(case.budget):  # a run that needs more ends with an error
        yield _verdict(case.budget, auto['peak_mib'], 'MiB', True)


def _verdict(
    wanted: float, found: float | None, unit: str, met: bool | None
) -> Verdict:
    """Verdict on a number."""
    text = None if found is None else f'{found:.3g} {unit}'
    return Verdict(f'{wanted:g} {unit}', text, bool(met))


def missed(aims: Mapping[str, Sequence[Verdict]]) -> str:
    """One line on the aims that were judged; empty without any."""
    judged = [
        (name, verdict)
        for name, verdicts in aims.items()
        for verdict in verdicts
        if verdict.found is not None
    ]
    if not judged:
        return ''
    misses = [
        f'{name} {verdict.found} (aim {verdict.aim})'
        for name, verdict in judged
        if not verdict.met
    ]
    return f'aims missed: {"; ".join(misses) or "none"}'


def _row(rows: Sequence[dict], case: str, backend: str) -> dict | None:
    for row in rows:
        if (row['case'], row['backend']) == (case, backend):
            return row
    return None


def table(
    rows: Sequence[dict], aims: Mapping[str, Sequence[Verdict]]
) -> list[list[str]]:
    """Cells of each row, as of ``COLUMNS``.

    Args:
        rows (Sequence[dict]): Rows of some cases, all of each.
        aims (Mapping[str, Sequence[Verdict]]): As of :func:`judge`.
    """
    lines = []
    for row in rows:
        ratios = [None, None]
        if row['backend'] != 'reference':
            ratios = [ratio(rows, row, key) for key in ('ms', 'peak_mib')]
        figures = zip(
            (row['ms'], row['peak_mib'], row['max_rel_diff'], *ratios),
            ('.1f', '.1f', '.1e', '.1f', '.1f'),
            ('', '', '', ' x', ' x'),
        )
        verdicts = (
            aims.get(row['case'], ()) if row['backend'] == 'auto' else ()
        )
        lines.append(
            [
                row['case'],
                row['backend'],
                *(
                    '' if value is None else f'{value:{form}}{unit}'
                    for value, form, unit in figures
                ),
                ', '.join(_cell(verdict) for verdict in verdicts),
            ]
        )
    return lines


def _cell(verdict: Verdict) -> str:
    if verdict.found is None:
        return f'{verdict.aim} (?)'
    return verdict.aim if verdict.met else f'{verdict.aim} (missed)'


def machine(device: str) -> str:
    """What ran: its processor, and versions."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path('/proc/cpuinfo')
    if cpuinfo.is_file():
        found = re.search(r'model name\s*:\s*(.+)', cpuinfo.read_text())
        name = found[1] if found else name
    name = f'{name}, {torch.get_num_threads()} threads'
    if device == 'cuda':
        name = f'{torch.cuda.get_device_name()}; {name}'
    return f'{name}; torch {torch.__version__}, mmcv {mmcv.__version__}'


def updated(
    path: str,
    device: str,
    lines: Sequence[Sequence[str]],
    measured: Sequence[str],
    cases: Sequence[str],
) -> str:
    """Text of a document, with a device's table as measured.

    Args:
        path (str): The document.
        device (str): 'cpu' or 'cuda'.
        lines (Sequence[Sequence[str]]): Cells of the measured cases.
        measured (Sequence[str]): Their names.
        cases (Sequence[str]): Names of all cases on the device, in order.

    Raises:
        ValueError: If the file is not there or has no such part, or rows of
            other cases that would stay are no part of the same table.
    """
    launch.require_file('--markdown', path)
    whole = Path(path).read_text()
    begin, end = f'<!-- benchmark: {device} -->\n', '<!-- end -->'
    head, found, rest = whole.partition(begin)
    old, closed, tail = rest.partition(end)
    if not found or not closed:
        raise ValueError(
            f'--markdown {path} has no {begin.strip()} ... {end} to replace'
        )
    rules = ['---'] * 2 + ['---:'] * (len(COLUMNS) - 3) + ['---']
    first = [machine(device), '', _joined(COLUMNS), _joined(rules)]
    before = old.splitlines()
    others = [name for name in cases if name not in measured]
    kept = [line for line in before if _case_of(line) in others]
    for above, wanted in zip(before, first):
        if kept and above != wanted:
            raise ValueError(
                f'--markdown {path} would keep rows of {above!r} beside those '
                f'of {wanted!r}: measure all cases to replace them'
            )
    body = [*kept, *(_joined(line) for line in lines)]
    body.sort(key=lambda line: cases.index(_case_of(line)))
    text = ''.join(f'{line}\n' for line in [*first, *body])
    return f'{head}{begin}{text}{end}{tail}'


def _case_of(line: str) -> str:
    """First cell of a row of the document."""
    return line.removeprefix('| ').partition(' | ')[0]


def _joined(cells: Sequence[str]) -> str:
    return f'| {" | ".join(cells)} |'
