"""The fused local ensemble, on a GPU and without one.

Without one the checks run in a process of their own, in which Triton
interprets its kernels: that has to be said before Triton is imported.
"""

import itertools
import json
import os
import subprocess
import sys
import textwrap
import traceback
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import literal_ensemble
from torch import func

from mmplugins.ops import local_ensemble
from mmplugins.ops.triton_probe import runs

ROOT = Path(__file__).parents[2]
# The last line of what that process prints.
MARK = 'RESULTS '
CHECKS = {}
needs_triton = pytest.mark.skipif(
    not find_spec('triton'), reason='needs Triton'
)
# Codes -> targets: ratio 2, more targets than a program has, 7.3, 1, 3 with
# its last cells, different ratios, fewer targets than codes, a single code.
GRIDS = [
    ((4, 6), (8, 12)),
    ((2, 10), (5, 73)),
    ((3, 20), (4, 146)),
    ((5, 4), (5, 4)),
    ((3, 5), (9, 15)),
    ((3, 8), (10, 11)),
    ((9, 12), (5, 7)),
    ((7, 5), (3, 9)),
    ((1, 1), (3, 4)),
    ((1, 6), (1, 11)),
]


def check(*cases):
    """Collect a check: a function of a device and a case."""

    def collect(function):
        for case in cases or ((),):
            name = '-'.join(map(str, (function.__name__, *case)))
            CHECKS[name] = partial(function, *case)
        return function

    return collect


def perceptron(channels, extra=6, hidden=(8, 8), out=2):
    widths = [channels + extra, *hidden, out]
    return [
        (torch.randn(n, m) / m**0.5, torch.randn(n))
        for m, n in itertools.pairwise(widths)
    ]


def moved(layers, device, dtype=torch.float32):
    return [tuple(t.to(device, dtype) for t in pair) for pair in layers]


def fused(feats, size, layers, device='cpu', **kwargs):
    out = local_ensemble(
        feats.to(device),
        size,
        moved(layers, device, feats.dtype),
        backend='triton',
        **kwargs,
    )
    assert out.dtype == torch.float32
    return out.cpu()


def assert_close(out, wanted, atol=2e-5):
    """Of the largest value, for sums have terms of that size."""
    out, wanted = out.cpu().double(), wanted.double()
    assert out.shape == wanted.shape
    error = (out - wanted).abs().max() / wanted.abs().max()
    assert error < atol, f'differs by {error} of the largest value'


@check(*GRIDS)
def the_formula(codes, size, device):
    feats, layers = torch.randn(2, 5, *codes), perceptron(5)
    out = fused(feats, size, layers, device)
    assert_close(out, literal_ensemble(feats, size, layers))


@check(
    ((1,), 1),
    ((5,), 3),
    ((7, 3, 4, 2), 2),
    ((32, 32, 32, 32), 1),
    ((20, 33, 7), 5),
    ((16, 64), 1),
)
def perceptrons(hidden, out, device):
    from mmplugins.ops import implicit_triton

    feats, layers = torch.randn(1, 9, 3, 5), perceptron(9, 6, hidden, out)
    assert implicit_triton.fits(feats.dtype, layers)
    size = (5, 18)
    wanted = literal_ensemble(feats, size, layers)
    assert_close(fused(feats, size, layers, device), wanted)


@check(*itertools.product([True, False], repeat=3))
def switches(offset, coord, ratio, device):
    given = dict(offset=offset, coord=coord, ratio=ratio)
    feats, size = torch.randn(2, 3, 3, 5), (4, 17)
    layers = perceptron(3, extra=2 * (offset + coord + ratio))
    out = fused(feats, size, layers, device, **given)
    assert_close(out, literal_ensemble(feats, size, layers, **given))


@check(
    ((0, 0, 5, 4), (0, 0, 2, 3)),
    ((18, 25, 5, 6), (4, 6, 2, 3)),
    ((9, 11, 1, 1), (1, 2, 3, 3)),
    ((8, 10, 6, 13), (1, 2, 4, 6)),
)
def windows(window, part, device):
    feats, layers = torch.randn(2, 3, 6, 9), perceptron(3)
    wanted = literal_ensemble(feats, (23, 31), layers)
    y, x, h, w = part
    out = fused(
        feats[..., y : y + h, x : x + w],
        (23, 31),
        layers,
        device,
        window=window,
        grid=(6, 9),
        origin=(y, x),
    )
    y, x, h, w = window
    assert_close(out, wanted[..., y : y + h, x : x + w])


