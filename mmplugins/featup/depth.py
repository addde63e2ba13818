"""Depth known up to scale and shift: alignment, and the loss of MiDaS.

B batch, H x W pixels, M valid pixels of an image: those whose depth is finite
and above 0, for sensors write 0 or NaN where they saw nothing. Depth is in the
unit of the data, disparity is one over it; a model of either is right if some
scale s and shift t of the image make it so.
"""

import torch
from torch import Tensor, nn

from mmplugins.registry import MODELS

SPACES = ('disparity', 'depth')


def valid_depth(depth: Tensor) -> Tensor:
    """Where there is a depth: finite and above 0.

    Args:
        depth (Tensor): Depth of any shape.

    Returns:
        Tensor: Mask of that shape.
    """
    return depth.isfinite() & (depth > 0)


def to_space(depth: Tensor, valid: Tensor, space: str) -> Tensor:
    """Depth as what a model is compared in.

    Args:
        depth (Tensor): Depth of any shape.
        valid (Tensor): Mask of that shape.
        space (str): ``'disparity'``, one over the depth, or ``'depth'``.

    Returns:
        Tensor: Values of that shape, 0 where not valid.

    Raises:
        ValueError: If there is no such space.
    """
    check_space('to_space', space)
    if space == 'disparity':
        return torch.where(valid, 1 / depth.where(valid, 1), 0)
    return depth.where(valid, 0)


def check_space(what: str, space: str) -> None:
    """Raise unless a space exists.

    Args:
        what (str): Whose argument it is.
        space (str): Name of a space.

    Raises:
        ValueError: If it is not one of ``SPACES``.
    """
    if space not in SPACES:
        raise ValueError(
            f'space of {what} must be one of {SPACES}, got {space!r}'
        )


def fit_scale_shift(
    pred: Tensor, target: Tensor, valid: Tensor
) -> tuple[Tensor, Tensor]:
    """Scale s and shift t of the least ``sum (s pred + t - target)^2``.

    Of each image on its own, over its valid pixels. The scale may be negative.
    Where they leave it open (fewer than two, or all predicted alike to
    rounding) it is 0 and the shift is the mean target; with no pixel both
    are 0.

    Args:
        pred (Tensor): Predictions, (B, H, W).
        target (Tensor): Targets, (B, H, W).
        valid (Tensor): Mask, (B, H, W).

    Returns:
        tuple[Tensor, Tensor]: s and t, each (B,).
    """
    pred, pred_mean = _centre(pred, valid)
    target, target_mean = _centre(target, valid)
    scale = _slope(pred, target, pred_mean, valid)
    return scale, target_mean - scale * pred_mean


def scale_and_shift_invariant_loss(
    pred: Tensor,
    target: Tensor,
    valid: Tensor | None = None,
    alpha: float = 0.5,
    num_scales: int = 4,
) -> Tensor:
    """Loss of MiDaS with squared errors (Ranftl et al., arXiv 1907.01341).

    With R = s pred + t - target after :func:`fit_scale_shift`, an image counts
    ``sum R^2 / (2 M) + alpha sum_k sum (|d_x R_k| + |d_y R_k|) / M_k``, where
    R_k is every 2^k-th row and column of R, M_k are its valid pixels and a
    difference counts where both its pixels are valid. The gradient passes
    through s and t. An image with fewer than two valid pixels, or with one
    depth all over, counts 0, as some s and t always fit it.

    Args:
        pred (Tensor): Predictions, (B, H, W) or (B, 1, H, W).
        target (Tensor): Targets of that shape; anything where not valid.
        valid (Tensor, optional): Mask of that shape. Defaults to None, where
            the target is finite and above 0.
        alpha (float): Weight of the differences. Defaults to 0.5.
        num_scales (int): Number of resolutions k. Defaults to 4.

    Returns:
        Tensor: Mean over the images that have two valid pixels or more, 0 if
        none has; in float32 at least.

    Raises:
        ValueError: If the shapes do not fit.
    """
    if valid is None:
        valid = valid_depth(target)
    pred, target, valid = _as_maps(pred, target, valid)
    pred, pred_mean = _centre(pred, valid)
    target, _ = _centre(target, valid)
    scale = _slope(pred, target, pred_mean, valid)
    # The means cancel: s pred + t - target is the difference of the centred.
    residual = scale.view(-1, 1, 1) * pred - target
    count = valid.sum((1, 2))
    loss = residual.square().sum((1, 2)) / (2 * count.clamp_min(1))
    for k in range(num_scales if alpha else 0):
        part = residual[:, :: 2**k, :: 2**k]
        loss = loss + alpha * _roughness(part, valid[:, :: 2**k, :: 2**k])
    return loss.sum() / (count >= 2).sum().clamp_min(1)


