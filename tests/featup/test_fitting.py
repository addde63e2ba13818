import pytest
import torch
import torch.nn.functional as F
from helpers import assert_all_parameters_get_gradients
from mmengine.model import BaseModule
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

from mmplugins.featup import FeatUp, ImplicitUpsampler, fit_implicit
from mmplugins.featup.fitting import _Objective
from mmplugins.featup.views import apply_views, sample_views

STRIDE = 8
FAST = dict(
    num_views=60,
    views_per_step=4,
    max_pad=8,
    upsampler=dict(dim=8, num_frequencies=10, hidden_channels=64),
)


def fine_features(images):
    """What the features below are means of: bounded mixtures of colours."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(12, 3, 1, 1, generator=generator)
    return F.conv2d(images, weight).tanh()


def backbone(images):
    """Features of cells of 8 pixels."""
    return F.avg_pool2d(fine_features(images), STRIDE)


def photograph(height=48, width=64):
    """Regions with edges that no cell follows."""
    y, x = torch.meshgrid(
        torch.arange(height) / height,
        torch.arange(width) / width,
        indexing='ij',
    )
    image = torch.stack([y, x, 0.5 + 0 * x]) - 0.5
    disc = (y - 0.4) ** 2 + (x - 0.35) ** 2 < 0.06
    bar = (x + 0.3 * y > 0.85) & (x < 0.95)
    image[:, disc] = torch.tensor([[1.0], [-0.5], [0.2]])
    image[:, bar] = torch.tensor([[-1.0], [0.3], [0.9]])
    return image[None]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope='module')
def fitted():
    return fit_implicit(
        photograph(), backbone, steps=400, generator=generator(), **FAST
    )


@torch.no_grad()
def test_fine_features_are_recovered(fitted):
    """A quarter of bilinear interpolation's error at most."""
    image = photograph()
    size = (24, 32)
    truth = F.avg_pool2d(fine_features(image), 2)
    out = fitted.upsampler(backbone(image), image, size)
    bilinear = F.interpolate(backbone(image), size, mode='bilinear')
    errors = [
        (x - truth).square().mean() / truth.var() for x in (out, bilinear)
    ]
    assert errors[0] < 0.25 * errors[1]
    assert fitted.kept > 0.99
    assert not fitted.upsampler.training
    assert not fitted.downsampler.training


@torch.no_grad()
def test_finer_than_the_training_grid_is_sharper(fitted):
    """At the image's pixels, on which nothing was trained."""
    image = photograph()
    truth = fine_features(image)
    out = fitted.upsampler(backbone(image), image)
    assert out.shape == truth.shape
    coarse = fitted.upsampler(backbone(image), image, (24, 32))
    coarse = F.interpolate(coarse, truth.shape[-2:], mode='bilinear')
    errors = [(x - truth).square().mean() for x in (out, coarse)]
    assert errors[0] < errors[1]
    # Averages of the finer are the coarser.
    pooled = F.avg_pool2d(out, 2)
    coarse = fitted.upsampler(backbone(image), image, (24, 32))
    assert (pooled - coarse).square().mean() < 0.12**2 * coarse.var()


@torch.no_grad()
def test_unseen_views_are_explained(fitted):
    """By the fine components and the learned downsampler."""
    image, feats = photograph(), backbone(photograph())
    views = sample_views(20, (48, 64), 8, 1.8, generator=generator(7))
    target = backbone(apply_views(image.expand(20, -1, -1, -1), views))
    codec = fitted.upsampler.codec
    fine = fitted.upsampler.codes(image, (24, 32))
    unit = codec.std.square().mean().sqrt()
    fine = torch.cat([fine, unit * fine.norm(dim=1, keepdim=True)], 1)
    seen = apply_views(fine.expand(20, -1, -1, -1) / unit, views)
    pred = codec.decode(unit * fitted.downsampler(seen, (6, 8))[:, :-1])
    bilinear = apply_views(feats.expand(20, -1, -1, -1), views)
    errors = [(x - target).square().mean() for x in (pred, bilinear)]
    assert errors[0] < 0.5 * errors[1]


def test_the_generator_decides_everything():
    """And torch's own numbers go on as if nothing had been drawn."""
    fits = []
    for own, seed in ((3, 0), (4, 0), (3, 1)):
        torch.manual_seed(own)
        wanted = torch.rand(3)
        torch.manual_seed(own)
        fits.append(
            fit_implicit(
                photograph(),
                backbone,
                steps=2,
                generator=generator(seed),
                **FAST,
            )
        )
        assert torch.equal(torch.rand(3), wanted)
    first, second, other = fits
    assert first.losses == second.losses
    assert first.losses != other.losses
    states = first.upsampler.state_dict(), second.upsampler.state_dict()
    assert all(torch.equal(*pair) for pair in zip(*map(dict.values, states)))


