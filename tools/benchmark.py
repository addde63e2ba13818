"""Measure speed and memory of every backend against the published formula.

For each case: the median time, the peak memory that one call adds, how far
the result is from the reference's, and whether 'auto' meets its aims. See
docs/performance.md.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from benchmarks import crm, featup, ssen, startup
from benchmarks.measure import DEVICES, Case, measure
from benchmarks.report import (
    COLUMNS,
    judge,
    missed,
    summary,
    table,
    updated,
)

from mmplugins.apis import launch
from mmplugins.apis.predictions import write_metrics

GROUPS = {
    'jbu': featup.CASES,
    'deform_conv': ssen.DEFORM_CONV,
    'non_local': ssen.NON_LOCAL,
    'crm': crm.CASES,
    'ssen': ssen.CASES,
    'import': startup.CASES,
}


def select(names: Sequence[str], device: str) -> list[Case]:
    """Cases to measure, each once and in the table's order.

    Args:
        names (Sequence[str]): Groups and cases; none are all.
        device (str): 'cpu' or 'cuda'.

    Raises:
        ValueError: If there is no such group or case on the device.
    """
    groups = {
        group: [case.name for case in cases if device in case.devices]
        for group, cases in GROUPS.items()
    }
    # A name of both, as `non_local`, is the group.
    members = {name: [name] for group in groups.values() for name in group}
    members = {**members, **groups}
    for name in names:
        if name not in members:
            valid = tuple(dict.fromkeys([*groups, *members]))
            raise ValueError(
                f'names must be of {valid} on {device}, got {name!r}'
            )
    wanted = {case for name in names or groups for case in members[name]}
    return [
        case
        for cases in GROUPS.values()
        for case in cases
        if case.name in wanted
    ]


def run(cases: Sequence[Case], device: str, quick: bool) -> list[dict]:
    """Measure cases and print their rows, as of ``measure``."""
    rows = []
    print(_line(COLUMNS))
    for case in cases:
        if case.prepare is None:
            new = [startup.measure_import(quick)]
        else:
            new = measure(case, torch.device(device), quick)
        rows.extend(new)
        # Small work says nothing about aims.
        aims = {} if quick else judge([case], device, new)
        for cells in table(new, aims):
            print(_line(cells), flush=True)
    return rows


def _line(cells: Sequence[str]) -> str:
    first, second, *others, last = cells
    figures = ''.join(f'{cell:>12}' for cell in others)
    return f'{first:<20}{second:<10}{figures}  {last}'.rstrip()


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    groups = ', '.join(GROUPS)
    add('names', nargs='*', help=f'{groups}, or cases of them; all by default')
    add('--device', default='cpu', help='cpu or cuda; cpu by default')
    add('--quick', action='store_true', help='small sizes and one run')
    add('--json', metavar='FILE', help='write rows and ratios')
    add(
        '--markdown',
        metavar='FILE',
        help='replace the rows of the table in a document',
    )
    return parser.parse_args()


def check_args(args: argparse.Namespace) -> None:
    """Raise ValueError for what cannot be run or written."""
    if args.device not in DEVICES:
        raise ValueError(f'--device must be of {DEVICES}, got {args.device!r}')
    cases = select(args.names, args.device)
    if args.device == 'cuda' and not torch.cuda.is_available():
        raise ValueError('--device cuda needs a GPU, torch finds none')
    launch.require_writable('--json', args.json)
    if args.markdown:
        if args.quick:
            raise ValueError(
                '--markdown needs the sizes of a full run, got --quick'
            )
        _document(args, cases, [])


def _document(
    args: argparse.Namespace, cases: Sequence[Case], rows: Sequence[dict]
) -> str:
    """Text of the document with these rows."""
    return updated(
        args.markdown,
        args.device,
        table(rows, judge(cases, args.device, rows) if rows else {}),
        [case.name for case in cases],
        [case.name for case in select((), args.device)],
    )


def main() -> None:
    args = parse_args()
    try:
        check_args(args)
        cases = select(args.names, args.device)
        rows = run(cases, args.device, args.quick)
    except ValueError as error:
        raise SystemExit(f'error: {error}') from error
    line = '' if args.quick else missed(judge(cases, args.device, rows))
    if line:
        print(line)
    if args.json:
        write_metrics(summary(args.device, rows), args.json)
    if args.markdown:
        Path(args.markdown).write_text(_document(args, cases, rows))


if __name__ == '__main__':
    main()
