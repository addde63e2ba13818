"""Losses of the self-supervised training: a likelihood and its priors.

B batch, C channels, h x w cells, H x W fine map.
"""

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor

from mmplugins.registry import MODELS

from .downsamplers import gaussian_blur


def gaussian_view_loss(pred: Tensor, target: Tensor, scale: Tensor) -> Tensor:
    """Negative log-likelihood of the features of a view.

    ``mean((pred - target)^2 / (2 s^2) + log s)``, the objective of FeatUp
    (arXiv 2403.10516, section 3) up to a constant.

    Args:
        pred (Tensor): Predicted features, (B, C, h, w).
        target (Tensor): Features of the view, (B, C, h, w).
        scale (Tensor): Standard deviation s of each cell, (B, 1, h, w).

    Returns:
        Tensor: Mean over all cells and channels, a scalar.
    """
    pred, target, scale = map(_wide, (pred, target, scale))
    error = (pred - target) ** 2
    return (error / (2 * scale**2) + scale.log()).mean()


def total_variation(x: Tensor) -> Tensor:
    """Squared differences of neighbours on both axes, per element.

    Args:
        x (Tensor): Map, (B, C, H, W).

    Returns:
        Tensor: ``(sum dy^2 + sum dx^2) / numel``, a scalar.
    """
    x = _wide(x)
    squares = x.diff(dim=-2).square().sum() + x.diff(dim=-1).square().sum()
    return squares / x.numel()


def crf_loss(
    feats: Tensor,
    image: Tensor,
    num_samples: int = 1000,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Differences of features where position and colour are alike.

    ``mean(k_ij |F_i - F_j|^2)`` over random pairs of pixels, with
    ``k = 10 exp(-|dp|^2 / 0.2 - |dc|^2 / 0.3) + 3 exp(-|dp|^2 / 0.01)``,
    positions p in [0, 1] and colours c as normalised (mhamilton723/FeatUp @
    6b5a6c0). Features and image must show the same view.

    Args:
        feats (Tensor): Fine features, (B, C, H, W).
        image (Tensor): Image over the same area, (B, 3, H', W').
        num_samples (int): Pixels drawn per image. Defaults to 1000.
        generator (torch.Generator, optional): Source of randomness, on the
            CPU. Defaults to None, torch's own.

    Returns:
        Tensor: Mean over all pairs, a scalar.
    """
    size = feats.shape[-2:]
    y, x = (
        torch.randint(n, (num_samples,), generator=generator).to(feats.device)
        for n in size
    )
    position = torch.stack([(y + 0.5) / size[0], (x + 0.5) / size[1]], -1)
    # Products of half precision are too coarse for differences.
    with torch.autocast(feats.device.type, enabled=False):
        colours = F.adaptive_avg_pool2d(_wide(image), size)
        near = _squared_distances(position[None])
        alike = _squared_distances(colours[..., y, x].mT)
        kernel = 10 * (-near / 0.2 - alike / 0.3).exp()
        kernel = kernel + 3 * (-near / 0.01).exp()
        apart = _squared_distances(_wide(feats)[..., y, x].mT)
        return (kernel * apart).mean()


def _wide(x: Tensor) -> Tensor:
    """In float32 at least; squares of float16 overflow."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _squared_distances(x: Tensor) -> Tensor:
    """|x_i - x_j|^2 of all pairs, (B, S, S), without their differences."""
    x = x - x.mean(-2, keepdim=True)  # less to cancel
    squares = x.square().sum(-1)
    products = x @ x.mT
    return (squares[:, :, None] + squares[:, None] - 2 * products).clamp_min(0)


class _Prior(BaseModule):
    """A loss of the fine features alone.

    Args:
        loss_weight (float): Its weight.
    """

    def __init__(self, loss_weight: float) -> None:
        super().__init__()
        self.loss_weight = loss_weight


@MODELS.register_module()
class TotalVariationLoss(_Prior):
    """:func:`total_variation` of the fine features.

    Args:
        loss_weight (float): Weight. Defaults to 0.05.
    """

    def __init__(self, loss_weight: float = 0.05) -> None:
        super().__init__(loss_weight)

    def forward(self, feats: Tensor, image: Tensor) -> dict[str, Tensor]:
        """Loss of features (B, C, H, W)."""
        return dict(loss_tv=self.loss_weight * total_variation(feats))


@MODELS.register_module()
class BlurLoss(_Prior):
    """Squared difference of the fine features from their blurred selves.

    Args:
        loss_weight (float): Weight. Defaults to 0.1.
    """

    def __init__(self, loss_weight: float = 0.1) -> None:
        super().__init__(loss_weight)

    def forward(self, feats: Tensor, image: Tensor) -> dict[str, Tensor]:
        """Loss of features (B, C, H, W)."""
        feats = _wide(feats)
        loss = F.mse_loss(gaussian_blur(feats), feats)
        return dict(loss_blur=self.loss_weight * loss)


@MODELS.register_module()
class CRFLoss(_Prior):
    """:func:`crf_loss` of the fine features and the image they came from.

    Args:
        loss_weight (float): Weight. Defaults to 0.001.
        num_samples (int): Pixels drawn per image. Defaults to 1000.
    """

    def __init__(
        self, loss_weight: float = 0.001, num_samples: int = 1000
    ) -> None:
        super().__init__(loss_weight)
        self.num_samples = num_samples

    def forward(self, feats: Tensor, image: Tensor) -> dict[str, Tensor]:
        """Loss of features (B, C, H, W) and images (B, 3, H', W')."""
        loss = crf_loss(feats, image, self.num_samples)
        return dict(loss_crf=self.loss_weight * loss)
