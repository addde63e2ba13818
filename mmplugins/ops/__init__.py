"""Functions of tensors: torch and mmcv only."""

from .adaptive_conv import adaptive_conv, local_correlation
from .jbu import jbu_upsample, joint_bilateral_kernel

__all__ = [
    'adaptive_conv',
    'jbu_upsample',
    'joint_bilateral_kernel',
    'local_correlation',
]
