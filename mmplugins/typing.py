"""Type names shared by the signatures of mmplugins.

An own copy, so that no host is imported for the sake of a type.
"""

from collections.abc import Sequence

from mmengine.config import ConfigDict
from mmengine.structures import BaseDataElement

ConfigType = ConfigDict | dict
OptConfigType = ConfigType | None
MultiConfig = ConfigType | Sequence[ConfigType]
OptMultiConfig = MultiConfig | None
SampleList = Sequence[BaseDataElement]
OptSampleList = SampleList | None
