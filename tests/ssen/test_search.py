import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage import data

from mmplugins.ssen import LocalSearch, SSENNet
from mmplugins.ssen import search as search_module
from mmplugins.ssen.search import read_at, small_match, soft_match
from mmplugins.ssen.views import sample_view


def literal(query, key, radius, window, scale):
    """The formula, position by position."""
    B, _, H, W = query.shape
    out = query.new_zeros(B, 2, H, W)
    reach, near = range(-radius, radius + 1), window // 2

    def inside(i, j):
        return 0 <= i < H and 0 <= j < W

    def score(b, y, x, dy, dx):
        dots = []
        for i in range(y - near, y + near + 1):
            for j in range(x - near, x + near + 1):
                if inside(i, j):
                    dot = query.new_zeros(())
                    if inside(i + dy, j + dx):
                        dot = query[b, :, i, j] @ key[b, :, i + dy, j + dx]
                    dots.append(dot)
        return torch.stack(dots).mean()

    steps = torch.tensor([(dy, dx) for dy in reach for dx in reach])
    for b in range(B):
        for y in range(H):
            for x in range(W):
                scores = [score(b, y, x, *step) for step in steps.tolist()]
                share = (scale * torch.stack(scores)).softmax(0)
                out[b, :, y, x] = share @ steps.to(share)
    return out


@pytest.mark.parametrize('size', [(5, 7), (1, 4), (2, 2)])
@pytest.mark.parametrize(('radius', 'window'), [(1, 1), (3, 1), (2, 3)])
def test_equals_the_formula(radius, window, size):
    query, key = torch.randn(2, 2, 3, *size).double()
    torch.testing.assert_close(
        soft_match(query, key, radius, window, 1.7),
        literal(query, key, radius, window, 1.7),
    )


def test_rows_by_rows(monkeypatch):
    """Large maps are worked on in bands, with the same result."""
    query, key = torch.randn(2, 2, 3, 11, 5)
    whole = soft_match(query, key, 2, 5)
    monkeypatch.setattr(search_module, '_BLOCK', 3 * 2 * 5 * 25 + 1)
    torch.testing.assert_close(soft_match(query, key, 2, 5), whole)


def test_finds_where_a_map_has_moved():
    key = F.normalize(torch.randn(1, 16, 20, 24))
    query = torch.roll(key, (2, -3), (2, 3))  # query(p) = key(p + (-2, 3))
    found = soft_match(query, key, 4, scale=1e3)[..., 4:-4, 4:-4]
    wanted = torch.tensor([-2.0, 3.0]).view(1, 2, 1, 1).expand_as(found)
    torch.testing.assert_close(found, wanted)


def test_what_is_alike_everywhere_moves_nowhere():
    found = soft_match(*torch.ones(2, 1, 3, 9, 9), 2, scale=5.0)
    inner = found[..., 2:-2, 2:-2]
    torch.testing.assert_close(inner, torch.zeros_like(inner))
    for value in (1.0, 0.1, -0.7, 0.3):  # the means of some are rounded
        x = torch.full((1, 4, 20, 31), value)
        assert LocalSearch()(x, x).abs().max() < 0.05


