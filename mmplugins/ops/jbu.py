"""Joint bilateral upsampling by two.

B batch, C channels, D key channels, h x w map, 2h x 2w result, K = 2 r + 1
window, P = K * K taps row by row. Pixel centres, align_corners=False.
"""

from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor

from .adaptive_conv import adaptive_conv, local_correlation

SIMILARITIES = ('dot', 'gaussian')


def joint_bilateral_kernel(
    keys: Tensor,
    temperature: Tensor,
    sigma: Tensor,
    radius: int,
    backend: str = 'auto',
    similarity: str = 'dot',
) -> Tensor:
    """Kernels that follow the guidance as in FeatUp (arXiv 2403.10516).

    ``k[p] = softmax_p(t <keys_p, keys_centre>) exp(-|d_p|^2 / (2 sigma^2))``,
    divided by its sum over the window, with offsets d in units of the radius.
    With ``similarity='gaussian'`` the softmax is of ``-t |keys_p -
    keys_centre|^2``, the Gaussian of classical joint bilateral upsampling
    (Kopf et al., SIGGRAPH 2007) in the space of the keys.
    Computed in float32 at least, for a product of keys overflows float16.

    Args:
        keys (Tensor): Projected guidance, (B, D, H, W).
        temperature (Tensor): Scale t of the dot products, a scalar.
        sigma (Tensor): Width of the spatial Gaussian in radii, a scalar.
        radius (int): Radius r of the window in pixels.
        backend (str): As in :func:`mmplugins.ops.adaptive_conv`. Defaults to
            ``'auto'``.
        similarity (str): One of :data:`SIMILARITIES`. Defaults to ``'dot'``.

    Returns:
        Tensor: Kernels that sum to one, (B, K * K, H, W), float32 at least.
    """
    keys = keys.to(torch.promote_types(keys.dtype, torch.float32))
    query = keys
    if similarity == 'gaussian':
        # |k_p - k_c|^2 = |k_p|^2 - 2 <k_p, k_c> + |k_c|^2; the last is the
        # same for the whole window and leaves the softmax as it is.
        query = torch.cat([2 * keys, -torch.ones_like(keys[:, :1])], 1)
        keys = torch.cat([keys, keys.square().sum(1, keepdim=True)], 1)
    padded = F.pad(keys, [radius] * 4, mode='reflect')
    logits = temperature * local_correlation(query, padded, backend)
    kernel = logits.softmax(1) * _gaussian(sigma, radius)
    return kernel / kernel.sum(1, keepdim=True).clamp_min(1e-7)


def jbu_upsample(x: Tensor, kernel: Tensor, backend: str = 'auto') -> Tensor:
    """Bicubic by two, reflection, one kernel per pixel.

    Args:
        x (Tensor): Map, (B, C, h, w).
        kernel (Tensor): Kernels, (B, K * K, 2h, 2w), K odd.
        backend (str): As in :func:`mmplugins.ops.adaptive_conv`. Defaults to
            ``'auto'``.

    Returns:
        Tensor: Upsampled map, (B, C, 2h, 2w).

    Raises:
        ValueError: If the kernels are not twice the size of the map, or not
            of an odd window.
    """
    size = (2 * x.shape[-2], 2 * x.shape[-1])
    if kernel.shape[-2:] != size:
        raise ValueError(
            f'kernel must be {size[0]} x {size[1]}, twice the map, got '
            f'{kernel.shape[-2]} x {kernel.shape[-1]}'
        )
    window = isqrt(kernel.shape[1])
    if window % 2 == 0 or window**2 != kernel.shape[1]:
        raise ValueError(
            f'kernel needs K * K taps of an odd K, got {kernel.shape[1]}'
        )
    return bilateral_resample(x, kernel, backend)


def bilateral_resample(
    x: Tensor, kernel: Tensor, backend: str = 'auto'
) -> Tensor:
    """Bicubic to the kernels' size, reflection, one kernel per pixel.

    Args:
        x (Tensor): Map, (B, C, h, w).
        kernel (Tensor): Kernels, (B, K * K, H, W), K odd, of any size.
        backend (str): As in :func:`mmplugins.ops.adaptive_conv`. Defaults to
            ``'auto'``.

    Returns:
        Tensor: Resampled map, (B, C, H, W).
    """
    radius = isqrt(kernel.shape[1]) // 2
    x = F.interpolate(
        x, kernel.shape[-2:], mode='bicubic', align_corners=False
    )
    x = F.pad(x, [radius] * 4, mode='reflect')
    return adaptive_conv(x, kernel, backend)


def _gaussian(sigma: Tensor, radius: int) -> Tensor:
    """exp(-|d|^2 / (2 sigma^2)) on offsets d in radii, (P, 1, 1)."""
    offset = torch.linspace(
        -1, 1, 2 * radius + 1, device=sigma.device, dtype=sigma.dtype
    )
    distance = offset[:, None] ** 2 + offset[None] ** 2  # (K, K)
    # A width of zero would make the centre 0 / 0.
    width = (2 * sigma**2).clamp_min(1e-6)
    return torch.exp(-distance / width).view(-1, 1, 1)
