"""SSEN: super-resolution with references (CVPR 2020)."""

from .datasets import CUFED5Dataset, CUFEDDataset, ReferencePairDataset
from .extractor import SSEN
from .generator import SSENNet
from .hooks import ReferenceVisualizationHook, RobustnessTableHook
from .offsets import DynamicOffsetEstimator
from .rcan import RCAN
from .transforms import (
    FitReference,
    LoadReference,
    RandomReferenceCrop,
    RandomRot90,
    SelfReference,
    UpsampledReference,
)

__all__ = [
    'RCAN',
    'SSEN',
    'CUFED5Dataset',
    'CUFEDDataset',
    'DynamicOffsetEstimator',
    'FitReference',
    'LoadReference',
    'RandomReferenceCrop',
    'RandomRot90',
    'ReferencePairDataset',
    'ReferenceVisualizationHook',
    'RobustnessTableHook',
    'SSENNet',
    'SelfReference',
    'UpsampledReference',
]