@check()
def channels_last(device):
    feats, layers = torch.randn(2, 5, 3, 4), perceptron(5)
    wanted = literal_ensemble(feats, (4, 9), layers)
    feats = feats.to(memory_format=torch.channels_last)
    assert_close(fused(feats, (4, 9), layers, device), wanted)


@check()
def equal_areas_on_the_last_centre(device):
    """There the four areas are nothing, and the answers' mean is taken."""
    feats, passing = 1 + torch.rand(1, 1, 4, 3), torch.zeros(1, 7)
    passing[0, 0] = 1
    layers = [(passing, torch.zeros(1)), (torch.ones(1, 1), torch.zeros(1))]
    out = fused(feats, (16, 9), layers, device)
    mean = feats[0, 0, :2, 2].mean()
    torch.testing.assert_close(out[0, 0, 3:5, 7], mean.expand(2))


@check()
def not_a_number_stays_one(device):
    feats, layers = torch.randn(1, 3, 3, 6), perceptron(3)
    feats[0, 1, 1, 1] = torch.nan
    wanted = literal_ensemble(feats, (4, 13), layers).isnan()
    assert 0 < wanted.sum() < wanted.numel()
    assert torch.equal(fused(feats, (4, 13), layers, device).isnan(), wanted)


@check((torch.bfloat16, 0.03), (torch.float16, 0.004))
def half_precision(dtype, atol, device):
    feats, layers = torch.randn(1, 4, 3, 6).to(dtype), perceptron(4)
    layers = moved(layers, 'cpu', dtype)
    wanted = literal_ensemble(feats, (7, 44), layers)
    assert_close(fused(feats, (7, 44), layers, device), wanted, atol)


@check((torch.bfloat16, 0.03), (torch.float16, 0.004))
def autocast(dtype, atol, device):
    """And its gradients, which weights get in single precision."""
    feats, layers = torch.randn(1, 4, 3, 6), perceptron(4)
    grad = torch.randn(1, 2, 5, 20)
    wanted, wanted_grads = with_gradients(
        feats.double(), layers, grad, backend='reference'
    )
    with torch.autocast(device, dtype):
        out, grads = with_gradients(feats.to(device), layers, grad)
    assert_close(out, wanted, atol)
    for x, y in zip(grads, wanted_grads):
        assert x.dtype == torch.float32
        assert_close(x, y, 3 * atol)


@check((True,), (False,))
def half_precision_keeps_its_place(with_autocast, device):
    """Its coordinates could not tell targets of a wide image apart."""
    feats = 1 + torch.rand(1, 1, 1, 3000).bfloat16().float()
    wanted = F.interpolate(feats, (2, 6000), mode='bilinear')
    passing = torch.zeros(1, 7)
    passing[0, 0] = 1
    layers = [(passing, torch.zeros(1)), (torch.ones(1, 1), torch.zeros(1))]
    if not with_autocast:
        feats = feats.bfloat16()
    # A few programs of the whole row.
    given = dict(window=(0, 2800, 1, 300))
    with torch.autocast(device, torch.bfloat16, enabled=with_autocast):
        out = fused(feats, (2, 6000), layers, device, **given)
    wanted = wanted[..., :1, 2800:3100]
    torch.testing.assert_close(out, wanted, rtol=0, atol=0.01)


def with_gradients(feats, layers, grad, backend='triton', **kwargs):
    """Answers, and gradients of codes, weights and biases."""
    layers = moved(layers, feats.device, feats.dtype)
    leaves = [feats.clone(), *(t.clone() for pair in layers for t in pair)]
    feats, *flat = [t.requires_grad_() for t in leaves]
    pairs = list(zip(flat[::2], flat[1::2]))
    size = kwargs.pop('size', grad.shape[-2:])
    out = local_ensemble(feats, size, pairs, backend=backend, **kwargs)
    grad = grad.to(out.device, out.dtype)
    return out.detach(), torch.autograd.grad(out, [feats, *flat], grad)


