import itertools

import pytest
import torch
import torch.nn.functional as F
from helpers import leaf, literal_ensemble
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from mmplugins.ops import local_ensemble

BACKENDS = ['reference', 'torch', 'auto']
# Codes -> targets: ratio 2, 16, 7.3, 1, 3 with its last cells, 3 on one axis,
# 5, different ratios, fewer targets than codes, odd sizes, a single code.
GRIDS = [
    ((4, 6), (8, 12)),
    ((2, 3), (32, 48)),
    ((10, 10), (73, 73)),
    ((5, 4), (5, 4)),
    ((3, 5), (9, 15)),
    ((4, 7), (9, 21)),
    ((3, 2), (15, 10)),
    ((3, 8), (20, 11)),
    ((9, 12), (5, 7)),
    ((7, 5), (13, 9)),
    ((1, 1), (3, 4)),
    ((1, 6), (1, 11)),
]


def perceptron(channels, extra=6, hidden=(8, 8), out=2, dtype=torch.float64):
    widths = [channels + extra, *hidden, out]
    return [
        (
            torch.randn(n, m, dtype=dtype) / m**0.5,
            torch.randn(n, dtype=dtype),
        )
        for m, n in itertools.pairwise(widths)
    ]


def single(layers):
    return [(weight.float(), bias.float()) for weight, bias in layers]


