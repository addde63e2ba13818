import pytest
import torch
import torch.nn.functional as F

from mmplugins.featup import BilinearUpsampler, JBUStack
from mmplugins.featup.similarity import (
    channel_chunks,
    similarity_at,
    similarity_to,
)


@pytest.fixture(params=['jbu', 'bilinear'])
def upsampled(request):
    """Features before, the function, and all of the features after."""
    feats, guidance = torch.randn(1, 7, 5, 4), torch.randn(1, 3, 20, 16)
    if request.param == 'jbu':
        upsampler = JBUStack(7, num_stages=2, radius=2)
    else:
        upsampler = BilinearUpsampler(7, num_stages=2)
    upsampler.double().eval().requires_grad_(False)
    feats, guidance = feats.double(), guidance.double()

    def linear(weight):
        return upsampler.linear(feats, guidance, weight)[0]

    return feats[0], linear, upsampler(feats, guidance)[0]


@pytest.mark.parametrize('chunk', [1, 3, 7, 100])
def test_chunks_are_the_features(upsampled, chunk):
    feats, linear, high = upsampled
    parts = list(channel_chunks(linear, feats, chunk))
    assert max(map(len, parts)) == min(chunk, 7)
    torch.testing.assert_close(torch.cat(parts), high)


@pytest.mark.parametrize('chunk', [1, 3, 100])
def test_similarity_to_a_vector_is_torchs(upsampled, chunk):
    feats, linear, high = upsampled
    query = torch.randn(7).double()
    found = similarity_to(linear, feats, query, chunk)
    wanted = F.cosine_similarity(high, query[:, None, None], dim=0)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize('cell', [(0, 0), (13, 15)])
def test_similarity_to_a_cell_is_torchs(upsampled, cell):
    feats, linear, high = upsampled
    found = similarity_at(linear, feats, cell, 3)
    query = high[:, cell[0], cell[1], None, None]
    torch.testing.assert_close(found, F.cosine_similarity(high, query, dim=0))
    torch.testing.assert_close(found[cell], found.new_tensor(1.0))


def test_a_small_object_is_found_by_what_it_is_made_of():
    """The point of upsampling: cells of a mixture find neither."""
    high = torch.zeros(4, 8, 8)
    high[0] = 1
    high[:, 2, 5] = torch.tensor([0.0, 1.0, 0.0, 0.0])
    low = F.avg_pool2d(high, 4)
    query = torch.tensor([0.0, 2.0, 0.0, 0.0])

    def linear(x):
        return lambda weight: torch.einsum('kc,chw->khw', weight, x)

    fine = similarity_to(linear(high), high, query, 2)
    assert fine.argmax() == 2 * 8 + 5
    assert fine.max() == 1
    assert similarity_to(linear(low), low, query, 2).max() < 0.1


def test_a_zero_feature_is_like_nothing():
    feats = torch.zeros(3, 2, 2)
    found = similarity_to(
        lambda weight: torch.einsum('kc,chw->khw', weight, feats),
        feats,
        torch.ones(3),
        2,
    )
    assert found.tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize(
    ('query', 'message'),
    [
        (torch.ones(4), r'has shape \(7,\), got \(4,\)'),
        (torch.ones(1, 7), r'got \(1, 7\)'),
        (torch.zeros(7), 'not zero'),
        (torch.full((7,), float('nan')), 'finite'),
    ],
)
def test_a_query_has_to_fit(query, message):
    feats = torch.ones(7, 2, 2)
    with pytest.raises(ValueError, match=message):
        similarity_to(lambda weight: feats, feats, query, 2)


def test_chunks_have_channels():
    with pytest.raises(ValueError, match='chunk must be 1 or more, got 0'):
        list(channel_chunks(lambda weight: weight, torch.ones(1, 1, 1), 0))
