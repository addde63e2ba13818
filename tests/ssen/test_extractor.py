import pytest
import torch
import torch.nn.functional as F
from helpers import assert_all_parameters_get_gradients
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import nn

from mmplugins.ssen import SSEN


@MODELS.register_module()
class FixedOffsets(BaseModule):
    """The same offset (dy, dx) and mask everywhere."""

    def __init__(self, offset, mask=1.0, **_):
        super().__init__()
        self.offset, self.mask = offset, mask

    def forward(self, feat, ref_feat):
        B, _, H, W = feat.shape
        offset = torch.tensor(self.offset).to(feat).repeat(9)
        return (
            offset.view(1, 18, 1, 1).expand(B, -1, H, W),
            feat.new_full((B, 9, H, W), self.mask),
        )


def build(**kwargs):
    cfg = dict(type='mmplugins.SSEN', mid_channels=8)
    return MODELS.build({**cfg, **kwargs})


def stirred(**kwargs):
    """With weights where it begins with zeros and ones, in float64."""
    model = build(**kwargs).double()
    for estimator in model.estimators:
        for block in estimator.attend:
            nn.init.normal_(block.conv_out.conv.weight, std=0.3)
        nn.init.normal_(estimator.head.weight, std=0.3)
    for conv in model.convs:
        nn.init.normal_(conv.weight, std=0.1)
    return model


def maps(size, batch=2, channels=8):
    return torch.randn(2, batch, channels, *size).double().unbind()


@pytest.mark.parametrize('num_layers', range(6))
@torch.no_grad()
def test_each_layer_aligns_what_the_one_before_left(num_layers):
    """The composition, with torchvision's convolution."""
    ops = pytest.importorskip('torchvision').ops
    model = stirred(num_layers=num_layers)
    feat, ref_feat = maps((9, 11))
    out, aux = model(feat, ref_feat, return_aux=True)
    assert len(aux) == num_layers
    x = ref_feat
    for estimator, conv, (offset, mask) in zip(
        model.estimators, model.convs, aux, strict=True
    ):
        for given, wanted in zip((offset, mask), estimator(feat, x)):
            torch.testing.assert_close(given, wanted)
        assert offset.std() > 0.1
        x = ops.deform_conv2d(x, offset, conv.weight, padding=1, mask=mask)
    torch.testing.assert_close(out, x)
    assert torch.equal(model(feat, ref_feat), out)
    assert num_layers or out is ref_feat


@pytest.mark.parametrize('num_layers', [1, 3, 5])
@torch.no_grad()
def test_training_begins_with_the_reference_itself(num_layers):
    model = build(num_layers=num_layers)
    feat, ref_feat = (x.float() for x in maps((12, 17)))
    out = model(feat, ref_feat)
    assert out.std() / ref_feat.std() == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(out, ref_feat)


@pytest.mark.parametrize('offset', [(2.0, -1.0), (0.0, 3.0), (0.5, 0.25)])
@torch.no_grad()
def test_offsets_are_rows_then_columns_in_pixels(offset):
    cfg = dict(type='FixedOffsets', offset=offset)
    model = build(num_layers=1, offsets=cfg)
    feat, ref_feat = (x.float() for x in maps((10, 12)))
    out = model(feat, ref_feat)
    y, x = (torch.arange(n) + shift for n, shift in zip((10, 12), offset))
    y, x = torch.meshgrid(y, x, indexing='ij')
    grid = torch.stack([(2 * x + 1) / 12 - 1, (2 * y + 1) / 10 - 1], -1)
    wanted = F.grid_sample(
        ref_feat, grid.float().expand(2, -1, -1, -1), align_corners=False
    )
    torch.testing.assert_close(out, wanted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_layers_add_their_offsets_and_multiply_their_masks():
    cfg = dict(type='FixedOffsets', offset=(1.0, -1.0), mask=0.5)
    feat, ref_feat = (x.float() for x in maps((10, 12)))
    out = build(num_layers=3, offsets=cfg)(feat, ref_feat)
    torch.testing.assert_close(out[..., :7, 3:], ref_feat[..., 3:, :-3] / 8)
    assert not out[..., 7:, :].any()
    assert not out[..., :3].any()


@torch.no_grad()
def test_what_is_not_relevant_is_left_out():
    cfg = dict(type='FixedOffsets', offset=(0.0, 0.0), mask=0.0)
    out = build(offsets=cfg)(*(x.float() for x in maps((5, 6))))
    assert not out.any()


def test_estimators_and_layers_are_their_own():
    model = build(num_layers=3)
    parts = [*model.estimators, *model.convs]
    params = [p for part in parts for p in part.parameters()]
    assert len({id(p) for p in params}) == len(params)
    first, second = (e.down[0].weight for e in model.estimators[:2])
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ('skip', 'wanted'), [('add', 1_007_793), ('concat', 1_339_569)]
)
def test_the_published_size(skip, wanted):
    """A million; with concatenation, nine times 64 x 64 x 9 more."""
    model = SSEN(skip=skip)
    assert sum(p.numel() for p in model.parameters()) == wanted
    assert all(conv.bias is None for conv in model.convs)


