import json
from functools import partial

import mmcv.cnn
import pytest
import torch
from helpers import leaf
from torch.autograd import gradcheck
from torch.profiler import ProfilerActivity, profile

from mmplugins.ops import attention
from mmplugins.ops.attention import NonLocal2d, non_local

BACKENDS = ('reference', 'torch')


@pytest.fixture(params=['fused', 'chunked'])
def kernel(request, monkeypatch):
    """Both ways of 'torch'; the second with chunks of some queries."""
    if request.param == 'chunked':
        monkeypatch.setattr(attention, '_is_fused', lambda query: False)
        monkeypatch.setattr(attention, '_BLOCK', 200)
    return request.param


def maps(compared=5, averaged=5, size=(6, 7), other=(6, 7), batch=2):
    return (
        torch.randn(batch, compared, *size).double(),
        torch.randn(batch, compared, *other).double(),
        torch.randn(batch, averaged, *other).double(),
    )


def literal(query, key, value, scale):
    """The formula, pixel by pixel."""
    out = query.new_zeros(len(query), value.shape[1], *query.shape[2:])
    for b in range(len(query)):
        for y in range(query.shape[2]):
            for x in range(query.shape[3]):
                dots = (query[b, :, y, x, None, None] * key[b]).sum(0) * scale
                share = dots.exp() / dots.exp().sum()
                out[b, :, y, x] = (share * value[b]).sum((1, 2))
    return out


@pytest.mark.parametrize('averaged', [5, 3, 8])
@pytest.mark.parametrize('backend', BACKENDS)
def test_equals_the_formula(backend, averaged, kernel):
    """Values may have more or fewer channels, and pixels, than queries."""
    tensors = maps(5, averaged, (4, 5), (3, 7))
    for scale, factor in ((None, 5**-0.5), (1.0, 1.0), (0.3, 0.3)):
        out = non_local(*tensors, scale, backend=backend)
        torch.testing.assert_close(out, literal(*tensors, factor))


@pytest.mark.parametrize('backend', BACKENDS)
def test_gradcheck(backend, kernel):
    leaves = [leaf(t) for t in maps(2, 3, (3, 4), (2, 5))]
    assert gradcheck(partial(non_local, backend=backend), leaves)


@pytest.mark.parametrize('backend', BACKENDS)
def test_known_answers(backend, kernel):
    query, key, value = maps()
    ask = partial(non_local, backend=backend)
    mean = value.mean((2, 3), keepdim=True)
    torch.testing.assert_close(
        ask(query, key, value, 0.0), mean.expand_as(value)
    )
    one = ask(query, key[..., :1, :1], value[..., :1, :1])
    torch.testing.assert_close(one, value[..., :1, :1].expand_as(one))
    order = torch.randperm(42)
    shuffled = [
        t.flatten(2)[..., order].unflatten(2, (6, 7)) for t in (key, value)
    ]
    torch.testing.assert_close(ask(query, *shuffled), ask(query, key, value))
    # Sharp as it can be: every pixel finds its own.
    key = torch.eye(42).double().view(1, 42, 6, 7)
    found = ask(key, key, value[:1], 1e4)
    torch.testing.assert_close(found, value[:1])


@pytest.mark.parametrize('backend', BACKENDS)
def test_large_dot_products_do_not_overflow(backend, kernel):
    query, key, value = (100 * t.float() for t in maps())
    out = non_local(query, key, value, 1.0, backend=backend)
    assert out.isfinite().all()


def test_without_flash_it_is_chunked(monkeypatch):
    """Nobody builds the matrix because a user switched a kernel off."""
    tensors = maps()
    wanted = non_local(*tensors)
    called = []
    chunked = attention._chunked
    monkeypatch.setattr(
        attention, '_chunked', lambda *a: called.append(1) or chunked(*a)
    )
    before = torch.backends.cuda.flash_sdp_enabled()
    torch.backends.cuda.enable_flash_sdp(False)
    try:
        torch.testing.assert_close(non_local(*tensors), wanted)
    finally:
        torch.backends.cuda.enable_flash_sdp(before)
    assert called


def peak(function, path):
    """Most bytes that torch held at once in a call, over those before."""
    with profile(
        activities=[ProfilerActivity.CPU], profile_memory=True
    ) as record:
        kept = function()
    record.export_chrome_trace(str(path))
    del kept
    events = json.loads(path.read_text())['traceEvents']
    events = [e['args'] for e in events if e.get('name') == '[memory]']
    totals = [e['Total Allocated'] for e in events]
    return max(totals) - (totals[0] - events[0]['Bytes'])