@pytest.mark.parametrize(
    ('size', 'cells'),
    [((45, 59), (6, 7)), ((17, 16), (2, 2)), ((24, 8), (3, 1))],
)
def test_images_that_are_no_multiple_of_the_stride(size, cells):
    """Cells cover the image that they are resampled from."""
    sizes = []

    def spied(images):
        sizes.append(images.shape[-2:])
        return F.avg_pool2d(fine_features(images), STRIDE, ceil_mode=True)

    fit = fit_implicit(
        photograph(*size),
        spied,
        steps=1,
        stride=STRIDE,
        num_views=3,
        max_pad=4,
        samples_per_cell=2,
    )
    assert set(sizes) == {tuple(STRIDE * n for n in cells)}
    assert fit.upsampler.train_size.tolist() == [2 * n for n in cells]


def test_cells_that_begin_before_the_image():
    """Known of the backbone, their place need not be learned."""

    def shifted(images):
        images = F.pad(images, (4, 0, 4, 0), mode='replicate')
        return F.avg_pool2d(fine_features(images[..., :-4, :-4]), STRIDE)

    image = photograph()
    losses = [
        fit_implicit(
            image,
            shifted,
            steps=40,
            offset=offset,
            generator=generator(),
            downsampler=dict(
                type='mmplugins.SimpleDownsampler', kernel_size=4, stride=4
            ),
            **FAST,
        ).losses
        for offset in (-4, 0)
    ]
    assert sum(losses[0][-10:]) < sum(losses[1][-10:])


def test_losses_in_units_of_the_features():
    """Features a hundred times as large make the same problem."""
    image, losses = photograph(), []
    for factor in (1, 100):
        fit = fit_implicit(
            image,
            lambda images, factor=factor: (None, factor * backbone(images)),
            steps=3,
            generator=generator(),
            **FAST,
        )
        losses.append(torch.tensor(fit.losses))
    torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-4)


def test_the_objective_is_the_sum_of_its_formulas():
    network = ImplicitUpsampler(5, dim=3)
    network.prepare(torch.randn(1, 5, 4, 4), torch.rand(1, 3, 8, 8), (8, 8))
    objective = _Objective(
        network,
        dict(type='mmplugins.SimpleDownsampler', kernel_size=2, stride=2),
        magnitude_weight=0.3,
        tv_weight=0.5,
        blur_weight=0.7,
    ).double()
    with torch.no_grad():
        objective.uncertainty.weight.uniform_(-1, 1)
    fine, target = torch.randn(1, 3, 8, 8), torch.randn(2, 3, 4, 4)
    views = torch.eye(2, 3).repeat(2, 1, 1)
    fine, target = fine.double(), target.double()
    likelihood, priors = objective(fine, views.double(), target)
    unit = network.codec.std.square().mean().sqrt()
    fine, target = fine / unit, target / unit
    pred = F.avg_pool2d(fine, 2).expand(2, -1, -1, -1)
    scale = (objective.uncertainty(target) + 0.1).exp()
    wanted = F.gaussian_nll_loss(pred, target, scale.expand_as(pred) ** 2)
    torch.testing.assert_close(likelihood.double(), wanted, rtol=1e-5, atol=0)
    length = fine.square().sum(1, keepdim=True).sqrt()
    error = (
        F.avg_pool2d(length, 2) - target.square().sum(1, keepdim=True) ** 0.5
    )
    dy, dx = length.diff(dim=2), length.diff(dim=3)
    tv = (dy.square().sum() + dx.square().sum()) / 64
    k = torch.exp(-(torch.arange(-2.0, 3).double() ** 2) / 2)
    k = torch.outer(k, k) / k.sum() ** 2
    padded = F.pad(fine, [2] * 4, mode='reflect')
    blurred = F.conv2d(padded, k.expand(3, 1, 5, 5), groups=3)
    blur = (blurred - fine).square().mean()
    wanted = 0.3 * error.square().mean() + 0.5 * tv + 0.7 * blur
    torch.testing.assert_close(priors.double(), wanted, rtol=1e-5, atol=0)
    (likelihood + priors).backward()
    assert_all_parameters_get_gradients(objective.downsampler)
    assert objective.uncertainty.weight.grad.any()


