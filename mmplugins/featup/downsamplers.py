"""Learned downsamplers: what a backbone's cell sees of a fine map.

B batch, C channels, H x W fine map, h x w cells, K x K window, s samples per
cell and axis. Cell (i, j) is centred on the samples [s i, s (i + 1)) x
[s j, s (j + 1)); its window may reach beyond them.
"""

from abc import abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmplugins.registry import MODELS
from mmplugins.typing import OptMultiConfig


class BaseDownsampler(BaseModule):
    """Lays windows over a fine map of any size.

    Args:
        kernel_size (int): Samples K across a window.
        stride (int): Samples s per cell; a map of another resolution is
            resampled to it.
        in_channels (int, optional): Channels C of the map. Defaults to None,
            any.
        init_cfg (dict, optional): Weight initialisation. Defaults to None.

    Raises:
        ValueError: If the windows do not cover the map.
    """

    def __init__(
        self,
        kernel_size: int,
        stride: int,
        in_channels: int | None = None,
        init_cfg: OptMultiConfig = None,
    ) -> None:
        super().__init__(init_cfg)
        if not 1 <= stride <= kernel_size:
            raise ValueError(
                f'{type(self).__name__} needs 1 <= stride <= kernel_size, got '
                f'stride={stride}, kernel_size={kernel_size}'
            )
        self.kernel_size = kernel_size
        self.stride = stride
        self.in_channels = in_channels

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """Shrink a map.

        Args:
            x (Tensor): Fine map, (B, C, H, W).
            size (Sequence[int]): Rows and columns of cells, (h, w), over the
                same area.

        Returns:
            Tensor: Coarse map, (B, C, h, w).

        Raises:
            ValueError: If the map is not (B, C, H, W).
        """
        if x.ndim != 4 or self.in_channels not in (None, x.shape[1]):
            raise ValueError(
                f'{type(self).__name__} needs a map (B, '
                f'{self.in_channels or "C"}, H, W), got {tuple(x.shape)}'
            )
        return self.pool(x, self.saliency(x), size)

    def saliency_weight(self) -> Tensor | None:
        """Weights (1, C) of a linear saliency; None without one."""
        return None

    def saliency(self, x: Tensor) -> Tensor | None:
        """Logits of a map's samples, (B, 1, H, W); None without any."""
        weight = self.saliency_weight()
        return (
            weight if weight is None else F.conv2d(x, weight[..., None, None])
        )

    @abstractmethod
    def pool(
        self, x: Tensor, saliency: Tensor | None, size: Sequence[int]
    ) -> Tensor:
        """Shrink a map of any channels under a saliency given.

        Both downsamplers treat the channels alike, so a projection of the
        features comes first where only that is needed.

        Args:
            x (Tensor): Fine map, (B, K, H, W).
            saliency (Tensor, optional): Logits, (B, 1, H, W).
            size (Sequence[int]): Rows and columns of cells, (h, w).

        Returns:
            Tensor: Coarse map, (B, K, h, w).
        """

    def _frame(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """Resample to s samples per cell; continue the edges outwards."""
        wanted = [self.stride * n for n in size]
        if list(x.shape[-2:]) != wanted:
            x = F.interpolate(x, wanted, mode='bilinear', align_corners=False)
        before = (self.kernel_size - self.stride) // 2
        after = self.kernel_size - self.stride - before
        return F.pad(x, [before, after] * 2, mode='replicate')


@MODELS.register_module()
class SimpleDownsampler(BaseDownsampler):
    """One learned blur for all cells and channels.

    Its weights are ``|w| / sum |w|`` (mhamilton723/FeatUp @ 6b5a6c0,
    featup/downsamplers.py); they start equal.

    Args:
        kernel_size (int): Samples K across a window.
        stride (int): Samples s per cell.
        in_channels (int, optional): As in :class:`BaseDownsampler`. Defaults
            to None, any.
        init_cfg (dict, optional): Weight initialisation. Defaults to None.
    """

    def __init__(
        self,
        kernel_size: int,
        stride: int,
        in_channels: int | None = None,
        init_cfg: OptMultiConfig = None,
    ) -> None:
        super().__init__(kernel_size, stride, in_channels, init_cfg)
        self.weight = nn.Parameter(torch.ones(1, 1, kernel_size, kernel_size))

    def pool(
        self, x: Tensor, saliency: Tensor | None, size: Sequence[int]
    ) -> Tensor:
        """Blur and pick."""
        weight = self.weight.abs()
        weight = weight / weight.sum()
        framed = self._frame(x, size)
        out = F.conv2d(
            framed.flatten(0, 1)[:, None], weight, stride=self.stride
        )
        return out.view(*x.shape[:2], *size)


@MODELS.register_module()
class AttentionDownsampler(BaseDownsampler):
    """Mean of each window, weighted by a learned saliency.

    ``softmax(w saliency + b)`` over the window, with w and b of the window's
    shape and a saliency linear in the features (mhamilton723/FeatUp @
    6b5a6c0, featup/downsamplers.py). In training, channels of the saliency
    and whole windows of it are left out at random.

    Args:
        in_channels (int): Channels C of the features.
        kernel_size (int): Samples K across a window.
        stride (int): Samples s per cell.
        blur (bool): Blur the features by a Gaussian of one sample first.
            Defaults to False.
        dropout (float): Probability of leaving out. Defaults to 0.2.
        init_cfg (dict, optional): Weight initialisation. Defaults to None.
    """

    def __init__(
        self,
        in_channels: int,
        kernel_size: int,
        stride: int,
        blur: bool = False,
        dropout: float = 0.2,
        init_cfg: OptMultiConfig = None,
    ) -> None:
        super().__init__(kernel_size, stride, in_channels, init_cfg)
        self.blur = blur
        self.dropout = dropout
        bound = in_channels**-0.5
        self.score = nn.Parameter(
            torch.empty(1, in_channels).uniform_(-bound, bound)
        )
        shape = (1, kernel_size**2, 1, 1)
        self.weight = nn.Parameter(1 + 0.01 * torch.randn(shape))
        self.bias = nn.Parameter(0.01 * torch.randn(shape))

    def saliency_weight(self) -> Tensor:
        """Weights (1, C); in training some of them are left out."""
        return F.dropout(self.score, self.dropout, self.training)

    def attention(self, saliency: Tensor, size: Sequence[int]) -> Tensor:
        """Weights of each window, (B, K * K, h, w), that sum to one.

        Args:
            saliency (Tensor): Logits of the samples, (B, 1, H, W).
            size (Sequence[int]): Rows and columns of cells, (h, w).
        """
        logits = self._windows(saliency, size)[:, 0]  # (B, K K, h, w)
        if self.training and self.dropout:
            keep = torch.rand_like(logits[:, :1]) > self.dropout
            logits = logits * keep
        return (self.weight * logits + self.bias).softmax(1)

    def pool(
        self, x: Tensor, saliency: Tensor | None, size: Sequence[int]
    ) -> Tensor:
        """Weigh each window by its saliency."""
        if self.blur:
            x, saliency = gaussian_blur(x), gaussian_blur(saliency)
        attention = self.attention(saliency, size)
        windows = self._windows(x, size)  # (B, C, K K, h, w)
        return torch.einsum('bcphw,bphw->bchw', windows, attention.to(windows))

    def _windows(self, x: Tensor, size: Sequence[int]) -> Tensor:
        windows = F.unfold(
            self._frame(x, size), self.kernel_size, stride=self.stride
        )
        return windows.view(*x.shape[:2], -1, *size)


def gaussian_blur(x: Tensor) -> Tensor:
    """Blur by a Gaussian of one sample over five, reflected at the edges.

    Args:
        x (Tensor): Map, (B, C, H, W), of any size.

    Returns:
        Tensor: Blurred map, (B, C, H, W).
    """
    offsets = torch.arange(-2.0, 3.0, dtype=x.dtype, device=x.device)
    kernel = (-(offsets**2) / 2).exp()
    kernel = kernel / kernel.sum()
    # Reflection has nothing to reflect in a map of two samples.
    mode = 'reflect' if min(x.shape[-2:]) > 2 else 'replicate'
    channels = x.shape[1]
    rows, columns = (
        kernel.view(1, 1, *shape).expand(channels, -1, -1, -1)
        for shape in ((5, 1), (1, 5))
    )
    out = F.conv2d(F.pad(x, [2] * 4, mode=mode), rows, groups=channels)
    return F.conv2d(out, columns, groups=channels)