def test_arguments_reach_the_estimators():
    model = build(
        deform_groups=2,
        skip='add',
        non_local=False,
        offsets=dict(upsample='bilinear', leaky=0.2),
        num_layers=2,
    )
    for estimator in model.estimators:
        assert estimator.skip == 'add'
        assert estimator.leaky == 0.2
        assert estimator.up[0].mode == 'bilinear'
        assert isinstance(estimator.attend[0], nn.Identity)
    out, aux = model(*(x.float() for x in maps((6, 7))), return_aux=True)
    assert out.shape == (2, 8, 6, 7)
    assert [(a.shape[1], b.shape[1]) for a, b in aux] == [(36, 18)] * 2


@pytest.mark.parametrize('size', [(1, 1), (1, 5), (2, 3), (33, 18)])
def test_any_size_fits(size):
    out = stirred()(*maps(size))
    assert out.shape == (2, 8, *size)
    assert out.isfinite().all()


def test_all_weights_learn():
    model = stirred().float()
    out = model(*(x.float() for x in maps((20, 17))))
    (out * torch.randn_like(out)).sum().backward()
    assert_all_parameters_get_gradients(model)


def test_all_layers_learn_from_the_start():
    """Kernels, and what the heads say of the taps in the middle."""
    model = build()
    out = model(*(x.float() for x in maps((20, 17))))
    (out * torch.randn_like(out)).sum().backward()
    for estimator, conv in zip(model.estimators, model.convs):
        grad = estimator.head.weight.grad.flatten(1).any(1)
        middle = [8, 9, 18 + 4]
        assert grad.nonzero().flatten().tolist() == middle
        assert conv.weight.grad.flatten(2).any(0).any(0).all()


def test_it_learns_where_to_look():
    """In the input displaced by two rows, which no 3x3 kernel reaches."""
    model = build(mid_channels=4, num_layers=1)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(40):
        whole = F.interpolate(
            torch.randn(2, 4, 6, 6), (24, 24), mode='bicubic'
        )
        feat, ref_feat = whole[..., 4:-4, 4:-4], whole[..., 6:-2, 3:-5]
        out = model(feat, ref_feat)[..., 4:-4, 4:-4]
        loss = (out - feat[..., 4:-4, 4:-4]).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


@torch.no_grad()
def test_what_is_not_a_number_stays_in_its_sample():
    model = stirred()
    feat, ref_feat = maps((9, 11))
    wanted = model(feat, ref_feat)
    broken = feat.clone()
    broken[0, 0, 3, 4] = float('nan')
    out = model(broken, ref_feat)
    torch.testing.assert_close(out[1], wanted[1])
    out, aux = model(broken, ref_feat, return_aux=True)
    assert aux[0].offset[0].isnan().any()


@torch.no_grad()
def test_half_precision_is_near():
    model = stirred().float()
    feat, ref_feat = (x.float() for x in maps((16, 20)))
    wanted = model(feat, ref_feat)
    with torch.autocast('cpu', torch.bfloat16):
        out, aux = model(feat, ref_feat, return_aux=True)
    assert aux[0].offset.dtype == torch.float32
    assert (out - wanted).std() < 0.2 * wanted.std()


class Wrapper(BaseModule):
    """A model whose initialisation goes over all that is in it."""

    def __init__(self, child, init_cfg):
        super().__init__(init_cfg)
        self.child = child


@pytest.mark.parametrize('outer', [True, False])
@torch.no_grad()
def test_a_generic_initialisation_leaves_the_start_as_it_is(outer):
    layers = ['Conv2d', 'ConvTranspose2d', 'ModulatedDeformConv2d']
    cfg = dict(type='Normal', std=0.2, layer=layers)
    model = build(init_cfg=None if outer else cfg)
    (Wrapper(model, cfg) if outer else model).init_weights()
    feat, ref_feat = (x.float() for x in maps((12, 17)))
    torch.testing.assert_close(model(feat, ref_feat), ref_feat)
    assert model.estimators[0].down[1].weight.std() > 0.15


@pytest.mark.parametrize('outer', [True, False])
def test_pretrained_weights_are_taken_as_they_are(outer, tmp_path):
    state = stirred().float().state_dict()
    prefix = 'child.' if outer else ''
    path = tmp_path / 'weights.pth'
    torch.save({prefix + key: value for key, value in state.items()}, path)
    cfg = dict(type='Pretrained', checkpoint=str(path))
    model = build(init_cfg=None if outer else cfg)
    (Wrapper(model, cfg) if outer else model).init_weights()
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key])


@pytest.mark.parametrize('num_layers', [-1, 6])
def test_other_depths_are_named(num_layers):
    with pytest.raises(ValueError, match=rf'0 to 5, got {num_layers}'):
        build(num_layers=num_layers)


@pytest.mark.parametrize('num_layers', [0, 2])
def test_maps_that_do_not_fit_are_named(num_layers):
    model = build(num_layers=num_layers)
    with pytest.raises(ValueError, match=r'SSEN needs two maps \(B, 8, H, W'):
        model(torch.zeros(1, 8, 4, 4), torch.zeros(1, 8, 4, 5))
