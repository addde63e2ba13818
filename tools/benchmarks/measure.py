"""Time and memory of one piece of work, done by several backends."""

import ctypes
import gc
import multiprocessing
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from importlib.util import find_spec
from math import inf
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

# After a first call that warms up, a backend is timed at most RUNS times, and
# not again once that took SECONDS. A reference whose first call takes longer
# than SLOW seconds is timed by that call.
RUNS = 7
SECONDS = 2.0
SLOW = 5.0

_MIB = 2**20
# Where Linux forgets the most memory that this process ever had.
_FORGET = Path('/proc/self/clear_refs')
# What the processes that measure memory share, so that each begins at once.
_PRELOAD = [
    'torch',
    'mmcv.ops',
    'mmplugins.featup',
    'mmplugins.crm',
    'mmplugins.ssen',
]

# No backend but a plain copy, in the same run: what memory alone allows.
COPY = 'copy'
DEVICES = ('cpu', 'cuda')

Call = Callable[[], tuple[Tensor, ...]]


class Aim(NamedTuple):
    """What 'auto' is to reach on a device; None is what has no aim."""

    time: float | None = None
    """The reference's time over its own, at least."""
    memory: float | None = None
    """The reference's peak over its own, at least."""
    ms: float | None = None
    """Its time stays below."""
    copies: float | None = None
    """Its time over that of a plain copy, at most."""
    backend: str | None = None
    """The backend that it is."""


class Case(NamedTuple):
    """Work with the same result by every backend.

    Its functions are found by their names in other processes: no lambdas.
    """

    name: str
    backends: Callable[[torch.device], Sequence[str]]
    """Those that run on a device; 'reference' first, if there is one."""
    prepare: Callable[[str, torch.device, bool], Call] | None
    """The work of a backend on a device, small or not, with its weights and
    inputs loaded; None for the import, which is timed elsewhere."""
    tolerance: float = 1e-4
    """Difference allowed, as a share of the reference's largest value."""
    budget: float = inf
    """MiB that a call may need beyond its inputs and its output."""
    aims: Mapping[str, Aim] = {}
    """By device. They are judged where they are printed, and nowhere else."""
    devices: Sequence[str] = DEVICES
    """Those that it is measured on."""
    resolve: Callable[[torch.device], str] | None = None
    """Which backend 'auto' is on a device, for an aim at it."""


def named(backends: Sequence[str], device: torch.device) -> list[str]:
    """Those of an operator's backends that run on a device, first two first.

    Args:
        backends (Sequence[str]): Its names, 'reference' and 'auto' included.
        device (torch.device): Where the tensors are.
    """
    others = [name for name in backends if name not in ('reference', 'auto')]
    if device.type != 'cuda' or not find_spec('triton'):
        others = [name for name in others if name != 'triton']
    return ['reference', 'auto', *others]


def without_gradients(function: Callable[[], Tensor]) -> Call:
    """Work that is a forward pass."""

    def call() -> tuple[Tensor, ...]:
        with torch.no_grad():
            return (function(),)

    return call


def with_gradients(
    function: Callable[[], Tensor], inputs: Sequence[Tensor], size: torch.Size
) -> Call:
    """Work that is a forward and a backward pass.

    Args:
        function (Callable): The forward pass.
        inputs (Sequence[Tensor]): What gets gradients.
        size (torch.Size): Shape of its result.
    """
    grad = torch.randn(size).to(inputs[0].device)
    inputs = [tensor.requires_grad_() for tensor in inputs]

    def call() -> tuple[Tensor, ...]:
        out = function()
        return out.detach(), *torch.autograd.grad(out, inputs, grad)

    return call


def measure(case: Case, device: torch.device, quick: bool) -> list[dict]:
    """Time, memory and difference of each backend.

    Args:
        case (Case): What to do.
        device (torch.device): Where to do it.
        quick (bool): Do little of it, once.

    Returns:
        list[dict]: For each backend its case, backend, ms (median), peak_mib
        and max_rel_diff; None is what there is not.

    Raises:
        ValueError: If a backend's result is not the reference's, or it needs
            too much memory.
    """
    peaks = _peaks(case, device, quick)
    calls = {name: _prepared(case, name, device, quick) for name in peaks}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    differences: dict[str, float | None] = {}
    expected = None
    for backend, call in calls.items():
        first, outputs = _timed(call, device)
        _check_budget(case, backend, peaks[backend], outputs)
        if backend == 'reference':
            expected = outputs
            if first > SLOW:
                seconds[backend].append(first)
        differences[backend] = (
            None
            if backend == COPY
            else _compare(case, backend, outputs, expected)
        )
    del expected, outputs
    again = [name for name in calls if not seconds[name]]
    # In turns, so that what slows the machine down for a while slows all.
    for _ in range(1 if quick else RUNS):
        for backend in again:
            if sum(seconds[backend]) < SECONDS:
                seconds[backend].append(_timed(calls[backend], device)[0])
    return [
        dict(
            case=case.name,
            backend=backend,
            ms=1000 * median(seconds[backend]),
            peak_mib=peaks[backend],
            max_rel_diff=differences[backend],
        )
        for backend in calls
    ]