@pytest.mark.parametrize('train', [False, True])
def test_memory(train, kernel, monkeypatch, request, tmp_path):
    """A tenth of mmcv's, and in proportion to the pixels."""
    monkeypatch.setattr(attention, '_BLOCK', 2**17)
    threads = torch.get_num_threads()
    request.addfinalizer(partial(torch.set_num_threads, threads))
    torch.set_num_threads(1)  # each has a buffer of its own
    theirs, ours = mmcv.cnn.NonLocal2d(64), NonLocal2d(64)

    def step(model, size):
        x = torch.randn(1, 64, size, size, requires_grad=train)
        with torch.set_grad_enabled(train):
            out = model(x)
        if train:
            out.sum().backward()
        return out

    def measure(model, size):
        step(model, 8)  # gradients of parameters, first times
        return peak(lambda: step(model, size), tmp_path / 'trace.json')

    matrix = 4 * 48**4
    small, wanted = measure(ours, 24), measure(theirs, 48)
    large = measure(ours, 48)
    assert wanted > 2 * matrix  # the profiler sees what there is
    assert large < wanted / 10
    assert large < matrix / 4
    assert large < 4.5 * small


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('use_scale', [True, False])
@pytest.mark.parametrize('sub_sample', [True, False])
@pytest.mark.parametrize(('channels', 'reduction'), [(16, 2), (6, 4), (1, 2)])
def test_block_is_mmcvs(backend, use_scale, sub_sample, channels, reduction):
    """State, result and gradients."""
    kwargs = dict(
        reduction=reduction, use_scale=use_scale, sub_sample=sub_sample
    )
    theirs = mmcv.cnn.NonLocal2d(channels, zeros_init=False, **kwargs)
    ours = NonLocal2d(channels, backend=backend, **kwargs)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.5)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = torch.randn(2, channels, 9, 7).double()
    results = []
    for model in (theirs.double(), ours.double()):
        model.requires_grad_()
        inputs = [leaf(x), *dict(model.named_parameters()).values()]
        out = model(inputs[0])
        grads = torch.autograd.grad(out.square().sum(), inputs)
        names = ['x', *dict(model.named_parameters())]
        results.append({'out': out, **dict(zip(names, grads, strict=True))})
    wanted, got = results
    assert wanted.keys() == got.keys()
    for name in wanted:
        torch.testing.assert_close(got[name], wanted[name])


def test_block_begins_like_mmcvs():
    x = torch.randn(1, 64, 5, 5)
    assert torch.equal(NonLocal2d(64)(x), x)
    block = NonLocal2d(64, zeros_init=False)
    for conv in (block.g, block.theta, block.phi, block.conv_out):
        assert conv.conv.weight.std().item() == pytest.approx(0.01, rel=0.1)
        assert not conv.conv.bias.any()


@pytest.mark.parametrize('backend', BACKENDS)
def test_autocast(backend):
    block = NonLocal2d(8, zeros_init=False, backend=backend)
    x = torch.randn(1, 8, 6, 6)
    with torch.autocast('cpu', torch.bfloat16):
        out = block(x)
    assert out.dtype == x.dtype
    torch.testing.assert_close(out, block(x), rtol=1e-2, atol=1e-2)


@pytest.mark.gpu
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_backends_agree_on_a_gpu(dtype):
    tensors = [t.cuda().to(dtype) for t in maps(5, 3, (9, 8), (4, 6))]
    torch.testing.assert_close(
        non_local(*tensors), non_local(*tensors, backend='reference')
    )


def test_bad_input_is_named():
    query, key, value = maps()
    with pytest.raises(ValueError, match=r"backend of non_local .*got 'mmcv'"):
        non_local(query, key, value, backend='mmcv')
    with pytest.raises(ValueError, match=r'got \[\(2, 5, 6, 7\), \(2, 4'):
        non_local(query, key[:, :4], value)
    with pytest.raises(ValueError, match='non_local needs query'):
        non_local(query, key, value[..., 1:])
    with pytest.raises(ValueError, match='non_local needs query'):
        non_local(query[0], key[0], value[0])
    with pytest.raises(ValueError, match=r"backend of NonLocal2d .*got 'x'"):
        NonLocal2d(8, backend='x')
