"""The Triton kernels against literal formulas.

Without CUDA they run in Triton's interpreter, which has to be chosen before
Triton is imported: one process does all checks of this module there, and each
test reads its own result. With CUDA the same checks run in this process.
"""

import functools
import json
import os
import subprocess
import sys
import traceback
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import func

from mmplugins.ops import bilateral_kernel, trilinear

NATIVE = torch.cuda.is_available()
DEVICE = 'cuda' if NATIVE else 'cpu'
ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    find_spec('triton') is None, reason='needs Triton'
)

# K, S, B, C, h, w: all windows, both scales, borders in every direction,
# channels and columns that do not fill a tile, and those that overflow it.
CASES = (
    (1, 1, 2, 3, 1, 1),
    (1, 2, 1, 1, 3, 2),
    (3, 1, 2, 5, 4, 13),
    (3, 2, 1, 33, 2, 5),
    (5, 1, 1, 2, 3, 2),
    (5, 2, 2, 1, 1, 9),
    (7, 1, 1, 33, 2, 4),
    (7, 2, 1, 4, 2, 1),
    (3, 2, 1, 2, 2, 33),
    (3, 1, 1, 1, 13, 3),
)


def module():
    """The kernels, with large tiles: each program costs a second here."""
    from mmplugins.ops import adaptive_conv_triton

    if not NATIVE:
        adaptive_conv_triton._PROGRAMS = 1
    return Operators


class Operators:
    """Those of the package, by Triton; results are as the first argument."""

    @staticmethod
    def gather(x, kernel, size, scale=1, dtype=None):
        dtype = dtype or x.dtype
        return trilinear.gather(x, kernel, size, scale, dtype, 'triton')

    @staticmethod
    def correlate(g, x, size, scale=1, dtype=None):
        dtype = dtype or g.dtype
        return trilinear.correlate(g, x, size, scale, dtype, 'triton')

    @staticmethod
    def scatter(g, kernel, size, scale=1, dtype=None):
        dtype = dtype or g.dtype
        return trilinear.scatter(g, kernel, size, scale, dtype, 'triton')

    @staticmethod
    def range_kernel(query, keys, temperature, gaussian, size, dtype=None):
        return bilateral_kernel.range_kernel(
            query, keys, temperature, gaussian, size, dtype or query.dtype
        )


def tensors(size, scale, batch, channels, height, width, dtype=None):
    """x, kernel, g."""
    torch.manual_seed(0)
    pixels = (scale * height, scale * width)
    return [
        torch.randn(batch, n, *area).to(DEVICE, dtype)
        for n, area in (
            (channels, (height + size - 1, width + size - 1)),
            (size**2, pixels),
            (channels, pixels),
        )
    ]


def windows(x, size, scale):
    """What each pixel reads, (B, C, P, S h, S w), float64."""
    x = x.double()
    cells = [n - size + 1 for n in x.shape[-2:]]
    out = F.unfold(x, size).view(*x.shape[:2], size**2, *cells)
    return out.repeat_interleave(scale, 3).repeat_interleave(scale, 4)


def gather(x, kernel, size, scale=1):
    read = windows(x, size, scale)
    return torch.einsum('bcphw,bphw->bchw', read, kernel.double())


def correlate(g, x, size, scale=1):
    read = windows(x, size, scale)
    return torch.einsum('bcphw,bchw->bphw', read, g.double())