def _peaks(
    case: Case, device: torch.device, quick: bool
) -> dict[str, float | None]:
    """Peak memory of each backend, without a reference that does not fit."""
    peaks = {}
    for backend in case.backends(device):
        try:
            peaks[backend] = peak_of(case, backend, device, quick)
        except MemoryError as error:
            if backend != 'reference':
                raise ValueError(
                    f'{case.name}: backend {backend!r} needs more memory than '
                    'there is'
                ) from error
            print(f'{case.name}: the reference does not fit in memory')
    return peaks


def _check_budget(
    case: Case, backend: str, peak: float | None, outputs: Sequence[Tensor]
) -> None:
    size = sum(t.numel() * t.element_size() for t in outputs) / _MIB
    if peak is not None and peak - size > case.budget:
        raise ValueError(
            f'{case.name}: backend {backend!r} needs {peak - size:.0f} MiB '
            f'beyond its inputs and output, {case.budget:.0f} MiB are allowed'
        )


def _compare(
    case: Case,
    backend: str,
    outputs: Sequence[Tensor],
    expected: Sequence[Tensor] | None,
) -> float | None:
    """Difference from the reference; None without one."""
    if expected is None:
        return None
    difference = max_rel_diff(outputs, expected)
    if not difference <= case.tolerance:  # it may be no number
        raise ValueError(
            f'{case.name}: the result of backend {backend!r} differs from the '
            f'reference by {difference:.1e} of its largest value, '
            f'{case.tolerance:.0e} are allowed'
        )
    return difference


def max_rel_diff(
    outputs: Sequence[Tensor], expected: Sequence[Tensor]
) -> float:
    """Largest difference of two results, each as a share of the largest value.

    Args:
        outputs (Sequence[Tensor]): Tensors of a result.
        expected (Sequence[Tensor]): Those of the reference.

    Returns:
        float: Not a number where one of them has such values; infinity where
        their shapes differ.
    """
    if [t.shape for t in outputs] != [t.shape for t in expected]:
        return inf
    shares = [
        (out - ref).abs().max() / ref.abs().max().clamp_min(1e-30)
        for out, ref in zip(outputs, expected)
    ]
    return torch.stack(shares).max().item()


def peak_of(
    case: Case, backend: str, device: torch.device, quick: bool
) -> float | None:
    """Peak memory of one call, in a process of its own.

    Args:
        case (Case): What to do.
        backend (str): By which backend.
        device (torch.device): Where to do it.
        quick (bool): Do little of it.

    Returns:
        float | None: As of :func:`peak_rise`.

    Raises:
        MemoryError: If there is not enough.
    """
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(_PRELOAD)
    with ProcessPoolExecutor(1, context) as pool:
        try:
            return pool.submit(_peak, case, backend, device, quick).result()
        except BrokenProcessPool as error:  # as the kernel ends it
            raise MemoryError from error
        except RuntimeError as error:
            if re.search("out of memory|can't allocate", str(error)):
                raise MemoryError from error
            raise


def peak_rise(call: Call, device: torch.device) -> float | None:
    """What a call adds at most to the memory in use, its result included.

    Args:
        call (Call): Work whose weights and inputs are loaded.
        device (torch.device): Where it is done.

    Returns:
        float | None: MiB; None for a CPU on a system that does not tell.
    """
    gc.collect()
    if device.type == 'cuda':
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        outputs = call()
        torch.cuda.synchronize()
        del outputs
        return (torch.cuda.max_memory_allocated() - before) / _MIB
    if not _FORGET.exists():
        return None
    # What was freed and is still held would be used again, unseen.
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
    _FORGET.write_text('5')
    before, code = _memory('VmRSS'), _memory('RssFile')
    outputs = call()
    # Code of libraries that runs for the first time is in their files.
    code = _memory('RssFile') - code
    after = _memory('VmHWM')
    del outputs
    return max(0.0, after - before - max(0.0, code))


def _peak(
    case: Case, backend: str, device: torch.device, quick: bool
) -> float | None:
    # Little work first, which loads the code of the libraries.
    _prepared(case, backend, device, True)()
    return peak_rise(_prepared(case, backend, device, quick), device)


def _memory(key: str) -> float:
    """A line of what Linux says of this process, in MiB."""
    text = Path('/proc/self/status').read_text()
    return (
        int(re.search(rf'^{key}:\s+(\d+) kB$', text, re.MULTILINE)[1]) / 1024
    )


def _prepared(
    case: Case, backend: str, device: torch.device, quick: bool
) -> Call:
    """Work with the same numbers, whichever backend and process."""
    torch.backends.cudnn.allow_tf32 = False
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return case.prepare(backend, device, quick)


def _timed(
    call: Call, device: torch.device
) -> tuple[float, tuple[Tensor, ...]]:
    """Seconds of a call, and its result."""
    _wait(device)
    begin = time.perf_counter()
    outputs = call()
    _wait(device)
    return time.perf_counter() - begin, outputs


def _wait(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize()
