import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mmplugins.featup.views import apply_views, sample_views


def views(num, size, seed=0, **kwargs):
    generator = torch.Generator().manual_seed(seed)
    return sample_views(num, size, generator=generator, **kwargs)


def literal(image, theta, max_pad):
    """Pad, zoom, crop and flip one after the other, each by torch's own.

    Zoom, start and flip are read off the map.
    """
    n = torch.tensor([image.shape[-1], image.shape[-2]]).double()
    zoom = 1 / theta[[0, 1], [0, 1]].abs().double()
    start = ((theta[:, 2] + 1 + 2 * max_pad / n) * zoom - 1) * n / 2
    assert torch.allclose(start, start.round(), atol=1e-2)
    x, y = start.round().long().tolist()
    pads = [(0, 0), (max_pad, max_pad), (max_pad, max_pad)]
    out = torch.from_numpy(np.pad(image, pads, mode='symmetric'))
    out = F.interpolate(
        out[None],
        scale_factor=zoom[0].item(),
        mode='bilinear',
        recompute_scale_factor=False,
    )[0]
    out = out[:, y : y + image.shape[-2], x : x + image.shape[-1]]
    return out.flip(-1) if theta[0, 0] < 0 else out


def smooth(size):
    """An image that interpolation hardly changes."""
    y, x = torch.meshgrid(*(torch.arange(n) for n in size), indexing='ij')
    return torch.stack([(y / 9).sin(), (x / 11).cos(), ((x + y) / 13).sin()])


def test_a_view_is_pad_zoom_crop_and_flip():
    image = smooth((90, 122))
    thetas = views(40, (90, 122), max_pad=10)
    zooms = 1 / thetas[:, 0, 0].abs()
    flips = thetas[:, 0, 0] < 0
    assert 0.25 < flips.float().mean() < 0.75
    assert 0.25 < (zooms > 1).float().mean() < 0.75
    outs = apply_views(image.expand(40, -1, -1, -1), thetas)
    for out, theta in zip(outs, thetas):
        wanted = literal(image, theta, 10)
        torch.testing.assert_close(out, wanted, atol=0.02, rtol=0)


def test_without_zoom_pixels_are_copied():
    image = torch.randn(3, 3, 30, 41).double()
    thetas = views(3, (30, 41), max_pad=6, max_zoom=1, flip=0.0)
    outs = apply_views(image, thetas)
    padded = F.pad(image, [6] * 4, mode='replicate')
    for index, theta in enumerate(thetas.double()):
        x, y = (
            round(((t + 1 + 2 * 6 / n) - 1).item() * n / 2)
            for t, n in zip(theta[:, 2], (41, 30))
        )
        wanted = padded[index, :, y : y + 30, x : x + 41]
        # Inside the image itself.
        rows = slice(max(0, 6 - y), 30 - max(0, y - 6))
        columns = slice(max(0, 6 - x), 41 - max(0, x - 6))
        torch.testing.assert_close(
            outs[index][:, rows, columns],
            wanted[:, rows, columns],
            atol=1e-5,
            rtol=0,
        )


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    cells=st.tuples(st.integers(8, 20), st.integers(8, 20)),
    factor=st.integers(1, 4),
)
@example(seed=262143, cells=(15, 8), factor=4)  # much of it reflected
def test_features_that_are_the_image_come_back_as_its_view(
    seed, cells, factor
):
    """One map serves the image and features of another resolution."""
    size = [factor * n for n in cells]
    image = smooth(size)[None]
    feats = F.avg_pool2d(image, factor)
    theta = views(1, size, seed, max_pad=min(size) // 4)
    of_image = F.avg_pool2d(apply_views(image, theta), factor)
    of_feats = apply_views(feats, theta)
    error = (of_image - of_feats).abs().amax(1)[0]
    inner = torch.zeros(cells, dtype=torch.bool)
    inner[1:-1, 1:-1] = True
    grid = F.affine_grid(theta.float(), (1, 1, *size), align_corners=False)
    seen = F.grid_sample(torch.ones(1, 1, *size), grid, align_corners=False)
    direct = inner & (F.avg_pool2d(seen, factor)[0, 0] > 1 - 1e-4)
    if direct.any():
        assert error[direct].max() < 0.03 * factor
    # Half a cell at most lies between a reflection at cells and at pixels, on
    # either side of which the image differs.
    assert error[inner].max() < 0.1 * factor
    if factor == 1:
        assert torch.equal(of_image, of_feats)


def test_seeded_batched_and_free_of_the_global_seed():
    state = torch.get_rng_state()
    first, second = views(5, (64, 48), 3), views(5, (64, 48), 3)
    assert torch.equal(first, second)
    assert not torch.equal(first, views(5, (64, 48), 4))
    assert torch.equal(torch.get_rng_state(), state)
    images = torch.randn(5, 3, 64, 48)
    together = apply_views(images, first)
    alone = [apply_views(i[None], t[None]) for i, t in zip(images, first)]
    assert torch.equal(together, torch.cat(alone))


def test_views_differ_within_a_batch_and_stay_near_the_image():
    thetas = views(200, (64, 48), max_pad=8, max_zoom=2)
    assert len(thetas.unique(dim=0)) > 150
    corners = torch.tensor([[-1.0, -1, 1], [1, 1, 1], [-1, 1, 1], [1, -1, 1]])
    reach = (thetas @ corners.T).abs().amax((0, 2))  # (x, y)
    limit = 1 + 2 * 8 / torch.tensor([48.0, 64.0])
    assert (reach <= limit + 1e-4).all()
    assert (reach > 1).all()


def test_another_size_and_half_precision():
    image = torch.rand(2, 3, 40, 56)
    theta = views(2, (40, 56))
    out = apply_views(image, theta, (20, 28))
    assert out.shape == (2, 3, 20, 28)
    half = apply_views(image.bfloat16(), theta)
    assert half.dtype == torch.bfloat16
    assert (half.float() - apply_views(image, theta)).abs().max() < 0.01


def test_gradient_reaches_the_features():
    x = torch.randn(1, 1, 5, 6).double().requires_grad_()
    theta = views(1, (5, 6), max_pad=2)
    assert torch.autograd.gradcheck(lambda x: apply_views(x, theta), x)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(max_pad=48), 'max_pad of a view.*got 48'),
        (dict(max_pad=-1), 'max_pad of a view.*got -1'),
        (dict(max_zoom=0.5), 'max_zoom of 1 or more'),
        (dict(flip=1.5), r'flip in \[0, 1\]'),
    ],
)
def test_bad_ranges_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        sample_views(1, (64, 48), **kwargs)
