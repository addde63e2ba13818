import numpy as np
import pytest
import torch
from helpers import assert_all_parameters_get_gradients, leaf
from mmengine.dataset import pseudo_collate
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import MODELS, TRANSFORMS
from skimage import data
from torch.autograd import gradcheck

from mmplugins.ssen import AlignmentLoss, MovedReference
from mmplugins.ssen.alignment import affine_displacement, displacements
from mmplugins.ssen.offsets import Sampling
from mmplugins.ssen.views import sample_view
from mmplugins.ssen.visualization import displacement


def layer(offset):
    """A layer whose taps all have the offset (B, 2, H, W)."""
    B, _, H, W = offset.shape
    mask = offset.new_ones(B, 9, H, W)
    return Sampling(offset.repeat(1, 9, 1, 1), mask)


def test_layers_follow_each_other_as_the_pictures_say():
    """Another implementation, of one image, for the pictures.

    It follows points, which with more layers is not the mean of what the four
    pixels around them read.
    """
    aux = [layer(torch.randn(2, 2, 9, 8).double()) for _ in range(2)]
    found = displacements(aux)
    assert len(found) == 2
    for depth in range(2):
        for index in range(2):
            wanted = displacement(aux[: depth + 1], index)
            torch.testing.assert_close(found[depth][index], wanted)


def test_constant_displacements_add_up():
    steps = torch.tensor([[1.0, -2.0], [0.5, 3.0], [-0.25, 1.0]])
    aux = [layer(s.view(1, 2, 1, 1).expand(1, 2, 5, 6)) for s in steps]
    torch.testing.assert_close(displacements(aux)[2][0, :, 2, 2], steps.sum(0))


@pytest.mark.parametrize('scale', [1, 2, 4])
def test_truth_by_hand(scale):
    matrix = torch.tensor([[[0.9, -0.3, 5.1], [0.3, 0.9, -2.2]]])
    shift, known = affine_displacement(matrix, (6, 8), scale)
    for i in range(6):
        for j in range(8):
            x, y = (scale * k + (scale - 1) / 2 for k in (j, i))
            u, v = 0.9 * x - 0.3 * y + 5.1, 0.3 * x + 0.9 * y - 2.2
            wanted = torch.tensor([v - y, u - x]) / scale
            torch.testing.assert_close(shift[0, :, i, j], wanted)
            inside = -0.5 < u < 8 * scale - 0.5 and -0.5 < v < 6 * scale - 0.5
            assert known[0, 0, i, j] == inside


def test_views_show_what_their_displacement_says():
    """A photograph of two ramps says itself where its pixels come from."""
    x, y = np.meshgrid(np.arange(96), np.arange(96))
    photo = np.stack([x, y, 0 * x + 99], -1).astype(np.uint8) + 80
    rng = np.random.default_rng(0)
    for _ in range(5):
        target, view, matrix = sample_view(rng, photo, (64, 64))
        shift, known = affine_displacement(
            torch.from_numpy(matrix)[None], (64, 64), 1
        )
        inner = known[0, 0].numpy()
        i, j = np.nonzero(inner)
        dy, dx = shift[0, :, i, j].numpy()
        there = view[np.rint(i + dy).astype(int), np.rint(j + dx).astype(int)]
        gain = there[:, 2].astype(float).mean() / 179  # darker or lighter
        there = there / gain
        # Mirrored where the photograph ends.
        close = np.abs(there - target[i, j]).max(1) < 3
        assert close.mean() > 0.8


def test_loss_is_the_mean_distance():
    matrix = torch.tensor([[[1.0, 0, 8], [0, 1, 4]]])  # (1, 2) of the map
    aux = [layer(torch.zeros(1, 2, 8, 8)) for _ in range(2)]
    loss = AlignmentLoss(loss_weight=1.0)(aux, matrix, 4)
    torch.testing.assert_close(loss, torch.tensor(5.0).sqrt())
    right = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1).expand(1, 2, 8, 8)
    aux = [layer(right), layer(torch.zeros(1, 2, 8, 8))]
    assert AlignmentLoss(loss_weight=1.0)(aux, matrix, 4) < 2e-3


