"""FeatUp: features at the image's resolution (ICLR 2024, 2403.10516)."""

from .backbone import FrozenBackbone
from .boundary_metric import BoundaryFScore
from .depth import ScaleShiftInvariantLoss
from .depth_metrics import AlignedDepthMetric
from .downsamplers import AttentionDownsampler, SimpleDownsampler
from .fitting import ImplicitFit, PrepareImplicitHook, fit_implicit
from .hooks import CAMVisualizationHook, FeatUpVisualizationHook
from .implicit import ImplicitUpsampler
from .losses import BlurLoss, CRFLoss, TotalVariationLoss
from .metrics import CAMMetric
from .model import FeatUp
from .neck import ChannelNorm, FeatUpNeck
from .reconstruction import ViewReconstruction
from .upsamplers import BilinearUpsampler, JBUStack, NearestUpsampler

__all__ = [
    'AlignedDepthMetric',
    'AttentionDownsampler',
    'BilinearUpsampler',
    'BlurLoss',
    'BoundaryFScore',
    'CAMMetric',
    'CAMVisualizationHook',
    'CRFLoss',
    'ChannelNorm',
    'FeatUp',
    'FeatUpNeck',
    'FeatUpVisualizationHook',
    'FrozenBackbone',
    'ImplicitFit',
    'ImplicitUpsampler',
    'JBUStack',
    'NearestUpsampler',
    'PrepareImplicitHook',
    'ScaleShiftInvariantLoss',
    'SimpleDownsampler',
    'TotalVariationLoss',
    'ViewReconstruction',
    'fit_implicit',
]
