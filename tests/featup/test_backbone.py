import pytest
import torch
from mmengine.registry import MODELS
from torch import nn

from mmplugins.featup import FrozenBackbone


@MODELS.register_module()
class CountingBackbone(nn.Module):
    """Two levels, a batch norm, and a count of the images seen."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 4, 4)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.seen = 0

    def forward(self, x):
        self.seen += len(x)
        x = self.norm(self.conv(x))
        return x, self.drop(x[..., ::2, ::2])


def build(memory=0):
    return FrozenBackbone(dict(type='CountingBackbone'), memory)


def test_nothing_of_it_ever_learns_or_follows():
    backbone = build().train()
    assert backbone.training
    assert not backbone.module.training
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    images = torch.randn(4, 3, 16, 16)
    first, second = backbone(images), backbone.train()(images)
    for a, b in zip(first, second):
        assert torch.equal(a, b)
        assert not a.requires_grad
    backbone.requires_grad_(True)
    assert not any(p.requires_grad for p in backbone.parameters())
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_it_gives_what_the_backbone_gives():
    backbone = build()
    images = torch.randn(2, 3, 16, 24)
    for a, b in zip(backbone(images), backbone.module.eval()(images)):
        assert torch.equal(a, b)


def test_memory_computes_each_image_once():
    backbone, plain = build(1), build()
    plain.load_state_dict(backbone.state_dict())
    images = torch.randn(6, 3, 16, 16)
    backbone(images[:4])
    assert backbone.module.seen == 4
    outs = backbone(images[[2, 5, 0, 5]])
    assert backbone.module.seen == 5
    for a, b in zip(outs, plain(images[[2, 5, 0, 5]])):
        torch.testing.assert_close(a, b)
    backbone(images)
    assert backbone.module.seen == 6
    # What a caller does to its maps stays with it.
    outs[0].zero_()
    torch.testing.assert_close(backbone(images)[0], plain(images)[0])


def test_memory_tells_the_smallest_change():
    backbone = build(1)
    image = torch.randn(1, 3, 16, 16)
    first = backbone(image)[0]
    image[0, 0, 0, 0] += 1e-3
    assert not torch.equal(backbone(image)[0], first)
    assert not torch.equal(backbone(image.flip(-1))[0], first)


def test_memory_is_bounded():
    backbone = build(1)
    size = sum(x.numel() * 4 for x in backbone(torch.randn(1, 3, 256, 256)))
    fitting = 2**20 // size
    images = torch.randn(fitting + 3, 3, 256, 256)
    wanted = backbone(images)
    again = backbone(images)
    for a, b in zip(wanted, again):
        torch.testing.assert_close(a, b)
    seen = backbone.module.seen
    backbone(images[: fitting - 1])
    assert backbone.module.seen == seen
    backbone(images[-1:])
    assert backbone.module.seen == seen + 1


def test_other_weights_are_other_features():
    backbone = build(1)
    images = torch.randn(1, 3, 16, 16)
    first = backbone(images)[0]
    other = build().state_dict()
    backbone.load_state_dict(other)
    assert not torch.equal(backbone(images)[0], first)
    assert backbone.module.seen == 2


def test_bad_memory_is_named():
    with pytest.raises(ValueError, match='memory of FrozenBackbone.*-1'):
        build(-1)


def test_another_precision_is_another_feature():
    backbone = build(1)
    images = torch.randn(1, 3, 16, 16)
    with torch.autocast('cpu', torch.bfloat16):
        coarse = backbone(images)[0]
    assert backbone(images)[0].dtype == torch.float32
    assert coarse.dtype != torch.float32
    assert backbone.double()(images.double())[0].dtype == torch.float64
