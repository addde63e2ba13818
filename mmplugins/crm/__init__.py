"""CRM: masks refined at any resolution (CVPR 2022, arXiv 2111.14482)."""

from .backbone import CRMBackbone
from .baselines import GrabCutRefiner
from .datasets import (
    BIGDataset,
    DUTSDataset,
    ECSSDDataset,
    FSS1000Dataset,
    MaskPairDataset,
    MSRA10KDataset,
    RelabelledPASCALDataset,
)
from .decoders import ImplicitDecoder
from .head import CRMHead
from .hooks import RefinementVisualizationHook
from .loading import LoadMasks, PackRefineInputs
from .losses import (
    MaskCrossEntropyLoss,
    MaskGradientLoss,
    MaskL1Loss,
    MaskL2Loss,
)
from .metrics import MaskRefinementMetric, boundary_accuracy
from .model import CRM
from .transforms import (
    PadMasks,
    PerturbMask,
    RandomScaleCrop,
    ResizeMasks,
    SampleQueries,
    SoftenMask,
)

__all__ = [
    'CRM',
    'BIGDataset',
    'CRMBackbone',
    'CRMHead',
    'DUTSDataset',
    'ECSSDDataset',
    'FSS1000Dataset',
    'GrabCutRefiner',
    'ImplicitDecoder',
    'LoadMasks',
    'MSRA10KDataset',
    'MaskCrossEntropyLoss',
    'MaskGradientLoss',
    'MaskL1Loss',
    'MaskL2Loss',
    'MaskPairDataset',
    'MaskRefinementMetric',
    'PackRefineInputs',
    'PadMasks',
    'PerturbMask',
    'RandomScaleCrop',
    'RefinementVisualizationHook',
    'RelabelledPASCALDataset',
    'ResizeMasks',
    'SampleQueries',
    'SoftenMask',
    'boundary_accuracy',
]
