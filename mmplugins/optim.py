"""Mixed precision where mmengine's own does not run."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.device import get_device
from mmengine.optim import OptimWrapper
from torch import nn

from mmplugins.registry import OPTIM_WRAPPERS


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """Trains with bfloat16 autocast on any device, a CPU too.

    bfloat16 has the range of float32, so losses need no scale. mmengine's
    ``AmpOptimWrapper`` refuses to run on a CPU.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Run the forward pass of a model in mixed precision.

        Args:
            model (nn.Module): Model that is trained.
        """
        with (
            super().optim_context(model),
            torch.autocast(get_device(), torch.bfloat16),
        ):
            yield
