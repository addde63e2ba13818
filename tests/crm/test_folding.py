import copy

import pytest
import torch
from torch import nn

from mmplugins.crm import CRMBackbone, CRMHead
from mmplugins.crm.backbone import RefinementResNet
from mmplugins.crm.folding import conv_norm


def measured(model):
    """With statistics and weights of normalisation that are not 0 or 1."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model.double().eval()


def without_gradients(function, *args):
    """The same work, where it may be folded."""
    with torch.no_grad():
        return function(*args)


@pytest.mark.parametrize('bias', [False, True])
def test_one_layer(bias):
    conv = nn.Conv2d(3, 5, 3, 2, 1, bias=bias)
    norm = nn.BatchNorm2d(5)
    measured(nn.Sequential(conv, norm))
    x = torch.randn(2, 3, 6, 7).double()
    wanted = norm(conv(x))
    assert torch.equal(conv_norm(conv, norm, x), wanted)
    found = without_gradients(conv_norm, conv, norm, x)
    assert not torch.equal(found, wanted), 'was not folded'
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    'norm',
    [
        nn.BatchNorm2d(4),
        nn.BatchNorm2d(4, track_running_stats=False).eval(),
        nn.GroupNorm(2, 4).eval(),
    ],
    ids=['training', 'no statistics', 'groups'],
)
def test_what_does_not_fold_is_as_it_is(norm):
    conv, x = nn.Conv2d(3, 4, 1), torch.randn(2, 3, 4, 5)
    alone = copy.deepcopy(norm)
    found = without_gradients(conv_norm, conv, norm, x)
    assert torch.equal(found, alone(conv(x)))
    for name, value in alone.named_buffers():
        assert torch.equal(norm.get_buffer(name), value), name


@pytest.mark.parametrize('depth', [18, 50])
def test_a_resnet(depth):
    """Blocks of both kinds, and the mask's weights."""
    backbone = measured(CRMBackbone(depth))
    assert isinstance(backbone.net, RefinementResNet)
    nn.init.normal_(backbone.net.conv1.mask_weight)
    x = torch.randn(2, 4, 32, 48).double()
    before = x.clone()
    wanted = backbone(x)
    found = without_gradients(backbone, x)
    for some, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(some, want)
    assert torch.equal(x, before)


def test_who_listens_is_heard():
    """Hooks of layers are called, and change what they change elsewhere."""
    backbone = measured(CRMBackbone(18))
    x = torch.randn(1, 4, 32, 32).double()
    backbone.net.layer1[0].register_forward_pre_hook(
        lambda _, args: 2 * args[0]
    )
    for found, want in zip(without_gradients(backbone, x), backbone(x)):
        assert torch.equal(found, want)


def test_a_head():
    head = measured(CRMHead((4, 8, 8), (4, 4, 8)))
    maps = [
        torch.randn(1, n, size, size).double()
        for n, size in ((4, 16), (8, 8), (8, 4))
    ]
    found = without_gradients(head, maps)
    folded = [
        m.efficient_conv_bn_eval_forward
        for m in head.modules()
        if hasattr(m, 'efficient_conv_bn_eval_forward')
    ]
    assert len(folded) == 4
    assert all(folded)
    for module in head.modules():
        if hasattr(module, 'turn_on_efficient_conv_bn_eval'):
            module.turn_on_efficient_conv_bn_eval(False)
    torch.testing.assert_close(found, head(maps))
