import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import deform_conv2d

from mmplugins.ssen import visualization as module
from mmplugins.ssen.search import read_at


def layers(count=3, size=(7, 9), groups=1, scale=1.5, whole=False, batch=1):
    """Offsets and masks of layers, smooth so that they can be followed."""
    aux = []
    for _ in range(count):
        offset = scale * torch.randn(batch, 18 * groups, *size).double()
        aux.append(
            (
                offset.round() if whole else offset,
                2 * torch.rand(batch, 9 * groups, *size).double(),
            )
        )
    return aux


def literal_read(x, y, x_, inside):
    """A map (H, W) at (y, x_), bilinear, with plain numbers."""
    H, W = len(x), len(x[0])
    total = 0.0
    if inside:  # of what is outside take the nearest
        y, x_ = min(max(y, 0), H - 1), min(max(x_, 0), W - 1)
    top, left = math.floor(y), math.floor(x_)
    for i, j in itertools.product((top, top + 1), (left, left + 1)):
        if 0 <= i < H and 0 <= j < W:
            total += (1 - abs(y - i)) * (1 - abs(x_ - j)) * x[i][j]
    return total


def literal_trace(aux, point):
    """The recursion of the paths, one sample after the other."""
    if not aux:
        return [(point, 1.0)]
    *before, (offset, mask) = aux
    offset, mask = offset[0].tolist(), mask[0].tolist()
    found = []
    for k, (i, j) in enumerate(itertools.product((-1, 0, 1), repeat=2)):
        dy = literal_read(offset[2 * k], *point, True)
        dx = literal_read(offset[2 * k + 1], *point, True)
        share = literal_read(mask[k], *point, False)
        there = point[0] + i + dy, point[1] + j + dx
        for end, weight in literal_trace(before, there):
            found.append((end, weight * share))
    return found


def literal(aux, point):
    """Points and weights, which are none of what is outside."""
    size = aux[0][0].shape[-2:]
    ones = torch.ones(size).tolist()
    pairs = [
        (end, weight * literal_read(ones, *end, False))
        for end, weight in literal_trace(aux, point)
    ]
    points, weights = zip(*pairs)
    return torch.tensor(points), torch.tensor(weights)


class TestTrace:
    @pytest.mark.parametrize('point', [(3, 4), (0, 8), (2.25, 0.5)])
    @pytest.mark.parametrize('count', [1, 2, 3])
    def test_follows_every_path(self, count, point):
        aux = layers(count)
        points, weights = module.trace_samples(aux, point)
        assert points.shape == (9**count, 2)
        wanted, shares = literal(aux, point)
        torch.testing.assert_close(points, wanted.double())
        torch.testing.assert_close(weights, shares.double())

    @pytest.mark.parametrize('point', [(3, 4), (0, 0), (6, 5)])
    def test_samples_add_up_to_the_stacked_convolutions(self, point):
        """With whole offsets nothing is lost between pixels."""
        aux = layers(3, whole=True)
        image = torch.randn(1, 1, 7, 9).double()
        ones = torch.ones(1, 1, 3, 3).double()
        x = image
        for offset, mask in aux:
            x = deform_conv2d(x, offset, ones, padding=1, mask=mask)
        points, weights = module.trace_samples(aux, point)
        y, x_ = points.round().long().unbind(-1)
        inside = (y >= 0) & (y < 7) & (x_ >= 0) & (x_ < 9)
        assert (weights[~inside] < 1e-12).all()
        found = weights[inside] @ image[0, 0][y[inside], x_[inside]]
        torch.testing.assert_close(found, x[0, 0][point])

    @pytest.mark.parametrize('point', [(3, 4), (0, 0), (6, 8)])
    def test_samples_add_up_behind_a_search(self, point):
        """Most of what it finds is beyond the border, which is repeated."""
        aux = layers(2, whole=True)
        shift = (6 * torch.randn(1, 2, 7, 9).double()).round()
        image = torch.randn(1, 1, 7, 9).double()
        ones = torch.ones(1, 1, 3, 3).double()
        x = read_at(image, shift)
        for offset, mask in aux:
            x = deform_conv2d(x, offset, ones, padding=1, mask=mask)
        search = (shift, torch.ones_like(shift[:, :1]))
        points, weights = module.trace_samples([search, *aux], point)
        y, x_ = points.unbind(-1)
        assert y.min() >= -0.5
        assert x_.min() >= -0.5
        rows, columns = y.round().long(), x_.round().long()
        found = weights @ image[0, 0][rows.clamp(0, 6), columns.clamp(0, 8)]
        torch.testing.assert_close(found, x[0, 0][point])
        on_border = (y == -0.5) | (y == 6.5) | (x_ == -0.5) | (x_ == 8.5)
        assert (weights[on_border] > 0.1).any()
        assert (weights[~on_border] > 0.1).any()

    def test_groups_and_batch(self):
        aux = layers(2, groups=3, batch=2)
        found = module.trace_samples(aux, (2, 5), group=2, index=1)
        alone = [(o[1:, 36:], m[1:, 18:]) for o, m in aux]
        for one, other in zip(found, module.trace_samples(alone, (2, 5))):
            torch.testing.assert_close(one, other)

    def test_of_one_pixel(self):
        aux = [(torch.zeros(1, 18, 1, 1), torch.ones(1, 9, 1, 1))]
        points, weights = module.trace_samples(aux, (0, 0))
        assert weights.tolist() == [0] * 4 + [1] + [0] * 4
        assert points[4].tolist() == [0, 0]

    def test_errors(self):
        aux = layers(2)
        with pytest.raises(ValueError, match='one deformable layer or more'):
            module.trace_samples([], (0, 0))
        with pytest.raises(ValueError, match='group must be 0 to 0, got 1'):
            module.trace_samples(aux, (0, 0), group=1)
        with pytest.raises(ValueError, match=r'\(1, 16, 7, 9\)'):
            module.trace_samples([(aux[0][0][:, :16], aux[0][1])], (0, 0))


