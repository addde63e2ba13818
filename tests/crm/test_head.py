from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_all_parameters_get_gradients
from mmengine.registry import MODELS
from torch import nn

from mmplugins.crm import CRMHead

SIZES = [(24, 32), (12, 16), (6, 8)]
ODD = [(25, 31), (13, 16), (7, 8)]


@MODELS.register_module()
class Summed(nn.Module):
    """A loss whose value is known."""

    def __init__(self, loss_name, factor=1.0):
        super().__init__()
        self.loss_name = loss_name
        self.factor = factor

    def forward(self, logits, target, valid):
        return self.factor * (logits * target)[valid].sum()


def build(**kwargs):
    cfg = dict(
        type='mmplugins.CRMHead',
        in_channels=(5, 6, 7),
        channels=(4, 3, 8),
        loss_decode=dict(type='Summed', loss_name='loss_sum'),
    )
    return MODELS.build({**cfg, **kwargs})


def trained(**kwargs):
    """With statistics of a batch norm that has seen data, in float64."""
    head = build(**kwargs).double()
    for module in head.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return head.eval()


def levels(sizes, channels=(5, 6, 7), batch=2):
    return [
        torch.randn(batch, n, *size).double()
        for n, size in zip(channels, sizes)
    ]


def literal(head, feats):
    """The published fusion, from the head's weights."""
    state = head.state_dict()

    def norm(x, name):
        keys = ('running_mean', 'running_var', 'weight', 'bias')
        mean, var, weight, bias = (
            state[f'{name}.{key}'].view(-1, 1, 1) for key in keys
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    maps = []
    for k, x in enumerate(feats):
        x = F.conv2d(x, state[f'levels.{k}.0.conv.weight'])
        x = norm(x, f'levels.{k}.0.bn').relu()
        x = norm(x, f'levels.{k}.1').relu()
        maps.append(
            F.interpolate(
                x,
                feats[0].shape[-2:],
                mode='bilinear',
                align_corners=head.align_corners,
            )
        )
    x = F.conv2d(torch.cat(maps, 1), state['fusion.conv.weight'], padding=1)
    return norm(x, 'fusion.bn').relu()


@pytest.mark.parametrize('align_corners', [True, False])
@pytest.mark.parametrize('sizes', [SIZES, ODD], ids=['even', 'odd'])
def test_it_is_the_published_fusion(sizes, align_corners):
    head = trained(align_corners=align_corners)
    feats = levels(sizes)
    before = [x.clone() for x in feats]
    with torch.no_grad():
        out = head(feats)
        torch.testing.assert_close(out, literal(head, feats))
    assert out.shape == (2, 15, *sizes[0])
    assert all(torch.equal(a, b) for a, b in zip(before, feats))


@pytest.mark.parametrize('align_corners', [True, False])
@pytest.mark.parametrize('sizes', [SIZES, ODD], ids=['even', 'odd'])
def test_parts_are_those_of_the_whole(sizes, align_corners):
    """But for what lies at most two coarse cells from where they are cut."""
    head, feats = trained(align_corners=align_corners), levels(sizes)
    with torch.no_grad():
        whole = head(feats)
        for top, left in ((0, 0), (0, 2), (2, 3)):
            origins = [(top * 2**k, left * 2**k) for k in (2, 1, 0)]
            parts = [
                x[..., y : y + n, z : z + n]
                for x, (y, z), n in zip(feats, origins, (16, 8, 4))
            ]
            out = head(parts, origins, sizes)
            y, z = origins[0]
            first = [8 if y else 0, 8 if z else 0]
            inner = out[..., first[0] : 8, first[1] : 8]
            wanted = whole[..., y : y + 8, z : z + 8][
                ..., first[0] :, first[1] :
            ]
            torch.testing.assert_close(inner, wanted)


def test_dropout_is_for_training():
    feats = levels(SIZES)
    head = build(dropout_ratio=0.5).double()
    assert not torch.equal(head(feats), head(feats))
    zeros = (head(feats) == 0).double().mean()
    head.eval()
    assert torch.equal(head(feats), head(feats))
    assert zeros > (head(feats) == 0).double().mean()
    head = build(dropout_ratio=0).double().train()
    assert torch.equal(head(feats), head(feats))


def test_all_weights_learn():
    head = build(dropout_ratio=0).train()
    feats = [x.float() for x in levels(SIZES)]
    logits = head.decoder(head(feats), (40, 40))
    target = torch.randn(2, 1, 40, 40)
    head.loss(logits, target, target != 255)['loss_sum'].backward()
    assert_all_parameters_get_gradients(head)


def test_losses_of_one_name_are_added():
    cfg = [
        dict(type='Summed', loss_name=name, factor=factor)
        for name, factor in (('loss_a', 1.0), ('loss_b', 2.0), ('loss_a', 4.0))
    ]
    head = build(loss_decode=cfg)
    logits, target = torch.randn(2, 1, 5, 6), torch.rand(2, 1, 5, 6)
    valid = torch.rand(2, 1, 5, 6) > 0.5
    losses = head.loss(logits, target, valid)
    total = (logits * target * valid).sum()
    assert list(losses) == ['loss_a', 'loss_b']
    torch.testing.assert_close(losses['loss_a'], 5 * total)
    torch.testing.assert_close(losses['loss_b'], 2 * total)


def test_the_published_losses_are_the_default():
    head = build(loss_decode=None)
    given = {
        type(loss).__name__: loss.loss_weight for loss in head.loss_decode
    }
    assert given == dict(
        MaskCrossEntropyLoss=1.0,
        MaskL1Loss=0.5,
        MaskL2Loss=0.5,
        MaskGradientLoss=2.0,
    )
    logits = torch.randn(2, 1, 9, 8)
    target = (torch.rand(2, 1, 9, 8) > 0.5).float()
    losses = head.loss(logits, target, target >= 0)
    prob = logits.sigmoid()
    wanted = F.binary_cross_entropy(prob, target)
    torch.testing.assert_close(losses['loss_ce'], wanted)
    wanted = 0.5 * F.mse_loss(prob, target)
    torch.testing.assert_close(losses['loss_l2'], wanted)
    assert len(losses) == 4


def test_the_published_size():
    """0.74 M parameters of fusion, 256 channels."""
    with torch.device('meta'):
        head = CRMHead()
        sizes = [(1, n, 20 // s, 24 // s) for n, s in
                 ((64, 1), (256, 2), (1024, 4))]  # fmt: skip
        out = head.eval()([torch.zeros(size) for size in sizes])
    assert out.shape == (1, 256, 20, 24)
    count = sum(p.numel() for p in head.parameters())
    assert (count - 11_617) / 1e6 == pytest.approx(0.74, abs=0.005)


def test_a_config_stays_as_it_is():
    cfg = dict(
        type='mmplugins.CRMHead',
        in_channels=[5],
        channels=[3],
        norm_cfg=dict(type='BN', momentum=0.2),
        loss_decode=[dict(type='Summed', loss_name='loss_sum')],
    )
    given = deepcopy(cfg)
    head = MODELS.build(cfg)
    assert cfg == given
    assert head.levels[0][1].momentum == 0.2
    assert head.fusion.bn.momentum == 0.2


def test_levels_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r'\(4, 3\) for \(5, 6, 7\)'):
        build(channels=(4, 3))
    message = r'are \(5, 6, 7\), the backbone gives maps of \(5, 6\)'
    with pytest.raises(ValueError, match=message):
        build()(levels(SIZES)[:2])
    message = r'are \(5, 6, 7\), the backbone gives maps of \(5, 7, 6\)'
    with pytest.raises(ValueError, match=message):
        build()(levels(SIZES, (5, 7, 6)))
