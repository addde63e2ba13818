import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import leaf
from torch.autograd import gradcheck, gradgradcheck

from mmplugins.ops import (
    adaptive_conv,
    bilateral_resample,
    jbu_upsample,
    joint_bilateral_kernel,
)

BACKENDS = ('reference', 'torch')


@pytest.mark.parametrize('backend', BACKENDS)
def test_kernel_is_a_bilateral_filter(backend):
    """Against OpenCV.

    Keys (cos a, sin a) have products cos(a_p - a_c), so for close angles the
    softmax is a Gaussian of their difference with variance 1 / t. OpenCV
    leaves out what lies beyond the disc in the window.
    """
    angle = torch.rand(1, 1, 12, 15) * 0.5
    keys = torch.cat([angle.cos(), angle.sin()], 1)
    radius, sigma, t = 3, 0.6, 40.0
    kernel = joint_bilateral_kernel(
        keys, torch.tensor(t), torch.tensor(sigma), radius, backend
    )
    offset = torch.arange(-radius, radius + 1)
    disc = offset[:, None] ** 2 + offset[None] ** 2 <= radius**2
    kernel = kernel * disc.view(1, -1, 1, 1)
    kernel = kernel / kernel.sum(1, keepdim=True)
    padded = F.pad(angle, [radius] * 4, mode='reflect')
    ours = adaptive_conv(padded, kernel, backend)[0, 0]
    theirs = cv2.bilateralFilter(
        angle[0, 0].numpy(),
        2 * radius + 1,
        t**-0.5,
        sigma * radius,
        borderType=cv2.BORDER_REFLECT_101,
    )
    assert np.abs(ours.numpy() - angle[0, 0].numpy()).max() > 0.05
    np.testing.assert_allclose(ours.numpy(), theirs, atol=2e-3)


@pytest.mark.parametrize('backend', BACKENDS)
def test_kernel_sums_to_one_and_equals_its_formula(backend):
    keys = torch.randn(2, 5, 6, 7).double()
    t, sigma = torch.tensor(0.3).double(), torch.tensor(0.8).double()
    kernel = joint_bilateral_kernel(keys, t, sigma, 1, backend)
    torch.testing.assert_close(kernel.sum(1), torch.ones(2, 6, 7).double())
    padded = F.pad(keys, [1] * 4, mode='reflect')
    window = padded[0, :, 2:5, 3:6].reshape(5, 9)  # around (2, 3)
    weights = (t * keys[0, :, 2, 3] @ window).softmax(0)
    distance = torch.tensor([2, 1, 2, 1, 0, 1, 2, 1, 2]).double()
    weights = weights * torch.exp(-distance / (2 * sigma**2))
    torch.testing.assert_close(kernel[0, :, 2, 3], weights / weights.sum())


def test_zero_width_keeps_the_centre():
    kernel = joint_bilateral_kernel(
        torch.randn(1, 4, 5, 5), torch.tensor(1.0), torch.tensor(0.0), 1
    )
    wanted = torch.zeros(1, 9, 5, 5)
    wanted[:, 4] = 1
    torch.testing.assert_close(kernel, wanted)


@pytest.mark.parametrize('backend', BACKENDS)
def test_upsample_with_a_centred_kernel_is_bicubic(backend):
    x = torch.randn(2, 3, 4, 5)
    kernel = torch.zeros(2, 49, 8, 10)
    kernel[:, 24] = 1
    wanted = F.interpolate(x, scale_factor=2, mode='bicubic')
    torch.testing.assert_close(jbu_upsample(x, kernel, backend), wanted)


def test_upsample_is_its_three_steps():
    x, kernel = torch.randn(1, 2, 3, 4), torch.randn(1, 25, 6, 8)
    big = F.interpolate(x, scale_factor=2, mode='bicubic')
    big = F.pad(big, [2] * 4, mode='reflect')
    torch.testing.assert_close(
        jbu_upsample(x, kernel), adaptive_conv(big, kernel, 'reference')
    )


def test_gradients():
    x, kernel = leaf(torch.randn(1, 2, 2, 3)), leaf(torch.randn(1, 9, 4, 6))
    assert gradcheck(jbu_upsample, (x, kernel))
    keys = leaf(torch.randn(1, 3, 4, 5))
    t, sigma = leaf(torch.tensor(0.7)), leaf(torch.tensor(0.9))
    assert gradcheck(
        lambda *args: joint_bilateral_kernel(*args, 1), (keys, t, sigma)
    )


def test_bad_input_is_named():
    with pytest.raises(ValueError, match='must be 6 x 8, twice the map'):
        jbu_upsample(torch.zeros(1, 2, 3, 4), torch.zeros(1, 9, 6, 6))
    with pytest.raises(ValueError, match='odd K, got 16'):
        jbu_upsample(torch.zeros(1, 2, 3, 4), torch.zeros(1, 16, 6, 8))


@pytest.mark.parametrize('backend', BACKENDS)
def test_large_keys_of_half_precision_do_not_overflow(backend):
    keys = torch.full((1, 32, 6, 6), 50.0, dtype=torch.float16)
    kernel = joint_bilateral_kernel(
        keys, torch.tensor(200.0), torch.tensor(1.0), 1, backend
    )
    assert kernel.isfinite().all()
    torch.testing.assert_close(kernel.sum(1), torch.ones(1, 6, 6))


