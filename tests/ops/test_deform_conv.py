import copy

import pytest
import torch
import torch.nn.functional as F
from helpers import leaf
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv import ops as mmcv_ops
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.ops import deform_conv2d

from mmplugins.ops import deform_conv, deform_conv_operators
from mmplugins.ops.deform_conv import (
    ModulatedDeformConv2d,
    check_backend,
    modulated_deform_conv2d,
)

BACKENDS = ('reference', 'torch')
# stride, padding, dilation, groups, deform_groups, kernel
CASES = [
    (1, 1, 1, 1, 1, (3, 3)),
    (2, 1, 1, 1, 1, (3, 3)),
    (3, 2, 2, 2, 1, (3, 3)),
    (1, 0, 1, 1, 2, (1, 5)),
    (1, 0, 1, 8, 8, (1, 1)),
    ((2, 1), (0, 3), (1, 2), 2, 4, (3, 5)),
    (1, 2, 1, 4, 2, (2, 4)),
]


def make(case, size=(11, 14), batch=2, far=4.0, channels=8):
    """Map, offsets, masks, kernels and bias, whose samples go everywhere."""
    stride, padding, dilation, groups, deform_groups, kernel = case
    x = torch.randn(batch, channels, *size)
    weight = torch.randn(2 * groups, channels // groups, *kernel)
    out = F.conv2d(x, weight, None, stride, padding, dilation, groups).shape
    taps = deform_groups * kernel[0] * kernel[1]
    offset = far * torch.randn(batch, 2 * taps, *out[2:])
    mask = torch.randn(batch, taps, *out[2:])
    return x, offset, mask, weight, torch.randn(2 * groups)


def of_torchvision(x, offset, mask, weight, bias, stride, padding, dilation):
    """Its groups follow from shapes."""
    return deform_conv2d(
        x, offset, weight, bias, stride, padding, dilation, mask
    )


def with_gradients(op, tensors, *args, **kwargs):
    leaves = [leaf(t) for t in tensors]
    out = op(*leaves, *args, **kwargs)
    probe = torch.cos(torch.arange(out.numel()).double()).view_as(out)
    return out, *torch.autograd.grad(out, leaves, probe)


@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('backend', [*BACKENDS, 'mmcv'])
def test_equals_torchvision(backend, case):
    """Result and all five gradients."""
    tensors = make(case)
    wanted = with_gradients(of_torchvision, tensors, *case[:3])
    got = with_gradients(
        modulated_deform_conv2d, tensors, *case[:5], backend=backend
    )
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize('case', CASES)
def test_equals_mmcv_in_single_precision(case):
    tensors = make(case)
    wanted = mmcv_ops.modulated_deform_conv2d(*tensors, *case[:5])
    out = modulated_deform_conv2d(*tensors, *case[:5], backend='torch')
    assert (out - wanted).abs().max() < 1e-4


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 3),
    extra=st.integers(0, 2),
    groups=st.sampled_from([1, 2, 4]),
    deform_groups=st.sampled_from([1, 2, 4]),
    far=st.sampled_from([0.0, 0.7, 30.0]),
    backend=st.sampled_from(BACKENDS),
)
def test_any_shape(
    batch, size, kernel, stride, extra, groups, deform_groups, far, backend
):
    case = (stride, 2 + extra, 1, groups, deform_groups, kernel)
    tensors = make(case, size, batch, far, channels=4)
    wanted = of_torchvision(*tensors, *case[:3])
    out = modulated_deform_conv2d(*tensors, *case[:5], backend=backend)
    torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('backend', BACKENDS)
def test_without_motion_is_a_convolution(backend):
    x, offset, mask, weight, bias = make(CASES[0])
    out = modulated_deform_conv2d(
        x,
        0 * offset,
        torch.ones_like(mask),
        weight,
        bias,
        padding=1,
        backend=backend,
    )
    wanted = F.conv2d(x, weight, bias, padding=1)
    torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('backend', BACKENDS)
def test_offsets_are_rows_before_columns(backend):
    """One tap, moved by (2, -1) and half a pixel more to the right."""
    x = torch.arange(30.0).view(1, 1, 5, 6)
    offset = torch.tensor([2.0, -0.5]).view(1, 2, 1, 1).expand(1, 2, 5, 6)
    one = torch.ones(1, 1, 1, 1)
    out = modulated_deform_conv2d(
        x, offset, one.expand(1, 1, 5, 6), one, backend=backend
    )
    assert out[0, 0, 0, 1:].tolist() == [12.5, 13.5, 14.5, 15.5, 16.5]
    assert out[0, 0, 0, 0] == 6  # half of it is outside
    assert out[0, 0, 2, 3] == 26.5
    assert not out[0, 0, 3:].any()


