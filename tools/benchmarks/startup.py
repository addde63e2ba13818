"""The import of the package, in Pythons of its own."""

import subprocess
import sys
from statistics import median

import torch

from .measure import Aim, Case

# Times that Python starts.
STARTS = 21
_CODE = """
import sys, time
begin = time.perf_counter_ns()
{statement}
print(time.perf_counter_ns() - begin, 'torch' in sys.modules)
"""


def measure_import(quick: bool, module: str = 'mmplugins') -> dict:
    """Row of an import, timed where it happens: in a new Python.

    Args:
        quick (bool): Start Python once.
        module (str): What to import. Defaults to ``'mmplugins'``.

    Returns:
        dict: As of :func:`.measure.measure`.

    Raises:
        ValueError: If it fails or imports torch.
    """
    statement = f'import {module}'
    code = _CODE.format(statement=statement)
    times = []
    for start in range(1 + (1 if quick else STARTS)):
        try:
            printed = subprocess.run(
                [sys.executable, '-c', code],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        except subprocess.CalledProcessError as error:
            raise ValueError(
                f'{statement}: {error.stderr.splitlines()[-1]}'
            ) from error
        spent, heavy = printed.split()[-2:]
        if heavy != 'False':
            raise ValueError(f'{statement} imports torch')
        if start:  # the first one warms up: it may compile the files
            times.append(int(spent))
    return dict(
        case='import',
        backend='auto',
        ms=median(times) / 1e6,
        peak_mib=None,
        max_rel_diff=None,
    )


def _only_auto(device: torch.device) -> list[str]:
    return ['auto']


CASES = (Case('import', _only_auto, None, aims=dict(cpu=Aim(ms=20))),)
