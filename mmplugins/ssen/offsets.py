"""Where to look in a reference: the dynamic offset estimator.

B batch, C channels, H x W map, K x K taps of a kernel, G groups of channels
that share offsets. Offsets are in pixels of the map, (dy, dx) of each tap,
taps row by row, group by group.
"""

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule, PretrainedInit
from torch import Tensor, nn

from mmplugins.ops.attention import NonLocal2d
from mmplugins.registry import MODELS
from mmplugins.typing import OptConfigType, OptMultiConfig

# How often the input is halved.
LEVELS = 3
SKIPS = ('concat', 'add')
UPSAMPLES = ('transpose', 'bilinear')


class Sampling(NamedTuple):
    """What a modulated deformable convolution takes from where."""

    offset: Tensor
    """Offsets in pixels, (B, 2 K K G, H, W)."""
    mask: Tensor
    """Weights of the taps in [0, 2], (B, K K G, H, W)."""


class _Upsample(nn.Module):
    """From one level to the next larger one, of any size."""

    def __init__(self, in_channels: int, channels: int, mode: str) -> None:
        super().__init__()
        self.mode = mode
        if mode == 'transpose':
            self.conv = nn.ConvTranspose2d(
                in_channels, channels, 3, stride=2, padding=1
            )
        else:
            self.conv = nn.Conv2d(in_channels, channels, 3, padding=1)

    def forward(self, parts: Sequence[Tensor], size: torch.Size) -> Tensor:
        """Enlarge maps that lie beside each other."""
        if self.mode == 'bilinear':
            parts = [F.interpolate(x, size, mode='bilinear') for x in parts]
            conv = self.conv
            return _conv_parts(parts, conv.weight, conv.bias, 1, conv.padding)
        if parts[0].device.type == 'cpu':
            return _transposed_conv_parts(self.conv, parts, size)
        return self.conv(torch.cat(parts, 1), output_size=size)


