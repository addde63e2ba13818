import pytest
import torch
import torch.nn.functional as F
from helpers import assert_all_parameters_get_gradients
from torch.autograd import gradcheck

from mmplugins.featup import BilinearUpsampler, JBUStack
from mmplugins.featup.upsamplers import JBUStage


def randomised(module):
    """Weights away from their initial values, so that each one matters."""
    for name, parameter in module.named_parameters():
        with torch.no_grad():
            parameter.add_(0.2 * torch.randn_like(parameter))
            if name.endswith('sigma_spatial'):
                parameter.abs_().add_(0.3)
    return module.eval()


def published(stack, feats, image):
    """Section by section as published, with its own unfolds and tensors."""
    x = feats
    for stage in stack.stages:
        height, width = 2 * x.shape[-2], 2 * x.shape[-1]
        g = F.adaptive_avg_pool2d(image, (height, width))
        r = stage.radius
        size = 2 * r + 1
        keys = stage.range_proj(g)
        near = F.unfold(F.pad(keys, [r] * 4, mode='reflect'), size)
        near = near.view(len(x), -1, size**2, height, width)
        t = stage.range_temp.exp().clamp(1e-4, 1e4)
        range_kernel = (t * (near * keys[:, :, None]).sum(1)).softmax(1)
        steps = torch.linspace(-1, 1, size)
        i, j = torch.meshgrid(steps, steps, indexing='ij')
        sigma = stage.sigma_spatial
        spatial = (-(i**2 + j**2) / (2 * sigma**2)).exp().view(1, -1, 1, 1)
        kernel = range_kernel * spatial
        kernel = kernel / kernel.sum(1, keepdim=True).clamp_min(1e-7)
        kernel = kernel + 0.1 * stage.fixup_proj(torch.cat([kernel, g], 1))
        x = F.interpolate(x, (height, width), mode='bicubic')
        windows = F.unfold(F.pad(x, [r] * 4, mode='reflect'), size)
        windows = windows.view(*x.shape[:2], size**2, height, width)
        x = (windows * kernel[:, None]).sum(2)
    return x + 0.1 * stack.fixup_proj(x)


@pytest.mark.parametrize('backend', ['reference', 'torch', 'auto'])
@pytest.mark.parametrize('radius', [1, 3, 5])
@pytest.mark.parametrize('channels', [6, 33])  # few and many: other paths
def test_stack_is_as_published(backend, radius, channels):
    stack = randomised(
        JBUStack(channels, 2, radius, key_channels=8, backend=backend)
    )
    feats, image = torch.randn(2, channels, 4, 5), torch.randn(2, 3, 61, 83)
    out = stack(feats, image)
    assert out.shape == (2, channels, 16, 20)
    torch.testing.assert_close(
        out, published(stack, feats, image), rtol=1e-4, atol=1e-5
    )


def test_parameters_are_as_published():
    """24 932 in four stages and C^2 + C after them."""
    stack = JBUStack(384)
    assert sum(p.numel() for p in stack.parameters()) == 172772
    assert sum(p.numel() for p in stack.stages.parameters()) == 24932


@pytest.mark.parametrize('size', [(2, 2), (3, 5), (7, 2)])
@pytest.mark.parametrize('image', [(32, 32), (97, 131), (8, 500)])
def test_any_size(size, image):
    stack = JBUStack(4, 3).eval()
    feats, guidance = torch.randn(3, 4, *size), torch.randn(3, 3, *image)
    out = stack(feats, guidance)
    assert out.shape == (3, 4, 8 * size[0], 8 * size[1])
    alone = torch.cat(
        [stack(f[None], g[None]) for f, g in zip(feats, guidance)]
    )
    torch.testing.assert_close(out, alone, rtol=1e-4, atol=1e-5)


def test_gradients_of_a_stage_and_a_stack():
    stack = randomised(JBUStack(2, 1, radius=1, key_channels=2)).double()
    feats = torch.randn(1, 2, 2, 3).double().requires_grad_()
    image = torch.randn(1, 3, 9, 13).double().requires_grad_()
    assert gradcheck(stack, (feats, image))
    parameters = tuple(stack.stages[0].parameters())
    assert gradcheck(
        lambda *_: stack(feats, image), (*parameters,), fast_mode=True
    )