class TestMaps:
    def test_relevance_is_the_mean_mask(self):
        aux = layers(2, groups=2)
        maps = module.relevance_maps(aux)
        for found, (_, mask) in zip(maps, aux):
            wanted = np.mean([m.numpy() for m in mask[0]], axis=0)
            np.testing.assert_allclose(found, wanted)

    def test_constant_fields_give_the_mean_of_the_samples(self):
        """Far from the border, where no sample is lost."""
        aux = []
        for _ in range(3):
            offset = torch.randn(1, 18, 1, 1).double()
            mask = 2 * torch.rand(1, 9, 1, 1).double()
            aux.append(tuple(x.expand(-1, -1, 41, 41) for x in (offset, mask)))
        flow = module.displacement(aux)
        points, weights = module.trace_samples(aux, (20, 20))
        mean = (points * weights[:, None]).sum(0) / weights.sum()
        torch.testing.assert_close(flow[:, 20, 20] + 20, mean)

    def test_layers_are_followed_from_the_last(self):
        """The first layer is read where the last one points to."""
        first = torch.zeros(1, 18, 8, 8)
        first[:, 0::2, 5:] = 2.0  # rows 5 and on come from two rows below
        last = torch.zeros(1, 18, 8, 8)
        last[:, 0::2] = 3.0
        ones = torch.ones(1, 9, 8, 8)
        flow = module.displacement([(first, ones), (last, ones)])
        assert flow[0, 1].tolist() == [3.0] * 8
        assert flow[0, 2].tolist() == [5.0] * 8
        assert not flow[1].any()

    def test_of_no_mask_at_all(self):
        aux = [(torch.ones(1, 18, 4, 4), torch.zeros(1, 9, 4, 4))]
        torch.testing.assert_close(
            module.displacement(aux), torch.ones(2, 4, 4).double()
        )