def scatter(g, kernel, size, scale=1):
    """The derivative of the gathering by its source."""
    cells = [n // scale + size - 1 for n in g.shape[-2:]]
    zeros = g.new_zeros(*g.shape[:2], *cells, dtype=torch.float64)
    _, back = torch.func.vjp(lambda x: gather(x, kernel, size, scale), zeros)
    return back(g.double())[0]


def range_kernel(query, keys, temperature, gaussian, size):
    logits = temperature.double() * correlate(query, keys, size)
    kernel = logits.softmax(1) * gaussian.double().view(-1, 1, 1)
    return kernel / kernel.sum(1, keepdim=True).clamp_min(1e-7)


def near(out, wanted, dtype=torch.float32):
    assert out.dtype == dtype
    eps = 4e-5 if dtype == torch.float32 else torch.finfo(dtype).eps
    eps = 1e-10 if dtype == torch.float64 else eps
    torch.testing.assert_close(out.double(), wanted, rtol=eps, atol=eps)


def leaves(*given):
    return [x.detach().clone().requires_grad_() for x in given]


# Checks: run by name, in another process where there is no GPU ------------


def check_loops():
    """The trilinear form, index by index."""
    ops = module()
    for size, scale in ((2, 1), (3, 2)):
        x, kernel, g = tensors(size, scale, 1, 2, 2, 3)
        gathered, correlated, scattered = map(torch.zeros_like, (g, kernel, x))
        for i in range(size):
            for j in range(size):
                for y in range(scale * 2):
                    for z in range(scale * 3):
                        n, u, v = i * size + j, y // scale + i, z // scale + j
                        read, tap = x[:, :, u, v], kernel[:, n, y, z]
                        at = g[:, :, y, z]
                        gathered[:, :, y, z] += read * tap
                        correlated[:, n, y, z] += (read * at).sum(1)
                        scattered[:, :, u, v] += at * tap
        near(ops.gather(x, kernel, size, scale), gathered.double())
        near(ops.correlate(g, x, size, scale), correlated.double())
        near(ops.scatter(g, kernel, size, scale), scattered.double())


def check_case(size, scale, *shape):
    ops = module()
    x, kernel, g = tensors(size, scale, *shape)
    near(ops.gather(x, kernel, size, scale), gather(x, kernel, size, scale))
    near(ops.correlate(g, x, size, scale), correlate(g, x, size, scale))
    near(ops.scatter(g, kernel, size, scale), scatter(g, kernel, size, scale))


def check_range(size, *shape):
    ops = module()
    keys, _, query = tensors(size, 1, *shape)
    temperature = torch.tensor(0.7, device=DEVICE)
    gaussian = torch.rand(size**2, device=DEVICE)
    args = (query, keys, temperature, gaussian, size)
    near(ops.range_kernel(*args), range_kernel(*args))
    # Logits of hundreds: without their maximum exp would overflow. Their
    # own error grows with them.
    args = (query, keys, 100 * temperature, gaussian, size)
    out, wanted = ops.range_kernel(*args), range_kernel(*args)
    torch.testing.assert_close(out.double(), wanted, rtol=1e-2, atol=1e-3)


def check_small_tiles():
    """As on a device to be filled: few rows, few channels, in parts."""
    from mmplugins.ops import adaptive_conv_triton as launches

    ops = module()
    programs, launches._PROGRAMS = launches._PROGRAMS, 6
    try:
        x, kernel, g = tensors(3, 1, 1, 49, 2, 5)
        near(ops.gather(x, kernel, 3), gather(x, kernel, 3))
        near(ops.correlate(g, x, 3), correlate(g, x, 3))
        near(ops.scatter(g, kernel, 3), scatter(g, kernel, 3))
    finally:
        launches._PROGRAMS = programs


def check_dtypes():
    """Half precision in and out, sums in single; mixed under autocast."""
    ops = module()
    for dtype in (torch.float16, torch.bfloat16):
        for scale in (1, 2):
            x, kernel, g = tensors(2, scale, 1, 9, 1, 3, dtype)
            args = (2, scale)
            near(ops.gather(x, kernel, *args), gather(x, kernel, *args), dtype)
            near(ops.correlate(g, x, *args), correlate(g, x, *args), dtype)
            near(
                ops.scatter(g, kernel, *args), scatter(g, kernel, *args), dtype
            )
        wanted = gather(x, kernel, *args)
        with torch.autocast(DEVICE, dtype):
            mixed = ops.gather(x, kernel.float(), *args)
            near(mixed, wanted, dtype)
            near(ops.gather(x, kernel, *args, torch.float32), wanted)
    # A gradient has the dtype of its input, not that of the result.
    x, kernel = leaves(x, kernel.float())
    out = ops.gather(x, kernel, *args)
    grads = torch.autograd.grad(out, (x, kernel), g)
    near(grads[0], scatter(g, kernel, *args), dtype)
    near(grads[1], correlate(g, x, *args))


def check_range_dtypes():
    ops = module()
    keys, _, query = tensors(3, 1, 1, 4, 2, 3, torch.bfloat16)
    temperature = torch.tensor(0.3, device=DEVICE)
    gaussian = torch.rand(9, device=DEVICE)
    args = (query, keys, temperature, gaussian, 3)
    near(ops.range_kernel(*args), range_kernel(*args), torch.bfloat16)
    near(ops.range_kernel(*args, torch.float32), range_kernel(*args))


def check_strides():
    """Views: swapped dimensions, steps, expansions, an offset."""
    ops = module()
    x, kernel, g = tensors(3, 2, 2, 3, 2, 3)
    x = x.transpose(2, 3).contiguous().transpose(2, 3)
    kernel = torch.stack([kernel, kernel], -1)[..., 1]
    g = g.to(memory_format=torch.channels_last)[1:].expand(2, 3, 4, 6)
    near(ops.gather(x, kernel, 3, 2), gather(x, kernel, 3, 2))
    near(ops.correlate(g, x, 3, 2), correlate(g, x, 3, 2))
    near(ops.scatter(g, kernel, 3, 2), scatter(g, kernel, 3, 2))


def check_borders():
    """What lies out of reach stays out: NaN in one corner, and beyond."""
    ops = module()
    x, kernel, g = tensors(3, 1, 1, 2, 3, 4)
    x[:, :, 0, 0] = g[:, :, 0, 0] = float('nan')
    reach = torch.zeros_like(g, dtype=torch.bool)
    reach[:, :, 0, 0] = True
    assert torch.equal(ops.gather(x, kernel, 3).isnan(), reach)
    reach = torch.zeros_like(x, dtype=torch.bool)
    reach[:, :, :3, :3] = True
    assert torch.equal(ops.scatter(g, kernel, 3).isnan(), reach)


def check_empty():
    ops = module()
    x, kernel, g = tensors(3, 1, 1, 2, 3, 4)
    assert ops.gather(x[:0], kernel[:0], 3).shape == (0, 2, 3, 4)
    assert ops.gather(x[:, :0], kernel, 3).shape == (1, 0, 3, 4)
    assert not ops.correlate(g[:, :0], x[:, :0], 3).any()
    assert ops.scatter(g[:, :0], kernel, 3).shape == (1, 0, 5, 6)


def twice(op, args):
    """First and second derivatives of something that is no power of two."""
    first = torch.autograd.grad(
        op(*args).pow(3).sum(), args, create_graph=True
    )
    second = torch.autograd.grad(sum(f.square().sum() for f in first), args)
    return first, second


def check_gradients():
    """In float64, of all operators by all inputs, twice."""
    ops = module()
    x, kernel, g = leaves(*tensors(2, 2, 1, 2, 1, 2, torch.float64))
    for op, literal, args in (
        (ops.gather, gather, (x, kernel)),
        (ops.correlate, correlate, (g, x)),
        (ops.scatter, scatter, (g, kernel)),
    ):
        how = {'size': 2, 'scale': 2}
        call = functools.partial(op, **how)
        wanted = twice(functools.partial(literal, **how), args)
        torch.testing.assert_close(twice(call, args), wanted)
        assert torch.autograd.gradcheck(call, args, fast_mode=True)


def check_range_gradients():
    ops = module()
    keys, _, query = tensors(3, 1, 1, 2, 2, 2, torch.float64)
    temperature = torch.tensor(0.7).to(keys)
    gaussian = torch.rand(9).to(keys) + 0.1
    call = functools.partial(ops.range_kernel, size=3)
    literal = functools.partial(range_kernel, size=3)
    args = leaves(query, keys, temperature, gaussian)
    torch.testing.assert_close(twice(call, args), twice(literal, args))
    assert torch.autograd.gradcheck(call, args, fast_mode=True)
    # A Gaussian that vanishes: the sum is clamped, its gradient zero.
    args = leaves(query, keys, temperature, 1e-9 * gaussian)
    torch.testing.assert_close(twice(call, args), twice(literal, args))


def check_larger_gradients():
    """Of a step as it is trained, in float32, against the formula's."""
    ops = module()
    keys, _, query = tensors(5, 1, 1, 3, 4, 6)
    x, _, g = tensors(5, 2, 1, 4, 2, 3)
    args = leaves(
        query, keys, torch.tensor(0.5).to(x), torch.rand(25).to(x), x
    )

    def step(gather, range_kernel):
        kernel = range_kernel(*args[:4], 5)
        out = gather(args[4], kernel, 5, 2)
        return torch.autograd.grad((out * g).sum(), args)

    wanted = step(gather, range_kernel)
    for grad, want in zip(
        step(ops.gather, ops.range_kernel), wanted, strict=True
    ):
        torch.testing.assert_close(grad, want, rtol=1e-4, atol=1e-4)


def check_opcheck():
    module()
    x, kernel, g = leaves(*tensors(2, 2, 1, 2, 1, 2))
    query, keys = leaves(torch.randn(1, 2, 1, 2), torch.randn(1, 2, 2, 3))
    scalars = leaves(torch.tensor(0.5), torch.rand(4))
    query, keys, *scalars = (t.to(DEVICE) for t in (query, keys, *scalars))
    ops, how = torch.ops.mmplugins, (torch.float32, 'triton')
    torch.library.opcheck(ops.gather, (x, kernel, 2, 2, *how))
    torch.library.opcheck(ops.correlate, (g, x, 2, 2, *how))
    torch.library.opcheck(ops.scatter, (g, kernel, 2, 2, *how))
    torch.library.opcheck(
        ops.range_kernel, (query, keys, *scalars, 2, torch.float32)
    )


def check_transforms():
    """Forward mode and vectorized gradients, of what has them in torch."""
    ops = module()
    x, kernel, g = tensors(2, 2, 2, 2, 1, 2, torch.float64)
    keys, _, query = tensors(3, 1, 2, 2, 2, 2, torch.float64)
    scalars = torch.tensor(0.7).to(keys), torch.rand(9).to(keys) + 0.1
    for op, literal, args, *how in (
        (ops.gather, gather, (x, kernel), 2, 2),
        (ops.correlate, correlate, (g, x), 2, 2),
        (ops.scatter, scatter, (g, kernel), 2, 2),
        (ops.range_kernel, range_kernel, (query, keys), *scalars, 3),
    ):
        found, wanted = (
            list(transformed(f, args, how)) for f in (op, literal)
        )
        torch.testing.assert_close(found, wanted)


def transformed(op, args, how):
    def loss(*args):
        return op(*args, *how).pow(3).sum()

    tangents = tuple(t.cos() for t in args)
    yield from func.jvp(lambda *args: op(*args, *how), args, tangents)
    yield func.vmap(func.grad(loss, (0, 1)))(*(t[:, None] for t in args))


def check_compile():
    """Without a break in the graph, forward and backward."""
    ops = module()
    keys, _, query = tensors(3, 1, 1, 2, 2, 4)
    x = tensors(3, 2, 1, 2, 1, 2)[0]
    args = leaves(query, keys, torch.tensor(0.5).to(x), torch.rand(9).to(x), x)

    def step(*args):
        kernel = ops.range_kernel(*args[:4], 3)
        back = ops.scatter(args[0], kernel, 3)
        return ops.gather(args[4], kernel, 3, 2) + back[..., 1:-1, 1:-1]

    backend = 'inductor' if NATIVE else 'aot_eager'
    compiled = torch.compile(step, fullgraph=True, backend=backend)
    outs = [run(*args) for run in (step, compiled)]
    torch.testing.assert_close(outs[1], outs[0])
    grads = [torch.autograd.grad(o.square().sum(), args) for o in outs]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)


