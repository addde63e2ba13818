"""Losses of a mask's logits: cross entropy, L1, L2 and of the gradient.

B batch, h x w mask. Logits are those of the foreground; the target is its
share of each pixel, 0 to 1, soft where the mask is anti-aliased. Each loss is
the mean over the valid pixels of the whole batch, 0 if there are none, in
float32 or the logits' wider type.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor

from mmplugins.registry import MODELS


def mask_cross_entropy_loss(
    logits: Tensor, target: Tensor, valid: Tensor | None = None
) -> Tensor:
    """Binary cross entropy with the target cut at a half.

    Args:
        logits (Tensor): Logits, (B, 1, h, w).
        target (Tensor): Target in [0, 1], (B, 1, h, w); foreground where
            above 0.5.
        valid (Tensor, optional): Pixels that count, bool, (B, 1, h, w).
            Defaults to None, all.

    Returns:
        Tensor: Mean over the valid pixels, a scalar.

    Raises:
        ValueError: If the shapes differ or ``valid`` is not bool.
    """
    logits, target = _wide(logits, target, valid)
    error = F.binary_cross_entropy_with_logits(
        logits, (target > 0.5).to(logits), reduction='none'
    )
    return _mean(error, valid)


def mask_l1_loss(
    logits: Tensor, target: Tensor, valid: Tensor | None = None
) -> Tensor:
    """Absolute difference of the probability and the target.

    Args:
        logits (Tensor): Logits, (B, 1, h, w).
        target (Tensor): Target in [0, 1], (B, 1, h, w).
        valid (Tensor, optional): Pixels that count, bool, (B, 1, h, w).
            Defaults to None, all.

    Returns:
        Tensor: Mean over the valid pixels, a scalar.

    Raises:
        ValueError: If the shapes differ or ``valid`` is not bool.
    """
    logits, target = _wide(logits, target, valid)
    return _mean((logits.sigmoid() - target).abs(), valid)


def mask_l2_loss(
    logits: Tensor, target: Tensor, valid: Tensor | None = None
) -> Tensor:
    """Squared difference of the probability and the target.

    Args:
        logits (Tensor): Logits, (B, 1, h, w).
        target (Tensor): Target in [0, 1], (B, 1, h, w).
        valid (Tensor, optional): Pixels that count, bool, (B, 1, h, w).
            Defaults to None, all.

    Returns:
        Tensor: Mean over the valid pixels, a scalar.

    Raises:
        ValueError: If the shapes differ or ``valid`` is not bool.
    """
    logits, target = _wide(logits, target, valid)
    return _mean((logits.sigmoid() - target).square(), valid)


def mask_gradient_loss(
    logits: Tensor, target: Tensor, valid: Tensor | None = None
) -> Tensor:
    """Absolute difference of the gradients of probability and target.

    The gradients are :func:`sobel_magnitude`. Each depends on 5 x 5 pixels,
    and counts only where all of those inside the mask are valid.

    Args:
        logits (Tensor): Logits, (B, 1, h, w).
        target (Tensor): Target in [0, 1], (B, 1, h, w).
        valid (Tensor, optional): Pixels that count, bool, (B, 1, h, w).
            Defaults to None, all.

    Returns:
        Tensor: Mean over the pixels whose surroundings are valid, a scalar.

    Raises:
        ValueError: If the shapes differ or ``valid`` is not bool.
    """
    logits, target = _wide(logits, target, valid)
    error = sobel_magnitude(logits.sigmoid()) - sobel_magnitude(target)
    if valid is not None:
        valid = F.max_pool2d((~valid).float(), 5, 1, 2) == 0
    return _mean(error.abs(), valid)


def sobel_magnitude(x: Tensor, eps: float = 1e-4) -> Tensor:
    """``sqrt(gx^2 + gy^2 + eps)`` by Sobel's operator on means of 3 x 3.

    The operator is a quarter of its whole numbers, so that a ramp of slope a
    gives 2 a. Means and operator take what lies outside as 0, as in CascadePSP
    (arXiv 2005.02551), whose loss it is: a mask that touches the border has a
    gradient there.

    Args:
        x (Tensor): Map, (B, C, h, w).
        eps (float): What keeps the root differentiable at 0. Defaults to
            1e-4.

    Returns:
        Tensor: Magnitude, (B, C, h, w), at least ``sqrt(eps)``.
    """
    x = F.pad(F.avg_pool2d(x, 3, 1, 1), [1] * 4)
    rows, columns = _smooth(x, -2), _smooth(x, -1)
    dx = (rows[..., 2:] - rows[..., :-2]) / 4
    dy = (columns[..., 2:, :] - columns[..., :-2, :]) / 4
    return (dx.square() + dy.square() + eps).sqrt()


def _smooth(x: Tensor, dim: int) -> Tensor:
    """Sums of three neighbours on an axis weighted 1, 2, 1."""
    count = x.shape[dim] - 2
    before, middle, after = (x.narrow(dim, i, count) for i in range(3))
    return before + 2 * middle + after


def _wide(
    logits: Tensor, target: Tensor, valid: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Logits and target in float32 at least, once all three are checked."""
    for name, x in dict(target=target, valid=valid).items():
        if x is not None and x.shape != logits.shape:
            raise ValueError(
                f'{name} of a mask loss must be of the shape of the logits, '
                f'{tuple(logits.shape)}, got {tuple(x.shape)}'
            )
    if valid is not None and valid.dtype != torch.bool:
        raise ValueError(
            f'valid of a mask loss must be torch.bool, got {valid.dtype}'
        )
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return logits.to(dtype), target.to(dtype)


