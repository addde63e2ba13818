"""A CRM that builds and runs in no time, and inputs for it."""

import torch
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement, PixelData
from torch import nn


@MODELS.register_module()
class Pyramid(nn.Module):
    """A small backbone of strides 2, 4 and 8."""

    def __init__(self, pooled=False):
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(*pair, 3, 2, 1), nn.BatchNorm2d(pair[1]), nn.ReLU()
            )
            for pair in ((3, 8), (8, 8), (8, 12))
        )
        self.pooled = pooled

    def forward(self, x):
        maps = []
        for stage in self.stages:
            x = stage(x)
            if self.pooled:
                x = x * (1 + x.mean((2, 3), keepdim=True))
            maps.append(x)
        return maps


def config(align_corners=False, backbone=None, **kwargs):
    return dict(
        type='mmplugins.CRM',
        backbone=dict(
            type='mmplugins.CRMBackbone',
            backbone=dict(type='Pyramid', **(backbone or {})),
        ),
        decode_head=dict(
            type='mmplugins.CRMHead',
            in_channels=(8, 8, 12),
            channels=(4, 4, 8),
            hidden_channels=(16, 8),
            align_corners=align_corners,
        ),
        **kwargs,
    )


def build(double=True, **kwargs):
    """A model that answers differently everywhere, in evaluation."""
    model = MODELS.build(config(**kwargs))
    for name, value in model.named_parameters():
        if name.endswith('mask_weight'):
            nn.init.normal_(value, std=0.5)
        if name.endswith('layers.2.weight'):
            value.data *= 50
    for name, value in model.named_buffers():
        if name.endswith('running_mean'):
            nn.init.normal_(value, std=0.2)
    return (model.double() if double else model).eval()


def pair(height, width, batch=1, dtype=torch.float64):
    """An image, and a disc as its mask in [-1, 1]."""
    y, x = torch.meshgrid(
        torch.linspace(-1, 1, height),
        torch.linspace(-1, 1, width),
        indexing='ij',
    )
    disc = (0.5 - (y**2 + x**2).sqrt()).mul(8).tanh()
    image = torch.randn(batch, 3, height, width)
    return image.to(dtype), disc.expand(batch, 1, -1, -1).to(dtype)


def samples(*sizes, **meta):
    return [
        BaseDataElement(
            metainfo=meta,
            coarse_sem_seg=PixelData(data=torch.rand(1, *size)),
        )
        for size in sizes
    ]
