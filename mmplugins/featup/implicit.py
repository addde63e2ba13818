"""FeatUp's implicit upsampler: a network that is one image's features.

B batch (one image), C channels of the features, D of their principal
components, K frequencies, P points, h x w features, H x W guidance, H' x W'
result. Coordinates are (y, x) in [-1, 1] at pixel centres
(:mod:`mmplugins.ops.coordinates`).
"""

from collections.abc import Sequence
from math import ceil, log

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmplugins.ops import max_frequency, pixel_centers
from mmplugins.registry import MODELS
from mmplugins.typing import OptMultiConfig

from .upsamplers import BaseUpsampler

# Cells per axis of what is remembered of the training image, and the mean
# difference, as a share of the range of its colours, that is another image. At
# other sizes an image differs by less than 0.001, the next frame of a video by
# more than 0.01, another photograph by more than 0.1.
_THUMBNAIL = 8
_OTHER = 0.01


class PCACodec(nn.Module):
    """Principal components of features, and features back from them.

    ``encode(x) = V^T (x - m)`` and ``decode(z) = V z + m`` with the mean m and
    the D leading eigenvectors V of the covariance. Both are buffers: they
    belong to the state dict.

    Args:
        in_channels (int): Channels C of the features.
        dim (int): Components D, at most C of them. Defaults to 128.

    Raises:
        ValueError: If ``dim`` is below 1.
    """

    def __init__(self, in_channels: int, dim: int = 128) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f'dim of PCACodec must be 1 or more, got {dim}')
        self.dim = min(dim, in_channels)
        self.register_buffer('mean', torch.zeros(in_channels))
        self.register_buffer('basis', torch.eye(in_channels, self.dim))
        self.register_buffer('std', torch.ones(self.dim))

    @torch.no_grad()
    def fit(self, feats: Tensor) -> float:
        """Take mean, basis and the components' deviations from features.

        Computed in double precision. A component points where its largest
        entry is positive, so that the same features give the same basis.

        Args:
            feats (Tensor): Features, (B, C, ...), two vectors or more.

        Returns:
            float: Share of the variance that the components keep, in [0, 1].

        Raises:
            ValueError: If there are fewer than two vectors or the channels
                do not fit.
        """
        x = feats.movedim(1, -1).reshape(-1, feats.shape[1]).double()
        if x.shape[1] != len(self.mean) or len(x) < 2:
            raise ValueError(
                f'PCACodec needs two vectors or more of {len(self.mean)} '
                f'channels, got {tuple(feats.shape)}'
            )
        mean = x.mean(0)
        x = x - mean
        covariance = x.T @ x / (len(x) - 1)
        variances, vectors = torch.linalg.eigh(covariance)  # ascending
        basis = vectors.flip(1)[:, : self.dim]
        largest = basis.gather(0, basis.abs().argmax(0, keepdim=True))
        variances = variances.flip(0).clamp_min(0)
        self.mean.copy_(mean)
        self.basis.copy_(basis * largest.sign())
        self.std.copy_(variances[: self.dim].sqrt())
        total = variances.sum()
        return float(variances[: self.dim].sum() / total) if total else 1.0

    def encode(self, feats: Tensor) -> Tensor:
        """Components of features, (B, C, ...) -> (B, D, ...)."""
        x = feats.movedim(1, -1) - self.mean
        return (x @ self.basis).movedim(-1, 1)

    def decode(self, codes: Tensor) -> Tensor:
        """Features of components, (B, D, ...) -> (B, C, ...)."""
        x = codes.movedim(1, -1) @ self.basis.T
        return (x + self.mean).movedim(-1, 1)