@MODELS.register_module()
class DynamicOffsetEstimator(BaseModule):
    """Offsets and masks from two maps (SSEN, CVPR 2020, section 3.2).

    Both maps are halved three times and brought back, with non-local attention
    and a skip on each of the three smaller levels, so that an offset may
    depend on all of both. One convolution, zero at the start, then gives
    offsets of at most M = max(H, W) pixels, ``M tanh(o / M)``, and masks
    ``2 sigmoid``: training begins with the regular grid and masks of one.

    Args:
        mid_channels (int): Channels C. Defaults to 64.
        non_local (bool): Attend to all positions of a level. Defaults to True.
        skip (str): ``'concat'`` or ``'add'``, how levels on the way up take
            those on the way down. Defaults to ``'concat'``.
        deform_groups (int): Groups G. Defaults to 1.
        kernel_size (int): Taps K along each axis. Defaults to 3.
        non_local_cfg (dict, optional): Further arguments of
            :class:`~mmplugins.ops.attention.NonLocal2d`. Defaults to None.
        upsample (str): ``'transpose'`` for transposed convolutions, as
            published, or ``'bilinear'``, then a convolution, whose outputs
            overlap evenly. Defaults to ``'transpose'``.
        leaky (float): Slope of the LeakyReLUs. Defaults to 0.1.
        init_cfg (dict, optional): Weight initialisation of the layers but for
            attention and the last. Defaults to None, Kaiming's.

    Raises:
        ValueError: If an argument is not one of those.
    """

    def __init__(
        self,
        mid_channels: int = 64,
        non_local: bool = True,
        skip: str = 'concat',
        deform_groups: int = 1,
        kernel_size: int = 3,
        non_local_cfg: OptConfigType = None,
        upsample: str = 'transpose',
        leaky: float = 0.1,
        init_cfg: OptMultiConfig = None,
    ) -> None:
        super().__init__(init_cfg)
        for key, value, valid in (
            ('skip', skip, SKIPS),
            ('upsample', upsample, UPSAMPLES),
        ):
            if value not in valid:
                raise ValueError(
                    f'{key} of DynamicOffsetEstimator must be one of {valid}, '
                    f'got {value!r}'
                )
        if deform_groups < 1 or mid_channels % deform_groups:
            raise ValueError(
                'deform_groups of DynamicOffsetEstimator must divide its '
                f'{mid_channels} channels, got {deform_groups}'
            )
        if non_local_cfg and not non_local:
            raise ValueError(
                'non_local_cfg of DynamicOffsetEstimator needs non_local=True'
            )
        self.mid_channels = mid_channels
        self.skip = skip
        self.leaky = leaky
        self.points = kernel_size**2 * deform_groups
        widths = [2 * mid_channels, *[mid_channels] * (LEVELS - 1)]
        self.down = nn.ModuleList(
            nn.Conv2d(width, mid_channels, 3, stride=2, padding=1)
            for width in widths
        )
        self.attend = nn.ModuleList(
            NonLocal2d(mid_channels, **(non_local_cfg or {}))
            if non_local
            else nn.Identity()
            for _ in range(LEVELS)
        )
        width = mid_channels * (2 if skip == 'concat' else 1)
        self.up = nn.ModuleList(
            _Upsample(width, mid_channels, upsample) for _ in range(LEVELS)
        )
        self.head = nn.Conv2d(mid_channels, 3 * self.points, 3, padding=1)
        for conv in [*self.down, *(level.conv for level in self.up)]:
            _init_kaiming(conv, leaky)
        self._init_head()

    def init_weights(self) -> None:
        """Initialise; the last layer begins with zeros whatever else does."""
        first = not self.is_init
        super().init_weights()
        if first and not is_pretrained(self.init_cfg):
            for module in self.attend:
                if isinstance(module, NonLocal2d):
                    module.init_weights()
            self._init_head()

    def _init_head(self) -> None:
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, feat: Tensor, ref_feat: Tensor) -> Sampling:
        """Estimate where the reference shows what the input does.

        Args:
            feat (Tensor): Map of the input, (B, C, H, W).
            ref_feat (Tensor): Map of the reference, (B, C, H, W).

        Returns:
            Sampling: Offsets (B, 2 K K G, H, W) and masks (B, K K G, H, W), in
            float32 at least.

        Raises:
            ValueError: If the maps do not fit.
        """
        check_maps('DynamicOffsetEstimator', self.mid_channels, feat, ref_feat)
        x = self._compare(feat, ref_feat)
        # Half precision would round the offsets of a large map to pixels.
        with torch.autocast(x.device.type, enabled=False):
            dtype = torch.promote_types(x.dtype, torch.float32)
            head = self.head
            bias = head.bias.to(dtype)
            x = head._conv_forward(x.to(dtype), head.weight.to(dtype), bias)
            offset, mask = x.split([2 * self.points, self.points], 1)
            reach = max(x.shape[-2:])
            offset = reach * (offset / reach).tanh()
            return Sampling(offset, 2 * mask.sigmoid())

    def _compare(self, feat: Tensor, ref_feat: Tensor) -> Tensor:
        """Both maps on all levels, (B, C, H, W)."""
        sizes, downs = [], []
        x = (feat, ref_feat)
        for conv in self.down:
            sizes.append(x[0].shape[-2:])
            how = (conv.stride, conv.padding)
            x = _conv_parts(x, conv.weight, conv.bias, *how)
            x = (self._activate(x),)
            downs.append(x[0])
        x = x[0]
        for attend, up in zip(self.attend, self.up):
            x = _attend(attend, x)
            skip = downs.pop()
            parts = (x, skip) if self.skip == 'concat' else (x + skip,)
            x = self._activate(up(parts, sizes.pop()))
        return x

    def _activate(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x, self.leaky, inplace=True)


def _conv_parts(
    parts: Sequence[Tensor], weight: Tensor, bias: Tensor, *how: Sequence[int]
) -> Tensor:
    """Convolution of maps beside each other, without putting them there.

    Args:
        parts (Sequence[Tensor]): Maps, each (B, C_k, H, W).
        weight (Tensor): Kernels, (D, C, K, K'), C the sum of all C_k.
        bias (Tensor): (D,).
        *how (Sequence[int]): Stride and padding.

    Returns:
        Tensor: Map, (B, D, H', W').
    """
    out = None
    weights = weight.split([x.shape[1] for x in parts], 1)
    for x, some in zip(parts, weights):
        new = F.conv2d(x, some, bias if out is None else None, *how)
        out = new if out is None else out.add_(new)
    return out