def check_repeats():
    """Bit by bit."""
    ops = module()
    x, kernel, g = tensors(2, 2, 1, 33, 1, 3)
    for op, args in (
        (ops.gather, (x, kernel)),
        (ops.correlate, (g, x)),
        (ops.scatter, (g, kernel)),
    ):
        assert torch.equal(op(*args, 2, 2), op(*args, 2, 2))


CHECKS = {
    **{f'case-{"-".join(map(str, c))}': (check_case, c) for c in CASES},
    **{
        f'range-{"-".join(map(str, c[:1] + c[2:]))}': (
            check_range,
            c[:1] + c[2:],
        )
        for c in CASES
        if c[1] == 1
    },
    **{
        name[6:]: (check, ())
        for name, check in list(globals().items())
        if name.startswith('check_')
        and name not in ('check_case', 'check_range')
    },
}

SLOW = (
    'opcheck',
    'transforms',
    'compile',
    'dtypes',
    'gradients',
    'range_gradients',
    'larger_gradients',
    *(name for name in CHECKS if name.startswith(('case-5', 'case-7'))),
)


def main():
    """Run the checks that are named, say what went wrong with which."""
    for name in sys.argv[1:]:
        check, args = CHECKS[name]
        message = ''
        try:
            check(*args)
        except BaseException:
            message = traceback.format_exc()
        print(json.dumps([name, message]), flush=True)


