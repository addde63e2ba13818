"""Upsamplers of feature maps, guided by the image or not.

B batch, C channels, h x w features, H x W guidance, n stages of two: the
result is 2^n h x 2^n w and covers the area that the features cover.
"""

from abc import abstractmethod

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmplugins.ops import jbu_upsample, joint_bilateral_kernel
from mmplugins.ops.adaptive_conv import check_backend
from mmplugins.registry import MODELS
from mmplugins.typing import OptMultiConfig


def check_finite(what: str, x: Tensor) -> None:
    """Raise if a value is not finite; a convolution would spread it.

    Args:
        what (str): What the tensor is to the user.
        x (Tensor): Tensor, (B, ...).

    Raises:
        ValueError: Naming the samples with such values.
    """
    finite = x.isfinite().flatten(1).all(1)  # (B,)
    if not finite.all():
        raise ValueError(
            f'{what}: NaN or infinite values in samples '
            f'{(~finite).nonzero().flatten().tolist()}'
        )


class BaseUpsampler(BaseModule):
    """Checks what every upsampler is given.

    Args:
        in_channels (int): Channels C of the features.
        num_stages (int): Number n of doublings.
        min_cells (int): Fewest rows and columns of features it works on.
            Defaults to 1.
        guidance_channels (int): Channels of the guidance. Defaults to 3.
        init_cfg (dict, optional): Weight initialisation. Defaults to None.

    Raises:
        ValueError: If ``num_stages`` is below 1.
    """

    def __init__(
        self,
        in_channels: int,
        num_stages: int,
        min_cells: int = 1,
        guidance_channels: int = 3,
        init_cfg: OptMultiConfig = None,
    ) -> None:
        super().__init__(init_cfg)
        if num_stages < 1:
            raise ValueError(f'num_stages must be 1 or more, got {num_stages}')
        self.in_channels = in_channels
        self.num_stages = num_stages
        self.min_cells = min_cells
        self.guidance_channels = guidance_channels

    def forward(self, feats: Tensor, guidance: Tensor) -> Tensor:
        """Upsample features.

        Args:
            feats (Tensor): Features, (B, C, h, w), all finite.
            guidance (Tensor): Image over the same area, (B, 3, H, W),
                normalised as the backbone's input.

        Returns:
            Tensor: Features, (B, C, 2^n h, 2^n w).

        Raises:
            ValueError: If a shape does not fit, the map has too few cells or
                a value is not finite.
        """
        self._check(feats, guidance)
        return self.upsample(feats, guidance)

    @abstractmethod
    def upsample(self, feats: Tensor, guidance: Tensor) -> Tensor:
        """Upsample features that passed the checks of :meth:`forward`."""

    def _check(self, feats: Tensor, guidance: Tensor) -> None:
        name = type(self).__name__
        if feats.ndim != 4 or feats.shape[1] != self.in_channels:
            raise ValueError(
                f'in_channels={self.in_channels} of {name} needs features of '
                f'shape (B, {self.in_channels}, h, w), got '
                f'{tuple(feats.shape)}'
            )
        if min(feats.shape[-2:]) < self.min_cells:
            raise ValueError(
                f'{name} needs a map of at least {self.min_cells} x '
                f'{self.min_cells} cells (reflection has nothing to reflect '
                f'below), got {feats.shape[-2]} x {feats.shape[-1]}: give it '
                'a larger image or a backbone of smaller stride'
            )
        if (
            not isinstance(guidance, Tensor)
            or guidance.ndim != 4
            or guidance.shape[0] != feats.shape[0]
            or guidance.shape[1] != self.guidance_channels
        ):
            shape = getattr(guidance, 'shape', None)
            raise ValueError(
                f'{name} needs guidance of shape ({feats.shape[0]}, '
                f'{self.guidance_channels}, H, W), got '
                f'{shape and tuple(shape)}'
            )
        check_finite(f'{name} features', feats)
        check_finite(f'{name} guidance', guidance)


@MODELS.register_module()
class BilinearUpsampler(BaseUpsampler):
    """Bilinear interpolation behind the interface of :class:`JBUStack`.

    Args:
        in_channels (int): Channels C of the features.
        num_stages (int): Number n of doublings. Defaults to 4.
        init_cfg (dict, optional): Weight initialisation. Defaults to None.
    """

    def __init__(
        self,
        in_channels: int,
        num_stages: int = 4,
        init_cfg: OptMultiConfig = None,
    ) -> None:
        super().__init__(in_channels, num_stages, init_cfg=init_cfg)

    def upsample(self, feats: Tensor, guidance: Tensor) -> Tensor:
        """Interpolate; the guidance is not used."""
        return F.interpolate(
            feats,
            scale_factor=2**self.num_stages,
            mode='bilinear',
            align_corners=False,
        )