class FourierFeatures(nn.Module):
    """Waves of position and colour, and the colour itself.

    ``sin(w_k v + a_k), cos(w_k v + b_k)`` for v of y, x and three colours,
    frequencies w that grow geometrically and learned phases a and b:
    2 * 5 * K + 3 numbers, 303 with 30 frequencies (arXiv 2403.10516, whose
    code lets all frequencies grow to e^10, of which a grid of 224 carries
    352). Here the waves of a position end at what the pixels of the training
    grid can carry (:func:`mmplugins.ops.max_frequency`): between these pixels
    a faster wave is unconstrained, and shows as speckle at other sizes.

    Args:
        num_frequencies (int): Number K of frequencies. Defaults to 30.
        min_frequency (float): Lowest frequency in radians per unit. Defaults
            to 0.135, e^-2.
        max_color_frequency (float): Highest frequency of the colours, in
            radians per range of the image's colours. Defaults to 12.

    Raises:
        ValueError: If an argument is not positive.
    """

    def __init__(
        self,
        num_frequencies: int = 30,
        min_frequency: float = 0.135,
        max_color_frequency: float = 12.0,
    ) -> None:
        super().__init__()
        for key, value in dict(
            num_frequencies=num_frequencies,
            min_frequency=min_frequency,
            max_color_frequency=max_color_frequency,
        ).items():
            if value <= 0:
                raise ValueError(
                    f'{key} of FourierFeatures must be above 0, got {value}'
                )
        self.num_frequencies = num_frequencies
        self.min_frequency = min_frequency
        self.max_color_frequency = max_color_frequency
        self.phases = nn.Parameter(torch.randn(2, 5, num_frequencies))
        self.out_channels = 2 * 5 * num_frequencies + 3

    def frequencies(self, size: Sequence[int]) -> Tensor:
        """Frequencies for a training grid.

        Computed where they are used, for a buffer would follow the module to
        bfloat16, which has three digits.

        Args:
            size (Sequence[int]): Height and width of the training grid.

        Returns:
            Tensor: In radians per unit of y, x and three colours, (5, K).
        """
        tops = [*max_frequency(size), *[self.max_color_frequency] * 3]
        low = log(self.min_frequency)
        dtype = torch.promote_types(self.phases.dtype, torch.float32)
        return torch.stack(
            [
                torch.linspace(
                    low,
                    max(low, log(top)),
                    self.num_frequencies,
                    device=self.phases.device,
                    dtype=dtype,
                ).exp()
                for top in tops
            ]
        )

    def forward(
        self, coords: Tensor, colors: Tensor, size: Sequence[int]
    ) -> Tensor:
        """Encode points.

        Args:
            coords (Tensor): (y, x) in [-1, 1], (P, 2).
            colors (Tensor): Colours, [-0.5, 0.5] in the training image,
                (P, 3).
            size (Sequence[int]): Height and width of the training grid.

        Returns:
            Tensor: (P, 10 K + 3): the sines of y, x and the colours, then
            the cosines, then the colours.
        """
        frequencies = self.frequencies(size)
        values = torch.cat([coords, colors], 1).to(frequencies)
        angles = values[:, :, None] * frequencies  # (P, 5, K)
        sines = (angles + self.phases[0]).sin().flatten(1)
        cosines = (angles + self.phases[1]).cos().flatten(1)
        return torch.cat([sines, cosines, colors.to(sines)], 1)


class _DropFeatures(nn.Dropout):
    """Dropout of a feature at all points of an image alike, as Dropout2d."""

    def forward(self, x: Tensor) -> Tensor:
        """Drop features of (P, C)."""
        return x * super().forward(torch.ones_like(x[:1]))


