"""What is upsampled lies where it should, whatever the cells cover."""

import pytest
import torch
import torch.nn.functional as F

from mmplugins.featup import BilinearUpsampler, FeatUp, JBUStack
from mmplugins.featup.grids import check_offset, over_image


def ramp(height, width):
    """Position of each pixel's centre, (1, 2, H, W)."""
    y, x = torch.meshgrid(
        torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing='ij'
    )
    return torch.stack([y, x])[None]


def cells_of(rows, columns, stride, offset):
    """Position of each cell's centre in the image, (1, 2, h, w)."""
    return offset + stride * ramp(rows, columns)


@pytest.mark.parametrize('offset', [0, -8, -4, -5, -15])
@pytest.mark.parametrize('size', [(96, 128), (90, 117), (65, 130)])
def test_a_ramp_of_the_cells_is_that_of_the_image(offset, size):
    feats = cells_of(8, 10, 16, offset)
    upsampler = BilinearUpsampler(2, 2)
    image = torch.zeros(1, 3, *size)
    out = over_image(upsampler, feats, image, 16, offset)
    rows, columns = (-(-n // 4) for n in size)
    assert out.shape == (1, 2, rows, columns)
    wanted = ramp(rows, columns)
    wanted[:, 0] *= size[0] / rows
    wanted[:, 1] *= size[1] / columns
    inner = slice(6, -6)  # beyond, cells and edges are continued
    error = (out - wanted)[..., inner, inner].abs().max()
    assert error < 0.1


def test_guidance_moves_with_the_image():
    """The upsampler sees at each cell the pixels that the cell begins at."""
    seen = []

    def upsample(feats, guidance):
        seen.append(guidance)
        return feats

    image = ramp(64, 96).repeat(1, 2, 1, 1)[:, :3]
    over_image(upsample, torch.zeros(1, 2, 4, 6), image, 16, -8)
    (guidance,) = seen
    # Five cells reach from -8 to 72.
    assert guidance.shape == (1, 3, 80, 112)
    assert torch.equal(guidance[..., 8:72, 8:104], image)
    assert torch.equal(guidance[..., 0, 8:104], image[..., 0, :])


@pytest.mark.parametrize('stride', [16, 14, 7.5])
def test_without_an_offset_whole_cells_are_untouched(stride):
    stack = JBUStack(2, 1).eval()
    feats = torch.randn(1, 2, 4, 6)
    size = round(4 * stride), round(6 * stride)
    image = torch.randn(1, 3, *size)
    out = over_image(stack, feats, image, stride)
    torch.testing.assert_close(out, stack(feats, image))


@pytest.mark.parametrize(
    ('offset', 'whole'), [(-15, -15), (0, 0), (-14.7, -15), (0.4, 0)]
)
def test_measured_offsets_are_rounded(offset, whole):
    rounded = check_offset('X', offset, 16)
    assert rounded == whole
    assert isinstance(rounded, int)


def test_bad_offsets_are_named():
    for offset in (1, -16, 0.6, -15.6, float('nan'), '0', None):
        with pytest.raises(ValueError, match=f'offset of X.*got {offset}'):
            check_offset('X', offset, 16)


class Shifted(torch.nn.Module):
    """Means of windows that begin before the cells' places."""

    def __init__(self, offset):
        super().__init__()
        self.offset = offset

    def forward(self, x):
        size = x.shape[-2:]
        x = F.pad(x, (-self.offset, 0, -self.offset, 0), mode='replicate')
        return (F.avg_pool2d(x, 8)[..., : size[0] // 8, : size[1] // 8],)


def test_views_are_compared_where_the_cells_look():
    """A backbone that looks elsewhere is explained once the model knows."""
    from mmengine.registry import MODELS

    MODELS.register_module(module=Shifted, force=True)
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing='ij')
    image = torch.stack([(y / 5).sin(), (x / 6).cos(), ((x + y) / 7).sin()])

    class Oracle(BilinearUpsampler):
        def upsample_linear(self, feats, guidance, weight, bias=None):
            return F.conv2d(guidance, weight[..., None, None], bias)

    def error(offset):
        model = FeatUp(
            backbone=dict(type='Shifted', offset=-6),
            upsampler=dict(type='mmplugins.BilinearUpsampler', num_stages=3),
            downsampler=dict(
                type='mmplugins.SimpleDownsampler', kernel_size=8, stride=8
            ),
            in_channels=3,
            offset=offset,
            views=dict(max_pad=8),
            stride=8,
        ).eval()
        model.upsampler = Oracle(3, 3)
        errors = model.predict(image[None].float())[0].view_errors
        return errors['upsampler_mean'] / errors['variance']

    assert error(-6) < 0.05
    assert error(0) > 5 * error(-6)


@pytest.mark.parametrize('offset', [0, -20])
def test_autocast_does_not_move_the_map(offset):
    """Coordinates of half precision would be off by half a pixel."""
    feats = cells_of(17, 17, 32, offset)
    upsampler = BilinearUpsampler(2, 2)
    image = torch.zeros(1, 3, 509, 509)
    wanted = over_image(upsampler, feats, image, 32, offset)
    with torch.autocast('cpu', torch.bfloat16):
        out = over_image(upsampler, feats, image, 32, offset)
    torch.testing.assert_close(out, wanted, atol=1e-2, rtol=0)
