import pytest
import torch
import torch.nn.functional as F
from helpers import assert_all_parameters_get_gradients, leaf
from torch.autograd import gradcheck

from mmplugins.ssen import SSEN, LocalSearch, SSENNet
from mmplugins.ssen import search as search_module
from mmplugins.ssen.alignment import displacements
from mmplugins.ssen.search import soft_match


def literal(query, key, radius, scale):
    """The formula, position by position."""
    B, _, H, W = query.shape
    out = query.new_zeros(B, 2, H, W)
    for b in range(B):
        for y in range(H):
            for x in range(W):
                scores, steps = [], []
                for i in range(y - radius, y + radius + 1):
                    for j in range(x - radius, x + radius + 1):
                        dot = query.new_zeros(())
                        if 0 <= i < H and 0 <= j < W:
                            dot = (query[b, :, y, x] * key[b, :, i, j]).sum()
                        scores.append(scale * dot)
                        steps.append(torch.tensor([i - y, j - x]).to(dot))
                share = torch.stack(scores).softmax(0)
                out[b, :, y, x] = share @ torch.stack(steps)
    return out


@pytest.mark.parametrize('size', [(5, 7), (1, 4), (2, 2)])
@pytest.mark.parametrize('radius', [1, 3])
def test_equals_the_formula(radius, size):
    query, key = torch.randn(2, 2, 3, *size).double()
    torch.testing.assert_close(
        soft_match(query, key, radius, 1.7), literal(query, key, radius, 1.7)
    )


def test_rows_by_rows(monkeypatch):
    """Large maps are worked on in bands, with the same result."""
    query, key = (leaf(torch.randn(2, 3, 11, 5)) for _ in range(2))
    whole = soft_match(query, key, 2)
    grads = torch.autograd.grad(whole.square().sum(), (query, key))
    monkeypatch.setattr(search_module, '_BLOCK', 3 * 2 * 5 * 25 + 1)
    banded = soft_match(query, key, 2)
    torch.testing.assert_close(banded, whole)
    again = torch.autograd.grad(banded.square().sum(), (query, key))
    torch.testing.assert_close(again, grads)


def test_gradcheck():
    query, key = (leaf(torch.randn(1, 2, 3, 4)) for _ in range(2))
    scale = leaf(torch.tensor(1.3))
    assert gradcheck(
        lambda *x: soft_match(x[0], x[1], 2, x[2]), (query, key, scale)
    )


def test_finds_where_a_map_has_moved():
    key = F.normalize(torch.randn(1, 16, 20, 24))
    query = torch.roll(key, (2, -3), (2, 3))  # query(p) = key(p + (-2, 3))
    found = soft_match(query, key, 4, 1e3)[..., 4:-4, 4:-4]
    wanted = torch.tensor([-2.0, 3.0]).view(1, 2, 1, 1).expand_as(found)
    torch.testing.assert_close(found, wanted)


def test_what_is_alike_everywhere_moves_nowhere():
    found = soft_match(*torch.ones(2, 1, 3, 9, 9), 2, 5.0)
    inner = found[..., 2:-2, 2:-2]
    torch.testing.assert_close(inner, torch.zeros_like(inner))


@pytest.mark.parametrize('stride', [1, 2, 4])
def test_every_stride_finds_the_same_shift(stride):
    torch.manual_seed(1)
    search = LocalSearch(8, stride)
    with torch.no_grad():
        search.sharpness.fill_(6.0)
    # Smooth as features are, and moved by whole cells of every level.
    x = F.avg_pool2d(torch.randn(1, 8, 49, 61), 5, 1, 2)
    found = search(x, torch.roll(x, (-4, 4), (2, 3)))
    assert found.shape == (1, 2, 49, 61)
    middle = found[0, :, 12:-12, 12:-12].flatten(1).median(1).values
    torch.testing.assert_close(middle, torch.tensor([-4.0, 4.0]))


