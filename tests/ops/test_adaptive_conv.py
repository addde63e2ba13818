import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from helpers import leaf
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from mmplugins.ops import adaptive_conv, local_correlation, trilinear

BACKENDS = ('reference', 'torch')


def literal(x, kernel):
    """The formula, index by index."""
    batch, taps, height, width = kernel.shape
    size = round(taps**0.5)
    out = torch.zeros(batch, x.shape[1], height, width, dtype=x.dtype)
    for i in range(size):
        for j in range(size):
            for y in range(height):
                for z in range(width):
                    weight = kernel[:, i * size + j, y, z, None]
                    out[:, :, y, z] += weight * x[:, :, y + i, z + j]
    return out


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('size', [1, 2, 3, 7])
def test_equals_the_formula(backend, size):
    x = torch.randn(2, 3, 4 + size, 6 + size).double()
    kernel = torch.randn(2, size**2, 5, 7).double()
    out = adaptive_conv(x, kernel, backend)
    torch.testing.assert_close(out, literal(x, kernel))


@pytest.mark.parametrize('backend', BACKENDS)
def test_one_kernel_everywhere_is_a_convolution(backend):
    """Against torch's own depthwise convolution."""
    x = torch.randn(2, 4, 11, 15)
    weight = torch.randn(5, 5)
    kernel = weight.view(1, 25, 1, 1).expand(2, 25, 7, 11)
    wanted = F.conv2d(x, weight.expand(4, 1, 5, 5), groups=4)
    out = adaptive_conv(x, kernel, backend)
    torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(1, 3),
    channels=st.sampled_from([1, 2, 5, 24]),
    size=st.integers(1, 5),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
)
def test_backends_agree(batch, channels, size, height, width):
    x = torch.randn(batch, channels, height + size - 1, width + size - 1)
    query = torch.randn(batch, channels, height, width)
    kernel = torch.randn(batch, size**2, height, width)
    for op, args in (
        (adaptive_conv, (x, kernel)),
        (local_correlation, (query, x)),
    ):
        wanted = op(*args, backend='reference')
        torch.testing.assert_close(
            op(*args, backend='torch'), wanted, rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize('backend', BACKENDS)
def test_gradients(backend):
    """All taps and all pixels, where the official kernel fills 7 of 49."""
    x, query = leaf(torch.randn(2, 3, 8, 9)), leaf(torch.randn(2, 3, 6, 7))
    kernel = leaf(torch.randn(2, 9, 6, 7))
    assert gradcheck(lambda a, b: adaptive_conv(a, b, backend), (x, kernel))
    assert gradcheck(lambda a, b: local_correlation(a, b, backend), (query, x))


def test_second_gradients():
    x, query = leaf(torch.randn(1, 2, 5, 6)), leaf(torch.randn(1, 2, 3, 4))
    kernel = leaf(torch.randn(1, 9, 3, 4))
    assert gradgradcheck(adaptive_conv, (x, kernel))
    assert gradgradcheck(local_correlation, (query, x))


def test_gradients_of_many_channels(monkeypatch):
    """As products of matrices, where few are shifted maps."""
    monkeypatch.setattr(trilinear, '_FEW', 1)
    x, query = leaf(torch.randn(1, 2, 4, 6)), leaf(torch.randn(1, 2, 2, 4))
    kernel = leaf(torch.randn(1, 9, 2, 4))
    for op, args in (
        (adaptive_conv, (x, kernel)),
        (local_correlation, (query, x)),
    ):
        assert gradcheck(op, args)
        assert gradgradcheck(op, args, fast_mode=True)


def test_correlation_in_blocks_is_whole(monkeypatch):
    query, keys = torch.randn(2, 7, 6, 5), torch.randn(2, 7, 8, 7)
    wanted = local_correlation(query, keys, 'reference')
    monkeypatch.setattr(trilinear, '_BLOCK', 2 * 6 * 5 * 2)
    torch.testing.assert_close(
        local_correlation(query, keys, 'torch'), wanted, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('backend', BACKENDS)
def test_half_precision_sums_in_single(backend, dtype):
    """One rounding of the result, not one per tap."""
    x = torch.rand(1, 2, 22, 22).to(dtype)
    kernel = torch.rand(1, 49, 16, 16).to(dtype)
    out = adaptive_conv(x, kernel, backend)
    assert out.dtype == dtype
    wanted = adaptive_conv(x.float(), kernel.float(), 'reference')
    torch.testing.assert_close(
        out.float(), wanted.to(dtype).float(), rtol=1e-2, atol=0
    )
    eps = torch.finfo(dtype).eps
    assert ((out.float() - wanted).abs() <= wanted.abs() * eps).all()


def test_bad_input_is_named():
    x, kernel = torch.zeros(1, 2, 9, 9), torch.zeros(1, 9, 7, 7)
    with pytest.raises(
        ValueError, match=r"backend of adaptive_conv must be .*got 'cuda'"
    ):
        adaptive_conv(x, kernel, 'cuda')
    with pytest.raises(ValueError, match=r'K \* K taps.*got 8'):
        adaptive_conv(x, kernel[:, :8])
    with pytest.raises(ValueError, match=r'\(1, 9, 9\), got \(1, 8, 9\)'):
        adaptive_conv(x[:, :, :8], kernel)
    with pytest.raises(ValueError, match='padded source'):
        local_correlation(torch.zeros(1, 2, 9, 9), torch.zeros(1, 2, 7, 7))
    with pytest.raises(ValueError, match='query has 2 channels, keys have 5'):
        local_correlation(torch.zeros(1, 2, 7, 7), torch.zeros(1, 5, 9, 9))


@pytest.mark.parametrize('backend', BACKENDS)
def test_autocast_leaves_single_precision_alone(backend):
    x, kernel = torch.rand(1, 2, 12, 12), torch.rand(1, 25, 8, 8)
    wanted = adaptive_conv(x, kernel, backend)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(adaptive_conv(x, kernel, backend), wanted)


@pytest.mark.parametrize('channels', [2, trilinear._FEW])
def test_operators_are_what_torch_asks_of_them(channels):
    """Schemas, results of empty tensors, gradients, layouts in memory."""
    x, kernel, g = (
        torch.randn(1, *shape, requires_grad=True)
        for shape in ((channels, 4, 5), (9, 2, 3), (channels, 2, 3))
    )
    ops = torch.ops.mmplugins
    for op, args in (
        (ops.gather, (x, kernel)),
        (ops.correlate, (g, x)),
        (ops.scatter, (g, kernel)),
    ):
        for dtype in (torch.float32, torch.bfloat16):
            torch.library.opcheck(op, (*args, 3, 1, dtype, 'torch'))


def test_triton_is_imported_only_to_be_used():
    code = (
        'import sys, torch; from mmplugins.ops import adaptive_conv;'
        'adaptive_conv(torch.zeros(1, 24, 5, 5), torch.zeros(1, 9, 3, 3));'
        "sys.exit('mmplugins.ops.adaptive_conv_triton' in sys.modules)"
    )
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0
