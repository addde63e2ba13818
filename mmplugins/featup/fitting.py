"""Fitting the implicit upsampler to one image.

N views, C channels of the features, D of their principal components, H x W
image, h x w cells, s samples per cell and axis in the fine map.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from mmplugins.registry import HOOKS, MODELS
from mmplugins.typing import ConfigType, OptConfigType

from .downsamplers import gaussian_blur
from .grids import check_offset, over_image
from .implicit import ImplicitUpsampler
from .losses import gaussian_view_loss, total_variation
from .strides import infer_stride
from .views import apply_views, sample_views, shift_views

Backbone = Callable[[Tensor], Tensor | Sequence[Tensor]]
# Views that the principal components are taken from, as published.
PCA_VIEWS = 50


class ImplicitFit(NamedTuple):
    """What :func:`fit_implicit` returns."""

    upsampler: ImplicitUpsampler
    """The fitted network, in evaluation mode."""
    downsampler: nn.Module
    """From its components, and their length as one channel more, to cells."""
    losses: list[float]
    """Likelihood loss of each step."""
    kept: float
    """Share of the features' variance in the components, in [0, 1]."""


def fit_implicit(
    image: Tensor,
    backbone: Backbone,
    *,
    steps: int = 300,
    num_views: int = 200,
    views_per_step: int = 6,
    samples_per_cell: int = 4,
    stride: int | None = None,
    offset: float = 0,
    max_pad: int = 30,
    max_zoom: float = 1.8,
    lr: float = 2e-3,
    magnitude_weight: float = 0.001,
    tv_weight: float = 0.05,
    blur_weight: float = 0.1,
    upsampler: OptConfigType = None,
    downsampler: OptConfigType = None,
    generator: torch.Generator | None = None,
) -> ImplicitFit:
    """Fit an :class:`ImplicitUpsampler` to an image and a frozen backbone.

    The backbone sees the views of the image once. Then each step renders the
    fine map, shows it as some of the views do, shrinks it to cells, and
    maximises the likelihood of the backbone's features there (FeatUp,
    arXiv 2403.10516, section 3). Published are 1200 steps of 10 among 3000
    views with a sample per pixel, blurred before it is shrunk, and dropout;
    the defaults are for a CPU.

    Args:
        image (Tensor): Image normalised for the backbone, (1, 3, H, W).
        backbone (Callable): Images (N, 3, H, W) to features (N, C, h, w), or
            to a sequence of them whose last counts.
        steps (int): Optimisation steps. Defaults to 300.
        num_views (int): Views N to draw. Defaults to 200.
        views_per_step (int): Views of a step, drawn from these. Defaults to
            6.
        samples_per_cell (int): Samples s of the fine map per cell and axis.
            Defaults to 4.
        stride (int, optional): Pixels per cell. Defaults to None, inferred.
            The image is resampled to the nearest multiple, so that cells
            cover it exactly.
        offset (float): Pixel where the backbone's first cell begins, 0 or
            less, rounded to a whole one; :func:`~mmplugins.featup.strides.
            measure_offset` tells. Defaults to 0.
        max_pad (int): As in :func:`sample_views`. Defaults to 30.
        max_zoom (float): As in :func:`sample_views`. Defaults to 1.8.
        lr (float): Learning rate of NAdam. Defaults to 2e-3.
        magnitude_weight (float): Weight of the error of the features' length.
            Defaults to 0.001.
        tv_weight (float): Weight of the total variation of the fine lengths.
            Defaults to 0.05.
        blur_weight (float): Weight of the fine map's difference from its
            blurred self. Defaults to 0.1.
        upsampler (dict, optional): Arguments of :class:`ImplicitUpsampler`,
            such as ``dict(dim=64)``. Defaults to None, no dropout.
        downsampler (dict, optional): Downsampler without ``in_channels``.
            Defaults to None, ``AttentionDownsampler`` over two cells.
        generator (torch.Generator, optional): Source of all randomness, on
            the CPU. Defaults to None, torch's own.

    Returns:
        ImplicitFit: The fitted upsampler and what belongs to it.

    Raises:
        ValueError: If the image is not (1, 3, H, W) of a floating type, a
            number is below 1, or the backbone is in training mode.
    """
    for key, value in dict(
        steps=steps,
        num_views=num_views,
        views_per_step=views_per_step,
        samples_per_cell=samples_per_cell,
    ).items():
        if value < 1:
            raise ValueError(
                f'{key} of fit_implicit must be 1 or more, got {value}'
            )
    if image.ndim != 4 or image.shape[:2] != (1, 3):
        raise ValueError(
            f'fit_implicit needs one image (1, 3, H, W), got '
            f'{tuple(image.shape)}'
        )
    if not image.is_floating_point():
        raise ValueError(
            'fit_implicit needs an image normalised for the backbone, of a '
            f'floating type, got {image.dtype}'
        )
    _check_frozen(backbone)
    offset = check_offset('fit_implicit', offset, stride)
    # Initial weights and dropout follow the generator too, while torch's own
    # goes on as before.
    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng([image.device] if image.is_cuda else []):
        torch.manual_seed(seed)
        image, cells = _whole_cells(image, backbone, stride)
        size = tuple(samples_per_cell * n for n in cells)
        views = sample_views(
            num_views, image.shape[-2:], max_pad, max_zoom, device=image.device
        )
        feats = _features_of_views(image, views[:PCA_VIEWS], backbone)
        # A few hundred steps leave nothing for dropout to prevent.
        upsampler = {'dropout': 0.0, **(upsampler or {})}
        network = ImplicitUpsampler(feats.shape[1], **upsampler)
        network.to(image.device)
        kept = network.prepare(feats, image, size)
        targets = [network.codec.encode(feats)]
        for start in range(PCA_VIEWS, num_views, PCA_VIEWS):
            some = views[start : start + PCA_VIEWS]
            feats = _features_of_views(image, some, backbone)
            targets.append(network.codec.encode(feats))
        targets = torch.cat(targets)  # (N, D, h, w)
        objective = _Objective(
            network,
            downsampler
            or dict(
                type='mmplugins.AttentionDownsampler',
                kernel_size=2 * samples_per_cell,
                stride=samples_per_cell,
            ),
            magnitude_weight,
            tv_weight,
            blur_weight,
        ).to(image.device)
        views = shift_views(views, offset, image.shape[-2:])
        optimizer = torch.optim.NAdam(objective.parameters(), lr=lr)
        losses = []
        for _ in range(steps):
            index = torch.randint(num_views, (views_per_step,))
            fine = network.codes(image, size)
            likelihood, priors = objective(fine, views[index], targets[index])
            optimizer.zero_grad()
            (likelihood + priors).backward()
            optimizer.step()
            losses.append(likelihood.item())
    objective.eval()
    return ImplicitFit(network, objective.downsampler, losses, kept)


