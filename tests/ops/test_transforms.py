"""What torch makes of a formula it makes of every operator.

Compilers, function transforms and derivatives of any order work on plain
formulas; operators of our own have to take part as well, for nobody asks for
one: it is what ``backend='auto'`` takes.
"""

import pytest
import torch
from torch import func
from torch.autograd import forward_ad

from mmplugins import ops


def _adaptive_conv(channels):
    def prepare():
        shapes = (1, channels, 4, 5), (1, 9, 2, 3)
        return ops.adaptive_conv, [torch.randn(shape) for shape in shapes]

    return prepare


def _local_correlation(channels):
    def prepare():
        shapes = (1, channels, 2, 3), (1, channels, 4, 5)
        return ops.local_correlation, [torch.randn(shape) for shape in shapes]

    return prepare


def _joint_bilateral_kernel():
    def function(keys, temperature, sigma, backend):
        return ops.joint_bilateral_kernel(keys, temperature, sigma, 1, backend)

    keys = torch.randn(1, 3, 4, 4)
    return function, [keys, torch.tensor(0.7), torch.tensor(0.9)]


def _jbu_upsample():
    shapes = (1, 17, 2, 3), (1, 9, 4, 6)
    return ops.jbu_upsample, [torch.randn(shape) for shape in shapes]


def _modulated_deform_conv2d():
    def function(x, offset, mask, weight, bias, backend):
        args = (x, offset, mask, weight, bias)
        return ops.modulated_deform_conv2d(*args, backend=backend)

    shapes = (1, 2, 3, 2), (1, 8, 2, 1), (1, 4, 2, 1), (2, 2, 2, 2), (2,)
    return function, [torch.randn(shape) for shape in shapes]


def _non_local():
    shapes = (1, 3, 2, 3), (1, 3, 3, 2), (1, 2, 3, 2)

    def function(query, key, value, backend):
        return ops.non_local(query, key, value, backend=backend)

    return function, [torch.randn(shape) for shape in shapes]


def _local_ensemble():
    def function(feats, *params, backend):
        layers = list(zip(params[::2], params[1::2]))
        return ops.local_ensemble(feats, (5, 4), layers, backend=backend)

    shapes = (1, 3, 2, 3), (4, 9), (4,), (4, 4), (4,), (2, 4), (2,)
    return function, [torch.randn(shape) for shape in shapes]


OPERATORS = {
    'adaptive_conv': _adaptive_conv(2),
    'adaptive_conv of many channels': _adaptive_conv(24),
    'local_correlation': _local_correlation(2),
    'local_correlation of many channels': _local_correlation(24),
    'joint_bilateral_kernel': _joint_bilateral_kernel,
    'jbu_upsample': _jbu_upsample,
    'modulated_deform_conv2d': _modulated_deform_conv2d,
    'non_local': _non_local,
    'local_ensemble': _local_ensemble,
}


@pytest.fixture(params=OPERATORS)
def case(request):
    """A function of tensors and a backend; tensors."""
    torch.manual_seed(0)
    function, tensors = OPERATORS[request.param]()
    return function, [tensor.double() for tensor in tensors]


def _leaves(tensors):
    return [tensor.clone().requires_grad_() for tensor in tensors]


def _first(function, tensors):
    """A function of the first tensor alone, with one number as its result."""
    weight = torch.rand_like(function(*tensors))
    return lambda x: (weight * function(x, *tensors[1:]).pow(2)).sum()


def gradients(function, tensors):
    leaves = _leaves(tensors)
    return torch.autograd.grad(function(*leaves).square().sum(), leaves)


def second_gradients(function, tensors):
    leaves = _leaves(tensors)
    out = function(*leaves).pow(3).sum()
    grads = torch.autograd.grad(out, leaves, create_graph=True)
    return torch.autograd.grad(sum(g.pow(2).sum() for g in grads), leaves)


def compiled(function, tensors):
    torch.compiler.reset()
    run = torch.compile(function, fullgraph=True, backend='aot_eager')
    return gradients(run, tensors)