def passing(extra=6):
    """A perceptron that answers with the code, if it is positive."""
    first = torch.zeros(1, 1 + extra)
    first[0, 0] = 1
    return [(first, torch.zeros(1)), (torch.ones(1, 1), torch.zeros(1))]


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize(('codes', 'size'), GRIDS)
def test_it_is_the_formula(codes, size, backend):
    feats, layers = torch.randn(2, 5, *codes).double(), perceptron(5)
    out = local_ensemble(feats, size, layers, backend=backend)
    wanted = literal_ensemble(feats, size, layers)
    assert out.shape == (2, 2, *size)
    torch.testing.assert_close(out, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize(('codes', 'size'), GRIDS)
def test_single_precision_is_the_formula(codes, size, backend):
    feats = torch.randn(2, 5, *codes)
    layers = perceptron(5, dtype=torch.float32)
    out = local_ensemble(feats, size, layers, backend=backend)
    wanted = literal_ensemble(feats, size, layers).float()
    torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize(
    'on', [*itertools.product([True, False], repeat=3)], ids=str
)
def test_each_input_can_be_off(on, backend):
    switches = dict(zip(('offset', 'coord', 'ratio'), on))
    feats, size = torch.randn(2, 3, 4, 5).double(), (9, 17)
    layers = perceptron(3, extra=2 * sum(on))
    out = local_ensemble(feats, size, layers, backend=backend, **switches)
    wanted = literal_ensemble(feats, size, layers, **switches)
    torch.testing.assert_close(out, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('hidden', [(1,), (7, 3, 4, 2)])
def test_perceptrons_of_other_depths(hidden):
    feats, layers = torch.randn(1, 3, 4, 5).double(), perceptron(3, 6, hidden)
    out = local_ensemble(feats, (9, 12), layers)
    torch.testing.assert_close(out, literal_ensemble(feats, (9, 12), layers))


@pytest.mark.parametrize('backend', BACKENDS)
def test_on_the_last_centre_all_four_areas_are_nothing(backend):
    """Then they are equal: of two rows the mean, wherever between them."""
    feats = 1 + torch.rand(1, 1, 4, 3)
    out = local_ensemble(feats, (16, 9), passing(), backend=backend)
    last = feats[0, 0, :, 2]
    # Rows at 3/8 and 5/8 between the codes 0 and 1.
    mean = (last[0] + last[1]) / 2
    torch.testing.assert_close(out[0, 0, 3:5, 7], mean.expand(2))
    # The column beside it is the bilinear one.
    share = 0.125 + 0.25 * torch.arange(4)
    wanted = last[0] + share * (last[1] - last[0])
    torch.testing.assert_close(out[0, 0, 2:6, 8], wanted)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize(('codes', 'size'), [((4, 6), (8, 12)),
                                             ((5, 3), (37, 22))])  # fmt: skip
def test_areas_interpolate_linearly(codes, size, backend):
    feats = 1 + torch.rand(2, 1, *codes)
    out = local_ensemble(feats, size, passing(), backend=backend)
    wanted = F.interpolate(feats, size, mode='bilinear')
    torch.testing.assert_close(out, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('chunk', [1, 7, 100, 10**6])
def test_chunks_change_nothing(chunk, backend):
    feats, layers = torch.randn(2, 3, 4, 5).double(), perceptron(3)
    whole = local_ensemble(feats, (17, 13), layers, backend=backend)
    out = local_ensemble(feats, (17, 13), layers, backend=backend, chunk=chunk)
    torch.testing.assert_close(out, whole, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize(
    ('window', 'part'),
    [
        ((0, 0, 23, 31), (0, 0, 6, 9)),
        ((0, 0, 5, 4), (0, 0, 2, 3)),
        ((18, 25, 5, 6), (4, 6, 2, 3)),
        ((9, 11, 1, 1), (1, 2, 3, 3)),
        ((8, 10, 6, 13), (1, 2, 4, 6)),
    ],
)
def test_a_window_needs_its_codes_only(window, part, backend):
    """And is told of the place of both in the whole."""
    feats, layers = torch.randn(2, 3, 6, 9).double(), perceptron(3)
    wanted = literal_ensemble(feats, (23, 31), layers)
    y, x, h, w = part
    out = local_ensemble(
        feats[..., y : y + h, x : x + w],
        (23, 31),
        layers,
        window=window,
        grid=(6, 9),
        origin=(y, x),
        backend=backend,
        chunk=20,
    )
    y, x, h, w = window
    wanted = wanted[..., y : y + h, x : x + w]
    torch.testing.assert_close(out, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('backend', ['reference', 'torch'])
def test_gradients(backend):
    feats, layers = torch.randn(2, 2, 3, 2), perceptron(2, 6, (3, 3))
    leaves = [leaf(x) for x in (feats, *itertools.chain(*layers))]

    def function(feats, *flat):
        pairs = list(zip(flat[::2], flat[1::2]))
        return local_ensemble(feats, (5, 6), pairs, backend=backend, chunk=9)

    assert gradcheck(function, leaves)


@pytest.mark.parametrize('backend', ['reference', 'torch'])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_agrees(dtype, backend):
    feats, layers = torch.randn(1, 4, 5, 6), perceptron(4)
    layers = [(weight.to(dtype), bias.to(dtype)) for weight, bias in layers]
    feats = feats.to(dtype)
    wanted = literal_ensemble(feats, (31, 44), layers).float()
    out = local_ensemble(feats, (31, 44), layers, backend=backend)
    error = (out.float() - wanted).abs().max() / wanted.abs().max()
    assert error < {torch.bfloat16: 0.03, torch.float16: 0.004}[dtype]


@pytest.mark.parametrize('backend', ['reference', 'torch'])
def test_autocast_agrees(backend):
    feats, layers = torch.randn(1, 4, 5, 6), perceptron(4)
    layers = single(layers)
    wanted = literal_ensemble(feats, (31, 44), layers).float()
    with torch.autocast('cpu', torch.bfloat16):
        out = local_ensemble(feats, (31, 44), layers, backend=backend)
    assert (out.float() - wanted).abs().max() < 0.03 * wanted.abs().max()


@pytest.mark.parametrize('backend', ['reference', 'torch'])
@pytest.mark.parametrize('autocast', [True, False])
def test_half_precision_keeps_its_place(autocast, backend):
    """Its coordinates could not tell targets of a wide image apart."""
    feats = 1 + torch.rand(1, 1, 1, 3000).bfloat16().float()
    layers, size = passing(), (2, 6000)
    wanted = F.interpolate(feats, size, mode='bilinear')
    if not autocast:
        feats = feats.bfloat16()
        layers = [(w.bfloat16(), b.bfloat16()) for w, b in layers]
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        out = local_ensemble(feats, size, layers, backend=backend)
    torch.testing.assert_close(out.float(), wanted, rtol=0, atol=0.01)


class Largest(TorchDispatchMode):
    """Values of the largest tensor that an operation makes."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            # What is expanded takes less memory than it has values.
            held = out.untyped_storage().nbytes() // out.element_size()
            self.numel = max(self.numel, min(held, out.numel()))
        return out


def test_no_code_is_held_for_every_target():
    feats = torch.randn(1, 256, 16, 16)
    layers = single(perceptron(256, out=1))
    size = (64, 64)
    needed = {}
    for backend in ('reference', 'torch'):
        with torch.no_grad(), Largest() as largest:
            local_ensemble(feats, size, layers, backend=backend)
        needed[backend] = largest.numel
    assert needed['reference'] >= 256 * 64 * 64
    # Hidden values of every target, or the codes.
    assert needed['torch'] <= max(8 * 64 * 64, feats.numel())
    with torch.no_grad(), Largest() as largest:
        local_ensemble(
            feats[:, :9], size, single(perceptron(9, out=1)), chunk=128
        )
    # The result, or the codes; of targets only a few.
    assert largest.numel <= max(64 * 64, 16 * 16 * 9)


def test_nothing_given_is_changed():
    feats, layers = torch.randn(1, 3, 4, 5), single(perceptron(3))
    before = [x.clone() for x in (feats, *itertools.chain(*layers))]
    local_ensemble(feats, (8, 10), layers)
    for x, y in zip(before, (feats, *itertools.chain(*layers))):
        assert torch.equal(x, y)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(backend='triton'), "one of .*'torch'.*, got 'triton'"),
        (dict(offset=False), r'first of 3 \+ 4 inputs, got .*\(8, 9\)'),
        (dict(layers=single(perceptron(3))[:1]), 'must be two or more'),
        (dict(feats=torch.zeros(3, 4, 5)), r'\(B, C, h, w\), got \(3, 4, 5\)'),
        (dict(window=(0, 0, 9, 10)), r'inside of \(8, 10\) .*0, 0, 9, 10'),
        (dict(window=(-1, 0, 2, 2)), r'inside of \(8, 10\) .*-1, 0, 2, 2'),
        (dict(window=(0, 3, 2, 0)), r'inside of \(8, 10\) .*0, 3, 2, 0'),
        (
            dict(grid=(8, 10), origin=(4, 5), window=(0, 0, 2, 2)),
            'needs codes 0 to 2, given are 4 to 7',
        ),
        (dict(grid=(8, 10)), 'needs codes 0 to 7, given are 0 to 3'),
    ],
)
def test_what_does_not_fit_is_named(kwargs, message):
    given = dict(
        feats=torch.zeros(1, 3, 4, 5),
        size=(8, 10),
        layers=single(perceptron(3)),
    )
    with pytest.raises(ValueError, match=message):
        local_ensemble(**{**given, **kwargs})
