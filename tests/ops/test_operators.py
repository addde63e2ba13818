import pytest
import torch
from torch import Tensor, func
from torch.autograd import gradcheck, gradgradcheck

from mmplugins.ops import operators
from mmplugins.ops.operators import Operator, bilinear, is_compiling


def _scaled_outer(x: Tensor, y: Tensor | None, scale: float) -> Tensor:
    y = x if y is None else y
    return scale * x[:, None] * y


def _scaled_outer_like(x, y, scale):
    y = x if y is None else y
    return x.new_empty(x.numel(), y.numel())


def make(fake=None):
    """An operator of two vectors, the second of which may be missing."""
    operator = Operator(_scaled_outer, fake)

    def gradients(grad, needs, x, y, scale):
        assert needs[2] is False
        grads = [scale * grad @ y if needs[0] else None]
        return [*grads, scale * grad.T @ x if needs[1] else None]

    operator.differentiate(gradients, bilinear(operator))
    return operator


@pytest.fixture(scope='module')
def registered():
    return make(_scaled_outer_like)


@pytest.fixture
def unregistered(monkeypatch):
    """As with a torch that does not know of operators."""
    monkeypatch.setattr(operators, '_REGISTERS', False)
    return make(_scaled_outer_like)


@pytest.fixture(params=['registered', 'unregistered', 'inline'])
def operator(request):
    if request.param == 'inline':
        return make()
    return request.getfixturevalue(request.param)


def vectors():
    return torch.randn(3).double(), torch.randn(2).double()


def test_derivatives(operator):
    x, y = (v.requires_grad_() for v in vectors())
    assert gradcheck(operator, (x, y, 0.5), check_forward_ad=True)
    assert gradgradcheck(operator, (x, y, 0.5))
    assert gradcheck(operator, (x.detach(), y, 0.5))
    assert not operator(x.detach(), y.detach(), 0.5).requires_grad


def test_transforms(operator):
    x, y = vectors()
    wanted = func.jacrev(lambda x: _scaled_outer(x, y, 2.0))(x)
    for jacobian in (func.jacrev, func.jacfwd):
        found = jacobian(lambda x: operator(x, y, 2.0))(x)
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize('dims', [(0, None), (None, 1), (1, 0)])
def test_batches(registered, dims):
    shapes = [
        {None: n, 0: (4, *n), 1: (*n, 4)}[dim]
        for n, dim in zip(((3,), (2,)), dims)
    ]
    args = [torch.randn(shape) for shape in shapes]
    dims = (*dims, None)
    found, wanted = (
        func.vmap(f, dims)(*args, 3.0) for f in (registered, _scaled_outer)
    )
    torch.testing.assert_close(found, wanted)


def test_arguments_that_are_no_tensors_keep_their_places(registered):
    x, _ = vectors()
    assert torch.equal(registered(x, None, 2.0), _scaled_outer(x, None, 2.0))
    torch.library.opcheck(torch.ops.mmplugins.scaled_outer, (x, None, 2.0))


def test_compilers_see_an_operator(registered):
    targets = []

    def backend(graph, inputs):
        targets.extend(node.target for node in graph.graph.nodes)
        return graph

    x, y = vectors()
    compiled = torch.compile(
        lambda x: registered(x, y, 2.0), backend=backend, fullgraph=True
    )
    assert torch.equal(compiled(x), _scaled_outer(x, y, 2.0))
    assert torch.ops.mmplugins.scaled_outer.default in targets
    assert not is_compiling()
