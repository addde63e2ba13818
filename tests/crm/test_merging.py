import numpy as np
import pytest
import torch
from scipy import ndimage

from mmplugins.crm.merging import boundary_band, merge_labels


def labels_of(seed, shape=(23, 31), count=4):
    """Patches of random labels."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, count, (5, 6))
    rows = np.arange(shape[0]) * 5 // shape[0]
    columns = np.arange(shape[1]) * 6 // shape[1]
    return torch.from_numpy(small[rows][:, columns])


class TestBand:
    @pytest.mark.parametrize('radius', [0, 1, 2, 3, 5, 8, 40])
    def test_sees_another_label_in_its_square(self, radius):
        """Against scipy's filters over the same square."""
        labels = labels_of(radius)
        size = 2 * radius + 1
        high, low = (
            f(labels.numpy(), size, mode='nearest')
            for f in (ndimage.maximum_filter, ndimage.minimum_filter)
        )
        np.testing.assert_array_equal(
            boundary_band(labels, radius), high != low
        )

    @pytest.mark.parametrize('dtype', [torch.bool, torch.uint8, torch.float32])
    def test_takes_masks_of_any_type(self, dtype):
        mask = torch.zeros(2, 9, 9, dtype=dtype)
        mask[1, 4:, :] = 1
        band = boundary_band(mask, 2)
        assert not band[0].any()
        assert (
            band[1].any(1).tolist() == [False] * 2 + [True] * 4 + [False] * 3
        )

    def test_needs_a_radius(self):
        with pytest.raises(ValueError, match='0 or more, got -1'):
            boundary_band(torch.zeros(3, 3), -1)


class TestMerge:
    def test_greatest_probability_wins(self):
        """All classes refined: the arg-max, where it is above a half."""
        torch.manual_seed(0)
        labels, probs = labels_of(0), torch.rand(4, 23, 31)
        merged = merge_labels(labels, enumerate(probs))
        best, index = probs.max(0)
        wanted = torch.where(best > 0.5, index, labels)
        assert (best <= 0.5).any()
        assert torch.equal(merged, wanted)
        assert merged.dtype == labels.dtype

    def test_what_a_class_loses_goes_to_its_neighbour(self):
        labels = torch.tensor([[0, 1, 1, 1, 1, 2]])
        prob = torch.tensor([[0.9, 0.1, 0.2, 0.1, 0.9, 0.4]])
        merged = merge_labels(labels, [(1, prob)])
        # Pixel 3 is nearer to label 2, which is not refined.
        assert merged.tolist() == [[1, 0, 0, 2, 1, 2]]

    def test_nothing_is_lost_where_all_are_refined(self):
        labels = torch.tensor([[0, 0, 1]])
        none = torch.zeros(1, 3)
        merged = merge_labels(labels, [(0, none), (1, none)])
        assert torch.equal(merged, labels)

    def test_ignored_pixels_stay_and_do_not_spread(self):
        labels = torch.tensor([[255, 1, 1, 0]], dtype=torch.uint8)
        prob = torch.tensor([[0.9, 0.1, 0.9, 0.9]])
        merged = merge_labels(labels, [(1, prob)])
        assert merged.tolist() == [[255, 0, 1, 1]]
        merged = merge_labels(labels, [(1, prob)], ignore_index=None)
        assert merged.tolist() == [[1, 255, 1, 1]]

    def test_band_keeps_what_is_far(self):
        labels = labels_of(3)
        probs = torch.ones(1, *labels.shape)
        merged = merge_labels(labels, [(9, probs[0])], band=1)
        near = boundary_band(labels, 1)
        assert near.any()
        assert (~near).any()
        assert torch.equal(merged, torch.where(near, 9, labels))

    def test_nothing_refined_changes_nothing(self):
        labels = labels_of(1)
        assert torch.equal(merge_labels(labels, []), labels)

    def test_sizes_have_to_fit(self):
        with pytest.raises(ValueError, match=r'\(2, 3\) for class 7'):
            merge_labels(torch.zeros(3, 3), [(7, torch.zeros(2, 3))])
