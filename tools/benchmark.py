"""Measure speed and memory of every backend against the published formula.

For each case: the median time, the peak memory that one call adds, and how far
the result is from the reference's. See docs/performance.md.
"""

import argparse
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median

import mmcv
import torch
from benchmarks import crm, featup, ssen
from benchmarks.measure import measure

from mmplugins.apis import launch
from mmplugins.apis.predictions import write_metrics

GROUPS = dict(
    jbu=featup.CASES,
    deform_conv=ssen.DEFORM_CONV,
    non_local=ssen.NON_LOCAL,
    crm=crm.CASES,
    ssen=ssen.CASES,
)
NAMES = (*GROUPS, 'import')
DEVICES = ('cpu', 'cuda')
COLUMNS = ('case', 'backend', 'ms', 'peak MiB', 'difference', 'time', 'memory')
# Times that Python starts for the case `import`.
STARTS = 21
# No less memory than a page in a ratio, in MiB.
PAGE = 2**-8


def run(names: Iterable[str], device: str, quick: bool) -> list[dict]:
    """Measure groups of cases and print their rows, as of ``measure``."""
    rows = []

    def add(new: list[dict]) -> None:
        rows.extend(new)
        for cells in table(new):
            print(_line(cells), flush=True)

    print(_line(COLUMNS))
    for name in names:
        if name == 'import':
            add([measure_import(quick)])
        for case in GROUPS.get(name, ()):
            add(measure(case, torch.device(device), quick))
    return rows


def measure_import(quick: bool, module: str = 'mmplugins') -> dict:
    """Row of what an import adds to the start of Python.

    Raises:
        ValueError: If it fails or imports torch.
    """
    statement = f'import {module}'
    check = f"{statement}, sys; print('torch' in sys.modules)"
    try:
        loaded = subprocess.run(
            [sys.executable, '-c', check],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    except subprocess.CalledProcessError as error:
        raise ValueError(
            f'{statement}: {error.stderr.splitlines()[-1]}'
        ) from error
    if loaded.strip() != 'False':
        raise ValueError(f'{statement} imports torch')
    seconds = {'pass': [], statement: []}
    for _ in range(1 if quick else STARTS):
        for code, times in seconds.items():
            begin = time.perf_counter()
            subprocess.run([sys.executable, '-c', code], check=True)
            times.append(time.perf_counter() - begin)
    alone, whole = (median(times) for times in seconds.values())
    return dict(
        case='import',
        backend='auto',
        ms=1000 * (whole - alone),
        peak_mib=None,
        max_rel_diff=None,
    )


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
    for other in rows:
        if other['case'] == row['case'] and other['backend'] == 'reference':
            if None in (other[key], row[key]):
                return None
            return other[key] / max(row[key], PAGE)
    return None


def table(rows: Sequence[dict]) -> list[list[str]]:
    """Cells of each row, as of ``COLUMNS``."""
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
        lines.append(
            [
                row['case'],
                row['backend'],
                *(
                    '' if value is None else f'{value:{form}}{unit}'
                    for value, form, unit in figures
                ),
            ]
        )
    return lines


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
    return (
        f'{name}; torch {torch.__version__}, mmcv {mmcv.__version__}, float32'
    )


def markdown(device: str, rows: Sequence[dict]) -> str:
    """The table as Markdown, below the name of the machine."""
    rules = ['---'] * 2 + ['---:'] * (len(COLUMNS) - 2)
    lines = [COLUMNS, rules, *table(rows)]
    text = ''.join(f'| {" | ".join(line)} |\n' for line in lines)
    return f'{machine(device)}\n\n{text}'


def updated(path: str, device: str, text: str) -> str:
    """Text of a file with the part for a device replaced.

    Raises:
        ValueError: If the file is not there or has no such part.
    """
    launch.require_file('--markdown', path)
    whole = Path(path).read_text()
    begin, end = f'<!-- benchmark: {device} -->\n', '<!-- end -->'
    head, found, rest = whole.partition(begin)
    _, closed, tail = rest.partition(end)
    if not found or not closed:
        raise ValueError(
            f'--markdown {path} has no {begin.strip()} ... {end} to replace'
        )
    return f'{head}{begin}{text}{end}{tail}'


def _line(cells: Sequence[str]) -> str:
    first, second, *others = cells
    return f'{first:<20}{second:<10}' + ''.join(f'{c:>12}' for c in others)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add('names', nargs='*', help=f'{", ".join(NAMES)}; all by default')
    add('--device', default='cpu', help='cpu or cuda; cpu by default')
    add('--quick', action='store_true', help='small sizes and one run')
    add('--json', metavar='FILE', help='write rows and ratios')
    add('--markdown', metavar='FILE', help='replace the table in a document')
    return parser.parse_args()


def check_args(args: argparse.Namespace) -> None:
    """Raise ValueError for what cannot be run or written."""
    for name in args.names:
        if name not in NAMES:
            raise ValueError(f'names must be of {NAMES}, got {name!r}')
    if args.device not in DEVICES:
        raise ValueError(f'--device must be of {DEVICES}, got {args.device!r}')
    if args.device == 'cuda' and not torch.cuda.is_available():
        raise ValueError('--device cuda needs a GPU, torch finds none')
    launch.require_writable('--json', args.json)
    if args.markdown:
        if args.quick:
            raise ValueError(
                '--markdown needs the sizes of a full run, got --quick'
            )
        updated(args.markdown, args.device, '')


def main() -> None:
    args = parse_args()
    try:
        check_args(args)
        names = dict.fromkeys(args.names) or NAMES
        rows = run(names, args.device, args.quick)
    except ValueError as error:
        raise SystemExit(f'error: {error}') from error
    if args.json:
        write_metrics(summary(args.device, rows), args.json)
    if args.markdown:
        text = markdown(args.device, rows)
        Path(args.markdown).write_text(
            updated(args.markdown, args.device, text)
        )


if __name__ == '__main__':
    main()