def _transposed_conv_parts(
    conv: nn.ConvTranspose2d, parts: Sequence[Tensor], size: Sequence[int]
) -> Tensor:
    """The same of a transposed one, 3x3 with stride two and padding one.

    Even rows of the result read the kernel's middle one, odd ones the two
    others: four small convolutions. On a CPU torch would hold the products of
    all nine taps at once.
    """
    taps = ([1], [2, 0])
    out = None
    for top, left in product((0, 1), repeat=2):
        kernel = conv.weight[:, :, taps[top]][..., taps[left]]
        area = [(n - first + 1) // 2 for n, first in zip(size, (top, left))]
        if min(area) < 1:  # a single row has no odd ones
            continue
        # Windows from the first pixel on; beyond the border is zero.
        below, beside = (
            n + k - 1 - m
            for n, k, m in zip(area, kernel.shape[2:], parts[0].shape[2:])
        )
        padded = parts
        if below or beside:
            padded = [F.pad(x, (0, beside, 0, below)) for x in parts]
        phase = _conv_parts(padded, kernel.transpose(0, 1), conv.bias)
        if out is None:
            last = phase.is_contiguous(memory_format=torch.channels_last)
            form = torch.channels_last if last else torch.contiguous_format
            shape = (*phase.shape[:2], *size)
            out = torch.empty(
                shape,
                dtype=phase.dtype,
                device=phase.device,
                memory_format=form,
            )
        out[..., top::2, left::2] = phase
        del phase  # else it would wait for the next one
    return out


def _attend(attend: nn.Module, x: Tensor) -> Tensor:
    """Attention on a level, be it as small as a pixel."""
    if not getattr(attend, 'sub_sample', False) or min(x.shape[-2:]) > 1:
        return attend(x)
    # The maxima of 2 x 2 need as many.
    height, width = x.shape[-2:]
    wide = F.pad(x, (0, width == 1, 0, height == 1), mode='replicate')
    return attend(wide)[..., :height, :width]


def check_maps(
    name: str, channels: int, feat: Tensor, ref_feat: Tensor
) -> None:
    """Raise unless two maps have the shape (B, C, H, W) asked for.

    Args:
        name (str): Who asks.
        channels (int): Channels C.
        feat (Tensor): Map of the input.
        ref_feat (Tensor): Map of the reference.

    Raises:
        ValueError: Naming what was given.
    """
    if (
        feat.ndim != 4
        or feat.shape[1] != channels
        or feat.shape != ref_feat.shape
    ):
        raise ValueError(
            f'{name} needs two maps (B, {channels}, H, W) of one size, got '
            f'{tuple(feat.shape)} and {tuple(ref_feat.shape)}'
        )


def is_pretrained(init_cfg: OptMultiConfig) -> bool:
    """Whether weights come from a file, and must stay as they are.

    Args:
        init_cfg (dict | Sequence[dict], optional): Weight initialisation of a
            module.
    """
    cfgs = [init_cfg] if isinstance(init_cfg, dict) else init_cfg or []
    return any(cfg['type'] in ('Pretrained', PretrainedInit) for cfg in cfgs)


def _init_kaiming(conv: nn.Module, slope: float) -> None:
    """Keep the variance through a layer and the LeakyReLU behind it."""
    fan_in = conv.weight[0].numel()
    if isinstance(conv, nn.ConvTranspose2d):
        # Each output sees a quarter of the taps, for the stride is two.
        fan_in = conv.weight.shape[0] * conv.weight[0, 0].numel() / 4
    gain = nn.init.calculate_gain('leaky_relu', slope)
    nn.init.normal_(conv.weight, std=gain / fan_in**0.5)
    nn.init.zeros_(conv.bias)