def _mean(error: Tensor, valid: Tensor | None) -> Tensor:
    """Mean over the valid pixels, 0 if there are none."""
    if valid is None:
        return error.mean()
    return error.where(valid, 0).sum() / valid.sum().clamp_min(1)


class _MaskLoss(BaseModule):
    """A weighted loss of logits; its ``function`` is that of the subclass.

    Args:
        loss_weight (float): Its weight.
        loss_name (str): Its name in the log.
    """

    function: Callable[[Tensor, Tensor, Tensor | None], Tensor]

    def __init__(self, loss_weight: float, loss_name: str) -> None:
        super().__init__()
        self.loss_weight = loss_weight
        self.loss_name = loss_name

    def forward(
        self, logits: Tensor, target: Tensor, valid: Tensor | None = None
    ) -> Tensor:
        """Weighted loss.

        Args:
            logits (Tensor): Logits, (B, 1, h, w).
            target (Tensor): Target in [0, 1], (B, 1, h, w).
            valid (Tensor, optional): Pixels that count, bool, (B, 1, h, w).
                Defaults to None, all.

        Returns:
            Tensor: A scalar.
        """
        return self.loss_weight * self.function(logits, target, valid)


@MODELS.register_module()
class MaskCrossEntropyLoss(_MaskLoss):
    """:func:`mask_cross_entropy_loss`.

    Args:
        loss_weight (float): Weight. Defaults to 1.0.
        loss_name (str): Name in the log. Defaults to ``'loss_ce'``.
    """

    function = staticmethod(mask_cross_entropy_loss)

    def __init__(
        self, loss_weight: float = 1.0, loss_name: str = 'loss_ce'
    ) -> None:
        super().__init__(loss_weight, loss_name)


@MODELS.register_module()
class MaskL1Loss(_MaskLoss):
    """:func:`mask_l1_loss`.

    Args:
        loss_weight (float): Weight. Defaults to 0.5.
        loss_name (str): Name in the log. Defaults to ``'loss_l1'``.
    """

    function = staticmethod(mask_l1_loss)

    def __init__(
        self, loss_weight: float = 0.5, loss_name: str = 'loss_l1'
    ) -> None:
        super().__init__(loss_weight, loss_name)


@MODELS.register_module()
class MaskL2Loss(_MaskLoss):
    """:func:`mask_l2_loss`.

    Args:
        loss_weight (float): Weight. Defaults to 0.5.
        loss_name (str): Name in the log. Defaults to ``'loss_l2'``.
    """

    function = staticmethod(mask_l2_loss)

    def __init__(
        self, loss_weight: float = 0.5, loss_name: str = 'loss_l2'
    ) -> None:
        super().__init__(loss_weight, loss_name)


@MODELS.register_module()
class MaskGradientLoss(_MaskLoss):
    """:func:`mask_gradient_loss`.

    Args:
        loss_weight (float): Weight. Defaults to 2.0.
        loss_name (str): Name in the log. Defaults to ``'loss_grad'``.
    """

    function = staticmethod(mask_gradient_loss)

    def __init__(
        self, loss_weight: float = 2.0, loss_name: str = 'loss_grad'
    ) -> None:
        super().__init__(loss_weight, loss_name)
