"""Functions of tensors: torch and mmcv only."""

from .adaptive_conv import adaptive_conv, local_correlation
from .attention import NonLocal2d, non_local
from .bilateral_kernel import joint_bilateral_kernel
from .coordinates import cell_size, max_frequency, pixel_centers, sample_at
from .deform_conv import ModulatedDeformConv2d, modulated_deform_conv2d
from .implicit import local_ensemble
from .jbu import bilateral_resample, jbu_upsample
from .resample import resize_window

__all__ = [
    'ModulatedDeformConv2d',
    'NonLocal2d',
    'adaptive_conv',
    'bilateral_resample',
    'cell_size',
    'jbu_upsample',
    'joint_bilateral_kernel',
    'local_correlation',
    'local_ensemble',
    'max_frequency',
    'modulated_deform_conv2d',
    'non_local',
    'pixel_centers',
    'resize_window',
    'sample_at',
]