def test_what_is_not_known_does_not_count():
    known = torch.tensor([[1.0, 0, 8], [0, 1, 4]])
    matrix = torch.stack([known, torch.full((2, 3), torch.nan)])
    wild = torch.randn(1, 2, 8, 8)
    loss = AlignmentLoss(loss_weight=1.0)
    both = loss([layer(torch.cat([torch.zeros(1, 2, 8, 8), wild]))], matrix, 4)
    torch.testing.assert_close(both, torch.tensor(5.0).sqrt())
    offset = leaf(wild)
    none = loss([layer(offset)], matrix[1:].double(), 4)
    assert none == 0
    none.backward()
    assert not offset.grad.any()


def test_truth_is_exact_in_mixed_precision():
    matrix = torch.tensor([[[0.97, -0.2, 20.3], [0.2, 0.97, -11.7]]])
    aux = [layer(torch.randn(1, 2, 32, 32))]
    wanted = AlignmentLoss()(aux, matrix, 4)
    with torch.autocast('cpu', torch.bfloat16):
        assert AlignmentLoss()(aux, matrix, 4) == wanted


def test_gradcheck():
    matrix = torch.tensor([[[1.1, 0.1, 1], [0, 0.9, -1]]]).double()
    offsets = [leaf(torch.randn(1, 2, 4, 5)) for _ in range(2)]
    loss = AlignmentLoss()
    assert gradcheck(
        lambda *x: loss([layer(o) for o in x], matrix, 2), offsets
    )


def optimizer(model):
    return OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))


def editor(**generator):
    net = dict(
        type='mmplugins.SSENNet',
        mid_channels=8,
        num_blocks=1,
        num_extract_blocks=1,
        num_layers=2,
        align=dict(search_radius=2),
    )
    return MODELS.build(
        dict(
            type='mmplugins.RefSREditor',
            generator=net | generator,
            alignment_loss=dict(type='mmplugins.AlignmentLoss'),
        )
    )


def moved_batch(data_keys=('ref_matrix',)):
    np.random.seed(0)
    samples = []
    for prob in (1.0, 0.0):
        gt = np.ascontiguousarray(data.astronaut()[:96, :96])
        results = dict(gt=gt, ref=gt[16:80, 8:72].copy())
        results = MovedReference(size=64, prob=prob)(results)
        results['gt'] = results['gt'][:64, :64]
        results['img'] = np.ascontiguousarray(results['gt'][::4, ::4])
        pack = dict(type='PackInputs', keys=['img', 'ref'])
        pack['data_keys'] = [*data_keys]
        results.pop('ori_ref_shape', None)
        results.pop('reference', None)
        results.pop('ref_path', None)
        if not data_keys:
            results.pop('ref_matrix')
        samples.append(TRANSFORMS.build(pack)(results))
    return pseudo_collate(samples)


def test_an_editor_learns_to_search(in_scope):
    with in_scope('mmagic'):
        model = editor()
        batch = model.data_preprocessor(moved_batch(), training=True)
        losses = model(**batch, mode='loss')
        assert set(losses) == {'loss_pix', 'loss_align'}
        # The second sample's match is not known.
        matrix = batch['data_samples'].ref_matrix.view(-1, 2, 3)
        assert matrix[0].isfinite().all()
        assert matrix[1].isnan().all()
        image, refs = batch['inputs']['img'], batch['inputs']['ref']
        _, aux = model.generator(image, refs, return_aux=True)
        wanted = AlignmentLoss()(aux[0], matrix, 4)
        torch.testing.assert_close(losses['loss_align'], wanted)
        losses['loss_align'].backward()
        for search in model.generator.ssen.searches:
            assert_all_parameters_get_gradients(search)


def test_an_editor_says_what_it_needs(in_scope):
    with in_scope('mmagic'):
        model = editor()
        batch = moved_batch()
        img, ref = batch['inputs']['img'], batch['inputs']['ref']
        batch['inputs'] = [dict(img=img[0], ref=ref[0]), dict(img=img[1])]
        with pytest.raises(ValueError, match='for all of its images or for'):
            model.data_preprocessor(batch, training=True)
        both = OptimWrapperDict(generator=optimizer(model))
        with pytest.raises(ValueError, match='is for the first stage'):
            model.train_step(moved_batch(), both)
        model = editor()
        batch = model.data_preprocessor(moved_batch(()), training=True)
        with pytest.raises(ValueError, match="data_keys=.'ref_matrix'."):
            model(**batch, mode='loss')
        model = editor(reference=False, align=None)
        batch = model.data_preprocessor(moved_batch(), training=True)
        with pytest.raises(ValueError, match='aligns references'):
            model(**batch, mode='loss')