def test_a_map_is_read_as_opencv_does():
    image = np.random.default_rng(0).random((9, 12)).astype(np.float32)
    shift = torch.randn(2, 9, 12)
    y, x = np.mgrid[:9, :12].astype(np.float32)
    wanted = cv2.remap(
        image,
        x + shift[1].numpy(),
        y + shift[0].numpy(),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    found = read_at(torch.from_numpy(image)[None, None], shift[None])[0, 0]
    # OpenCV rounds positions to a 32nd of a pixel.
    np.testing.assert_allclose(found, wanted, atol=0.04)


@pytest.mark.parametrize('shift', [(0.3, -0.2), (-0.4, 0.0), (0.0, 0.5)])
def test_fractions_of_a_pixel(shift):
    """A step of Lucas and Kanade on smooth noise of a known shift."""
    y, x = torch.meshgrid(*(torch.arange(32.0),) * 2, indexing='ij')  # (H, W)
    waves = [(0.31, 0.17, 0), (-0.2, 0.4, 1), (0.12, -0.37, 2)]

    def image(dy, dx):
        return torch.stack(
            [torch.sin(a * (y + dy) + b * (x + dx) + c) for a, b, c in waves]
        )[None]

    # query(p) = key(p + shift)
    found = small_match(image(*shift), image(0, 0), 5, damping=0.0)
    inner = found[0, :, 4:-4, 4:-4]
    wanted = torch.tensor(shift).view(2, 1, 1).expand_as(inner)
    torch.testing.assert_close(inner, wanted, atol=0.04, rtol=0)


def test_steps_follow_each_other():
    """From p by the second step, and from there by what the first found."""
    first = torch.stack([torch.zeros(6, 9), torch.arange(9.0).expand(6, 9)])
    second = torch.tensor([0.0, 2.0]).view(1, 2, 1, 1).expand(1, 2, 6, 9)
    found = search_module._add(first[None], second)
    torch.testing.assert_close(found[0, 1, :, :7], first[1, :, 2:] + 2)


@pytest.mark.parametrize('stride', [1, 2, 4])
def test_cells_of_a_level_are_centred_between_pixels(monkeypatch, stride):
    """A displacement that grows evenly is that of the pixel, not the cell."""
    ramp = torch.arange(32.0 / stride).expand(1, 2, 32 // stride, -1)
    monkeypatch.setattr(search_module, 'soft_match', lambda *args: ramp)
    x = torch.randn(1, 2, 32, 32)
    found = LocalSearch()._level(x, x, stride)[0, 0, 5]
    wanted = torch.arange(32.0) - (stride - 1) / 2
    wanted = wanted.clamp(0, 32 - stride)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize('levels', [1, 2, 3])
@pytest.mark.parametrize('size', [(49, 61), (48, 64)])
def test_levels_find_what_their_reach_allows(levels, size):
    """A level more doubles how far things may be apart."""
    torch.manual_seed(1)
    shift = 3 * 2 ** (levels - 1)
    # Smooth as features are.
    x = F.avg_pool2d(torch.randn(1, 8, *size), 5, 1, 2)
    moved = torch.roll(x, (-shift, shift), (2, 3))
    found = LocalSearch(levels, radius=4)(x, moved)
    assert found.shape == (1, 2, *size)
    middle = found[0, :, 16:-16, 16:-16]
    wanted = torch.tensor([-shift, shift]).view(2, 1, 1)
    far = (middle - wanted).norm(dim=0)
    assert far.median() < 0.02
    if levels > 1:
        fewer = LocalSearch(levels - 1, radius=2)(x, moved)
        near = (fewer[0, :, 16:-16, 16:-16] - wanted).norm(dim=0)
        assert near.median() > 1


@pytest.mark.parametrize('size', [(1, 1), (3, 2), (13, 9), (8, 16)])
def test_any_size(size):
    out = LocalSearch()(*torch.randn(2, 1, 4, *size))
    assert out.shape == (1, 2, *size)
    assert out.isfinite().all()


def test_in_half_precision_displacements_are_in_full():
    with torch.autocast('cpu', torch.bfloat16):
        found = LocalSearch(2)(*torch.randn(2, 1, 4, 9, 9).bfloat16())
    assert found.dtype == torch.float32


def test_a_network_finds_its_reference_before_any_training():
    """Half of a turned and moved view to a pixel of the photograph."""
    rng = np.random.default_rng(0)
    net = SSENNet(mid_channels=16, num_blocks=1, search=dict())
    far, least = [], []
    for photo in (data.astronaut(), data.coffee(), data.chelsea()):
        target, view, matrix = sample_view(rng, photo, (192, 192))
        small = cv2.resize(target, (48, 48), interpolation=cv2.INTER_AREA)
        lr, ref = (
            torch.from_numpy(x).permute(2, 0, 1)[None] / 255
            for x in (small, view)
        )
        with torch.no_grad():
            found = 4 * net.find_reference(net.extract(lr), ref)[0]
        # Cell i is centred on pixel 4 i + 1.5.
        y, x = np.mgrid[:48, :48] * 4 + 1.5
        seen = np.einsum('ij,jhw->ihw', matrix, [x, y, np.ones_like(x)])
        on = ((seen >= 0) & (seen <= 191)).all(0)
        wanted = torch.from_numpy(np.stack([seen[1] - y, seen[0] - x]))
        far.append((found - wanted).norm(dim=0)[on])
        least.append(wanted.norm(dim=0)[on])
    assert torch.cat(far).median() < 1.0
    assert torch.cat(least).median() > 5.0


def test_one_line_says_what_is_wrong():
    x = torch.zeros(1, 2, 3, 3)
    with pytest.raises(ValueError, match='of one shape'):
        soft_match(x, x[..., :2], 1)
    with pytest.raises(ValueError, match='radius >= 1 and an odd window'):
        soft_match(x, x, 0)
    with pytest.raises(ValueError, match='an odd window, got 3, 4 and 2'):
        LocalSearch(window=2)
    with pytest.raises(ValueError, match='steps'):
        LocalSearch(steps=-1)
