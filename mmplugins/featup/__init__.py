"""FeatUp: features at the image's resolution (ICLR 2024, 2403.10516)."""

from .neck import ChannelNorm, FeatUpNeck
from .upsamplers import BilinearUpsampler, JBUStack

__all__ = ['BilinearUpsampler', 'ChannelNorm', 'FeatUpNeck', 'JBUStack']