def test_cells_are_centred_on_their_pixels(monkeypatch):
    """A displacement that grows evenly is that of the pixel, not the cell."""
    search = LocalSearch(2, 4, radius=2)
    ramp = torch.arange(9.0).expand(1, 1, 9, 9)
    ramps = torch.cat([ramp, ramp], 1)
    monkeypatch.setattr(search_module, 'soft_match', lambda *args: ramps)
    found = search(*torch.randn(2, 1, 2, 33, 33))
    torch.testing.assert_close(found[0, 0, 0], torch.arange(33.0))


@pytest.mark.parametrize('size', [(1, 1), (3, 2), (13, 9), (8, 16)])
def test_any_size_and_all_parameters_learn(size):
    search = LocalSearch(4, 4)
    out = search(*torch.randn(2, 1, 4, *size))
    assert out.shape == (1, 2, *size)
    assert out.isfinite().all()
    if min(size) > 8:
        out.square().sum().backward()
        assert_all_parameters_get_gradients(search)


def test_in_half_precision_displacements_are_in_full():
    search = LocalSearch(4, 2)
    with torch.autocast('cpu', torch.bfloat16):
        assert search(*torch.randn(2, 1, 4, 9, 9)).dtype == torch.float32


def test_what_is_found_is_added_to_all_offsets():
    ssen = SSEN(8, num_layers=1, deform_groups=2, search_radius=2)
    feat, ref, guide = torch.randn(3, 1, 8, 12, 10)
    for given in (None, guide):
        ((offset, mask),) = ssen(feat, ref, True, given)[1]
        found = ssen.searches[0](feat, ref if given is None else given)
        wanted = found[:, None].expand(-1, 18, -1, -1, -1)
        torch.testing.assert_close(offset.unflatten(1, (18, 2)), wanted)
        assert (mask == 1).all()  # as without, at the start


def test_layers_search_from_coarse_to_fine():
    """Each goes on from where those before it look."""
    ssen = SSEN(16, num_layers=3, search_radius=2)
    assert [x.stride for x in ssen.searches] == [4, 2, 1]
    assert {x.radius for x in ssen.searches} == {2}
    with torch.no_grad():
        for search in ssen.searches:
            search.sharpness.fill_(6.0)
    x = F.avg_pool2d(torch.randn(1, 16, 61, 61), 5, 1, 2)
    moved = torch.roll(x, (7, -5), (2, 3))  # x(p) is at p + (7, -5)
    wanted = torch.tensor([7.0, -5.0]).view(2, 1, 1)
    errors = [
        (found - wanted)[0, :, 20:-20, 20:-20].norm(dim=0).mean().item()
        for found in displacements(ssen(x, moved, True)[1])
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.75
    assert SSEN(16).searches is None


def test_a_network_knows_its_reference_at_once():
    """Image and guide pass the same layers: no training is needed."""
    net = SSENNet(mid_channels=16, num_blocks=1, align=dict(search_radius=4))
    with torch.no_grad():
        for search in net.ssen.searches:
            search.sharpness.fill_(6.0)
    ref = F.avg_pool2d(torch.rand(1, 3, 176, 176), 9, 1)  # 168 x 168
    ref = (ref - ref.mean()) / ref.std() / 4 + 0.5
    target = ref[..., 16:144, 24:152]  # target(p) is at p + (16, 24)
    lr = F.interpolate(target, (32, 32), mode='bicubic', antialias=True)
    other = ref[..., :128, :128]
    found = displacements(net(lr, other, return_aux=True)[1][0])
    wanted = torch.tensor([4.0, 6.0]).view(2, 1, 1)
    error, nothing = (
        (d - wanted)[0, :, 6:18, 6:18].norm(dim=0).mean()
        for d in (found[-1], torch.zeros_like(found[-1]))
    )
    assert error < 0.8 * nothing


def test_one_line_says_what_is_wrong():
    x = torch.zeros(1, 2, 3, 3)
    with pytest.raises(ValueError, match='of one shape'):
        soft_match(x, x[..., :2], 1)
    with pytest.raises(ValueError, match='radius'):
        soft_match(x, x, 0)
    with pytest.raises(ValueError, match='stride >= 1'):
        LocalSearch(2, 0)