@pytest.mark.parametrize('far', [float('nan'), float('inf'), -1e30])
@pytest.mark.parametrize('backend', BACKENDS)
def test_wild_offsets_sample_nothing(backend, far):
    """Also their gradients are zero; torchvision reads anywhere for NaN."""
    tensors = make(CASES[0], far=1)
    wild = tensors[1].clone()
    wild[:, 4, 2:5] = far  # dy of the third tap
    quiet = tensors[2].clone()
    quiet[:, 2, 2:5] = 0
    args = (1, 1)
    got = with_gradients(
        modulated_deform_conv2d,
        (tensors[0], wild, *tensors[2:]),
        *args,
        backend=backend,
    )
    wanted = with_gradients(
        modulated_deform_conv2d,
        (*tensors[:2], quiet, *tensors[3:]),
        *args,
        backend=backend,
    )
    for k in (0, 1, 4, 5):
        torch.testing.assert_close(got[k], wanted[k])
    assert all(g.isfinite().all() for g in got)
    assert not got[2][:, 4:6, 2:5].any()
    assert not got[3][:, 2, 2:5].any()


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize(
    'case', [(1, 1, 1, 1, 1, (2, 2)), (2, 1, 1, 2, 2, (2, 3))]
)
def test_gradcheck(backend, case):
    leaves = [leaf(t) for t in make(case, (2, 3), 1, 1.5, channels=2)]
    assert gradcheck(
        lambda *t: modulated_deform_conv2d(*t, *case[:5], backend=backend),
        leaves,
    )


@pytest.mark.parametrize('asked', range(5))
def test_only_gradients_asked_for(asked):
    tensors = [t.double() for t in make(CASES[5])]
    args, kwargs = CASES[5][:5], dict(backend='torch')
    wanted = with_gradients(modulated_deform_conv2d, tensors, *args, **kwargs)
    tensors[asked].requires_grad_()
    out = modulated_deform_conv2d(*tensors, *args, **kwargs)
    probe = torch.cos(torch.arange(out.numel()).double()).view_as(out)
    out.backward(probe)
    torch.testing.assert_close(tensors[asked].grad, wanted[1 + asked])
    others = tensors[:asked] + tensors[asked + 1 :]
    assert all(t.grad is None for t in others)


@pytest.mark.parametrize('case', [CASES[1], CASES[5]])
def test_parts_are_the_whole(case, monkeypatch):
    tensors = make(case, batch=5)
    args, kwargs = case[:5], dict(backend='torch')
    wanted = with_gradients(modulated_deform_conv2d, tensors, *args, **kwargs)
    monkeypatch.setattr(deform_conv_operators, '_PIXELS', 2 * 11 * 14)
    monkeypatch.setattr(deform_conv_operators, '_ROWS', 7)
    got = with_gradients(modulated_deform_conv2d, tensors, *args, **kwargs)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b)


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation returned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [t.numel() for t in tree_leaves(out) if torch.is_tensor(t)]
        self.elements = max(self.elements, *sizes, 0)
        return out


@pytest.mark.parametrize(
    ('backend', 'fits'), [('torch', True), ('reference', False)]
)
def test_columns_never_exist(backend, fits):
    """Nothing of the size of 25 taps, where one is x once more."""
    case = (1, 2, 1, 1, 1, (5, 5))
    tensors = make(case, (30, 32), channels=32)
    leaves = [t.requires_grad_() for t in tensors]
    with Largest() as largest:
        out = modulated_deform_conv2d(*leaves, *case[:5], backend=backend)
        out.sum().backward()
    assert (largest.elements < 2 * tensors[0].numel()) == fits


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('backend', [*BACKENDS, 'mmcv'])
def test_half_precision_samples_in_single(backend, dtype):
    """Rounded once: positions behind column 2048 need more digits."""
    tensors = make(CASES[0], (1, 2300), 1)
    tensors = [t.to(dtype).requires_grad_() for t in tensors]
    out = modulated_deform_conv2d(*tensors, padding=1, backend=backend)
    assert out.dtype == dtype
    wanted = modulated_deform_conv2d(
        *(t.detach().float() for t in tensors), padding=1, backend='mmcv'
    )
    torch.testing.assert_close(
        out.float(),
        wanted.to(dtype).float(),
        rtol=2 * torch.finfo(dtype).eps,
        atol=1e-4,
    )
    out.float().sum().backward()
    for t in tensors:
        assert t.grad.dtype == dtype
        assert t.grad.isfinite().all()


@pytest.mark.parametrize('backend', [*BACKENDS, 'mmcv'])
def test_autocast_leaves_single_precision_alone(backend):
    x, *others = make(CASES[0])
    wanted = modulated_deform_conv2d(x, *others, padding=1, backend=backend)
    with torch.autocast('cpu', torch.bfloat16):
        out = modulated_deform_conv2d(x, *others, padding=1, backend=backend)
        assert torch.equal(out, wanted)
        half = modulated_deform_conv2d(
            x.bfloat16(), *others, padding=1, backend=backend
        )
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize('backend', [*BACKENDS, 'mmcv'])
def test_memory_formats(backend):
    """Channels last goes in and out; offsets may be part of a head."""
    x, offset, mask, weight, bias = make(CASES[0])
    wanted = modulated_deform_conv2d(x, offset, mask, weight, bias, 1, 1)
    assert wanted.is_contiguous()
    last = dict(memory_format=torch.channels_last)
    head = torch.cat([offset, mask], 1).to(**last).requires_grad_()
    out = modulated_deform_conv2d(
        x.to(**last),
        head[:, :18],
        head[:, 18:],
        weight.to(**last),
        bias,
        1,
        1,
        backend=backend,
    )
    torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-5)
    out.sum().backward()
    assert head.grad.any(dim=(0, 2, 3)).all()
    if backend == 'torch':
        assert out.is_contiguous(**last)