# Tests --------------------------------------------------------------------


@pytest.fixture(scope='module')
def interpreted(request):
    """Traceback or nothing of each selected check, from one process."""
    chosen = [
        item.callspec.params['name']
        for item in request.session.items
        if item.path == Path(__file__) and hasattr(item, 'callspec')
    ]
    done = run_python(str(Path(__file__)), *chosen, TRITON_INTERPRET='1')
    lines = [line for line in done.stdout.splitlines() if line[:1] == '[']
    return dict(map(json.loads, lines)), done.stderr


def run_python(*args, **variables):
    env = {k: v for k, v in os.environ.items() if k != 'TRITON_INTERPRET'}
    env |= {'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', **variables}
    return subprocess.run(
        [sys.executable, *args], capture_output=True, text=True, env=env
    )


@pytest.mark.parametrize(
    'name',
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW))
        for name in CHECKS
    ],
)
def test_kernels(name, request):
    if NATIVE:
        check, args = CHECKS[name]
        check(*args)
        return
    results, stderr = request.getfixturevalue('interpreted')
    assert name in results, stderr
    if results[name]:
        pytest.fail(results[name], pytrace=False)


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
import triton.language as tl
from mmplugins.ops import adaptive_conv_kernels as kernels
common = {'K': 3, 'R': 2, 'BW': 32, 'ACC': tl.float32}
channels = {'BC': 16}
columns = {'BJ': 4}
for arch, dtype, scale in ((80, 'fp16', 1), (90, 'bf16', 2)):
    for kernel, pointers, more in (
        (kernels.gather_kernel, 3, {'S': scale, **channels}),
        (kernels.correlate_kernel, 3, {'S': scale, **columns}),
        (kernels.scatter_kernel, 3, {'S': scale, **channels}),
        (kernels.range_kernel, 5, {'EPS': 1e-7, **columns}),
    ):
        constants = common | more
        names = kernel.arg_names
        signature = dict.fromkeys(names, 'i32')
        signature |= dict.fromkeys(names[:pointers], '*' + dtype)
        signature |= dict.fromkeys(constants, 'constexpr')
        built = triton.compile(
            ASTSource(kernel, signature, constants),
            target=GPUTarget('cuda', arch, 32),
        )
        print(len(built.asm['ptx']) > 0)
"""


@pytest.mark.slow
@pytest.mark.skipif(NATIVE, reason='the kernels themselves run')
def test_they_compile_for_devices_that_are_not_here(tmp_path):
    """What the interpreter does not see: types, layouts, constants."""
    done = run_python('-c', COMPILE, TRITON_CACHE_DIR=str(tmp_path))
    assert done.stdout == 'True\n' * 8, done.stderr


if __name__ == '__main__':
    main()