@check(
    (2, (8, 8), 2, (4, 6), (7, 13), dict(chunk=30)),
    (1, (5,), 3, (5, 7), (3, 4), {}),
    (1, (32, 32, 32, 32), 1, (3, 4), (4, 6), dict(chunk=1)),
    (1, (20, 33, 7), 2, (1, 1), (2, 3), {}),
    (1, (8, 8), 1, (6, 9), (3, 5), dict(size=(9, 7), window=(6, 1, 3, 5))),
)
def gradients(batch, hidden, out, codes, size, given, device):
    feats = torch.randn(batch, 5, *codes)
    layers = perceptron(5, 6, hidden, out)
    grad = torch.randn(batch, out, *size)
    _, wanted = with_gradients(
        feats.double(), layers, grad, backend='reference', **given
    )
    _, grads = with_gradients(feats.to(device), layers, grad, **given)
    for x, y in zip(grads, wanted, strict=True):
        # Weights of the ratio get none where everything cancels.
        assert_close(x, y, 5e-5)


def operands(device, dtype=torch.float32, between=1):
    """What the operator takes: single and double precision, some padding."""
    from mmplugins.ops import implicit_triton
    from mmplugins.ops.implicit import neighbours

    axes = neighbours(3, 4), neighbours(4, 9)
    layers = perceptron(8, 0, (8,) * (between + 1))[1:]
    floats = [
        torch.randn(2, 3, 4, 8),
        torch.randn(2, 4, 8),
        torch.randn(2, 9, 8),
        *implicit_triton.pack_layers(layers, 8),
    ]
    # The seven that get gradients.
    floats = [t.to(device, dtype).requires_grad_() for t in floats]
    indices = [axis.index.to(device, torch.int32) for axis in axes]
    offsets = [axis.offset.abs().to(device, dtype) for axis in axes]
    return [*floats[:3], *indices, *offsets, *floats[3:], 3]


@check((0,), (2,))
def the_backward_formula(between, device):
    """In double precision, against gradients of the forward one."""
    from mmplugins.ops import implicit_triton

    args = operands(device, torch.float64, between)
    codes, rows, columns, iy, ix, y, x, hidden, bias, last, last_bias = args[
        :-1
    ]
    total = y.sum(0)[:, None] * x.sum(0) + 4e-9
    blend = 0
    for i, j in itertools.product((0, 1), repeat=2):
        value = codes[:, iy[i].long()][:, :, ix[j].long()]
        value = (value + rows[i][:, None] + columns[j]).relu()
        value = F.pad(value, (0, 8))
        for matrix, shift in zip(hidden, bias):
            value = (value @ matrix + shift).relu()
        share = (y[1 - i][:, None] * x[1 - j] + 1e-9) / total
        blend = blend + value * share[..., None]
    out = (blend @ last.T + last_bias).permute(0, 3, 1, 2)
    leaves = [t for t in args[:-1] if t.requires_grad]
    grad = torch.randn_like(out)
    wanted = torch.autograd.grad(
        out, leaves, grad, allow_unused=True, materialize_grads=True
    )
    with torch.no_grad():
        grads = implicit_triton.local_ensemble_backward(grad, *args)
    for x, y in zip(grads, wanted, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-10)


@check()
def second_gradients(device):
    """As a penalty on a gradient needs them."""
    feats, layers = torch.randn(1, 2, 2, 3), perceptron(2, 6, (8, 8))
    grad, penalties = torch.randn(1, 2, 3, 5), []
    for backend, dtype in (
        ('triton', torch.float32),
        ('reference', torch.float64),
    ):
        pairs = moved(layers, device, dtype)
        leaves = [t.requires_grad_() for pair in pairs for t in pair]
        leaves.append(feats.to(device, dtype).requires_grad_())
        out = local_ensemble(leaves[-1], (3, 5), pairs, backend=backend)
        first = torch.autograd.grad(
            out, leaves, grad.to(out), create_graph=True
        )
        penalty = sum(g.square().sum() for g in first)
        penalties.append(torch.autograd.grad(penalty, leaves[:-2]))
    for x, y in zip(*penalties):
        assert_close(x, y.cpu(), 1e-4)


@check()
def transforms(device):
    """Forward mode and vectorized gradients, as the formula has them."""
    feats, layers = torch.randn(2, 1, 2, 2, 3), perceptron(2, 6, (8, 8))

    def results(backend, dtype):
        pairs = moved(layers, device, dtype)
        many = feats.to(device, dtype)

        def decode(x):
            return local_ensemble(x, (3, 5), pairs, backend=backend)

        yield from func.jvp(decode, (many[0],), (many[1],))
        yield func.vmap(func.grad(lambda x: decode(x).pow(2).sum()))(many)
        weight = pairs[1][0]

        def of_weight(weight):
            new = [pairs[0], (weight, pairs[1][1]), *pairs[2:]]
            out = local_ensemble(many[0], (3, 5), new, backend=backend)
            return out.pow(2).sum()

        scaled = torch.stack([weight, 2 * weight])
        yield func.vmap(func.grad(of_weight))(scaled)

    found = results('triton', torch.float32)
    for x, y in zip(found, results('reference', torch.float64), strict=True):
        assert_close(x, y.cpu(), 1e-4)


