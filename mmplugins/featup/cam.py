"""Class activation maps: where an image shows a class.

B batch, C channels, h x w features, H x W image. A map covers the image that
its features cover; pixel centres, align_corners=False. A class weighs the
channels by (B, C), one row per image: the classifier's own weights (CAM, arXiv
1512.04150) or the mean gradients of its score (Grad-CAM, arXiv 1610.02391).
``FeatUpNeck.linear`` weighs upsampled features before it upsamples them.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

RESIZE_MODES = {'bilinear': 'bilinear', 'nearest': 'nearest-exact'}


def grad_cam_weight(
    score: Callable[[Tensor], Tensor], feats: Tensor
) -> Tensor:
    """Mean gradient of a score over the cells of each channel.

    Works under ``torch.no_grad``. For global average pooling and a linear
    classifier it is the weight of the class divided by the number of cells.

    Args:
        score (Callable): From features (B, C, h, w) to the score of one class
            per image before softmax, (B,); images must not mix.
        feats (Tensor): Features, (B, C, h, w).

    Returns:
        Tensor: Weights, (B, C).

    Raises:
        ValueError: If the score does not depend on the features.
    """
    with torch.enable_grad():
        feats = feats.detach().requires_grad_()
        total = score(feats).sum()
        gradient = None
        if total.requires_grad:
            (gradient,) = torch.autograd.grad(total, feats, allow_unused=True)
    if gradient is None:
        raise ValueError(
            'Grad-CAM needs a score that depends on the map: the head reads '
            "something else (a transformer's class token, another level)"
        )
    return gradient.mean((2, 3))


def weighted_map(feats: Tensor, weight: Tensor) -> Tensor:
    """Channels of each image, summed by the weights of its class.

    Args:
        feats (Tensor): Features, (B, C, h, w).
        weight (Tensor): Weights, (B, C).

    Returns:
        Tensor: Maps of either sign, (B, h, w).
    """
    return torch.einsum('bchw,bc->bhw', feats, weight)


def normalize_map(
    cam: Tensor, size: Sequence[int], mode: str = 'bilinear'
) -> Tensor:
    """Evidence for a class in [0, 1] at the image's resolution.

    What speaks against the class is cut off at the map's own resolution; then
    the map is resized, and its least value becomes 0, its greatest 1. A
    constant map, which singles out nothing, becomes 0.

    Args:
        cam (Tensor): Maps of either sign, (B, h, w).
        size (Sequence[int]): Height H and width W of the image.
        mode (str): ``'bilinear'`` or ``'nearest'``. Defaults to
            ``'bilinear'``.

    Returns:
        Tensor: Maps in [0, 1], (B, H, W), float32 at least.

    Raises:
        ValueError: If the mode is not one of the two.
    """
    if mode not in RESIZE_MODES:
        raise ValueError(
            f'resize must be one of {list(RESIZE_MODES)}, got {mode!r}'
        )
    cam = cam.to(torch.promote_types(cam.dtype, torch.float32)).clamp_min(0)
    if cam.shape[-2:] != tuple(size):
        cam = F.interpolate(cam[:, None], tuple(size), mode=RESIZE_MODES[mode])
        cam = cam[:, 0]
    low, high = cam.amin((1, 2), True), cam.amax((1, 2), True)
    span = high - low
    # Rounding in a constant map is no contrast.
    flat = span <= 1e-5 * high
    return ((cam - low) / span.masked_fill(flat, 1)).masked_fill(flat, 0)


def mask_image(
    image: Tensor, cam: Tensor, background: Tensor | float = 0.0
) -> Tensor:
    """Keep an image where a map is 1, replace it where the map is 0.

    Args:
        image (Tensor): Images, (B, 3, H, W).
        cam (Tensor): Maps in [0, 1], (B, H, W).
        background (Tensor | float): What replaces it, in the unit of the
            image, of a shape that broadcasts, such as (3, 1, 1). For a
            normalised image 0 is the mean colour and ``-mean / std`` is black.
            Defaults to 0.

    Returns:
        Tensor: Masked images, (B, 3, H, W).

    Raises:
        ValueError: If maps and images differ in number or size.
    """
    if cam.shape != (image.shape[0], *image.shape[2:]):
        raise ValueError(
            f'maps {tuple(cam.shape)} do not cover images '
            f'{tuple(image.shape)}: give (B, H, W) for (B, 3, H, W)'
        )
    cam = cam[:, None].to(image.dtype)
    return cam * image + (1 - cam) * background