@pytest.mark.parametrize('backend', ['reference', 'torch'])
def test_gaussian_similarity_is_its_formula(backend):
    keys = torch.randn(2, 4, 6, 7).double()
    t, sigma = torch.tensor(0.7).double(), torch.tensor(0.8).double()
    out = joint_bilateral_kernel(keys, t, sigma, 1, backend, 'gaussian')
    padded = F.pad(keys, [1] * 4, mode='reflect')
    for y in range(6):
        for x in range(7):
            window = padded[..., y : y + 3, x : x + 3]
            distance = (window - keys[..., y, x, None, None]).square().sum(1)
            i, j = torch.meshgrid(*[torch.arange(-1, 2)] * 2, indexing='ij')
            spatial = (-(i**2 + j**2) / (2 * sigma**2)).exp()
            wanted = (-t * distance).exp() * spatial
            wanted = wanted / wanted.sum((-2, -1), keepdim=True)
            torch.testing.assert_close(out[..., y, x], wanted.flatten(1))


@pytest.mark.parametrize('radius', range(6))
@pytest.mark.parametrize('size', [(3, 4), (5, 7), (14, 9)])
def test_many_channels_are_upsampled_by_the_kernels(radius, size):
    """Interpolation, reflection and window in one, borders included."""
    x = torch.randn(2, 16, *size).double()
    height, width = (2 * n for n in size)
    kernel = torch.randn(2, (2 * radius + 1) ** 2, height, width).double()
    wanted = jbu_upsample(x, kernel, 'reference')
    torch.testing.assert_close(jbu_upsample(x, kernel), wanted)
    # The same in single precision, as close as it is.
    torch.testing.assert_close(
        jbu_upsample(x.float(), kernel.float()),
        wanted.float(),
        rtol=1e-4,
        atol=1e-4,
    )


def test_gradients_of_many_channels():
    x, kernel = leaf(torch.randn(1, 16, 2, 3)), leaf(torch.randn(1, 9, 4, 6))
    assert gradcheck(jbu_upsample, (x, kernel), fast_mode=True)
    assert gradgradcheck(jbu_upsample, (x, kernel), fast_mode=True)
    grad = torch.randn(1, 16, 4, 6).double()
    torch.testing.assert_close(
        torch.autograd.grad(jbu_upsample(x, kernel), (x, kernel), grad),
        torch.autograd.grad(
            jbu_upsample(x, kernel, 'reference'), (x, kernel), grad
        ),
    )


@pytest.mark.parametrize('backend', BACKENDS)
def test_reflection_needs_something_to_reflect(backend):
    x, kernel = torch.zeros(1, 16, 1, 4), torch.zeros(1, 49, 2, 8)
    with pytest.raises(RuntimeError, match='[Pp]adding'):
        jbu_upsample(x, kernel, backend)


def test_many_channels_keep_single_precision_under_autocast():
    x, kernel = torch.randn(1, 16, 5, 6), torch.randn(1, 49, 10, 12)
    wanted = jbu_upsample(x, kernel)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(jbu_upsample(x, kernel), wanted)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_many_channels_of_half_precision_are_rounded_once(dtype):
    x = torch.rand(1, 16, 6, 5).to(dtype)
    kernel = torch.rand(1, 49, 12, 10).to(dtype)
    out = jbu_upsample(x, kernel)
    assert out.dtype == dtype
    wanted = jbu_upsample(x.double(), kernel.double(), 'reference')
    eps = torch.finfo(dtype).eps
    assert ((out.double() - wanted).abs() <= wanted.abs() * eps).all()


@pytest.mark.parametrize('similarity', ['dot', 'gaussian'])
def test_kernel_is_the_same_with_and_without_gradients(similarity):
    """And as the formula is, where its sum is clamped too."""
    # Longer ones below: what is far away outweighs the centre.
    keys = torch.randn(1, 32, 9, 11) + torch.arange(9.0)[:, None]
    t, sigma = torch.tensor(0.7), torch.tensor(0.2)
    wanted, out = (
        joint_bilateral_kernel(keys, t, sigma, 3, backend, similarity)
        for backend in BACKENDS
    )
    torch.testing.assert_close(out, wanted, rtol=1e-3, atol=1e-5)
    if similarity == 'dot':
        assert wanted.sum(1).min() < 0.5  # clamped
    sigma.requires_grad_()
    graph = joint_bilateral_kernel(
        keys, t, sigma, 3, similarity=similarity
    ).detach()
    with torch.no_grad():
        out = joint_bilateral_kernel(keys, t, sigma, 3, similarity=similarity)
    torch.testing.assert_close(out, graph)


@pytest.mark.parametrize('channels', [3, 33])  # few and many: other paths
@pytest.mark.parametrize('backend', ['reference', 'torch', 'auto'])
def test_kernels_of_another_batch_or_window_are_named(channels, backend):
    x = torch.randn(2, channels, 4, 5)
    for count in (1, 3):
        with pytest.raises(ValueError, match=f'for 2 maps, got {count}'):
            bilateral_resample(x, torch.rand(count, 9, 8, 10), backend)
    for taps, wanted in ((10, r'K \* K taps'), (16, 'of an odd K')):
        with pytest.raises(ValueError, match=f'{wanted}.*, got {taps}'):
            bilateral_resample(x, torch.rand(2, taps, 8, 10), backend)