@check((torch.float32,), (torch.float16,))
def operators(dtype, device):
    """Schemas, shapes and gradients are what torch asks of an operator."""
    from mmplugins.ops import implicit_triton

    args = operands(device)
    args[0] = args[0].detach().to(dtype).requires_grad_()
    torch.library.opcheck(torch.ops.mmplugins.local_ensemble, args)
    args = [t.detach() if isinstance(t, torch.Tensor) else t for t in args]
    grad = torch.randn(2, 2, 4, 9, device=device)
    torch.library.opcheck(
        implicit_triton.local_ensemble_backward, (grad, *args)
    )


@check((False,), (True,))
def compiled(dynamic, device):
    """Without a break, and with gradients."""
    feats, layers = torch.randn(1, 3, 2, 4), perceptron(3)
    feats = feats.to(device).requires_grad_()
    layers = moved(layers, device)

    def function(feats, size):
        with torch.autocast(device, torch.bfloat16, enabled=False):
            return local_ensemble(feats, size, layers, backend='triton')

    torch._dynamo.reset()
    faster = torch.compile(
        function,
        fullgraph=True,
        dynamic=dynamic,
        backend='inductor' if device == 'cuda' else 'aot_eager',
    )
    for size in ((3, 7), (4, 9)):
        results = []
        for decode in (function, faster):
            out = decode(feats, size)
            (grad,) = torch.autograd.grad(out.square().sum(), feats)
            results.append((out.detach(), grad))
        for x, y in zip(*results):
            assert_close(x, y.cpu())


@check()
def what_does_not_fit_goes_elsewhere(device):
    """Double precision, wide layers, many outputs, too many layers."""
    from mmplugins.ops import implicit_triton

    for hidden, out, dtype in (
        ((8, 8), 2, torch.float64),
        ((65, 8), 2, torch.float32),
        ((8,), 65, torch.float32),
        ((64,) * 4, 1, torch.float32),
        ((8,) * 40, 1, torch.float32),
    ):
        layers = moved(perceptron(3, 6, hidden, out), device, dtype)
        assert not implicit_triton.fits(dtype, layers)
        feats = torch.randn(1, 3, 2, 4).to(device, dtype)
        results = [
            local_ensemble(feats, (3, 5), layers, backend=backend)
            for backend in ('triton', 'torch', 'auto')
        ]
        assert torch.equal(results[0], results[1])
        assert torch.equal(results[0], results[2])


@check()
def a_decoder(device):
    """CRM's own, and all of its weights learn."""
    from mmplugins.crm import ImplicitDecoder

    decoder = ImplicitDecoder(6, backend='triton').to(device)
    feats, target = torch.randn(1, 6, 3, 4), torch.randn(1, 1, 4, 9)
    out = decoder(feats.to(device), (4, 9))
    layers = [(x.weight.cpu(), x.bias.cpu()) for x in decoder.layers]
    assert_close(out.detach(), literal_ensemble(feats, (4, 9), layers))
    (out * target.to(device)).sum().backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad.any(), name


