import pytest
import torch
import torch.nn.functional as F
from helpers import assert_all_parameters_get_gradients
from torch.autograd import gradcheck
from torchvision.transforms.functional import gaussian_blur as torchvisions

from mmplugins.featup import AttentionDownsampler, SimpleDownsampler
from mmplugins.featup.downsamplers import gaussian_blur

BUILD = [
    lambda: SimpleDownsampler(5, 3),
    lambda: AttentionDownsampler(4, 5, 3),
    lambda: AttentionDownsampler(4, 5, 3, blur=True),
]


@pytest.fixture(params=BUILD, ids=['simple', 'attention', 'blurred'])
def module(request):
    return request.param()


def windows_of(x, kernel_size, stride):
    """Windows of whole cells one by one, their edges continued."""
    before = (kernel_size - stride) // 2
    rows, columns = x.shape[-2] // stride, x.shape[-1] // stride
    for i in range(rows):
        for j in range(columns):
            y = torch.arange(kernel_size) + i * stride - before
            u = torch.arange(kernel_size) + j * stride - before
            y, u = y.clamp(0, x.shape[-2] - 1), u.clamp(0, x.shape[-1] - 1)
            yield i, j, x[..., y[:, None], u]


@pytest.mark.parametrize(('kernel_size', 'stride'), [(4, 4), (7, 4), (6, 3)])
def test_simple_is_its_formula(kernel_size, stride):
    module = SimpleDownsampler(kernel_size, stride)
    torch.nn.init.normal_(module.weight)
    x = torch.randn(2, 3, 3 * stride, 5 * stride)
    out = module(x, (3, 5))
    assert out.shape == (2, 3, 3, 5)
    weight = module.weight[0, 0].abs() / module.weight.abs().sum()
    for i, j, window in windows_of(x, kernel_size, stride):
        wanted = (window * weight).sum((-2, -1))
        torch.testing.assert_close(out[..., i, j], wanted)


@pytest.mark.parametrize(('kernel_size', 'stride'), [(4, 4), (7, 4), (6, 3)])
def test_attention_is_its_formula(kernel_size, stride):
    module = AttentionDownsampler(5, kernel_size, stride).eval()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(2, 5, 3 * stride, 5 * stride)
    out = module(x, (3, 5))
    saliency = torch.einsum('bchw,c->bhw', x, module.score[0])
    weight = module.weight.view(kernel_size, kernel_size)
    bias = module.bias.view(kernel_size, kernel_size)
    logits = windows_of(saliency[:, None], kernel_size, stride)
    values = windows_of(x, kernel_size, stride)
    for (i, j, scores), (_, _, window) in zip(logits, values):
        attention = (scores[:, 0] * weight + bias).flatten(1).softmax(1)
        wanted = (window.flatten(2) * attention[:, None]).sum(2)
        torch.testing.assert_close(out[..., i, j], wanted)


def test_published_sizes_cut_the_map_into_patches():
    """224 samples to 14 cells by 16: no window overlaps another."""
    module = SimpleDownsampler(16, 16)
    x = torch.randn(1, 2, 224, 224)
    torch.testing.assert_close(
        module(x, (14, 14)), F.avg_pool2d(x, 16), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize('size', [(2, 2), (3, 7), (11, 2)])
@pytest.mark.parametrize('fine', [(24, 24), (17, 50)])
def test_any_size(module, size, fine):
    x = torch.randn(2, 4, *fine)
    out = module.eval()(x, size)
    assert out.shape == (2, 4, *size)
    # Weights that sum to one: nothing leaves the range of the values.
    assert out.min() >= x.min()
    assert out.max() <= x.max()
    flat = module(torch.full_like(x, 3.5), size)
    torch.testing.assert_close(flat, torch.full_like(flat, 3.5))


def test_the_cells_lie_where_they_should(module):
    """A ramp comes back as the positions of the cells' centres."""
    ramp = (torch.arange(30) + 0.5).expand(1, 4, 21, 30)
    for parameter in module.parameters():
        if parameter.shape[1:] == (4,):
            torch.nn.init.zeros_(parameter)
    out = module.eval()(ramp, (7, 10))
    wanted = 3 * (torch.arange(10) + 0.5)
    torch.testing.assert_close(
        out[0, 0, 3, 1:-1], wanted[1:-1], atol=0.05, rtol=0
    )


def test_gradients(module):
    module = module.double().eval()
    x = torch.randn(1, 4, 6, 9).double().requires_grad_()
    assert gradcheck(lambda x: module(x, (2, 3)), x)
    parameters = tuple(module.parameters())
    assert gradcheck(lambda *_: module(x, (2, 3)), parameters)
    module.float()


def test_every_parameter_gets_a_gradient(module):
    module.zero_grad()
    out = module.train()(torch.randn(8, 4, 12, 12), (4, 4))
    (out * torch.randn_like(out)).sum().backward()
    assert_all_parameters_get_gradients(module)


def test_training_leaves_out_and_evaluation_does_not():
    module = AttentionDownsampler(4, 5, 3)
    x = torch.randn(1, 4, 12, 12)
    assert not torch.equal(module(x, (4, 4)), module(x, (4, 4)))
    module.eval()
    assert torch.equal(module(x, (4, 4)), module(x, (4, 4)))


def test_channels_are_treated_alike(module):
    """A projection commutes, once the saliency is known."""
    module = module.eval()
    x, weight = torch.randn(2, 4, 12, 15), torch.randn(2, 4, 1, 1)
    wanted = F.conv2d(module(x, (4, 5)), weight)
    out = module.pool(F.conv2d(x, weight), module.saliency(x), (4, 5))
    torch.testing.assert_close(out, wanted, atol=1e-5, rtol=1e-5)


def test_half_precision_agrees():
    x = torch.rand(1, 4, 12, 12)
    for build in BUILD:
        module = build().eval()
        wanted = module(x, (4, 4))
        with torch.autocast('cpu', torch.bfloat16):
            out = module(x, (4, 4))
        assert (out.float() - wanted).abs().max() < 0.02


def test_blur_is_torchvisions():
    x = torch.randn(2, 3, 9, 14)
    torch.testing.assert_close(gaussian_blur(x), torchvisions(x, 5, 1.0))


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match='stride=4, kernel_size=3'):
        SimpleDownsampler(3, 4)
    with pytest.raises(ValueError, match=r'map \(B, 4, H, W\), got \(1, 5'):
        AttentionDownsampler(4, 3, 3)(torch.zeros(1, 5, 6, 6), (2, 2))


def test_a_blur_comes_before_the_saliency():
    blurred = AttentionDownsampler(4, 5, 3, blur=True).eval()
    plain = AttentionDownsampler(4, 5, 3).eval()
    plain.load_state_dict(blurred.state_dict())
    x = 3 * torch.randn(1, 4, 12, 15)
    torch.testing.assert_close(
        blurred(x, (4, 5)), plain(gaussian_blur(x), (4, 5))
    )