class JBUStage(nn.Module):
    """One learned joint bilateral upsampling by two.

    The kernel of a pixel compares its colour with its neighbours' through a
    small projection, weighs by distance, and is corrected by a tenth of a
    learned residual, after which it need not sum to one (mhamilton723/FeatUp
    @ 6b5a6c0, featup/upsamplers.py, ``JBULearnedRange``).

    Args:
        radius (int): Radius r of the window. Defaults to 3.
        key_channels (int): Channels D of the projection. Defaults to 32.
        guidance_channels (int): Channels of the guidance. Defaults to 3.
        backend (str): As in :func:`mmplugins.ops.adaptive_conv`. Defaults to
            ``'auto'``.
    """

    def __init__(
        self,
        radius: int = 3,
        key_channels: int = 32,
        guidance_channels: int = 3,
        backend: str = 'auto',
    ) -> None:
        super().__init__()
        taps = (2 * radius + 1) ** 2
        self.radius = radius
        self.backend = backend
        self.range_temp = nn.Parameter(torch.tensor(0.0))
        self.sigma_spatial = nn.Parameter(torch.tensor(1.0))
        self.range_proj = nn.Sequential(
            nn.Conv2d(guidance_channels, key_channels, 1),
            nn.GELU(),
            nn.Dropout2d(0.1),
            nn.Conv2d(key_channels, key_channels, 1),
        )
        self.fixup_proj = nn.Sequential(
            nn.Conv2d(taps + guidance_channels, taps, 1),
            nn.GELU(),
            nn.Dropout2d(0.1),
            nn.Conv2d(taps, taps, 1),
        )

    def kernel(self, guidance: Tensor) -> Tensor:
        """Kernels of a guidance image.

        Args:
            guidance (Tensor): Image at the output's size, (B, 3, 2h, 2w).

        Returns:
            Tensor: Kernels, (B, (2 r + 1)^2, 2h, 2w).
        """
        kernel = joint_bilateral_kernel(
            self.range_proj(guidance),
            self.range_temp.exp().clamp(1e-4, 1e4),
            self.sigma_spatial,
            self.radius,
            self.backend,
        ).to(guidance.dtype)
        fixup = self.fixup_proj(torch.cat([kernel, guidance], 1))
        return kernel + 0.1 * fixup

    def forward(self, feats: Tensor, guidance: Tensor) -> Tensor:
        """Double the resolution.

        Args:
            feats (Tensor): Features, (B, C, h, w).
            guidance (Tensor): Image of any size, (B, 3, H, W).

        Returns:
            Tensor: Features, (B, C, 2h, 2w).
        """
        size = (2 * feats.shape[-2], 2 * feats.shape[-1])
        guidance = F.adaptive_avg_pool2d(guidance, size)
        return jbu_upsample(feats, self.kernel(guidance), self.backend)


@MODELS.register_module()
class JBUStack(BaseUpsampler):
    """FeatUp's feed-forward upsampler: stages of two and a residual 1x1.

    ``out = y + 0.1 (W y + b)`` after the last stage. Every stage is linear in
    the features and treats the channels alike, so ``I + 0.1 W`` is applied
    before the first stage instead: the same result at 1 / 4^n of the cost
    (the ``reference`` backend keeps the literal order).

    Args:
        in_channels (int): Channels C of the features.
        num_stages (int): Number n of doublings, 16x by default. Defaults to 4.
        radius (int): Radius r of the windows. Defaults to 3.
        key_channels (int): Channels of the range projection. Defaults to 32.
        guidance_channels (int): Channels of the guidance. Defaults to 3.
        backend (str): As in :func:`mmplugins.ops.adaptive_conv`. Defaults to
            ``'auto'``.
        init_cfg (dict, optional): Weight initialisation. Defaults to None.

    Raises:
        ValueError: If ``radius``, ``num_stages`` or ``backend`` is not valid.
    """

    def __init__(
        self,
        in_channels: int,
        num_stages: int = 4,
        radius: int = 3,
        key_channels: int = 32,
        guidance_channels: int = 3,
        backend: str = 'auto',
        init_cfg: OptMultiConfig = None,
    ) -> None:
        if radius < 1:
            raise ValueError(f'radius must be 1 or more, got {radius}')
        # Reflection needs 2 h > r in the first stage.
        super().__init__(
            in_channels,
            num_stages,
            min_cells=radius // 2 + 1,
            guidance_channels=guidance_channels,
            init_cfg=init_cfg,
        )
        self.literal = check_backend(backend) == 'reference'
        self.stages = nn.ModuleList(
            JBUStage(radius, key_channels, guidance_channels, backend)
            for _ in range(num_stages)
        )
        self.fixup_proj = nn.Sequential(
            nn.Dropout2d(0.2), nn.Conv2d(in_channels, in_channels, 1)
        )

    def upsample(self, feats: Tensor, guidance: Tensor) -> Tensor:
        """Apply the stages and the residual convolution."""
        if self.literal:
            for stage in self.stages:
                feats = stage(feats, guidance)
            return feats + 0.1 * self.fixup_proj(feats)
        dropout, conv = self.fixup_proj
        feats = feats + 0.1 * F.conv2d(dropout(feats), conv.weight)
        for stage in self.stages:
            feats = stage(feats, guidance)
        # The kernels do not sum to one, so the bias cannot come first.
        return feats + 0.1 * conv.bias.view(-1, 1, 1)
