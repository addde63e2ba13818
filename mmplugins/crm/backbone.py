"""Backbones that see an image and a mask, at strides 2, 4 and 8.

B batch, H x W image, C_k channels of the map of stride s_k.
"""

from typing import NamedTuple

import torch
from mmcv.cnn import ResNet
from mmcv.cnn.resnet import BasicBlock, Bottleneck
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmplugins.registry import MODELS
from mmplugins.typing import OptConfigType, OptMultiConfig

from .folding import conv_norm

# Pixels along a strip, multiples of the strides: enough for three stages of a
# ResNet-50, and of a ResNet-152.
_STRIPS = (512, 4096)
# Pixels changed in its middle, and its width: all places relative to a cell.
_PHASES = 64
_WIDTH = 16


class Reach(NamedTuple):
    """What of an image a backbone's maps depend on."""

    radius: int
    """Pixels beyond a cell that may change it."""
    strides: tuple[int, ...]
    """Pixels per cell of each map."""


class MaskedConv2d(nn.Conv2d):
    """A convolution of an image with one input channel more, for a mask.

    The mask's weights are a parameter of their own and start at zero: the
    image's keep their name and shape, so that pretrained ones load unchanged.

    Args:
        conv (nn.Conv2d): Convolution to take the place of.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
            bias=conv.bias is not None,
            padding_mode=conv.padding_mode,
        )
        self.load_state_dict(conv.state_dict())
        self.mask_weight = nn.Parameter(torch.zeros_like(self.weight[:, :1]))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve image and mask, (B, 3 + 1, H, W)."""
        return self._conv_forward(x, self.joint_weight, self.bias)

    @property
    def joint_weight(self) -> Tensor:
        """Weights of image and mask, (D, 3 + 1, K, K)."""
        return torch.cat([self.weight, self.mask_weight], 1)


