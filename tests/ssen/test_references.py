"""References of any size, and several of them."""

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mmplugins.ssen.references import (
    ReferenceStem,
    blend_references,
    fit_reference,
    move_reference,
)


def image(height, width, batch=2):
    """Noise in [0, 1], in double precision."""
    return torch.rand(batch, 3, height, width).double()


@pytest.mark.parametrize('scale', [2, 3, 4, 8])
@torch.no_grad()
def test_the_stem_keeps_places(scale):
    """A bright cell of the reference is the map's brightest around it."""
    stem = ReferenceStem(1, 4, scale).double()
    for conv in stem.convs:
        nn.init.constant_(conv.weight, 1.0)
        nn.init.zeros_(conv.bias)
    x = torch.zeros(1, 1, 5 * scale, 6 * scale).double()
    x[..., 2 * scale : 3 * scale, 4 * scale : 5 * scale] = 1
    out = stem(x)
    assert out.shape == (1, 4, 5, 6)
    assert out[0, 0].argmax().item() == 2 * 6 + 4
    # A symmetric kernel has of a ramp the value at its centre.
    ramp = torch.arange(10.0 * scale).double().expand(1, 1, 6 * scale, -1)
    inner = (stem(ramp) / stem(torch.ones_like(ramp)))[0, 0, 2, 2:-2]
    wanted = scale * torch.arange(2, 8).double() + (scale - 1) / 2
    torch.testing.assert_close(inner, wanted)


def test_a_reference_is_read_where_it_shows_the_image():
    """Moved by whole cells: the same pixels; the border is repeated."""
    ref = image(12, 20)
    shift = torch.tensor([1.0, -2.0]).double().view(1, 2, 1, 1)
    out = move_reference(ref, shift.expand(2, 2, 3, 5))
    torch.testing.assert_close(out[..., :8, 8:], ref[..., 4:, :12])
    border = ref[..., 4:, :1].expand(-1, -1, -1, 8)
    torch.testing.assert_close(out[..., :8, :8], border)
    assert move_reference(ref.bfloat16(), shift.expand(2, 2, 3, 5)).dtype == (
        torch.bfloat16
    )


def test_displacements_are_those_of_the_cells_centres():
    """One that grows evenly is that of every pixel, as OpenCV has it."""
    ramp = torch.arange(5.0).double().expand(1, 1, 3, -1) / 4
    shift = torch.cat([-ramp, ramp], 1)
    ref = image(12, 20, batch=1)
    out = move_reference(ref, shift)[0, 0]
    # Pixel x of four to a cell is (x - 1.5) / 4 cells from the first.
    cells = ((np.arange(20) - 1.5) / 4).clip(0, 4)
    y, x = np.mgrid[:12, :20].astype(np.float32)
    wanted = cv2.remap(
        ref[0, 0].numpy(),
        (x + 4 * cells / 4).astype(np.float32),
        (y - 4 * cells / 4).astype(np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    # OpenCV rounds positions to a 32nd of a pixel.
    np.testing.assert_allclose(out, wanted, atol=0.04)


def test_references_are_blended_by_likeness():
    feat, *aligned = torch.randn(4, 2, 5, 3, 4).double().unbind()
    out = blend_references(feat, aligned)
    for b, y, x in ((0, 0, 0), (1, 2, 3)):
        query = feat[b, :, y, x]
        keys = torch.stack([a[b, :, y, x] for a in aligned])
        scores = (keys @ query / 5**0.5).exp()
        wanted = (scores / scores.sum()) @ keys
        torch.testing.assert_close(out[b, :, y, x], wanted)


def test_a_large_reference_is_shrunk_whole():
    """As Pillow does; its aspect is kept, the border repeated."""
    ref = image(90, 40, batch=1).float()
    out = fit_reference(ref, (24, 30))
    assert out.shape == (1, 3, 24, 30)
    for k in range(3):
        plane = Image.fromarray(ref[0, k].numpy())
        wanted = np.asarray(plane.resize((11, 24), Image.Resampling.BICUBIC))
        wanted = torch.from_numpy(wanted.copy()).clamp(0, 1)
        torch.testing.assert_close(
            out[0, k, :, :11], wanted, rtol=0, atol=1e-5
        )
    assert torch.equal(out[..., 11:], out[..., 10:11].expand(-1, -1, -1, 19))


def test_a_small_reference_is_only_continued():
    ref = image(9, 30)
    out = fit_reference(ref, (24, 32))
    assert torch.equal(out[..., :9, :30], ref)
    assert torch.equal(
        out[..., 9:, :30], ref[..., 8:, :].expand(-1, -1, 15, -1)
    )
    assert torch.equal(out[..., 30:], out[..., 29:30].expand(-1, -1, -1, 2))
    assert torch.equal(fit_reference(ref, (9, 30)), ref)


@pytest.mark.parametrize('size', [(1, 500), (500, 1), (3, 2), (64, 64)])
def test_references_of_any_shape_fit(size):
    out = fit_reference(image(*size), (16, 20))
    assert out.shape == (2, 3, 16, 20)
    assert out.min() >= 0
    assert out.max() <= 1
    half = fit_reference(image(*size).bfloat16(), (16, 20))
    assert half.dtype == torch.bfloat16
