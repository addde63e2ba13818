"""CRM: its decoder, and the refinement of an image from end to end.

s a stage's scale, 256 channels at stride 2.
"""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from mmcv.cnn.resnet import Bottleneck, make_res_layer
from torch import Tensor, nn

from mmplugins import crm
from mmplugins.ops import local_ensemble
from mmplugins.ops.backends import BACKENDS

from .measure import Aim, Call, Case, named, without_gradients

_SCALES = (0.125, 0.25, 0.5, 1.0)
# Targets that the published code decodes at once.
_CHUNK = 16 * 224**2
_PADDING = 32
# Scale of what a block adds to its input.
_QUIET = 0.2
# Pixels across.
_SIZES = (1024, 64)


def _backends(device: torch.device) -> list[str]:
    return named(BACKENDS, device)


def _networks(device: torch.device) -> list[str]:
    return ['reference', 'auto']


def _decode(
    backend: str,
    device: torch.device,
    quick: bool,
    sizes: tuple[tuple[int, int], tuple[int, int]],
) -> Call:
    """The four stages of an image."""
    size = sizes[quick]
    widths = [256 + 6, 32, 32, 32, 32, 1]
    layers = _layers([nn.Linear(*pair) for pair in pairwise(widths)])
    layers = [tuple(t.to(device) for t in layer) for layer in layers]
    maps = []
    for scale in _SCALES:
        cells = [round(pixels * scale) // 2 for pixels in size]
        maps.append(torch.randn(1, 256, *cells).to(device))
    chunk = _CHUNK if backend == 'reference' else None

    def decode() -> Tensor:
        return torch.cat(
            [
                local_ensemble(
                    feats, size, layers, chunk=chunk, backend=backend
                )
                for feats in maps
            ]
        )

    return without_gradients(decode)


def _layers(linears: Sequence[nn.Linear]) -> list[tuple[Tensor, Tensor]]:
    """Weights and biases, such that the logits differ from pixel to pixel."""
    for linear in linears:
        nn.init.kaiming_normal_(linear.weight)
    return [(linear.weight, linear.bias) for linear in linears]


def _refine(backend: str, device: torch.device, quick: bool) -> Call:
    """A square image and a disc, as ``CRM.refine`` takes them."""
    pixels = _SIZES[quick]
    model = crm.CRM(
        decode_head=dict(type='mmplugins.CRMHead', align_corners=True)
    )
    # Else the network would not see the mask.
    nn.init.normal_(model.backbone.net.conv1.mask_weight, std=0.02)
    for module in model.modules():
        if isinstance(module, Bottleneck):
            # Else random blocks would magnify the rounding of those before.
            nn.init.constant_(module.bn3.weight, _QUIET)
    _layers(model.decode_head.decoder.layers)
    image = torch.randn(1, 3, pixels, pixels)
    axis = torch.linspace(-1, 1, pixels)
    distance = (axis[:, None] ** 2 + axis**2).sqrt()
    mask = (1 - 2 * distance).clamp(-0.05, 0.05)[None, None] * 20
    _calibrate(model, image[..., :64, :64], mask[..., :64, :64])
    model, image, mask = (x.to(device) for x in (model, image, mask))
    if backend == 'reference':
        published = _Published(model).eval()
        published.to(device, memory_format=torch.contiguous_format)
        return without_gradients(partial(published, image, mask))
    return without_gradients(partial(model.refine, image, mask, _SCALES))


@torch.no_grad()
def _calibrate(model: crm.CRM, image: Tensor, mask: Tensor) -> None:
    """Statistics for random weights, whose features grow without them."""
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # those of this image alone
            module.train()
    model.forward_stage(image, mask)
    model.eval()


class _Published(nn.Module):
    """The network as published, with the weights of a CRM.

    It computes a fourth stage of the ResNet that nothing reads, and decodes
    802,816 targets at once, each by four inputs of 262 numbers.
    """

    def __init__(self, model: crm.CRM) -> None:
        super().__init__()
        self.backbone, self.head = model.backbone, model.decode_head
        self.unread = make_res_layer(Bottleneck, 1024, 512, 3, dilation=4)

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        """Probabilities, (1, 1, H, W), of an image and a mask in [-1, 1]."""
        image, mask = (
            F.pad(x, [_PADDING] * 4, mode='reflect') for x in (image, mask)
        )
        size = image.shape[-2:]
        layers = [(m.weight, m.bias) for m in self.head.decoder.layers]
        for scale in _SCALES:
            x = F.interpolate(
                torch.cat([image, mask], 1),
                [round(n * scale) for n in size],
                mode='bilinear',
                align_corners=True,
            )
            maps = self.backbone(x)
            self.unread(maps[-1])
            logits = local_ensemble(
                self.head(maps),
                size,
                layers,
                chunk=_CHUNK,
                backend='reference',
            )
            empty = (mask + 1).sum() < 2
            mask = (2 * logits.sigmoid() - 1).masked_fill(empty, -1)
        inside = slice(_PADDING, -_PADDING)
        return (mask[..., inside, inside] + 1) / 2


CASES = (
    Case(
        'crm_decode',
        _backends,
        partial(_decode, sizes=((1024, 1024), (64, 64))),
        aims=dict(cpu=Aim(time=15, memory=10)),
    ),
    # Two at once, for each holds 2.8 GB of features.
    Case(
        'crm_decode_4k',
        _networks,
        partial(_decode, sizes=((2160, 3840), (48, 64))),
        aims=dict(cuda=Aim(time=20)),
        devices=['cuda'],
    ),
    Case(
        'crm_refine',
        _networks,
        _refine,
        tolerance=1e-3,
        aims=dict(cpu=Aim(time=6)),
    ),
)
