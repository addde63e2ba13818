import numpy as np
import pytest
import torch

from mmplugins.crm.baselines import GrabCutRefiner

NORM = dict(
    type='ImgDataPreprocessor',
    mean=[100.0, 110.0, 120.0],
    std=[50.0, 60.0, 70.0],
    bgr_to_rgb=True,
)
# Of the coarse mask's edge from the true one; the diagonal is of 100 pixels.
SHIFT = 6
SIZE = 60, 80


def inputs():
    """Image of two colours with some noise, and a mask that is shifted."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 20, (3, *SIZE)).astype(np.float32)
    image[0, :, 40:] += 200
    mean, std = (
        np.array(NORM[key])[:, None, None].astype(np.float32)
        for key in ('mean', 'std')
    )
    mask = -torch.ones(1, 1, *SIZE)
    mask[..., 40 + SHIFT :] = 1
    return torch.from_numpy((image - mean) / std)[None], mask


@pytest.mark.parametrize(('band', 'reached'), [(0.03, False), (0.1, True)])
def test_band_is_a_share_of_the_diagonal(band, reached):
    image, mask = inputs()
    refined = GrabCutRefiner(NORM, band).refine(image, mask)[0, 0]
    rows = refined[5:-5]
    assert (rows[:, 40 + SHIFT :] == 1).all()
    assert (rows[:, :40] == 0).all()
    between = rows[:, 40 : 40 + SHIFT]
    if reached:
        assert (between == 1).all()
    else:
        assert (between[:, : SHIFT - 3] == 0).all()


def test_large_images_are_decided_at_a_smaller_scale():
    image, mask = inputs()
    whole = GrabCutRefiner(NORM, 0.1).refine(image, mask)
    small = GrabCutRefiner(NORM, 0.1, max_pixels=1200).refine(image, mask)
    assert small.shape == whole.shape
    assert (small != whole).float().mean() < 0.03
    assert (small != (mask > 0)).any()


@pytest.mark.parametrize('value', [-1, 1])
def test_nothing_to_tell_apart_stays(value):
    image, mask = inputs()
    mask = torch.full_like(mask, value)
    refined = GrabCutRefiner(NORM).refine(image, mask)
    assert torch.equal(refined, (mask > 0).float())


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(band=0), 'above 0, got 0, 5'),
        (dict(iterations=0), 'above 0, got 0.02, 0'),
        (dict(band=4), 'share of the diagonal below 1, not pixels, got 4'),
    ],
)
def test_arguments_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        GrabCutRefiner(NORM, **options)


def test_there_is_nothing_to_train():
    with pytest.raises(ValueError, match="must be 'predict', got 'loss'"):
        GrabCutRefiner(NORM)(torch.zeros(1, 3, 8, 8), mode='loss')