class RefinementResNet(BaseModule):
    """ResNet whose maps have strides 2, 4 and 8, without its last stage.

    They are the stem before the pooling (64 channels), the first and the third
    stage; the third keeps the resolution of the second and is dilated from its
    second block on. State as in torchvision, without ``layer4`` and ``fc``.

    Args:
        depth (int): 18, 34, 50, 101 or 152. Defaults to 50.
        init_cfg (dict, optional): Weight initialisation, such as
            ``dict(type='Pretrained', checkpoint='torchvision://resnet50')``.
            Defaults to None, Kaiming's.

    Raises:
        ValueError: If there is no such depth.
    """

    def __init__(
        self, depth: int = 50, init_cfg: OptMultiConfig = None
    ) -> None:
        if depth not in ResNet.arch_settings:
            raise ValueError(
                f'depth of RefinementResNet must be one of '
                f'{sorted(ResNet.arch_settings)}, got {depth}'
            )
        super().__init__(
            init_cfg
            or [
                dict(type='Kaiming', layer='Conv2d'),
                dict(type='Constant', val=1, layer='BatchNorm2d'),
            ]
        )
        net = ResNet(
            depth,
            num_stages=3,
            strides=(1, 2, 1),
            dilations=(1, 1, 2),
            out_indices=(0, 2),
        )
        for name, module in net.named_children():
            self.add_module(name, module)
        # As in torchvision, a stage's first block has the dilation before it.
        for module in self.layer3[0].modules():
            if isinstance(module, nn.Conv2d) and module.kernel_size[0] > 1:
                module.dilation = module.padding = (1, 1)
        self.out_channels = (64, net.feat_dim // 4, net.feat_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps of strides 2, 4 and 8, each (B, C_k, ceil(H / s_k), ...).

        Args:
            x (Tensor): Images, with or without mask, (B, 3 or 4, H, W).
        """
        if self.training or torch.is_grad_enabled() or not _is_plain(self):
            stem = self.relu(self.bn1(self.conv1(x)))
            first = self.layer1(self.maxpool(stem))
            return stem, first, self.layer3(self.layer2(first))
        stem = self.relu(conv_norm(self.conv1, self.bn1, x))
        first = _infer_blocks(self.layer1, self.maxpool(stem))
        second = _infer_blocks(self.layer2, first)
        return stem, first, _infer_blocks(self.layer3, second)


def _is_plain(net: nn.Module) -> bool:
    """Whether nothing was replaced in a network, and nobody listens to it."""
    return all(
        type(module) in _PLAIN
        and not module._forward_hooks
        and not module._forward_pre_hooks
        for module in net.modules()
    )


def _infer_blocks(blocks: nn.Sequential, x: Tensor) -> Tensor:
    """Residual blocks of mmcv in fewer passes over the maps."""
    for block in blocks:
        residual = x
        if block.downsample is not None:
            residual = conv_norm(*block.downsample, x)
        pairs = [(block.conv1, block.bn1), (block.conv2, block.bn2)]
        if hasattr(block, 'conv3'):
            pairs.append((block.conv3, block.bn3))
        for i, pair in enumerate(pairs):
            x = conv_norm(*pair, x.relu_() if i else x)
        x = x.add_(residual).relu_()
    return x


# What a RefinementResNet is made of.
_PLAIN = {
    RefinementResNet,
    MaskedConv2d,
    BasicBlock,
    Bottleneck,
    nn.Sequential,
    nn.Conv2d,
    nn.BatchNorm2d,
    nn.ReLU,
    nn.MaxPool2d,
}


@MODELS.register_module()
class CRMBackbone(BaseModule):
    """Any backbone with a mask beside the image.

    Its first convolution gets one input channel more, whose weights start at
    zero. Layers behind the last map asked for are cut off where the backbone
    lists its layers by name, as mmpretrain's do, so that nothing is computed
    in vain.

    Args:
        depth (int): Depth of :class:`RefinementResNet`. Defaults to 50.
        backbone (dict, optional): Another backbone instead, on images of three
            channels, whose maps begin at stride 2, such as
            ``dict(type='mmpretrain.MobileNetV2', out_indices=(0, 1, 2))``.
            Defaults to None.
        init_cfg (dict, optional): Weight initialisation of the ResNet; another
            backbone has its own. Defaults to None.

    Raises:
        ValueError: If the backbone does not begin with a convolution of three
            channels, or freezes it.
    """

    def __init__(
        self,
        depth: int = 50,
        backbone: OptConfigType = None,
        init_cfg: OptMultiConfig = None,
    ) -> None:
        super().__init__()
        if backbone is None:
            self.net = RefinementResNet(depth, init_cfg)
        elif init_cfg is not None:
            raise ValueError(
                'init_cfg of CRMBackbone is for its own ResNet: give it to '
                f'backbone={backbone.get("type")!r} instead'
            )
        else:
            self.net = MODELS.build(backbone)
            frozen = getattr(self.net, 'frozen_stages', -1)
            if frozen >= 0:
                raise ValueError(
                    'frozen_stages of a backbone in CRMBackbone must be -1: '
                    'with its stem, the weights of the mask would stay at '
                    f'zero; got {frozen}'
                )
            _cut(self.net)
        _widen_stem(self.net)
        self._measured = None

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Maps of an image and its mask.

        Args:
            x (Tensor): Normalised images and masks in [-1, 1],
                (B, 3 + 1, H, W).

        Returns:
            tuple[Tensor, ...]: Maps, each (B, C_k, H / s_k, W / s_k).

        Raises:
            ValueError: If there are not four channels.
        """
        if x.ndim != 4 or x.shape[1] != 4:
            raise ValueError(
                'CRMBackbone needs images and masks (B, 3 + 1, H, W), got '
                f'{tuple(x.shape)}'
            )
        return tuple(self.net(x))

    @torch.no_grad()
    def reach(self) -> Reach:
        """Strides of the maps, and how far away a pixel may change one.

        Measured once: what is not a number spreads through every layer,
        however small its weight.

        Raises:
            ValueError: If a pixel changes everything, as through a pooling of
                the whole image.
        """
        if self._measured is None:
            training = self.training
            self.eval()
            for strip in _STRIPS:
                self._measured = max(
                    self._reach(0, strip), self._reach(1, strip)
                )
                if self._measured.radius < strip // 2 - _PHASES:
                    break
            self.train(training)
        if self._measured.radius >= _STRIPS[-1] // 2 - _PHASES:
            raise ValueError(
                f'{type(self.net).__name__} in CRMBackbone looks at the whole '
                'image everywhere: it cannot work in tiles, set tile=None'
            )
        return self._measured

    def _reach(self, axis: int, strip: int) -> Reach:
        """Along one axis, of the pixels in the middle of a strip."""
        size = [_WIDTH, _WIDTH]
        size[axis] = strip
        x = next(self.parameters()).new_zeros(1, 4, *size)
        middle = strip // 2
        x.narrow(2 + axis, middle, _PHASES).fill_(float('nan'))
        radius, strides = 0, []
        for level in self(x):
            stride = strip // level.shape[2 + axis]
            hit = level.isnan().any(1).any(2 - axis).flatten().nonzero()
            first, last = hit.min().item() * stride, hit.max().item() * stride
            radius = max(
                radius, middle - first, last + stride - middle - _PHASES
            )
            strides.append(stride)
        return Reach(radius, tuple(strides))


def _cut(net: nn.Module) -> None:
    """Remove the layers behind the last map asked for."""
    indices = getattr(net, 'out_indices', None)
    for key in ('layers', 'res_layers'):
        names = getattr(net, key, None)
        if not (
            isinstance(names, list)
            and indices
            and all(isinstance(name, str) for name in names)
        ):
            continue
        kept = max(indices) + 1
        for name in names[kept:]:
            delattr(net, name)
        setattr(net, key, names[:kept])


def _widen_stem(net: nn.Module) -> None:
    """Put a :class:`MaskedConv2d` in place of the first convolution."""
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            if module.in_channels != 3 or module.groups != 1:
                break
            parent, _, leaf = name.rpartition('.')
            setattr(net.get_submodule(parent), leaf, MaskedConv2d(module))
            return
    raise ValueError(
        f'CRMBackbone needs a backbone that begins with a convolution of 3 '
        f'channels, got {type(net).__name__}'
    )
