"""Convolutions with their normalisation folded in, for inference.

A normalisation whose statistics are fixed is linear: it goes into the weights
of the convolution before it, instead of over its whole result once more. Hooks
of the two are not called then.
"""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights


def conv_norm(conv: nn.Conv2d, norm: nn.Module, x: Tensor) -> Tensor:
    """Convolve and normalise, as one where nothing is learned.

    Args:
        conv (nn.Conv2d): Convolution; where it has a ``joint_weight``, that
            counts.
        norm (nn.Module): Normalisation behind it. What is no batch
            normalisation, or collects statistics, is left as it is.
        x (Tensor): Map, (B, C, H, W).

    Returns:
        Tensor: Map, (B, D, H', W').
    """
    learns = torch.is_grad_enabled() or norm.training
    if (
        learns
        or not isinstance(norm, _BatchNorm)
        or norm.running_mean is None
        or conv.padding_mode != 'zeros'
    ):
        return norm(conv(x))
    weight, bias = fuse_conv_bn_weights(
        getattr(conv, 'joint_weight', conv.weight),
        conv.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
    )
    return conv._conv_forward(x, weight, bias)
