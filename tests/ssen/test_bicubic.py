import numpy as np
import pytest
import torch
from PIL import Image

from mmplugins.ssen import Bicubic


@pytest.mark.parametrize('scale', [1, 2, 3, 4])
def test_is_that_of_pillow(scale):
    image = np.random.default_rng(0).random((9, 11)).astype(np.float32)
    size = (11 * scale, 9 * scale)
    wanted = np.asarray(Image.fromarray(image).resize(size, Image.BICUBIC))
    found = Bicubic(scale)(torch.from_numpy(image)[None, None])[0, 0]
    np.testing.assert_allclose(found.numpy(), wanted, atol=2e-5)


def test_refuses_to_shrink():
    with pytest.raises(ValueError, match='upscale_factor of Bicubic'):
        Bicubic(0)
