"""SSEN: super-resolution with references (CVPR 2020)."""

from .bicubic import Bicubic
from .datasets import CUFED5Dataset, CUFEDDataset, ReferencePairDataset
from .extractor import SSEN
from .generator import SSENNet
from .hooks import ReferenceVisualizationHook, RobustnessTableHook
from .offsets import DynamicOffsetEstimator
from .rcan import RCAN
from .search import LocalSearch
from .transforms import (
    FitReference,
    LoadReference,
    RandomReferenceCrop,
    RandomRot90,
    SelfReference,
    UpsampledReference,
)
from .views import MovedReference

__all__ = [
    'RCAN',
    'SSEN',
    'Bicubic',
    'CUFED5Dataset',
    'CUFEDDataset',
    'DynamicOffsetEstimator',
    'FitReference',
    'LoadReference',
    'LocalSearch',
    'MovedReference',
    'RandomReferenceCrop',
    'RandomRot90',
    'ReferencePairDataset',
    'ReferenceVisualizationHook',
    'RobustnessTableHook',
    'SSENNet',
    'SelfReference',
    'UpsampledReference',
]