class TestPictures:
    def test_directions_have_hues(self):
        flow = torch.tensor([[0, 0, 0, 1.0], [0, 1, -1, 0]]).view(2, 1, 4)
        none, right, left, down = (
            module.flow_image(flow).permute(1, 2, 0)[0].tolist()
        )
        assert none == [1, 1, 1]
        assert right == [1, 0, 0]  # red, then cyan on the other side
        assert left == pytest.approx([0, 1, 1])
        assert down == pytest.approx([0.5, 1, 0], abs=1e-3)

    def test_small_displacements_stay_pale(self):
        flow = torch.full((2, 1, 1), 0.1)
        assert module.flow_image(flow).min() > 0.8
        assert module.flow_image(flow, 0.1).min() < 0.1

    def test_wheel(self):
        wheel = module.colour_wheel(32)
        assert (wheel[:, 0, 0] == 1).all()
        assert wheel[:, 16, 31].argmax() == 0
        assert wheel[1:, 16, 0].min() > 0.9 > wheel[0, 16, 0]

    def test_samples_show_where_they_fall(self):
        points = torch.tensor([[2.0, 3.0], [9.4, 0.0], [-1.0, 2.0], [5, 5]])
        weights = torch.tensor([1.0, 0.25, 9.0, 0.0])
        picture = module.sample_image(torch.ones(3, 10, 8), points, weights, 0)
        change = picture - 0.6
        colour = torch.tensor([1, 0.35, 0])
        torch.testing.assert_close(picture[:, 2, 3], colour)
        # A quarter of the weight shows at half the strength.
        torch.testing.assert_close(picture[:, 9, 0], (0.6 + colour) / 2)
        change[:, 2, 3] = change[:, 9, 0] = 0
        assert change.abs().max() < 1e-6

    def test_sheet(self):
        image = torch.rand(3, 7, 9)
        result = F.interpolate(image[None], scale_factor=4)[0]
        references = [(result.flip(-1), layers()), (image, layers(2))]
        plain = module.alignment_sheet(image, result, references[:1], size=64)
        two = module.alignment_sheet(image, result, references, size=64)
        true = module.alignment_sheet(
            image, result, references, result, (0, 8), size=64
        )
        assert plain.dtype == np.uint8
        assert plain.shape[2] == 3
        assert two.shape == true.shape
        assert len(two) > len(plain)
        assert (two != true).any()

    @pytest.mark.parametrize('scale', [1, 2, 4])
    def test_samples_are_drawn_where_they_are_read(self, monkeypatch, scale):
        """The centre of cell (6, 9) of 16 x 16, on a picture of 160 pixels."""
        seen = []
        draw = module.sample_image
        monkeypatch.setattr(
            module,
            'sample_image',
            lambda picture, points, weights: (
                seen.append(points) or draw(picture, points, weights)
            ),
        )
        image = torch.rand(3, 16, 16)
        offset = torch.zeros(1, 2, 16, 16)
        offset[:, 0], offset[:, 1] = 2, -1
        aux = [(offset, torch.ones(1, 1, 16, 16))]
        reference = torch.rand(3, 16 * scale, 16 * scale)
        module.alignment_sheet(
            image, image, [(reference, aux)], point=(4, 10), size=160
        )
        wanted = torch.tensor([[6.5, 9.5]]).double() * 10 - 0.5
        torch.testing.assert_close(seen[0], wanted)

    @pytest.mark.parametrize('size', [160, 7, 33])
    @pytest.mark.parametrize('side', [1, -1])
    def test_what_is_found_beyond_the_border_shows_on_it(
        self, monkeypatch, side, size
    ):
        seen = []
        draw = module.sample_image
        monkeypatch.setattr(
            module,
            'sample_image',
            lambda *args: seen.append(draw(*args, 0)) or seen[-1],
        )
        image = torch.ones(3, 16, 16)
        offset = torch.full((1, 2, 16, 16), 99.0 * side)
        aux = [(offset, torch.ones(1, 1, 16, 16))]
        module.alignment_sheet(
            image, image, [(image, aux)], point=(4, 10), size=size
        )
        corner = (0, -1)[side > 0]
        picture = seen[0][:, :size, :size]
        colour = torch.tensor([1, 0.35, 0])
        torch.testing.assert_close(picture[:, corner, corner], colour)
        assert (picture[0] == 1).sum() == 1

    def test_a_search_has_one_group_and_no_masks(self):
        """Of layers that all are closed nothing passes."""
        search = (torch.ones(1, 2, 8, 8), torch.ones(1, 1, 8, 8))
        layer = (torch.zeros(1, 36, 8, 8), torch.zeros(1, 18, 8, 8))
        points, weights = module.trace_samples([search, layer], (4, 4), 1)
        assert len(points) == 9
        assert not weights.any()
        with pytest.raises(ValueError, match='group must be 0 to 1, got 2'):
            module.trace_samples([search, layer], (4, 4), 2)

    def test_sheet_without_alignment(self):
        image = torch.rand(3, 300, 4)
        result = F.interpolate(image[None], scale_factor=2)[0]
        sheet = module.alignment_sheet(image, result, [(result, [])])
        assert len(sheet) > 900

    def test_a_point_outside_is_an_error(self):
        image = torch.rand(3, 7, 9)
        with pytest.raises(ValueError, match=r'7 x 9 of them, got \(7, 0\)'):
            module.alignment_sheet(image, image, [], point=(7, 0))