def run(code, **environment):
    """A Python process of its own that sees the tests' helpers."""
    kept = {k: v for k, v in os.environ.items() if k != 'TRITON_INTERPRET'}
    path = os.pathsep.join([str(ROOT), str(ROOT / 'tests')])
    return subprocess.run(
        [sys.executable, '-W', 'ignore', *code],
        env={**kept, 'PYTHONPATH': path, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope='module')
def interpreted():
    """What became of each check in a process of their own: '' or why not."""
    process = run([__file__], TRITON_INTERPRET='1')
    *_, last = process.stdout.splitlines() or ['']
    if not last.startswith(MARK):
        pytest.fail(process.stdout + process.stderr)
    return json.loads(last.removeprefix(MARK))


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize('name', CHECKS)
def test_interpreted(name, interpreted):
    assert interpreted[name] == '', interpreted[name]


@pytest.mark.gpu
@pytest.mark.parametrize('name', CHECKS)
def test_native(name):
    CHECKS[name]('cuda')


@pytest.mark.gpu
def test_auto_is_triton_on_a_gpu():
    from mmplugins.ops import implicit_triton

    for dtype in implicit_triton.DTYPES:
        index = torch.cuda.current_device()
        assert runs('implicit_triton', index, dtype)
    feats, layers = torch.randn(1, 5, 4, 6).cuda(), perceptron(5)
    layers = moved(layers, 'cuda')
    out, wanted = (
        local_ensemble(feats, (13, 20), layers, backend=backend)
        for backend in ('auto', 'triton')
    )
    assert torch.equal(out, wanted)


@pytest.mark.gpu
def test_no_hidden_value_is_in_memory():
    feats, layers = torch.randn(1, 8, 64, 64).cuda(), perceptron(8, out=1)
    layers = moved(layers, 'cuda')
    local_ensemble(feats, (8, 8), layers, backend='triton')
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    out = local_ensemble(feats, (2048, 2048), layers, backend='triton')
    peak = torch.cuda.max_memory_allocated() - before
    assert peak < 1.1 * out.numel() * out.element_size() + 2**20


def test_without_triton_there_are_the_others():
    code = """
        import sys
        sys.modules['triton'] = None
        import torch
        from mmplugins.ops import local_ensemble
        layers = [(torch.ones(2, 7), torch.ones(2)),
                  (torch.ones(1, 2), torch.ones(1))]
        feats = torch.ones(1, 1, 2, 2)
        local_ensemble(feats, (3, 3), layers)
        try:
            local_ensemble(feats, (3, 3), layers, backend='triton')
        except ValueError as error:
            print(error)
    """
    process = run(['-c', textwrap.dedent(code)])
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines() == [
        "backend of local_ensemble must be one of ('auto', 'reference', "
        "'torch') where Triton cannot be imported, got 'triton'"
    ]


@needs_triton
def test_triton_is_imported_once_it_is_asked_for():
    """And cannot do anything on a CPU that is not interpreted."""
    code = """
        import sys
        import torch
        before = 'triton' in sys.modules
        from mmplugins.ops import local_ensemble
        layers = [(torch.ones(2, 7), torch.ones(2)),
                  (torch.ones(1, 2), torch.ones(1))]
        feats = torch.ones(1, 1, 2, 2)
        local_ensemble(feats, (3, 3), layers)
        assert ('triton' in sys.modules) == before
        assert 'mmplugins.ops.implicit_triton' not in sys.modules
        try:
            local_ensemble(feats, (3, 3), layers, backend='triton')
        except ValueError as error:
            print(error)
    """
    process = run(['-c', textwrap.dedent(code)])
    assert process.returncode == 0, process.stderr
    (line,) = process.stdout.splitlines()
    assert 'on cpu unless TRITON_INTERPRET=1 is set' in line


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize(('capability', 'dtype'), [(80, 'fp32'), (90, 'bf16')])
def test_the_kernel_compiles_without_a_gpu(capability, dtype, tmp_path):
    """CRM's perceptron, and it leaves shared memory for other programs."""
    code = f"""
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource
        from triton.language import str_to_ty
        from mmplugins.ops import implicit_triton
        kernel = implicit_triton._ensemble_kernel
        signature = dict.fromkeys(kernel.arg_names, 'i32')
        for name in kernel.arg_names[:12]:
            index, half = name.endswith('index'), name == 'codes'
            dtype = 'i32' if index else '{dtype}' if half else 'fp32'
            signature[name] = '*' + dtype
        constants = dict(
            width=32,
            size=32,
            num_layers=3,
            area=1e-9,
            factor=str_to_ty('{dtype}', None),
            precision='tf32x3',
            block=64,
        )
        signature.update(dict.fromkeys(constants, 'constexpr'))
        compiled = triton.compile(
            ASTSource(kernel, signature, constants),
            target=GPUTarget('cuda', {capability}, 32),
            options=dict(num_warps=4, num_stages=1),
        )
        assert compiled.asm['cubin']
        print(compiled.metadata.shared)
    """
    process = run(
        ['-c', textwrap.dedent(code)], TRITON_CACHE_DIR=str(tmp_path)
    )
    assert process.returncode == 0, process.stderr
    assert int(process.stdout) <= 40 * 1024


def run_all():
    """Each check with the numbers that it would have alone."""
    results = {}
    for name, function in CHECKS.items():
        torch.manual_seed(0)
        try:
            function('cpu')
            results[name] = ''
        except Exception:
            results[name] = traceback.format_exc()
    print(MARK + json.dumps(results))


if __name__ == '__main__':
    run_all()
