"""FeatUp's training without labels: one fine map that explains many views.

B batch, C channels, K projected channels, V views, H x W image, h x w cells
of the backbone, H' x W' fine map. Maps cover the image from edge to edge.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from mmplugins.registry import MODELS
from mmplugins.typing import (
    ConfigType,
    OptConfigType,
    OptMultiConfig,
    OptSampleList,
)

from .backbone import FrozenBackbone
from .downsamplers import BaseDownsampler
from .grids import check_offset, over_image
from .losses import gaussian_view_loss
from .strides import infer_stride, measure_strides
from .views import apply_views, sample_views, shift_views

# Random projections in which errors of views are measured.
_CHECKED = 64


@MODELS.register_module()
class FeatUp(BaseModel):
    """Trains an upsampler so that its fine map explains views of the image.

    The fine map of the image, shown as each view and shrunk by a learned
    downsampler, shall give what the frozen backbone says of that view, within
    an uncertainty that each cell of the view has of its own (arXiv 2403.10516,
    section 3). The fine map is made once a step, whatever the number of
    views. Where the upsampler commutes with 1x1 convolutions, only K random
    projections of the features (and the downsampler's saliency) are upsampled
    at all.

    Args:
        backbone (dict): Backbone of any host; it stays frozen.
        upsampler (dict): Upsampler to train, without ``in_channels``.
        downsampler (dict): Downsampler to train, without ``in_channels``; its
            stride counts samples of the fine map, 2^n for n stages.
        in_channels (int): Channels C of the backbone's map.
        level (int): Index of that map among the backbone's. Defaults to -1.
        norm (dict, optional): Normalisation of the features, not trained,
            such as ``dict(type='mmplugins.ChannelNorm')``. Defaults to None.
        num_views (int): Views V per image and step. Defaults to 5.
        views (dict, optional): Ranges of :func:`~mmplugins.featup.views.
            sample_views`. Defaults to None, its own.
        projection_channels (int, optional): Random projections K, drawn anew
            each step; None compares the features themselves. Defaults to 30.
        uncertainty (bool): Learn the deviation s of each cell; else it is 1.
            Defaults to True.
        magnitude_weight (float): Weight of the squared error of the vectors'
            lengths, each an extra channel of the fine map; it takes all
            channels, ``projection_channels=None``. Defaults to 0.
        priors (Sequence[dict]): Losses of the fine map, such as
            ``dict(type='mmplugins.TotalVariationLoss')``. Defaults to ().
        stride (int, optional): Pixels per cell of the backbone. Defaults to
            None, measured.
        offset (float): Pixel where the backbone's first cell begins, 0 or
            less, rounded to a whole one; :func:`~mmplugins.featup.strides.
            measure_offset` tells. Defaults to 0.
        data_preprocessor (dict, optional): Normalises the images. Defaults to
            None.
        init_cfg (dict, optional): Weight initialisation. Defaults to None.

    Raises:
        ValueError: If the arguments do not fit each other.
    """

    def __init__(
        self,
        backbone: ConfigType,
        upsampler: ConfigType,
        downsampler: ConfigType,
        in_channels: int,
        level: int = -1,
        norm: OptConfigType = None,
        num_views: int = 5,
        views: OptConfigType = None,
        projection_channels: int | None = 30,
        uncertainty: bool = True,
        magnitude_weight: float = 0.0,
        priors: Sequence[ConfigType] = (),
        stride: int | None = None,
        offset: float = 0,
        data_preprocessor: OptConfigType = None,
        init_cfg: OptMultiConfig = None,
    ) -> None:
        super().__init__(data_preprocessor, init_cfg)
        if num_views < 1:
            raise ValueError(
                f'num_views of FeatUp must be 1 or more, got {num_views}'
            )
        if projection_channels is not None and projection_channels < 1:
            raise ValueError(
                'projection_channels of FeatUp must be 1 or more, or None, '
                f'got {projection_channels}'
            )
        if magnitude_weight and projection_channels:
            raise ValueError(
                f'magnitude_weight={magnitude_weight} of FeatUp needs all '
                'channels: set projection_channels=None, got '
                f'{projection_channels}'
            )
        self.backbone = FrozenBackbone(backbone)
        self.norm = (
            build_norm_layer(norm, in_channels)[1] if norm else nn.Identity()
        ).requires_grad_(False)
        self.upsampler = MODELS.build(
            {**upsampler, 'in_channels': in_channels}
        )
        self.downsampler: BaseDownsampler = MODELS.build(
            {**downsampler, 'in_channels': in_channels}
        )
        self.scale_net = None
        if uncertainty:
            self.scale_net = nn.Conv2d(in_channels, 1, 1)
            with torch.no_grad():
                self.scale_net.weight *= 0.1
                self.scale_net.bias *= 0.1
        self.priors = nn.ModuleList(MODELS.build(cfg) for cfg in priors)
        self.in_channels = in_channels
        self.level = level
        self.num_views = num_views
        self.views = dict(views or {})
        self.projection_channels = projection_channels
        self.magnitude_weight = magnitude_weight
        if stride is None:
            measured = measure_strides(self.backbone)
            if measured and -len(measured) <= level < len(measured):
                stride = measured[level]
        self.stride = stride
        self.offset = check_offset('FeatUp', offset, stride)

    def train(self, mode: bool = True) -> 'FeatUp':
        """Set the mode; the normalisation stays as it is."""
        super().train(mode)
        self.norm.eval()
        return self

    @torch.no_grad()
    def extract_feat(self, inputs: Tensor) -> Tensor:
        """Features of images, normalised.

        Args:
            inputs (Tensor): Normalised images, (B, 3, H, W).

        Returns:
            Tensor: Features, (B, C, h, w).

        Raises:
            ValueError: If they are not maps of ``in_channels`` channels.
        """
        maps = self.backbone(inputs)
        if not -len(maps) <= self.level < len(maps):
            raise ValueError(
                f'level={self.level} of FeatUp does not exist, the backbone '
                f'gives {len(maps)} maps'
            )
        x = maps[self.level]
        if not isinstance(x, Tensor) or x.ndim != 4:
            shape = tuple(getattr(x, 'shape', ())) or type(x).__name__
            raise ValueError(
                f'FeatUp needs maps (B, C, h, w), level {self.level} of the '
                f"backbone is {shape}: set out_type='featmap' in a "
                'transformer, gap_before_final_norm=False in a ConvNeXt'
            )
        if x.shape[1] != self.in_channels:
            raise ValueError(
                f'in_channels={self.in_channels} of FeatUp does not match '
                f'level {self.level} of the backbone, {tuple(x.shape)}: set '
                f'in_channels={x.shape[1]}'
            )
        return self.norm(x)

    def forward(
        self,
        inputs: Tensor,
        data_samples: OptSampleList = None,
        mode: str = 'tensor',
    ) -> Tensor | dict | list[BaseDataElement]:
        """Losses, features or figures, as mmengine's runner asks.

        Args:
            inputs (Tensor): Normalised images, (B, 3, H, W).
            data_samples (list, optional): Data samples. Defaults to None.
            mode (str): ``'tensor'`` for :meth:`upsample`, ``'loss'`` for
                :meth:`loss`, ``'predict'`` for :meth:`predict`. Defaults to
                ``'tensor'``.

        Returns:
            Tensor | dict | list: What the mode gives.

        Raises:
            ValueError: If there is no such mode.
        """
        if mode == 'tensor':
            return self.upsample(inputs)
        if mode == 'loss':
            return self.loss(inputs)
        if mode == 'predict':
            return self.predict(inputs, data_samples)
        raise ValueError(
            f"mode must be 'tensor', 'loss' or 'predict', got {mode!r}"
        )

    def upsample(self, inputs: Tensor, feats: Tensor | None = None) -> Tensor:
        """Fine features of images of any size.

        Args:
            inputs (Tensor): Normalised images, (B, 3, H, W).
            feats (Tensor, optional): Their :meth:`extract_feat`. Defaults to
                None, computed.

        Returns:
            Tensor: Features over the images, (B, C, H', W').
        """
        if feats is None:
            feats = self.extract_feat(inputs)
        return self._over(self.upsampler, inputs, feats)

    def stride_of(self, inputs: Tensor, feats: Tensor) -> float:
        """Pixels per cell, inferred where they could not be measured.

        Args:
            inputs (Tensor): Normalised images, (B, 3, H, W).
            feats (Tensor): Their :meth:`extract_feat`, (B, C, h, w).
        """
        return self.stride or infer_stride(inputs.shape[-2:], feats.shape[-2:])

    def whole_cells(
        self, inputs: Tensor, feats: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Cut images to whole cells, so that all maps cover one area.

        Args:
            inputs (Tensor): Normalised images, (B, 3, H, W).
            feats (Tensor): Their :meth:`extract_feat`, (B, C, h, w).

        Returns:
            tuple[Tensor, Tensor]: Images and features, cut.

        Raises:
            ValueError: If the images are smaller than a cell.
        """
        stride = self.stride_of(inputs, feats)
        cells = [int(n // stride) for n in inputs.shape[-2:]]
        rows, columns = (round(stride * n) for n in cells)
        if (rows, columns) == tuple(inputs.shape[-2:]):
            return inputs, feats
        if min(cells) < 1:
            raise ValueError(
                f'FeatUp needs images of at least {stride} x {stride} '
                f'pixels, got {tuple(inputs.shape[-2:])}'
            )
        inputs = inputs[..., :rows, :columns]
        return inputs, self.extract_feat(inputs)

    def uncertainty(self, feats: Tensor) -> Tensor:
        """Deviation s of each cell, (B, 1, h, w), 1e-4 at least.

        Args:
            feats (Tensor): Features of :meth:`extract_feat`, (B, C, h, w).
        """
        if self.scale_net is None:
            return torch.ones_like(feats[:, :1])
        return (self.scale_net(feats) + 0.1).exp().clamp_min(1e-4)

    def loss(self, inputs: Tensor) -> dict[str, Tensor]:
        """Losses of a batch of images.

        Args:
            inputs (Tensor): Normalised images, (B, 3, H, W).

        Returns:
            dict[str, Tensor]: Losses, and the mean uncertainty.
        """
        feats = self.extract_feat(inputs)
        inputs, feats = self.whole_cells(inputs, feats)
        projection = None
        if self.projection_channels:
            projection = self._draw_projection(self.projection_channels)
        high, saliency = self._fine_map(feats, inputs, projection)
        losses = {}
        for prior in self.priors:
            losses.update(prior(high, inputs))
        if self.magnitude_weight:
            high = torch.cat([high, high.norm(dim=1, keepdim=True)], 1)
        terms = [
            self._view_terms(high, saliency, inputs, projection)
            for _ in range(self.num_views)
        ]
        for key in terms[0]:
            losses[key] = torch.stack([term[key] for term in terms]).mean()
        return losses

    @torch.no_grad()
    def predict(
        self, inputs: Tensor, data_samples: OptSampleList = None
    ) -> list[BaseDataElement]:
        """How well fine maps explain views that no training has seen.

        The views of an image are the same in every call. The fine maps of
        bilinear and nearest interpolation stand beside the upsampler's, each
        shrunk by the learned downsampler and by the plain mean; all in the
        same 64 random projections.

        Args:
            inputs (Tensor): Normalised images, (B, 3, H, W).
            data_samples (list, optional): Data samples to add to. Defaults to
                None, new ones.

        Returns:
            list[BaseDataElement]: Samples with ``view_errors``, a dict of
            squared errors per map (and ``'variance'``, that of the views'
            features), each a mean over views, cells and projections.
        """
        samples = list(data_samples or [BaseDataElement() for _ in inputs])
        for image, sample in zip(inputs.split(1), samples, strict=True):
            errors = self._errors_of_views(image)
            sample.set_field(errors, 'view_errors')
        return samples

    def _over(
        self,
        upsample: Callable[[Tensor, Tensor], Tensor],
        inputs: Tensor,
        feats: Tensor,
    ) -> Tensor:
        stride = self.stride_of(inputs, feats)
        return over_image(upsample, feats, inputs, stride, self.offset)

    def _draw_projection(
        self, num: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """Random unit vectors, (num, C)."""
        vectors = torch.randn(num, self.in_channels, generator=generator)
        device = next(self.parameters()).device
        return F.normalize(vectors, dim=1).to(device)

    def _fine_map(
        self, feats: Tensor, inputs: Tensor, projection: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Fine features, projected or not, and the downsampler's saliency."""
        if projection is None:
            high = self._over(self.upsampler, inputs, feats)
            return high, self.downsampler.saliency(high)
        upsample = partial(
            self.upsampler.linear, weight=self._with_saliency(projection)
        )
        return self._split(self._over(upsample, inputs, feats))

    def _with_saliency(self, projection: Tensor) -> Tensor:
        """Projections and the weights of the saliency, (K or K + 1, C)."""
        score = self.downsampler.saliency_weight()
        return projection if score is None else torch.cat([projection, score])

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """A map and the saliency behind it, where there is one."""
        if self.downsampler.saliency_weight() is None:
            return x, None
        return x[:, :-1], x[:, -1:]

    def _view_terms(
        self,
        high: Tensor,
        saliency: Tensor | None,
        inputs: Tensor,
        projection: Tensor | None,
    ) -> dict[str, Tensor]:
        """Losses of one view of each image."""
        theta = sample_views(
            len(inputs),
            inputs.shape[-2:],
            **self.views,
            device=inputs.device,
        )
        target = self.extract_feat(apply_views(inputs, theta))
        scale = self.uncertainty(target)
        pred = self._shrink(high, saliency, theta, inputs, target.shape[-2:])
        terms = {}
        if self.magnitude_weight:
            pred, length = pred[:, :-1], pred[:, -1]
            error = F.mse_loss(length.float(), target.float().norm(dim=1))
            terms['loss_magnitude'] = self.magnitude_weight * error
        if projection is not None:
            target = F.conv2d(target, projection[..., None, None])
        terms['loss_view'] = gaussian_view_loss(pred, target, scale)
        terms['uncertainty'] = scale.detach().mean()
        return terms

    def _shrink(
        self,
        high: Tensor,
        saliency: Tensor | None,
        theta: Tensor,
        inputs: Tensor,
        size: Sequence[int],
    ) -> Tensor:
        """Features of a view as the fine map predicts them."""
        theta = shift_views(theta, self.offset, inputs.shape[-2:])
        high = apply_views(high, theta)
        if saliency is not None:
            saliency = apply_views(saliency, theta)
        return self.downsampler.pool(high, saliency, size)

    def _interpolate(
        self, feats: Tensor, guidance: Tensor, mode: str
    ) -> Tensor:
        """As the upsampler, by interpolation."""
        size = self.upsampler.output_size(feats, guidance)
        return F.interpolate(feats, size, mode=mode)

    def _errors_of_views(self, image: Tensor) -> dict[str, float]:
        image, feats = self.whole_cells(image, self.extract_feat(image))
        generator = torch.Generator().manual_seed(0)
        projection = self._draw_projection(_CHECKED, generator)
        weight = self._with_saliency(projection)
        low = F.conv2d(feats, weight[..., None, None])
        linear = partial(self.upsampler.linear, weight=weight)
        maps = dict(upsampler=self._over(linear, image, feats))
        for mode in ('bilinear', 'nearest'):
            interpolate = partial(self._interpolate, mode=mode)
            maps[mode] = self._over(interpolate, image, low)
        errors = dict.fromkeys(
            ['variance', *maps, *(f'{name}_mean' for name in maps)], 0.0
        )
        for _ in range(self.num_views):
            theta = sample_views(
                1,
                image.shape[-2:],
                **self.views,
                generator=generator,
                device=image.device,
            )
            cells = shift_views(theta, self.offset, image.shape[-2:])
            target = self.extract_feat(apply_views(image, theta))
            target = F.conv2d(target, projection[..., None, None])
            size = target.shape[-2:]
            spread = target - target.mean((-2, -1), keepdim=True)
            errors['variance'] += spread.square().mean().item()
            for name, fine in maps.items():
                fine, saliency = self._split(apply_views(fine, cells))
                learned = self.downsampler.pool(fine, saliency, size)
                mean = F.adaptive_avg_pool2d(fine, size)
                errors[name] += F.mse_loss(learned, target).item()
                errors[f'{name}_mean'] += F.mse_loss(mean, target).item()
        return {key: value / self.num_views for key, value in errors.items()}