@pytest.mark.parametrize('backend', [*BACKENDS, 'mmcv'])
def test_gradients_at_whole_pixels(backend):
    """Those towards the next pixel, also where they are differentiated."""
    x, _, mask, weight, bias = (t.double() for t in make(CASES[0]))
    zeros = torch.zeros(len(x), 18, *mask.shape[-2:], dtype=x.dtype)

    def loss(offset):
        out = modulated_deform_conv2d(
            x, offset, mask, weight, bias, padding=1, backend=backend
        )
        # A tap beside the map has no derivative on the map's side.
        return out[..., 1:-1, 1:-1].sin().sum()

    offset = zeros.clone().requires_grad_()
    (once,) = torch.autograd.grad(loss(offset), offset)
    (twice,) = torch.autograd.grad(loss(offset), offset, create_graph=True)
    torch.testing.assert_close(twice.detach(), once)
    step = torch.rand_like(zeros) * 1e-6
    torch.testing.assert_close(
        (once * step).sum(), loss(step) - loss(zeros), rtol=1e-4, atol=0
    )


def test_no_image():
    x, offset, mask, weight, bias = make(CASES[0])
    out = modulated_deform_conv2d(
        x[:0], offset[:0], mask[:0], weight, bias, padding=1, backend='torch'
    )
    assert out.shape == (0, 2, 11, 14)


def test_auto_is_mmcv_where_it_is_compiled(monkeypatch):
    cpu, gpu = torch.device('cpu'), torch.device('cuda')
    for there, wanted in ((True, 'mmcv'), (False, 'torch')):
        monkeypatch.setattr(deform_conv, '_has_cuda_op', lambda t=there: t)
        assert check_backend('auto', gpu) == wanted
        assert check_backend('auto', cpu) == 'torch'


@pytest.mark.gpu
def test_backends_agree_on_a_gpu():
    tensors = [t.cuda() for t in make(CASES[5])]
    wanted = with_gradients(
        modulated_deform_conv2d, tensors, *CASES[5][:5], backend='reference'
    )
    got = with_gradients(
        modulated_deform_conv2d, tensors, *CASES[5][:5], backend='torch'
    )
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize('case', CASES)
def test_module_is_mmcvs(case):
    stride, padding, dilation, groups, deform_groups, kernel = case
    x, offset, mask, _, bias = make(case)
    args = (8, len(bias), kernel, stride, padding, dilation, groups)
    theirs = mmcv_ops.ModulatedDeformConv2d(*args, deform_groups)
    ours = ModulatedDeformConv2d(*args, deform_groups)
    bound = theirs.in_channels * kernel[0] * kernel[1]
    assert ours.weight.abs().max() <= bound**-0.5
    assert ours.weight.abs().max() > 0.8 * bound**-0.5
    ours.load_state_dict(theirs.state_dict(), strict=True)
    torch.testing.assert_close(
        ours(x, offset, mask), theirs(x, offset, mask), rtol=1e-4, atol=1e-5
    )
    again = copy.deepcopy(ours)
    assert torch.equal(again(x, offset, mask), ours(x, offset, mask))
    assert set(ModulatedDeformConv2d(8, 8, 3, bias=False).state_dict()) == {
        'weight'
    }


def test_bad_input_is_named():
    x, offset, mask, weight, bias = make(CASES[0])

    def error(match, *args, **kwargs):
        with pytest.raises(ValueError, match=match):
            modulated_deform_conv2d(*args, **kwargs)

    good = (x, offset, mask, weight, bias, 1, 1)
    error(r"backend of .*'mmcv'.*got 'cuda'", *good, backend='cuda')
    error(r'4 dimensions, got \(8, 11, 14\)', x[0], *good[1:])
    error(r'offset must be \(2, 18, 11, 14\), got', x, mask, *good[2:])
    error(
        r'mask must be \(2, 9, 11, 14\), got', x, offset, *good[1:2], *good[3:]
    )
    error(r'offset must be \(2, 18, 9, 12\)', *good[:5])
    error('offset must be', *good, deform_groups=2)
    error('8 channels in 2 groups', *good, groups=2)
    error('8 channels in 3 groups', *good, groups=3)
    error('deform_groups 3 the 8 channels', *good, deform_groups=3)
    error(r'bias must be \(2,\), got \(8,\)', *good[:4], x[0, :, 0, 0], 1, 1)
    error('larger than the padded map', x[..., :2], *good[1:5])
    with pytest.raises(ValueError, match='groups 3 must divide'):
        ModulatedDeformConv2d(8, 8, 3, groups=3)
    with pytest.raises(ValueError, match='deform_groups 5'):
        ModulatedDeformConv2d(8, 8, 3, deform_groups=5)
    with pytest.raises(ValueError, match="got 'triton'"):
        ModulatedDeformConv2d(8, 8, 3, backend='triton')