class _Objective(nn.Module):
    """Loss of fine components, given views and what the backbone says there.

    All in units of the components' deviation, so that the weights mean the
    same for every backbone.
    """

    def __init__(
        self,
        network: ImplicitUpsampler,
        downsampler: ConfigType,
        magnitude_weight: float,
        tv_weight: float,
        blur_weight: float,
    ) -> None:
        super().__init__()
        dim = network.codec.dim
        self.network = network
        # The length is one channel more.
        self.downsampler = MODELS.build(
            {**downsampler, 'in_channels': dim + 1}
        )
        self.uncertainty = nn.Conv2d(dim, 1, 1)
        with torch.no_grad():
            for parameter in self.uncertainty.parameters():
                parameter.mul_(0.1)
        self.magnitude_weight = magnitude_weight
        self.tv_weight = tv_weight
        self.blur_weight = blur_weight
        variance = network.codec.std.square().mean()
        self.register_buffer('unit', variance.sqrt().clamp_min(1e-12))

    def forward(
        self, fine: Tensor, views: Tensor, target: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Likelihood loss and the rest.

        Args:
            fine (Tensor): Components of the image, (1, D, s h, s w).
            views (Tensor): Views, (N, 2, 3).
            target (Tensor): Components of the views' features, (N, D, h, w).
        """
        fine, target = fine / self.unit, target / self.unit
        length = fine.norm(dim=1, keepdim=True)
        seen = torch.cat([fine, length], 1).expand(len(views), -1, -1, -1)
        pred = self.downsampler(apply_views(seen, views), target.shape[-2:])
        pred, pred_length = pred[:, :-1], pred[:, -1]
        scale = (self.uncertainty(target) + 0.1).exp().clamp_min(1e-4)
        magnitude = F.mse_loss(pred_length, target.norm(dim=1))
        blur = F.mse_loss(gaussian_blur(fine), fine)
        return gaussian_view_loss(pred, target, scale), (
            self.magnitude_weight * magnitude
            + self.tv_weight * total_variation(length)
            + self.blur_weight * blur
        )


@HOOKS.register_module()
class PrepareImplicitHook(Hook):
    """Show an :class:`ImplicitUpsampler` its image before training begins.

    For :class:`mmplugins.featup.FeatUp` on a training set of one image of
    whole cells, loaded without random transforms: the grid, the range of the
    colours and the principal components of the features of some views become
    part of the model's state. An upsampler from a checkpoint has them already
    and stays as it is.

    Args:
        num_views (int): Views that the components are taken from. Defaults
            to 50.

    Raises:
        ValueError: If ``num_views`` is below 1.
    """

    def __init__(self, num_views: int = PCA_VIEWS) -> None:
        if num_views < 1:
            raise ValueError(
                f'num_views of PrepareImplicitHook must be 1 or more, got '
                f'{num_views}'
            )
        self.num_views = num_views

    def before_train(self, runner: Runner) -> None:
        """Prepare the upsampler unless it is.

        Raises:
            ValueError: If the upsampler is another one, or the training set
                is not one image of whole cells.
        """
        model = runner.model
        if is_model_wrapper(model):
            model = model.module
        upsampler = getattr(model, 'upsampler', None)
        if not isinstance(upsampler, ImplicitUpsampler):
            raise ValueError(
                'PrepareImplicitHook needs a model whose upsampler is '
                f'ImplicitUpsampler, got {type(upsampler).__name__}'
            )
        loader = runner.train_dataloader
        if len(loader.dataset) != 1:
            raise ValueError(
                'ImplicitUpsampler belongs to one image, the training set has '
                f'{len(loader.dataset)}: set indices=1 of the dataset'
            )
        if upsampler.prepared:
            return
        data = loader.collate_fn([loader.dataset[0]])
        image = model.data_preprocessor(data)['inputs']
        size = tuple(image.shape[-2:])
        image, feats = model.whole_cells(image, model.extract_feat(image))
        if image.shape[-2:] != size:
            # A cut image covers another area than the photograph in use.
            rows, columns = image.shape[-2:]
            raise ValueError(
                'PrepareImplicitHook needs an image of whole cells, got '
                f"{size[0]} x {size[1]} pixels: add dict(type='Resize', "
                f'scale=({columns}, {rows})) to the pipeline'
            )
        views = sample_views(
            self.num_views,
            image.shape[-2:],
            **model.views,
            # The same on all processes, as the weights are.
            generator=torch.Generator().manual_seed(0),
            device=image.device,
        )
        of_views = _features_of_views(image, views, model.extract_feat)
        kept = 0.0

        def prepare(feats: Tensor, guidance: Tensor) -> Tensor:
            nonlocal kept
            grid = upsampler.output_size(feats, guidance)
            kept = upsampler.prepare(of_views, guidance, grid, size)
            return feats.new_zeros(1, 1, *grid)

        # What the upsampler is given in training may reach beyond the image.
        over_image(
            prepare, feats, image, model.stride_of(image, feats), model.offset
        )
        runner.logger.info(
            f'{upsampler.codec.dim} principal components keep {kept:.1%} of '
            'the variance of the features'
        )


def _check_frozen(backbone: Backbone) -> None:
    """Raise if a layer of the backbone is in training mode."""
    if isinstance(backbone, nn.Module) and any(
        module.training
        for module in backbone.modules()
        if not list(module.children())
    ):
        raise ValueError(
            'fit_implicit needs a frozen backbone, this one is in training '
            'mode: call backbone.eval() first'
        )


@torch.no_grad()
def _features(images: Tensor, backbone: Backbone) -> Tensor:
    out = backbone(images)
    return out if isinstance(out, Tensor) else out[-1]


def _features_of_views(
    image: Tensor, views: Tensor, backbone: Backbone, batch: int = 8
) -> Tensor:
    """Features of views (N, 2, 3) of an image, (N, C, h, w)."""
    return torch.cat(
        [
            _features(
                apply_views(image.expand(len(some), -1, -1, -1), some),
                backbone,
            )
            for some in views.split(batch)
        ]
    )


def _whole_cells(
    image: Tensor, backbone: Backbone, stride: int | None
) -> tuple[Tensor, tuple[int, int]]:
    """The image resampled to whole cells, and how many there are."""
    size = image.shape[-2:]
    if stride is None:
        stride = infer_stride(size, _features(image, backbone).shape[-2:])
    rows, columns = (max(1, round(n / stride)) for n in size)
    wanted = (rows * stride, columns * stride)
    if wanted != tuple(size):
        image = F.interpolate(
            image, wanted, mode='bilinear', antialias=True, align_corners=False
        )
    return image, (rows, columns)