def _as_maps(
    pred: Tensor, target: Tensor, valid: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The three as (B, H, W), the values in float32 or more."""
    shapes = [tuple(x.shape) for x in (pred, target, valid)]
    shape = shapes[0]
    map_like = len(shape) == 3 or (len(shape) == 4 and shape[1] == 1)
    if len(set(shapes)) > 1 or not map_like:
        raise ValueError(
            'pred, target and valid of a depth loss must share a shape '
            f'(B, H, W) or (B, 1, H, W), got {shapes}'
        )
    dtype = torch.promote_types(pred.dtype, torch.float32)
    pred, target, valid = (
        x.flatten(0, -3) for x in (pred.to(dtype), target.to(dtype), valid)
    )
    return pred, target, valid.bool()


def _centre(x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Values less their mean, 0 where not valid, and the mean (B,)."""
    x = torch.where(valid, x, 0)  # first, or a NaN would spread
    mean = x.sum((1, 2)) / valid.sum((1, 2)).clamp_min(1)
    return torch.where(valid, x - mean.view(-1, 1, 1), 0), mean


def _slope(
    pred: Tensor, target: Tensor, pred_mean: Tensor, valid: Tensor
) -> Tensor:
    """Slope (B,) of centred targets over centred predictions."""
    square = pred.square().sum((1, 2))
    # What rounding leaves of values that are all the same.
    noise = 4 * torch.finfo(pred.dtype).eps * pred_mean.detach()
    flat = square <= valid.sum((1, 2)) * noise.square()
    slope = (pred * target).sum((1, 2)) / square.masked_fill(flat, 1)
    return slope.masked_fill(flat, 0)


def _roughness(residual: Tensor, valid: Tensor) -> Tensor:
    """Sum of absolute differences per valid pixel, (B,)."""
    down = residual.diff(dim=1) * (valid[:, 1:] & valid[:, :-1])
    right = residual.diff(dim=2) * (valid[:, :, 1:] & valid[:, :, :-1])
    total = down.abs().sum((1, 2)) + right.abs().sum((1, 2))
    return total / valid.sum((1, 2)).clamp_min(1)


def _to_unit_range(x: Tensor, valid: Tensor) -> Tensor:
    """Shift and scale each image's valid values to [0, 1], (B, ..., H, W)."""
    dims = tuple(range(1, x.ndim))
    low = x.masked_fill(~valid, torch.inf).amin(dims, keepdim=True)
    high = x.masked_fill(~valid, -torch.inf).amax(dims, keepdim=True)
    extent = high - low
    extent = extent.masked_fill(~(extent > 0), 1)  # one value, or none
    return torch.where(valid, (x - low) / extent, 0)


@MODELS.register_module()
class ScaleShiftInvariantLoss(nn.Module):
    """:func:`scale_and_shift_invariant_loss` for a host's depth head.

    Args:
        space (str): What the head predicts up to scale and shift,
            ``'disparity'`` (one over the depth, as in MiDaS) or ``'depth'``.
            Defaults to ``'disparity'``.
        normalize (bool): Bring the targets of each image to [0, 1] first.
            Without it both terms grow with the unit of the data, the squares
            faster than the differences, so that ``alpha`` would mean another
            thing in metres than in millimetres. Defaults to True.
        alpha (float): Weight of the differences. Defaults to 0.5.
        num_scales (int): Number of resolutions. Defaults to 4.
        loss_weight (float): Factor of the whole. Defaults to 1.0.
        loss_name (str): Name in the log; it counts in training if it begins
            with ``'loss'``. Defaults to ``'loss_ssi'``.

    Raises:
        ValueError: If an argument is not valid.
    """

    def __init__(
        self,
        space: str = 'disparity',
        normalize: bool = True,
        alpha: float = 0.5,
        num_scales: int = 4,
        loss_weight: float = 1.0,
        loss_name: str = 'loss_ssi',
    ) -> None:
        super().__init__()
        name = type(self).__name__
        check_space(name, space)
        if alpha < 0:
            raise ValueError(f'alpha of {name} must be 0 or more, got {alpha}')
        if num_scales < 1:
            raise ValueError(
                f'num_scales of {name} must be 1 or more, got {num_scales}'
            )
        self.space = space
        self.normalize = normalize
        self.alpha = alpha
        self.num_scales = num_scales
        self.loss_weight = loss_weight
        self.loss_name = loss_name

    def forward(self, pred: Tensor, depth: Tensor) -> Tensor:
        """Loss of a batch.

        Args:
            pred (Tensor): Predictions, (B, H, W) or (B, 1, H, W).
            depth (Tensor): Depth as read from the data, of that shape; 0 or
                not finite where there is none.

        Returns:
            Tensor: Loss, a scalar.

        Raises:
            ValueError: If the shapes do not fit.
        """
        valid = valid_depth(depth)
        depth = depth.to(torch.promote_types(depth.dtype, torch.float32))
        target = to_space(depth, valid, self.space)
        if self.normalize:
            target = _to_unit_range(target, valid)
        loss = scale_and_shift_invariant_loss(
            pred, target, valid, self.alpha, self.num_scales
        )
        return self.loss_weight * loss
