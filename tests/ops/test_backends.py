import sys
from types import SimpleNamespace

import pytest
import torch

from mmplugins.ops.backends import check_backend, choose_backend
from mmplugins.ops.triton_probe import _runs, runs


@pytest.fixture
def kernels(monkeypatch):
    """A module of kernels that runs everywhere, and counts."""
    module = SimpleNamespace(INTERPRETED=False, launches=[])
    module.probe = lambda *what: module.launches.append(what)
    monkeypatch.setitem(sys.modules, 'mmplugins.ops.kernels', module)
    monkeypatch.setattr(torch.cuda, 'synchronize', lambda index: None)
    _runs.cache_clear()
    yield module
    _runs.cache_clear()


def on(device, dtype=torch.float32):
    """As much of a tensor as a choice looks at."""
    return SimpleNamespace(device=torch.device(device), dtype=dtype)


def test_names():
    check_backend('fold', 'reference')
    check_backend('fold', 'mmcv', ['auto', 'mmcv'])
    with pytest.raises(
        ValueError, match=r"^backend of fold must be one of .*, got 'mmcv'$"
    ):
        check_backend('fold', 'mmcv')
    with pytest.raises(ValueError, match='backend of fold'):
        choose_backend('fold', 'mmcv', 'kernels', torch.zeros(1))


@pytest.mark.parametrize('backend', ['torch', 'reference'])
def test_a_name_is_what_runs(backend, kernels):
    for device in ('cpu', 'cuda:0'):
        assert (
            choose_backend('fold', backend, 'kernels', on(device)) == backend
        )
    assert not kernels.launches


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.int64])
def test_a_cpu_has_torch(dtype):
    x = torch.zeros(2, dtype=dtype)
    # Not even looked for.
    assert choose_backend('fold', 'auto', 'nowhere', x, x) == 'torch'


def test_a_gpu_has_triton_for_single_and_half_precision(kernels):
    choose = lambda *tensors: choose_backend(  # noqa: E731
        'fold', 'auto', 'kernels', *tensors
    )
    single, half = on('cuda:1'), on('cuda:1', torch.bfloat16)
    assert choose(single, half) == choose(half) == 'triton'
    # Once each, where they are.
    assert kernels.launches == [
        (single.device, torch.float32),
        (single.device, torch.bfloat16),
    ]
    assert choose(single, on('cuda:1', torch.float64)) == 'torch'
    assert choose(single, on('cuda:0')) == 'torch'
    assert choose(on('xpu:0')) == 'torch'


def test_what_does_not_launch_is_not_chosen(kernels):
    def fail(device, dtype):
        if dtype == torch.bfloat16:
            raise RuntimeError('no such instruction')

    kernels.probe = fail
    assert runs('kernels', 0, torch.float32)
    assert not runs('kernels', 0, torch.bfloat16)
    assert not runs('nowhere', 0, torch.float32)
    kernels.INTERPRETED = True
    assert not runs('kernels', 1, torch.float32)


def test_triton_by_name(kernels):
    def choose(*tensors, module='kernels'):
        return choose_backend('fold', 'triton', module, *tensors)

    others = (
        r"^backend of fold must be one of \('auto', 'reference', 'torch'\)"
    )
    with pytest.raises(ValueError, match=f'{others} on cpu unless TRITON_INT'):
        choose(torch.zeros(1))
    with pytest.raises(ValueError, match=f'{others} where Triton cannot'):
        choose(on('cuda:0'), module='nowhere')
    with pytest.raises(
        ValueError, match=r"one device, got \['cuda:0', 'cpu'\]"
    ):
        choose(on('cuda:0'), on('cpu'))
    # Double precision too, where somebody wants it.
    assert choose(on('cuda:0', torch.float64)) == 'triton'
    kernels.INTERPRETED = True
    assert choose(torch.zeros(1)) == 'triton'


def test_compilers_take_the_answer(kernels):
    kernels.INTERPRETED = True

    def function(x):
        return x * 2 if choose_backend('fold', 'triton', 'kernels', x) else x

    assert torch.equal(
        torch.compile(function, fullgraph=True, backend='eager')(
            torch.ones(2)
        ),
        torch.full((2,), 2.0),
    )
