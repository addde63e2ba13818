"""Feature maps as pictures: components, heat, kernels.

C channels, h x w map of cells, H x W image in pixels. Pictures are RGB in
[0, 1], (3, h, w). Principal components are counted from 0 in the order of the
variance they explain; a pixel is (y, x).
"""

from collections.abc import Sequence

import cv2
import torch
from torch import Tensor


def principal_components(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Basis of a map's principal components, as a 1x1 convolution.

    ``weight @ feature + bias`` are the components of a feature; an upsampler
    that is linear can apply them before it upsamples.

    Args:
        x (Tensor): Map, (C, h, w).
        count (int): Number of components K.

    Returns:
        tuple[Tensor, Tensor]: Orthonormal rows (K, C), zero where nothing
        varies any more, and biases (K,), both in double precision.

    Raises:
        ValueError: If the map has fewer channels.
    """
    if x.shape[0] < count:
        raise ValueError(
            f'components 0 to {count - 1} need maps of one number of channels '
            f'above that, got [{x.shape[0]}]'
        )
    cells = x.flatten(1).T.double()  # (h w, C)
    mean = cells.mean(0)
    covariance = (cells - mean).T @ (cells - mean)
    # eigh counts upwards.
    values, basis = torch.linalg.eigh(covariance)
    values, basis = values.flip(0)[:count], basis.flip(1)[:, :count]
    # A sign of its own, the same on every machine.
    basis = basis * basis.gather(0, basis.abs().argmax(0)[None]).sign()
    # A map of few cells spans few directions: the others are noise.
    basis = basis * (values > 1e-10 * values[0])
    return basis.T, -(mean @ basis)


def component_images(
    components: Sequence[Tensor], span: Tensor | None = None
) -> list[Tensor]:
    """Three components as red, green and blue.

    Args:
        components (Sequence[Tensor]): Maps of components, each (3, h, w).
        span (Tensor, optional): Components (3, N) whose first and last
            percent are the ends of the range of colours. Defaults to None,
            those of the first map.

    Returns:
        list[Tensor]: Pictures in [0, 1], each (3, h, w).
    """
    span = components[0].flatten(1) if span is None else span
    low, high = _quantiles(span.double(), 0.01, 0.99)[..., None, None]
    return [
        ((x - low) / (high - low).clamp_min(1e-12)).clamp(0, 1).float()
        for x in components
    ]


def pca_images(maps: Sequence[Tensor], first: int = 0) -> list[Tensor]:
    """Three principal components of feature maps as red, green and blue.

    The basis and the range of colours come from the first map and serve all,
    so that equal features have equal colours.

    Args:
        maps (Sequence[Tensor]): Maps of one feature space, each (C, h, w).
        first (int): Component shown as red. Defaults to 0.

    Returns:
        list[Tensor]: Images in [0, 1], each (3, h, w).

    Raises:
        ValueError: If the maps differ in channels or have too few of them.
    """
    channels = {x.shape[0] for x in maps}
    if len(channels) != 1 or min(channels) < first + 3:
        raise ValueError(
            f'components {first} to {first + 2} need maps of one number of '
            f'channels above that, got {sorted(channels)}'
        )
    weight, bias = principal_components(maps[0], first + 3)
    return component_images(
        [
            torch.einsum('kc,chw->khw', weight[first:], x.double())
            + bias[first:, None, None]
            for x in maps
        ]
    )


def heat_image(
    x: Tensor, low: float | None = None, high: float | None = None
) -> Tensor:
    """A map of numbers from dark blue over green to yellow.

    Args:
        x (Tensor): Map, (h, w).
        low (float, optional): Number shown darkest. Defaults to None, the
            least.
        high (float, optional): Number shown brightest. Defaults to None, the
            greatest.

    Returns:
        Tensor: Picture in [0, 1], (3, h, w).
    """
    x = x.detach().float().cpu()
    low = float(x.min()) if low is None else low
    high = float(x.max()) if high is None else high
    levels = (255 * (x - low) / max(high - low, 1e-12)).clamp(0, 255).round()
    colours = cv2.applyColorMap(
        levels.byte().contiguous().numpy(), cv2.COLORMAP_VIRIDIS
    )
    return torch.from_numpy(colours[..., ::-1].copy()).movedim(-1, 0) / 255


def signed_image(x: Tensor) -> Tensor:
    """A map of weights: red above zero, white at zero, blue below.

    Args:
        x (Tensor): Map, (h, w).

    Returns:
        Tensor: Picture in [0, 1], (3, h, w).
    """
    white = torch.ones(3, *x.shape)
    return _tint(white, x)


def kernel_image(image: Tensor, weights: Tensor) -> Tensor:
    """Weights over the image that they belong to, in red and blue.

    Args:
        image (Tensor): Image in [0, 1], (3, H, W).
        weights (Tensor): Weight of each pixel's cell, (H, W).

    Returns:
        Tensor: Picture in [0, 1], (3, H, W).
    """
    grey = image.mean(0, keepdim=True).expand(3, -1, -1).cpu()
    # Not opaque, so that the image stays visible below.
    return _tint(0.3 + 0.6 * grey, weights, 0.7)


def paint_cells(
    x: Tensor,
    area: Sequence[int],
    size: Sequence[int] | None = None,
    start: int = 0,
) -> Tensor:
    """Give each pixel the value of the cell that it lies in.

    Args:
        x (Tensor): Map, (..., h, w).
        area (Sequence[int]): Height and width in pixels that the cells cover.
        size (Sequence[int], optional): Height and width of the image, which
            lies in the area. Defaults to None, the area.
        start (int): Row and column of the area where the image begins.
            Defaults to 0.

    Returns:
        Tensor: Map of pixels, (..., H, W).
    """
    rows, columns = (
        (
            (torch.arange(n, device=x.device) + start + 0.5) * cells / pixels
        ).long()
        for n, cells, pixels in zip(size or area, x.shape[-2:], area)
    )
    return x[..., rows[:, None], columns]


def _tint(ground: Tensor, weights: Tensor, strength: float = 1.0) -> Tensor:
    """Colour a picture by weights in shares of the greatest."""
    weights = weights.detach().float().cpu()
    share = weights / weights.abs().max().clamp_min(1e-12)
    red, blue = torch.tensor([[0.85, 0.1, 0.1], [0.1, 0.25, 0.85]])
    colour = torch.where(
        share[None] > 0, red[:, None, None], blue[:, None, None]
    )
    return ground + strength * share.abs() * (colour - ground)


def _quantiles(x: Tensor, *shares: float) -> Tensor:
    """Quantiles of each row, (Q, rows), of as many numbers as torch takes."""
    step = -(-x.shape[1] // 2**20)
    return x[:, ::step].quantile(x.new_tensor(shares), 1)
