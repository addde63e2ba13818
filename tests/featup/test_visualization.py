import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmplugins.featup.visualization import (
    component_images,
    heat_image,
    kernel_image,
    paint_cells,
    pca_images,
    principal_components,
    signed_image,
)


@pytest.mark.parametrize('first', [0, 3, 5])
def test_components_are_those_of_the_singular_values(first):
    """Up to sign and range, which an absolute correlation ignores."""
    x = torch.randn(8, 9, 11) * torch.arange(8, 0, -1).view(8, 1, 1)
    cells = x.flatten(1).T.numpy()
    u, s, _ = np.linalg.svd(cells - cells.mean(0), full_matrices=False)
    image = pca_images([x], first)[0].flatten(1).numpy()
    for channel in range(3):
        # Saturated one per cent at each end costs little correlation.
        wanted = u[:, first + channel] * s[first + channel]
        correlation = np.corrcoef(image[channel], wanted)[0, 1]
        assert abs(correlation) > 0.98


def test_equal_features_have_equal_colours():
    low = torch.randn(5, 4, 6)
    high = F.interpolate(low[None], scale_factor=3, mode='nearest')[0]
    first, second = pca_images([low, high])
    assert first.min() == 0
    assert first.max() == 1
    again = F.interpolate(first[None], scale_factor=3, mode='nearest')[0]
    torch.testing.assert_close(second, again)


def test_constant_features_are_one_colour():
    image = pca_images([torch.ones(4, 3, 3)])[0]
    assert image.isfinite().all()
    assert image.std() < 1e-6


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r'components 0 to 2 .*got \[2\]'):
        pca_images([torch.zeros(2, 3, 3)])
    with pytest.raises(ValueError, match=r'got \[3, 4\]'):
        pca_images([torch.zeros(3, 2, 2), torch.zeros(4, 2, 2)])


def test_components_are_orthogonal():
    x = torch.randn(9, 7, 5)
    weight, bias = principal_components(x, 9)
    torch.testing.assert_close(weight @ weight.T, torch.eye(9).double())
    shown = weight @ x.flatten(1).double() + bias[:, None]
    torch.testing.assert_close(shown.mean(1), torch.zeros(9).double())
    # Uncorrelated, in falling order of variance.
    covariance = shown @ shown.T
    falling = covariance.diag()
    torch.testing.assert_close(covariance, falling.diag())
    assert (falling.diff() < 0).all()


def test_few_cells_span_few_components():
    """Two by two cells differ in three directions, the rest is no colour."""
    weight, _ = principal_components(torch.randn(12, 2, 2), 9)
    lengths = weight.norm(dim=1)
    wanted = torch.tensor([1.0] * 3 + [0.0] * 6).double()
    torch.testing.assert_close(lengths, wanted)


def test_colours_span_what_is_asked_for():
    x = torch.linspace(0, 1, 101).expand(3, 1, 101)
    span = torch.linspace(-1, 3, 401).expand(3, 401)
    image = component_images([x], span)[0]
    low, high = np.percentile(span[0], [1, 99])
    wanted = ((x - low) / (high - low)).float()
    torch.testing.assert_close(image, wanted)


def test_heat_rises_from_dark_to_bright():
    image = heat_image(torch.linspace(-2, 5, 70).view(7, 10))
    assert image.shape == (3, 7, 10)
    brightness = image.flatten(1).T @ torch.tensor([0.3, 0.6, 0.1])
    assert (brightness.diff() > -0.01).all()
    assert brightness[-1] - brightness[0] > 0.5
    # One range for two maps: the same number has the same colour.
    low = heat_image(torch.tensor([[0.0, 1.0]]), 0, 2)
    high = heat_image(torch.tensor([[1.0, 2.0]]), 0, 2)
    torch.testing.assert_close(low[..., 1], high[..., 0])


def test_signs_have_colours():
    red, white, blue = signed_image(torch.tensor([[2.0, 0.0, -2.0]])).unbind(2)
    assert red[0] > red[2] + 0.5
    assert blue[2] > blue[0] + 0.5
    torch.testing.assert_close(white, torch.ones(3, 1))
    assert signed_image(torch.zeros(2, 2)).min() == 1


def test_a_kernel_leaves_the_rest_of_the_image_grey():
    image, weights = torch.rand(3, 4, 6), torch.zeros(4, 6)
    weights[1, 2] = 0.5
    picture = kernel_image(image, weights)
    coloured = picture.amax(0) - picture.amin(0) > 1e-6
    assert coloured.nonzero().tolist() == [[1, 2]]


@pytest.mark.parametrize('size', [(12, 20), (11, 17), (12, 1)])
def test_cells_are_painted_where_they_lie(size):
    """Stride 4, against the division by the stride."""
    cells = torch.randn(2, 3, 5)
    painted = paint_cells(cells, (12, 20), size)
    y, x = torch.meshgrid(*map(torch.arange, size), indexing='ij')
    torch.testing.assert_close(painted, cells[:, y // 4, x // 4])


def test_cells_smaller_than_pixels_are_sampled_at_the_centres():
    cells = torch.arange(9.0).expand(1, 9)
    assert paint_cells(cells, (1, 3)).tolist() == [[1, 4, 7]]
