"""Upsamplers of feature maps, guided by the image or not.

B batch, C channels, h x w features, H x W guidance, n stages. The result
covers the area that the features cover; it is 2^n h x 2^n w unless ``scale``
says otherwise.
"""

from abc import abstractmethod

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmplugins.ops import bilateral_resample, joint_bilateral_kernel
from mmplugins.ops.backends import check_backend
from mmplugins.ops.bilateral_kernel import SIMILARITIES
from mmplugins.ops.operators import is_compiling
from mmplugins.registry import MODELS
from mmplugins.typing import OptMultiConfig

# First temperature of Gaussian kernels.
_SHARP = 16.0


def check_finite(what: str, x: Tensor) -> None:
    """Raise if a value is not finite; a convolution would spread it.

    Args:
        what (str): What the tensor is to the user.
        x (Tensor): Tensor, (B, ...).

    Raises:
        ValueError: Naming the samples with such values. Not where a compiler
            follows, which would have to stop for them.
    """
    if is_compiling():
        return
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
        num_stages (int): Number n of stages.
        scale (int | str, optional): Cells of the result per cell of the
            features, or ``'image'`` for the guidance's own size. Defaults to
            None, 2^n.
        guidance_channels (int): Channels of the guidance. Defaults to 3.
        init_cfg (dict, optional): Weight initialisation. Defaults to None.

    Raises:
        ValueError: If ``num_stages`` or ``scale`` is not valid.
    """

    def __init__(
        self,
        in_channels: int,
        num_stages: int,
        scale: int | str | None = None,
        guidance_channels: int = 3,
        init_cfg: OptMultiConfig = None,
    ) -> None:
        super().__init__(init_cfg)
        name = type(self).__name__
        if num_stages < 1:
            raise ValueError(
                f'num_stages of {name} must be 1 or more, got {num_stages}'
            )
        if scale not in (None, 'image') and not (
            isinstance(scale, int) and scale >= 1
        ):
            raise ValueError(
                f"scale of {name} must be a whole number, 'image' or None, "
                f'got {scale!r}'
            )
        self.in_channels = in_channels
        self.num_stages = num_stages
        self.scale = scale
        self.guidance_channels = guidance_channels

    def forward(self, feats: Tensor, guidance: Tensor) -> Tensor:
        """Upsample features.

        Args:
            feats (Tensor): Features, (B, C, h, w), all finite.
            guidance (Tensor): Image over the same area, (B, 3, H, W),
                normalised as the backbone's input.

        Returns:
            Tensor: Features, (B, C, 2^n h, 2^n w), or as ``scale`` says.

        Raises:
            ValueError: If a shape does not fit, the map has too few cells or
                a value is not finite.
        """
        self._check(feats, guidance)
        return self.upsample(feats, guidance)

    def linear(
        self,
        feats: Tensor,
        guidance: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
    ) -> Tensor:
        """1x1 convolution of the upsampled features.

        An upsampler that is linear in the features and treats the channels
        alike commutes with it and upsamples K channels instead of C: the same
        result at K / C of the cost.

        Args:
            feats (Tensor): Features, (B, C, h, w), all finite.
            guidance (Tensor): Image over the same area, (B, 3, H, W).
            weight (Tensor): Weights, (K, C).
            bias (Tensor, optional): Biases, (K,). Defaults to None.

        Returns:
            Tensor: (B, K, 2^n h, 2^n w), or as ``scale`` says.

        Raises:
            ValueError: As in :meth:`forward`.
        """
        self._check(feats, guidance)
        return self.upsample_linear(feats, guidance, weight, bias)

    @abstractmethod
    def upsample(self, feats: Tensor, guidance: Tensor) -> Tensor:
        """Upsample features that passed the checks of :meth:`forward`."""

    def upsample_linear(
        self,
        feats: Tensor,
        guidance: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
    ) -> Tensor:
        """As :meth:`linear`, after the checks; here in the literal order."""
        return _conv1x1(self.upsample(feats, guidance), weight, bias)

    def output_size(self, feats: Tensor, guidance: Tensor) -> tuple[int, int]:
        """Height and width of the result.

        Raises:
            ValueError: If the guidance of ``scale='image'`` is smaller than
                the features.
        """
        height, width = feats.shape[-2:]
        if self.scale == 'image':
            size = tuple(guidance.shape[-2:])
            if size[0] < height or size[1] < width:
                raise ValueError(
                    f"scale='image' of {type(self).__name__} needs guidance "
                    f'of at least {height} x {width} pixels, got '
                    f'{size[0]} x {size[1]}'
                )
            return size
        scale = self.scale or 2**self.num_stages
        return scale * height, scale * width

    def _check(self, feats: Tensor, guidance: Tensor) -> None:
        name = type(self).__name__
        if feats.ndim != 4 or feats.shape[1] != self.in_channels:
            raise ValueError(
                f'in_channels={self.in_channels} of {name} needs features of '
                f'shape (B, {self.in_channels}, h, w), got '
                f'{tuple(feats.shape)}'
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
        scale (int | str, optional): As in :class:`BaseUpsampler`. Defaults to
            None, 2^n.
        init_cfg (dict, optional): Weight initialisation. Defaults to None.
    """

    mode = 'bilinear'

    def __init__(
        self,
        in_channels: int,
        num_stages: int = 4,
        scale: int | str | None = None,
        init_cfg: OptMultiConfig = None,
    ) -> None:
        super().__init__(in_channels, num_stages, scale, init_cfg=init_cfg)

    def upsample(self, feats: Tensor, guidance: Tensor) -> Tensor:
        """Interpolate; the guidance gives its size at most."""
        size = self.output_size(feats, guidance)
        return F.interpolate(feats, size, mode=self.mode)

    def upsample_linear(
        self,
        feats: Tensor,
        guidance: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Convolve, then interpolate; the weights of a pixel sum to one."""
        return self.upsample(_conv1x1(feats, weight, bias), guidance)


@MODELS.register_module()
class NearestUpsampler(BilinearUpsampler):
    """The features as they are, in cells of the result's size.

    Args:
        in_channels (int): Channels C of the features.
        num_stages (int): Number n of doublings. Defaults to 4.
        scale (int | str, optional): As in :class:`BaseUpsampler`. Defaults to
            None, 2^n.
        init_cfg (dict, optional): Weight initialisation. Defaults to None.
    """

    mode = 'nearest'


class JBUStage(nn.Module):
    """One learned joint bilateral upsampling, by two as published.

    The kernel of a pixel compares its colour with its neighbours' through a
    small projection, weighs by distance, and is corrected by a tenth of a
    learned residual, after which it need not sum to one (mhamilton723/FeatUp
    @ 6b5a6c0, featup/upsamplers.py, ``JBULearnedRange``).

    Args:
        radius (int): Radius r of the window. Defaults to 3.
        key_channels (int): Channels D of the projection. Defaults to 32.
        guidance_channels (int): Channels of the guidance. Defaults to 3.
        fixup (bool): Learn that residual. Defaults to True.
        backend (str): As in :func:`mmplugins.ops.adaptive_conv`. Defaults to
            ``'auto'``.
        similarity (str): ``'dot'`` as published, or ``'gaussian'``; see
            :func:`mmplugins.ops.joint_bilateral_kernel`. Defaults to
            ``'dot'``.
    """

    def __init__(
        self,
        radius: int = 3,
        key_channels: int = 32,
        guidance_channels: int = 3,
        fixup: bool = True,
        backend: str = 'auto',
        similarity: str = 'dot',
    ) -> None:
        super().__init__()
        taps = (2 * radius + 1) ** 2
        self.radius = radius
        self.backend = backend
        self.similarity = similarity
        # Products of keys start near zero, a blur; distances start as a
        # bilateral filter that tells apart what differs by a third of the
        # colours' deviation.
        temperature = _SHARP if similarity == 'gaussian' else 1.0
        self.range_temp = nn.Parameter(torch.tensor(temperature).log())
        self.sigma_spatial = nn.Parameter(torch.tensor(1.0))
        self.range_proj = nn.Sequential(
            nn.Conv2d(guidance_channels, key_channels, 1),
            nn.GELU(),
            nn.Dropout2d(0.1),
            nn.Conv2d(key_channels, key_channels, 1),
        )
        self.fixup_proj = None
        if fixup:
            self.fixup_proj = nn.Sequential(
                nn.Conv2d(taps + guidance_channels, taps, 1),
                nn.GELU(),
                nn.Dropout2d(0.1),
                nn.Conv2d(taps, taps, 1),
            )

    def kernel(self, guidance: Tensor) -> Tensor:
        """Kernels of a guidance image.

        Args:
            guidance (Tensor): Image at the output's size, (B, 3, H, W).

        Returns:
            Tensor: Kernels, (B, (2 r + 1)^2, H, W).
        """
        kernel = joint_bilateral_kernel(
            self.range_proj(guidance),
            self.range_temp.exp().clamp(1e-4, 1e4),
            self.sigma_spatial,
            self.radius,
            self.backend,
            self.similarity,
        ).to(guidance.dtype)
        if self.fixup_proj is None:
            return kernel
        fixup = self.fixup_proj(torch.cat([kernel, guidance], 1))
        return torch.add(kernel, fixup, alpha=0.1)

    def forward(
        self,
        feats: Tensor,
        guidance: Tensor,
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        """Raise the resolution.

        Args:
            feats (Tensor): Features, (B, C, h, w).
            guidance (Tensor): Image of any size, (B, 3, H, W).
            size (tuple[int, int], optional): Height and width of the result.
                Defaults to None, twice the features'.

        Returns:
            Tensor: Features, (B, C, *size).
        """
        size = size or (2 * feats.shape[-2], 2 * feats.shape[-1])
        guidance = F.adaptive_avg_pool2d(guidance, size)
        if guidance.device.type == 'cpu' and self.backend != 'reference':
            # A pixel's values next to each other, for all that follows.
            guidance = guidance.contiguous(memory_format=torch.channels_last)
        return bilateral_resample(feats, self.kernel(guidance), self.backend)


@MODELS.register_module()
class JBUStack(BaseUpsampler):
    """FeatUp's feed-forward upsampler: stages of two and a residual 1x1.

    ``out = y + 0.1 (W y + b)`` after the last stage. Every stage is linear in
    the features and treats the channels alike, so ``I + 0.1 W`` is applied
    before the first stage instead: the same result at 1 / 4^n of the cost
    (the ``reference`` backend keeps the literal order). A ``scale`` other
    than 2^n is divided evenly among the stages.

    Args:
        in_channels (int): Channels C of the features.
        num_stages (int): Number n of stages, doublings unless ``scale`` says
            otherwise. Defaults to 4.
        radius (int): Radius r of the windows. Defaults to 3.
        key_channels (int): Channels of the range projection. Defaults to 32.
        guidance_channels (int): Channels of the guidance. Defaults to 3.
        backend (str): As in :func:`mmplugins.ops.adaptive_conv`. Defaults to
            ``'auto'``.
        init_cfg (dict, optional): Weight initialisation. Defaults to None.
        scale (int | str, optional): As in :class:`BaseUpsampler`. Defaults to
            None, 2^n.
        shared (bool): One stage's weights for all of them, as in SimFeatUp
            (arXiv 2410.01768). Defaults to False.
        kernel_fixup (bool): Learn a residual of the kernels; without it they
            sum to one. Defaults to True.
        channel_fixup (bool): Learn the residual convolution; without it the
            weights fit features of any number of channels. Defaults to True.
        similarity (str): How colours are compared: ``'dot'`` as published, or
            ``'gaussian'``, which follows edges from the start; see
            :func:`mmplugins.ops.joint_bilateral_kernel`. Defaults to
            ``'dot'``.

    Raises:
        ValueError: If an argument is not valid.
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
        scale: int | str | None = None,
        shared: bool = False,
        kernel_fixup: bool = True,
        channel_fixup: bool = True,
        similarity: str = 'dot',
    ) -> None:
        if similarity not in SIMILARITIES:
            raise ValueError(
                f'similarity of JBUStack must be one of {SIMILARITIES}, got '
                f'{similarity!r}'
            )
        for key, value in dict(
            radius=radius, key_channels=key_channels
        ).items():
            if value < 1:
                raise ValueError(
                    f'{key} of JBUStack must be 1 or more, got {value}'
                )
        super().__init__(
            in_channels, num_stages, scale, guidance_channels, init_cfg
        )
        self.radius = radius
        check_backend('JBUStack', backend)
        self.literal = backend == 'reference'
        self.stages = nn.ModuleList(
            JBUStage(
                radius,
                key_channels,
                guidance_channels,
                kernel_fixup,
                backend,
                similarity,
            )
            for _ in range(1 if shared else num_stages)
        )
        self.fixup_proj = None
        if channel_fixup:
            self.fixup_proj = nn.Sequential(
                nn.Dropout2d(0.2), nn.Conv2d(in_channels, in_channels, 1)
            )

    def upsample(self, feats: Tensor, guidance: Tensor) -> Tensor:
        """Apply the stages and the residual convolution."""
        if self.fixup_proj is None:
            return self._spread(feats, guidance)
        if self.literal:
            feats = self._spread(feats, guidance)
            return feats + 0.1 * self.fixup_proj(feats)
        # The kernels do not sum to one, so the bias cannot come first.
        bias = 0.1 * self.fixup_proj[1].bias.view(-1, 1, 1)
        return self._spread(self._mix(feats), guidance) + bias

    def upsample_linear(
        self,
        feats: Tensor,
        guidance: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Convolve, then apply the stages to what is left."""
        if self.literal:
            return super().upsample_linear(feats, guidance, weight, bias)
        biases = [] if bias is None else [bias]
        if self.fixup_proj is not None:
            feats = self._mix(feats)
            biases.append(0.1 * weight @ self.fixup_proj[1].bias)
        out = self._spread(_conv1x1(feats, weight), guidance)
        return out + sum(biases).view(-1, 1, 1) if biases else out

    def stage_sizes(
        self, feats: Tensor, guidance: Tensor
    ) -> list[tuple[int, int]]:
        """Height and width after each stage, equal ratios in between.

        Raises:
            ValueError: If the first is too small for the windows.
        """
        size = self.output_size(feats, guidance)
        sizes = [
            tuple(
                round(cells * (end / cells) ** (stage / self.num_stages))
                for cells, end in zip(feats.shape[-2:], size)
            )
            for stage in range(1, self.num_stages)
        ]
        sizes.append(size)
        if min(sizes[0]) <= self.radius:
            raise ValueError(
                f'radius={self.radius} of JBUStack needs more than '
                f'{self.radius} x {self.radius} cells after the first stage '
                f'(reflection has nothing to reflect below), got '
                f'{feats.shape[-2]} x {feats.shape[-1]} before and '
                f'{sizes[0][0]} x {sizes[0][1]} after it: give it a larger '
                'image or a backbone of smaller stride'
            )
        return sizes

    def _mix(self, feats: Tensor) -> Tensor:
        """``(I + 0.1 W) x``, the residual convolution without its bias."""
        dropout, conv = self.fixup_proj
        return feats + 0.1 * F.conv2d(dropout(feats), conv.weight)

    def _spread(self, feats: Tensor, guidance: Tensor) -> Tensor:
        """Apply the stages."""
        for index, size in enumerate(self.stage_sizes(feats, guidance)):
            stage = self.stages[index % len(self.stages)]
            feats = stage(feats, guidance, size)
        return feats


def _conv1x1(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """1x1 convolution by weights (K, C)."""
    return F.conv2d(x, weight[..., None, None], bias)