@MODELS.register_module()
class ImplicitUpsampler(BaseUpsampler):
    """FeatUp's per-image upsampler: a network from pixels to features.

    Position and colour of a pixel go through :class:`FourierFeatures` and
    three linear layers to the principal components of its features, at any
    resolution. The network belongs to one image: it is trained on views of
    that image (:func:`mmplugins.featup.fit_implicit`, or
    :class:`mmplugins.featup.FeatUp` with ``PrepareImplicitHook``), and the
    features it is given only say how many cells there are. Colours are scaled
    by the range of the training image.

    Below the training grid it is evaluated at a multiple of the size and
    averaged, so that no wave is sampled too rarely at any size.

    Args:
        in_channels (int): Channels C of the features.
        dim (int): Principal components D, at most C. Defaults to 128.
        num_frequencies (int): Frequencies K per coordinate. Defaults to 30.
        scale (int | str): Cells of the result per cell of the features, or
            ``'image'`` for the guidance's size. Defaults to ``'image'``.
        hidden_channels (int): Width of the network. Defaults to 128.
        dropout (float): Share of features dropped in training. Defaults to
            0.2.
        max_color_frequency (float): As in :class:`FourierFeatures`. Defaults
            to 12.
        max_memory (float): MiB for intermediate values where no gradient is
            kept. Defaults to 256.
        init_cfg (dict, optional): Weight initialisation. Defaults to None.

    Raises:
        ValueError: If an argument is not valid.
    """

    def __init__(
        self,
        in_channels: int,
        dim: int = 128,
        num_frequencies: int = 30,
        scale: int | str = 'image',
        hidden_channels: int = 128,
        dropout: float = 0.2,
        max_color_frequency: float = 12.0,
        max_memory: float = 256.0,
        init_cfg: OptMultiConfig = None,
    ) -> None:
        super().__init__(in_channels, 1, scale, init_cfg=init_cfg)
        for key, value in dict(
            hidden_channels=hidden_channels, max_memory=max_memory
        ).items():
            if value <= 0:
                raise ValueError(
                    f'{key} of ImplicitUpsampler must be above 0, got {value}'
                )
        self.max_memory = max_memory
        self.codec = PCACodec(in_channels, dim)
        self.encoding = FourierFeatures(
            num_frequencies, max_color_frequency=max_color_frequency
        )
        width = self.encoding.out_channels
        self.network = nn.Sequential(
            nn.LayerNorm(width),
            _DropFeatures(dropout),
            nn.Linear(width, hidden_channels),
            nn.ReLU(),
            _DropFeatures(dropout),
            nn.LayerNorm(hidden_channels),
            nn.Linear(hidden_channels, hidden_channels),
            nn.ReLU(),
            nn.Linear(hidden_channels, self.codec.dim),
        )
        # What belongs to the training image; (0, 0) until it is prepared.
        # Whole numbers, which no change of the module's type rounds.
        self.register_buffer('train_size', torch.zeros(2, dtype=torch.int64))
        self.register_buffer('image_size', torch.zeros(2, dtype=torch.int64))
        self.register_buffer(
            'thumbnail', torch.zeros(3, _THUMBNAIL, _THUMBNAIL)
        )
        self.register_buffer('color_low', torch.zeros(3))
        self.register_buffer('color_high', torch.ones(3))

    @property
    def prepared(self) -> bool:
        """Whether there is a training image, from here or a checkpoint."""
        return bool(self.train_size.all())

    @torch.no_grad()
    def prepare(
        self,
        feats: Tensor,
        guidance: Tensor,
        size: Sequence[int] | None = None,
        image_size: Sequence[int] | None = None,
    ) -> float:
        """Take from an image what stays fixed while the network is trained.

        Args:
            feats (Tensor): Features of the image or of views of it,
                (N, C, h, w), for the principal components.
            guidance (Tensor): The image, (1, 3, H, W).
            size (Sequence[int], optional): Height and width of the training
                grid. Defaults to None, as ``scale`` says.
            image_size (Sequence[int], optional): Height and width of the
                image itself, where ``guidance`` continues it. Defaults to
                None, all of it.

        Returns:
            float: Share of the features' variance that the components keep.

        Raises:
            ValueError: If a shape does not fit.
        """
        self._check(feats[:1], guidance)
        size = size or self.output_size(feats, guidance)
        # Colours as the training sees them, averages of pixels.
        colors = _resample(guidance, size)[0].flatten(1)  # (3, P)
        self.color_low.copy_(colors.amin(1))
        self.color_high.copy_(colors.amax(1))
        self.thumbnail.copy_(_thumbnail(guidance))
        self.train_size.copy_(torch.tensor(tuple(size)))
        image_size = image_size or guidance.shape[-2:]
        self.image_size.copy_(torch.tensor(tuple(image_size)))
        return self.codec.fit(feats)

    @torch.no_grad()
    def belongs_to(self, guidance: Tensor) -> bool:
        """Whether an image is the training image, at any resolution.

        Nothing else here asks: the network gives features of any image, but
        they mean nothing for another one.

        Args:
            guidance (Tensor): Image, (1, 3, H, W), continued as in
                :meth:`prepare`.
        """
        span = (self.color_high - self.color_low).clamp_min(1e-6)
        error = (_thumbnail(guidance) - self.thumbnail).abs().mean((1, 2))
        return bool((error / span).mean() < _OTHER)

    def forward(
        self,
        feats: Tensor,
        guidance: Tensor,
        size: Sequence[int] | None = None,
    ) -> Tensor:
        """Features of the image at any resolution.

        A value takes 4 bytes: 1280 channels of 360 x 480 cells 0.9 GB. All
        else stays within ``max_memory`` under ``torch.no_grad()``; otherwise a
        graph, larger than the result, is kept for gradients.

        Args:
            feats (Tensor): Features, (1, C, h, w), all finite. Only their
                shape matters.
            guidance (Tensor): The image that the network was trained on,
                (1, 3, H, W), at any resolution.
            size (Sequence[int], optional): Height and width of the result.
                Defaults to None, as ``scale`` says.

        Returns:
            Tensor: Features, (1, C, H', W').

        Raises:
            ValueError: If a shape does not fit, there is more than one image,
                a value is not finite or there is no training image yet.
        """
        return self.linear(feats, guidance, None, size=size)

    def linear(
        self,
        feats: Tensor,
        guidance: Tensor,
        weight: Tensor | None,
        bias: Tensor | None = None,
        size: Sequence[int] | None = None,
    ) -> Tensor:
        """1x1 convolution of the features, which are never all there.

        Args:
            feats (Tensor): Features, (1, C, h, w), all finite.
            guidance (Tensor): Image, (1, 3, H, W).
            weight (Tensor, optional): Weights, (M, C); None for the features
                themselves.
            bias (Tensor, optional): Biases, (M,). Defaults to None.
            size (Sequence[int], optional): As in :meth:`forward`. Defaults to
                None.

        Returns:
            Tensor: (1, M, H', W').

        Raises:
            ValueError: As in :meth:`forward`.
        """
        self._check(feats, guidance)
        size = size or self.output_size(feats, guidance)
        # W (V z + m) + b = (W V) z + (W m + b)
        basis, mean = self.codec.basis, self.codec.mean
        if weight is not None:
            weight = weight.flatten(1).to(basis.dtype)
            basis, mean = weight @ basis, weight @ mean
        if bias is not None:
            mean = mean + bias.to(mean.dtype)
        return self._render(guidance, size, basis, mean).to(feats.dtype)

    def codes(self, guidance: Tensor, size: Sequence[int]) -> Tensor:
        """Principal components of the features.

        Args:
            guidance (Tensor): Image, (1, 3, H, W).
            size (Sequence[int]): Height and width of the result.

        Returns:
            Tensor: Components, (1, D, H', W').

        Raises:
            ValueError: If there is no training image yet.
        """
        return self._render(guidance, size)

    def query(self, coords: Tensor, colors: Tensor) -> Tensor:
        """Principal components at points.

        Args:
            coords (Tensor): (y, x) in [-1, 1], (P, 2).
            colors (Tensor): Colours of the normalised image there, (P, 3).

        Returns:
            Tensor: Components, (P, D).
        """
        span = (self.color_high - self.color_low).clamp_min(1e-6)
        colors = (colors - self.color_low) / span - 0.5
        x = self.encoding(coords, colors, self.train_size.tolist())
        x = self.network(x.to(self.network[2].weight.dtype))
        return x * self.codec.std

    def upsample(self, feats: Tensor, guidance: Tensor) -> Tensor:
        """As :meth:`forward`, for the base class."""
        return self.forward(feats, guidance)

    def _check(self, feats: Tensor, guidance: Tensor) -> None:
        super()._check(feats, guidance)
        if len(guidance) != 1:
            raise ValueError(
                'ImplicitUpsampler belongs to one image and takes a batch of '
                f'1, got {len(guidance)}: fit one for each image, or use '
                'JBUStack'
            )

    def _render(
        self,
        guidance: Tensor,
        size: Sequence[int],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """W z + b of the components z of all pixels, (1, M, H', W')."""
        if not self.prepared:
            raise ValueError(
                'ImplicitUpsampler has no training image yet: call '
                'prepare(feats, guidance), train it with fit_implicit, or add '
                "custom_hooks=[dict(type='mmplugins.PrepareImplicitHook')]"
            )
        # Points per cell, so that no wave is sampled below its limit.
        train = self.train_size.tolist()
        per_cell = [ceil(n / m) for n, m in zip(train, size)]
        height, width = (n * k for n, k in zip(size, per_cell))
        colors = _resample(guidance, (height, width))[0].movedim(0, -1)
        coords = pixel_centers((height, width), colors.device, colors.dtype)
        rows = height
        if not torch.is_grad_enabled():
            rows = self._rows(width, weight)
        rows = max(1, rows // per_cell[0]) * per_cell[0]
        out = None
        for start in range(0, height, rows):
            block = slice(start, start + rows)
            x = self.query(
                coords[block].flatten(0, 1), colors[block].flatten(0, 1)
            )
            x = x.unflatten(0, (-1, width)).movedim(-1, 0)[None]
            if max(per_cell) > 1:
                x = F.avg_pool2d(x, per_cell)
            if weight is not None:
                x = F.conv2d(x, weight[:, :, None, None], bias)
            if rows >= height:
                return x
            if out is None:
                out = x.new_empty(1, x.shape[1], *size)
            first = start // per_cell[0]
            out[:, :, first : first + x.shape[2]] = x
        return out

    def _rows(self, width: int, weight: Tensor | None) -> int:
        """Rows whose intermediate values stay within the memory."""
        encoded = self.encoding.out_channels
        outs = self.codec.dim if weight is None else len(weight)
        # Angles, waves, normalised and dropped copies; layers; result.
        values = 5 * encoded + 4 * len(self.network[2].weight) + 2 * outs
        element = max(4, self.encoding.phases.element_size())
        return int(self.max_memory * 2**20 / (values * element * width))


def _thumbnail(image: Tensor) -> Tensor:
    """Mean colours of a few parts of an image (1, 3, H, W)."""
    image = image.to(torch.promote_types(image.dtype, torch.float32))
    size = (_THUMBNAIL, _THUMBNAIL)
    return F.interpolate(image, size, mode='bilinear', antialias=True)[0]


def _resample(image: Tensor, size: Sequence[int]) -> Tensor:
    """Averages of pixels where there are fewer, else between pixels."""
    image = image.to(torch.promote_types(image.dtype, torch.float32))
    fewer = [min(n, m) for n, m in zip(size, image.shape[-2:])]
    if fewer != list(image.shape[-2:]):
        image = F.adaptive_avg_pool2d(image, fewer)
    if fewer != list(size):
        image = F.interpolate(
            image, tuple(size), mode='bilinear', align_corners=False
        )
    return image