def compiled_for_any_size(function, tensors):
    torch.compiler.reset()
    run = torch.compile(
        function, fullgraph=True, backend='aot_eager', dynamic=True
    )
    return gradients(run, tensors)


def gradients_by_function(function, tensors):
    loss = lambda *args: function(*args).square().sum()  # noqa: E731
    return func.grad(loss, tuple(range(len(tensors))))(*tensors)


def vectorized(function, tensors):
    """Several of the first argument, one of the others."""
    many = torch.stack([tensors[0], 2 * tensors[0], tensors[0].flip(-1)])
    return func.vmap(lambda x: function(x, *tensors[1:]))(many)


def vectorized_gradients(function, tensors):
    """Of every sample, as differential privacy has it."""
    many = [torch.stack([tensor, tensor.flip(0)]) for tensor in tensors]
    loss = lambda *args: function(*args).square().sum()  # noqa: E731
    return func.vmap(func.grad(loss, tuple(range(len(tensors)))))(*many)


def forward_mode(function, tensors):
    tangents = tuple(tensor.cos() for tensor in tensors)
    return func.jvp(function, tuple(tensors), tangents)


def forward_mode_of_autograd(function, tensors):
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(t, t.cos()) for t in tensors]
        return forward_ad.unpack_dual(function(*duals)).tangent


def nested_forward_mode(function, tensors):
    tangents = tuple(tensor.cos() for tensor in tensors)

    def slope(*tensors):
        return func.jvp(function, tensors, tangents)[1]

    return func.jvp(slope, tuple(tensors), tangents)


def jacobian(function, tensors):
    return func.jacfwd(function)(*tensors), func.jacrev(function)(*tensors)


def hessian(function, tensors):
    x = tensors[0]
    scale = torch.ones_like(x[:, :1])

    def loss(some):
        return function(x * some, *tensors[1:]).pow(2).sum()

    return func.hessian(loss)(scale)


TRANSFORMS = (
    gradients,
    second_gradients,
    compiled,
    compiled_for_any_size,
    gradients_by_function,
    vectorized,
    vectorized_gradients,
    forward_mode,
    forward_mode_of_autograd,
    nested_forward_mode,
    jacobian,
    hessian,
)


def of_backend(case, transform, backend):
    function, tensors = case
    return transform(lambda *args: function(*args, backend=backend), tensors)


@pytest.mark.parametrize('transform', TRANSFORMS, ids=lambda f: f.__name__)
def test_is_as_of_the_formula(case, transform):
    wanted = of_backend(case, transform, 'reference')
    found = of_backend(case, transform, 'auto')
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    'transform',
    [f for f in TRANSFORMS if 'compiled' not in f.__name__],
    ids=lambda f: f.__name__,
)
@pytest.mark.parametrize('case', ['modulated_deform_conv2d'], indirect=True)
def test_is_as_of_the_formula_by_mmcv(case, transform):
    """What is chosen on a GPU, and not while something is compiled."""
    wanted = of_backend(case, transform, 'reference')
    found = of_backend(case, transform, 'mmcv')
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize('backend', ['auto', 'reference'])
def test_one_graph_is_for_all_sizes(backend):
    graphs = []
    layers = [(torch.randn(2, 9), torch.randn(2))]
    layers.append((torch.randn(1, 2), torch.randn(1)))

    def decode(feats, size):
        return ops.local_ensemble(feats, size, layers, backend=backend)

    torch.compiler.reset()
    run = torch.compile(
        decode,
        fullgraph=True,
        dynamic=True,
        backend=lambda graph, inputs: graphs.append(graph) or graph,
    )
    for n in (5, 6, 8):
        feats, size = torch.randn(1, 3, n, n + 1), (2 * n, 3 * n)
        torch.testing.assert_close(run(feats, size), decode(feats, size))
    assert len(graphs) == 1


@pytest.mark.slow
def test_torchs_own_compiler_follows():
    """With kernels of its own around the operators."""
    torch.compiler.reset()
    function, tensors = _jbu_upsample()
    run = torch.compile(function, fullgraph=True)
    torch.testing.assert_close(
        gradients(run, tensors), gradients(function, tensors)
    )
