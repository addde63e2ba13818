import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmplugins.featup.visualization import pca_images


@pytest.mark.parametrize('first', [0, 3])
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