@pytest.mark.parametrize('backend', ['reference', 'torch'])
def test_every_parameter_gets_a_gradient(backend):
    stack = JBUStack(3, 2, key_channels=4, backend=backend)
    out = stack(torch.randn(2, 3, 3, 4), torch.randn(2, 3, 24, 32))
    (out * torch.randn_like(out)).sum().backward()
    assert_all_parameters_get_gradients(stack)
    # All 49 taps of the correction learn.
    assert (stack.stages[0].fixup_proj[3].bias.grad != 0).all()


def test_training_drops_and_evaluation_does_not():
    stack = JBUStack(8, 1)
    feats, image = torch.randn(1, 8, 4, 4), torch.randn(1, 3, 8, 8)
    assert not torch.equal(stack(feats, image), stack(feats, image))
    stack.eval()
    assert torch.equal(stack(feats, image), stack(feats, image))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_agrees(dtype):
    stack = randomised(JBUStack(8, 2))
    feats, image = torch.rand(1, 8, 4, 5), torch.rand(1, 3, 64, 80)
    wanted = stack(feats, image)
    out = stack.to(dtype)(feats.to(dtype), image.to(dtype))
    assert out.dtype == dtype
    tolerance = 8 * torch.finfo(dtype).eps * wanted.abs().max()
    assert (out.float() - wanted).abs().max() <= tolerance


@pytest.mark.parametrize('backend', ['reference', 'torch'])
def test_autocast_agrees(backend):
    stack = randomised(JBUStack(8, 2, backend=backend))
    feats, image = torch.rand(1, 8, 4, 5), torch.rand(1, 3, 64, 80)
    wanted = stack(feats, image)
    with torch.autocast('cpu', torch.bfloat16):
        out = stack(feats, image)
    tolerance = 8 * torch.finfo(torch.bfloat16).eps * wanted.abs().max()
    assert (out.float() - wanted).abs().max() <= tolerance


def test_an_edge_of_the_image_sharpens_the_features():
    """What joint bilateral upsampling is for, with a key of plain colour."""
    stage = JBUStage(radius=3, key_channels=2).eval()
    with torch.no_grad():
        for parameter in stage.fixup_proj.parameters():
            parameter.zero_()
        stage.range_proj[0].weight.copy_(
            torch.tensor([[20.0, 0, 0], [-20.0, 0, 0]]).view(2, 3, 1, 1)
        )
        stage.range_proj[0].bias.zero_()
        stage.range_proj[3].weight.copy_(torch.eye(2).view(2, 2, 1, 1))
        stage.range_proj[3].bias.zero_()
    image = torch.ones(1, 3, 16, 16)
    image[..., :9] = -1
    feats = torch.ones(1, 1, 8, 8)
    feats[..., :4] = 0
    feats[..., 4] = 0.5  # the cell that the edge divides
    with torch.no_grad():
        out = stage(feats, image)[0, 0, 8]
    smooth = F.interpolate(feats, scale_factor=2, mode='bicubic')[0, 0, 8]
    assert out[9] - out[8] > 1.5 * (smooth[9] - smooth[8])


def test_bilinear_is_torchs():
    feats = torch.randn(2, 3, 4, 5)
    out = BilinearUpsampler(3, 2)(feats, torch.zeros(2, 3, 9, 9))
    wanted = F.interpolate(feats, (16, 20), mode='bilinear')
    torch.testing.assert_close(out, wanted)


@pytest.mark.parametrize('upsampler', [BilinearUpsampler, JBUStack])
def test_bad_values_are_not_spread(upsampler):
    module = upsampler(2, 1).eval()
    feats, image = torch.zeros(3, 2, 4, 4), torch.zeros(3, 3, 8, 8)
    assert module(feats, image).isfinite().all()
    feats[1, 0, 2, 2] = float('nan')
    with pytest.raises(ValueError, match=r'features: NaN.*samples \[1\]'):
        module(feats, image)
    image[2, 0, 0, 0] = float('inf')
    with pytest.raises(ValueError, match=r'guidance: NaN.*samples \[2\]'):
        module(feats.nan_to_num(), image)