def test_a_backbone_in_training_mode_is_refused():
    net = nn.Sequential(nn.Conv2d(3, 12, STRIDE, STRIDE), nn.BatchNorm2d(12))
    few = dict(steps=1, num_views=2, max_pad=4)
    with pytest.raises(ValueError, match=r'call backbone\.eval\(\) first'):
        fit_implicit(photograph(), net, **few)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    fit_implicit(photograph(), net.eval(), **few)
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def test_bad_arguments_are_named():
    for key in ('steps', 'num_views', 'views_per_step', 'samples_per_cell'):
        with pytest.raises(
            ValueError, match=f'{key} of fit_implicit .* got 0'
        ):
            fit_implicit(photograph(), backbone, **{key: 0})
    with pytest.raises(ValueError, match=r'one image .* got \(2, 3, 8, 8\)'):
        fit_implicit(torch.zeros(2, 3, 8, 8), backbone)
    with pytest.raises(ValueError, match=r'floating type, got torch\.uint8'):
        fit_implicit(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), backbone)


# The same by a runner


class Backbone(BaseModule):
    def forward(self, images):
        return (backbone(images),)


class Photographs(Dataset):
    def __init__(self, count, size=(48, 64)):
        self.count = count
        self.size = size

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return dict(inputs=photograph(*self.size)[0])


def runner(folder, count=1, upsampler=None, offset=0, size=(48, 64), **kwargs):
    torch.manual_seed(0)
    model = FeatUp(
        dict(type=Backbone),
        upsampler or dict(type='mmplugins.ImplicitUpsampler', dim=8, scale=4),
        dict(type='mmplugins.AttentionDownsampler', kernel_size=8, stride=4),
        12,
        num_views=2,
        views=dict(max_pad=8),
        stride=STRIDE,
        offset=offset,
        data_preprocessor=dict(type='ImgDataPreprocessor'),
    )
    return Runner(
        model,
        str(folder),
        train_dataloader=dict(
            dataset=Photographs(count, size),
            sampler=dict(type='InfiniteSampler'),
            batch_size=1,
            num_workers=0,
        ),
        train_cfg=dict(by_epoch=False, max_iters=2),
        optim_wrapper=dict(optimizer=dict(type='NAdam', lr=2e-3)),
        default_hooks=dict(
            logger=None,
            timer=None,
            checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2),
        ),
        custom_hooks=[dict(type='mmplugins.PrepareImplicitHook', num_views=9)],
        log_level='WARNING',
        experiment_name=f'{folder.name}-{count}-{len(kwargs)}',
        **kwargs,
    )


def test_a_runner_trains_it(tmp_path):
    first = runner(tmp_path)
    upsampler = first.model.upsampler
    before = upsampler.network[2].weight.clone()
    first.train()
    assert upsampler.prepared
    assert upsampler.train_size.tolist() == [24, 32]
    assert not torch.equal(before, upsampler.network[2].weight)
    # The principal components of the views of the image.
    codec, feats = upsampler.codec, backbone(photograph())
    back = codec.decode(codec.encode(feats))
    assert (back - feats).square().mean() < 0.02 * feats.var()
    # Another process goes on from the file, with what belongs to the image,
    # even if its own views would give it others.
    state = {k: v.clone() for k, v in codec.state_dict().items()}
    second = runner(
        tmp_path, load_from=str(tmp_path / 'iter_2.pth'), resume=True
    )
    second.model.views = dict(max_pad=2)
    second.train()
    for key, value in second.model.upsampler.codec.state_dict().items():
        assert torch.equal(value, state[key])


def test_what_is_prepared_is_what_is_trained_on(tmp_path):
    """With cells that begin before the image, it is continued to them."""
    offset = runner(tmp_path, offset=-4)
    seen = []
    linear = offset.model.upsampler.linear
    offset.model.upsampler.linear = lambda feats, guidance, **kwargs: (
        seen.append(guidance.shape[-2:]) or linear(feats, guidance, **kwargs)
    )
    offset.train()
    # 48 x 64 pixels and 4 before them are 7 x 9 cells of 8 pixels.
    assert set(seen) == {(56, 72)}
    upsampler = offset.model.upsampler
    assert upsampler.train_size.tolist() == [28, 36]
    assert upsampler.image_size.tolist() == [48, 64]
    continued = F.pad(photograph(), (4, 4, 4, 4), mode='replicate')
    assert upsampler.belongs_to(continued)
    assert not upsampler.belongs_to(continued.flip(-1))


def test_an_image_that_would_be_cut_is_refused(tmp_path):
    """The photograph in use would cover another area."""
    message = r'50 x 66 pixels: add .*Resize.*scale=\(64, 48\)'
    with pytest.raises(ValueError, match=message):
        runner(tmp_path, size=(50, 66)).train()


def test_a_runner_of_many_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match='one image, the training set has 3'):
        runner(tmp_path, 3).train()
    jbu = dict(type='mmplugins.JBUStack', num_stages=2)
    with pytest.raises(ValueError, match='ImplicitUpsampler, got JBUStack'):
        runner(tmp_path, upsampler=jbu).train()
