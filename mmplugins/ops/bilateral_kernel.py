"""Kernels of joint bilateral filters, which follow a guidance.

B batch, D key channels, H x W pixels, K = 2 r + 1 window, P = K * K taps row
by row.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, func

from .adaptive_conv import KERNELS, local_correlation
from .backends import choose_backend, has_tangent
from .operators import Operator
from .trilinear import correlate, gather, scatter, sum_dtype

SIMILARITIES = ('dot', 'gaussian')

# Keeps the kernel of a window finite where all its weights vanish.
_EPS = 1e-7


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
    gaussian = _gaussian(sigma, radius)
    backend = choose_backend('joint_bilateral_kernel', backend, KERNELS, query)
    if has_tangent(temperature, sigma):
        backend = 'reference'
    if backend == 'triton':
        size = 2 * radius + 1
        scalars = temperature.to(query.device), gaussian.to(query.device)
        return range_kernel(query, padded, *scalars, size, query.dtype)
    if backend == 'reference':
        logits = temperature * local_correlation(query, padded, backend)
        kernel = logits.softmax(1) * gaussian
        return kernel / kernel.sum(1, keepdim=True).clamp_min(_EPS)
    # The taps last, as they lie in memory; the scale on D values, not on P.
    logits = local_correlation(temperature * query, padded, backend)
    kernel = logits.movedim(1, -1).softmax(-1)
    if torch.is_grad_enabled() or kernel.dtype != gaussian.dtype:
        kernel = kernel * gaussian.flatten()
        kernel = kernel / kernel.sum(-1, keepdim=True).clamp_min(_EPS)
    else:
        kernel *= gaussian.flatten()
        kernel /= kernel.sum(-1, keepdim=True).clamp_min_(_EPS)
    return kernel.movedim(-1, 1)


def _gaussian(sigma: Tensor, radius: int) -> Tensor:
    """exp(-|d|^2 / (2 sigma^2)) on offsets d in radii, (P, 1, 1)."""
    offset = torch.linspace(
        -1, 1, 2 * radius + 1, device=sigma.device, dtype=sigma.dtype
    )
    distance = offset[:, None] ** 2 + offset[None] ** 2  # (K, K)
    # A width of zero would make the centre 0 / 0.
    width = (2 * sigma**2).clamp_min(1e-6)
    return torch.exp(-distance / width).view(-1, 1, 1)


def _range_kernel(
    query: Tensor,
    keys: Tensor,
    temperature: Tensor,
    gaussian: Tensor,
    size: int,
    dtype: torch.dtype,
) -> Tensor:
    """Dot products, softmax, Gaussian and their sum, in one kernel.

    ``k[p] = softmax_p(t <query, keys_p>) gaussian[p]``, divided by its sum
    over the window, 1e-7 at least. Nothing larger than the result is stored;
    the backward pass computes all of it again.

    Args:
        query (Tensor): Vectors at the centres, (B, D, H, W).
        keys (Tensor): Padded vectors, (B, D, H + K - 1, W + K - 1).
        temperature (Tensor): Scale t of the dot products, one element.
        gaussian (Tensor): Weights of the taps, K * K elements, row by row.
        size (int): Window K.
        dtype (torch.dtype): Of the result.

    Returns:
        Tensor: Kernels, (B, K * K, H, W).
    """
    from . import adaptive_conv_triton

    return adaptive_conv_triton.range_kernel(
        query, keys, temperature, gaussian, size, dtype, _EPS
    )


def _range_like(query, keys, temperature, gaussian, size, dtype):
    batch, _, height, width = query.shape
    return query.new_empty((batch, size**2, height, width), dtype=dtype)


def _of_range(grad, needs, query, keys, temperature, gaussian, size, dtype):
    """Everything again from the inputs: a softmax and its scaled sum."""
    tensors = (query, keys, temperature, gaussian)
    total = sum_dtype(*tensors)
    heat, height = temperature.to(total), gaussian.to(total).view(-1, 1, 1)
    dots = correlate(query, keys, size, 1, total, 'triton')
    soft = (heat * dots).softmax(1)
    weights = soft * height
    share = weights.sum(1, keepdim=True)
    norm = share.clamp_min(_EPS)

    grad = grad.to(total) / norm
    # Where the sum is clamped, nothing flows through it.
    through = (grad * weights).sum(1, keepdim=True) / norm
    grad = grad - through * (share >= _EPS)
    grads = [None] * 4
    if needs[3]:
        of_taps = (grad * soft).sum((0, 2, 3))
        grads[3] = of_taps.view(gaussian.shape).to(gaussian.dtype)
    grad = grad * height
    grad = soft * (grad - (grad * soft).sum(1, keepdim=True))
    if needs[2]:
        of_heat = (grad * dots).sum()
        grads[2] = of_heat.view(temperature.shape).to(temperature.dtype)
    grad = grad * heat
    if needs[0]:
        grads[0] = gather(keys, grad, size, 1, query.dtype, 'triton')
    if needs[1]:
        grads[1] = scatter(query, grad, size, 1, keys.dtype, 'triton')
    return grads


def _tangent_of_range(
    tangents, query, keys, temperature, gaussian, size, dtype
):
    """That of the formula."""

    def formula(query, keys, temperature, gaussian):
        dots = correlate(query, keys, size, 1, dtype, 'triton')
        kernel = (temperature * dots).softmax(1) * gaussian.view(-1, 1, 1)
        return kernel / kernel.sum(1, keepdim=True).clamp_min(_EPS)

    primals = (query, keys, temperature, gaussian)
    return func.jvp(formula, primals, tangents[:4])[1].to(dtype)


range_kernel = Operator(_range_kernel, _range_like)
range_kernel.differentiate(_of_range, _tangent_of_range)