@pytest.mark.parametrize('size', [(1, 4), (4, 1)])
def test_too_few_cells_are_named(size):
    stack, image = JBUStack(2, 1), torch.zeros(1, 3, 8, 8)
    with pytest.raises(ValueError, match=f'got {size[0]} x {size[1]} before'):
        stack(torch.zeros(1, 2, *size), image)
    with pytest.raises(
        ValueError, match='more than 5 x 5 cells after the first'
    ):
        JBUStack(2, 1, radius=5)(torch.zeros(1, 2, 2, 2), image)


def test_bad_arguments_are_named():
    with pytest.raises(
        ValueError, match='num_stages of JBUStack must be 1 or more'
    ):
        JBUStack(2, num_stages=0)
    with pytest.raises(
        ValueError, match='radius of JBUStack must be 1 or more'
    ):
        JBUStack(2, radius=0)
    with pytest.raises(ValueError, match='backend of JBUStack must be one of'):
        JBUStack(2, backend='cuda')
    with pytest.raises(ValueError, match=r'in_channels=2 .*\(1, 3, 4, 4\)'):
        JBUStack(2)(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize('upsampler', [BilinearUpsampler, JBUStack])
@pytest.mark.parametrize(
    'guidance',
    [
        None,
        torch.zeros(3, 8, 8),
        torch.zeros(1, 3, 8, 8),
        torch.zeros(2, 1, 8, 8),
    ],
)
def test_bad_guidance_is_named(upsampler, guidance):
    message = r'needs guidance of shape \(2, 3, H, W\), got'
    with pytest.raises(ValueError, match=message):
        upsampler(4, 1)(torch.zeros(2, 4, 4, 4), guidance)


def options():
    """Every option, alone and together."""
    yield dict()
    yield dict(shared=True)
    yield dict(kernel_fixup=False)
    yield dict(channel_fixup=False)
    yield dict(scale=3)
    yield dict(scale='image')
    yield dict(similarity='gaussian')
    yield dict(
        radius=2,
        key_channels=5,
        shared=True,
        kernel_fixup=False,
        channel_fixup=False,
        scale=6,
    )


@pytest.mark.parametrize('kwargs', options())
@pytest.mark.parametrize('backend', ['reference', 'torch'])
def test_linear_is_the_convolution_of_the_features(kwargs, backend):
    stack = randomised(JBUStack(6, 2, **kwargs, backend=backend)).double()
    feats = torch.randn(2, 6, 4, 5).double()
    image = torch.randn(2, 3, 23, 31).double()
    weight, bias = torch.randn(3, 6).double(), torch.randn(3).double()
    out = stack.linear(feats, image, weight, bias)
    wanted = F.conv2d(stack(feats, image), weight[..., None, None], bias)
    torch.testing.assert_close(out, wanted)
    without = stack.linear(feats, image, weight)
    torch.testing.assert_close(without, wanted - bias.view(-1, 1, 1))


def test_linear_upsamples_few_channels():
    seen = []
    stack = JBUStack(32, 2).eval()
    for stage in stack.stages:
        stage.register_forward_pre_hook(lambda _, x: seen.append(x[0].shape))
    feats, image = torch.randn(1, 32, 4, 4), torch.randn(1, 3, 16, 16)
    stack.linear(feats, image, torch.randn(2, 32))
    assert [shape[1] for shape in seen] == [2, 2]


def test_bilinear_is_linear_too():
    module = BilinearUpsampler(6, 2)
    feats, weight = torch.randn(2, 6, 4, 5), torch.randn(3, 6)
    image, bias = torch.zeros(2, 3, 9, 9), torch.randn(3)
    wanted = F.conv2d(module(feats, image), weight[..., None, None], bias)
    out = module.linear(feats, image, weight, bias)
    torch.testing.assert_close(out, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('upsampler', [BilinearUpsampler, JBUStack])
@pytest.mark.parametrize(
    ('scale', 'size'),
    [(None, (16, 20)), (1, (4, 5)), (3, (12, 15)), (14, (56, 70)),
     ('image', (37, 50))],
)  # fmt: skip
def test_scale_is_the_size_of_the_result(upsampler, scale, size):
    module = upsampler(2, 2, scale=scale).eval()
    feats, image = torch.randn(1, 2, 4, 5), torch.randn(1, 3, 37, 50)
    assert module(feats, image).shape[-2:] == size
    # Kernels that are no blur at all leave plain bicubic steps, which keep
    # a constant.
    flat = upsampler(2, 2, scale=scale)
    for stage in getattr(flat, 'stages', ()):
        stage.fixup_proj = None
    flat.fixup_proj = None
    out = flat(torch.ones_like(feats), image)
    torch.testing.assert_close(out, torch.ones_like(out))


def test_an_even_scale_is_that_of_the_doublings():
    stack = randomised(JBUStack(3, 2))
    feats, image = torch.randn(1, 3, 4, 5), torch.randn(1, 3, 37, 50)
    wanted = stack(feats, image)
    stack.scale = 4
    assert torch.equal(stack(feats, image), wanted)


def test_shared_stages_are_one():
    stack = JBUStack(4, 3, shared=True, channel_fixup=False)
    assert len(stack.stages) == 1
    single = sum(p.numel() for p in JBUStage().parameters())
    assert sum(p.numel() for p in stack.parameters()) == single == 6233
    feats, image = torch.randn(1, 4, 3, 3), torch.randn(1, 3, 24, 24)
    stack.eval()
    wanted = feats
    for _ in range(3):
        wanted = stack.stages[0](wanted, image)
    torch.testing.assert_close(stack(feats, image), wanted)


def test_without_fixups_the_weights_sum_to_one():
    stack = randomised(JBUStack(2, 3, kernel_fixup=False, channel_fixup=False))
    out = stack(torch.full((1, 2, 4, 4), 2.5), torch.randn(1, 3, 32, 32))
    torch.testing.assert_close(out, torch.full_like(out, 2.5))
    # And they fit features of any number of channels.
    JBUStack(7, 3, kernel_fixup=False, channel_fixup=False).load_state_dict(
        stack.state_dict()
    )


@pytest.mark.parametrize('kwargs', options())
def test_every_option_learns(kwargs):
    stack = JBUStack(3, 2, **kwargs)
    out = stack.linear(
        torch.randn(2, 3, 4, 4), torch.randn(2, 3, 24, 32), torch.randn(2, 3)
    )
    (out * torch.randn_like(out)).sum().backward()
    assert_all_parameters_get_gradients(stack)


def test_bad_scales_are_named():
    for scale in (0, 2.5, 'whole'):
        with pytest.raises(ValueError, match="scale of JBUStack.*'image'"):
            JBUStack(2, scale=scale)
    stack = JBUStack(2, 2, scale='image')
    with pytest.raises(ValueError, match='at least 8 x 8 pixels, got 8 x 7'):
        stack(torch.zeros(1, 2, 8, 8), torch.zeros(1, 3, 8, 7))
    with pytest.raises(ValueError, match='key_channels of JBUStack'):
        JBUStack(2, key_channels=0)
    with pytest.raises(ValueError, match="similarity.*'gaussian'.*'cosine'"):
        JBUStack(2, similarity='cosine')


def test_gaussian_kernels_follow_an_edge_from_the_start():
    """Published kernels start as a blur of colours alike or not."""
    image = torch.full((1, 3, 16, 16), -0.3)
    image[..., 8:] = 0.3
    across = {}
    for similarity in ('dot', 'gaussian'):
        stage = JBUStage(fixup=False, similarity=similarity).eval()
        kernel = stage.kernel(image).view(7, 7, 16, 16)
        # Of the pixel left of the edge, all that lies right of it.
        across[similarity] = kernel[:, 4:, 8, 7].sum().item()
    assert across['gaussian'] < 0.1
    assert across['dot'] > 3 * across['gaussian']


def test_it_compiles_as_a_whole():
    torch.compiler.reset()
    stack = randomised(JBUStack(32, 1))
    feats = torch.randn(1, 32, 6, 5, requires_grad=True)
    image = torch.rand(1, 3, 12, 10)
    results = []
    for run in (
        stack,
        torch.compile(stack, fullgraph=True, backend='aot_eager'),
    ):
        out = run(feats, image)
        (grad,) = torch.autograd.grad(out.square().sum(), feats)
        results.append((out, grad))
    torch.testing.assert_close(*results)
