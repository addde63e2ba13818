"""What goes on inside an upsampler for one image, as tensors and as panels.

C channels, h x w cells of features, h' x w' upsampled map, H x W image, which
lies in the area that the cells cover, ``start`` pixels from its top left
corner. A pixel is (y, x). Works on :class:`~mmplugins.featup.model.FeatUp` and
on any model with a :class:`~mmplugins.featup.neck.FeatUpNeck`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from math import ceil, isqrt

import torch
import torch.nn.functional as F
from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from torch.func import functional_call

from mmplugins.visualization import Panel

from .grids import cover
from .model import FeatUp
from .neck import FeatUpNeck
from .similarity import (
    channel_chunks,
    check_query,
    similarity_at,
    similarity_to,
)
from .strides import infer_stride
from .upsamplers import BaseUpsampler, JBUStack
from .visualization import (
    component_images,
    heat_image,
    kernel_image,
    paint_cells,
    principal_components,
    signed_image,
)


@dataclass
class Inspection:
    """One image on its way through an upsampler.

    Attributes:
        upsampler (BaseUpsampler): The upsampler, in evaluation mode.
        feats (Tensor): Features as the upsampler gets them, (1, C, h, w).
        guidance (Tensor): Image over the area of the features, as the
            upsampler gets it.
        size (tuple[int, int]): Height and width of the image in pixels.
        start (int): Row and column of the area where the image begins.
        uncertainty (Tensor, optional): Deviation s of each cell, (h, w). None
            for a model without.
        saliency (Tensor, optional): Weights (1, C) of the downsampler's
            saliency. None for one without.
    """

    upsampler: BaseUpsampler
    feats: Tensor
    guidance: Tensor
    size: tuple[int, int]
    start: int = 0
    uncertainty: Tensor | None = None
    saliency: Tensor | None = None

    @property
    def area(self) -> tuple[int, int]:
        """Height and width in pixels that all maps cover."""
        return tuple(self.guidance.shape[-2:])

    @property
    def low(self) -> Tensor:
        """Features of the cells that the image touches, (C, h, w)."""
        return self.crop(self.feats[0])

    @torch.no_grad()
    def linear(self, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """1x1 convolution of the upsampled features, (K, h', w')."""
        weight = weight.to(self.feats)
        bias = bias if bias is None else bias.to(self.feats)
        return self.upsampler.linear(self.feats, self.guidance, weight, bias)[
            0
        ]

    def chunk(self, max_memory: float) -> int:
        """Channels to upsample at a time.

        Args:
            max_memory (float): MiB for what they take: about three maps each.

        Returns:
            int: Number of channels, 1 or more.
        """
        size = self.upsampler.output_size(self.feats, self.guidance)
        bytes_each = 3 * size[0] * size[1] * self.feats.element_size()
        return max(1, int(max_memory * 2**20 / bytes_each))

    def high_chunks(self, max_memory: float) -> Iterator[Tensor]:
        """Upsampled features, as many channels at a time as memory takes.

        Args:
            max_memory (float): MiB for what they take.

        Yields:
            Tensor: Channels of those that the image touches, (n, h', w').
        """
        chunk = self.chunk(max_memory)
        for part in channel_chunks(self.linear, self.feats[0], chunk):
            yield self.crop(part)

    def crop(self, x: Tensor) -> Tensor:
        """Leave the cells that the image touches."""
        rows, columns = (
            slice(
                int(cells * self.start / total),
                ceil(cells * (self.start + n) / total),
            )
            for cells, n, total in zip(x.shape[-2:], self.size, self.area)
        )
        return x[..., rows, columns]

    def paint(self, x: Tensor) -> Tensor:
        """Give each pixel the value of its cell.

        Args:
            x (Tensor): Map over the area, (..., h, w).

        Returns:
            Tensor: Map of pixels, (..., H, W).
        """
        return paint_cells(x, self.area, self.size, self.start)

    def cell(
        self, pixel: tuple[int, int], grid: Sequence[int]
    ) -> tuple[int, int]:
        """Row and column of the cell that a pixel lies in.

        Args:
            pixel (tuple[int, int]): Pixel (y, x) of the image.
            grid (Sequence[int]): Rows and columns of cells over the area.
        """
        return tuple(
            int((p + self.start + 0.5) * cells / total)
            for p, cells, total in zip(pixel, grid, self.area)
        )


@torch.no_grad()
def inspect_image(model: nn.Module, image: Tensor) -> Inspection:
    """Send one image to a model's upsampler.

    Args:
        model (nn.Module): Model in evaluation mode: FeatUp, or any with a
            ``backbone`` and a FeatUpNeck, whose last named level counts.
        image (Tensor): Image as the model's data preprocessor takes it,
            (3, H, W).

    Returns:
        Inspection: What the upsampler gets.

    Raises:
        ValueError: If the model holds no upsampler, or the image does not
            suit it.
    """
    neck = None if isinstance(model, FeatUp) else find_neck(model)
    # mmseg's preprocessor pads only with a sample to note it in.
    batch = {'inputs': [image], 'data_samples': [BaseDataElement()]}
    inputs = model.data_preprocessor(batch, False)['inputs']
    # The plain one of mmengine does not stack.
    inputs = inputs if isinstance(inputs, Tensor) else torch.stack(inputs)
    inputs = inputs.to(next(model.parameters()))
    more = {}
    if neck is None:
        upsampler, stride = model.upsampler, model.stride
        feats, start = model.extract_feat(inputs), -model.offset
        more['saliency'] = model.downsampler.saliency_weight()
    else:
        upsampler, stride = neck.upsamplers[-1], neck.strides[-1]
        start = -neck.offsets[-1]
        feats = model.backbone(inputs)[neck.levels[-1]]
        feats = neck.reductions[-1](neck.norms[-1](feats))
    stride = stride or infer_stride(inputs.shape[-2:], feats.shape[-2:])
    guidance = F.pad(inputs, (start, 0, start, 0), mode='replicate')
    feats, guidance = cover(feats, guidance, stride)
    if neck is None and model.scale_net is not None:
        more['uncertainty'] = model.uncertainty(feats)[0, 0]
    size = tuple(image.shape[-2:])
    return Inspection(upsampler, feats, guidance, size, start, **more)


def find_neck(model: nn.Module) -> FeatUpNeck:
    """The neck of a model.

    Raises:
        ValueError: If it has no FeatUpNeck.
    """
    for name in ('neck', 'featup'):
        if isinstance(getattr(model, name, None), FeatUpNeck):
            return getattr(model, name)
    if hasattr(getattr(model, 'decode_head', None), 'upsamplers'):
        raise ValueError(
            f'{type(model.decode_head).__name__} upsamples inside the head, '
            'which is not shown: shown are mmplugins.FeatUp and models with '
            "neck=dict(type='mmplugins.FeatUpNeck')"
        )
    raise ValueError(
        f'{type(model).__name__} holds no upsampler to look at: the model '
        "must be mmplugins.FeatUp, or have neck=dict(type='mmplugins."
        "FeatUpNeck')"
    )


def stage_kernels(
    inspection: Inspection, pixel: tuple[int, int]
) -> list[tuple[Tensor, tuple[int, int]]]:
    """Kernels of a JBU at a pixel.

    Args:
        inspection (Inspection): Image in the upsampler.
        pixel (tuple[int, int]): Pixel (y, x) of the image.

    Returns:
        list[tuple[Tensor, tuple[int, int]]]: For each stage its kernel (K, K)
        and the rows and columns of its result; nothing for other upsamplers.
    """
    kernels = []
    for stage, size in _stages(inspection):
        with torch.no_grad():
            guidance = F.adaptive_avg_pool2d(inspection.guidance, size)
            y, x = inspection.cell(pixel, size)
            kernel = stage.kernel(guidance)[0, :, y, x]
        window = isqrt(len(kernel))
        kernels.append((kernel.view(window, window), size))
    return kernels


def composed_kernel(
    inspection: Inspection, pixel: tuple[int, int]
) -> Tensor | None:
    """Weight of every cell in the upsampled feature of a pixel.

    The gradient of that feature: exactly what an impulse in each cell would
    show there, in one pass. Of the residual convolution of a JBU, which mixes
    channels, nothing is in it.

    Args:
        inspection (Inspection): Image in the upsampler.
        pixel (tuple[int, int]): Pixel (y, x) of the image.

    Returns:
        Tensor | None: Weights, (h, w); None for an upsampler that does not
        depend on the features.
    """
    feats, guidance = inspection.feats, inspection.guidance
    with torch.enable_grad():
        if isinstance(inspection.upsampler, JBUStack):
            x = out = torch.zeros_like(feats[:, :1], requires_grad=True)
            for stage, size in _stages(inspection):
                # No graph through the kernels: they are not asked for.
                fixed = {k: p.detach() for k, p in stage.named_parameters()}
                out = functional_call(stage, fixed, (out, guidance, size))
        else:
            x = feats.detach().requires_grad_()
            mean = x.new_full((1, x.shape[1]), 1 / x.shape[1])
            out = inspection.upsampler.linear(x, guidance, mean)
        y, column = inspection.cell(pixel, out.shape[-2:])
        target = out[0, 0, y, column]
        if not target.requires_grad:
            return None
        (grad,) = torch.autograd.grad(target, x, allow_unused=True)
    return grad if grad is None else grad[0].sum(0)


def component_rows(
    inspection: Inspection, image: Tensor
) -> list[list[Panel | None]]:
    """Principal components before and after, beside what the model learned.

    The basis comes from the features before they are upsampled, and serves
    both.

    Args:
        inspection (Inspection): Image in the upsampler.
        image (Tensor): The image as a picture in [0, 1], (3, H, W).

    Returns:
        list[list[Panel | None]]: Rows of three panels, up to nine components.
    """
    count = 3 * min(3, inspection.feats.shape[1] // 3)
    if not count:
        raise ValueError(
            'components of features need 3 channels or more, got '
            f'{inspection.feats.shape[1]}'
        )
    weight, bias = principal_components(inspection.low, count)
    wanted, biases = weight, bias
    if inspection.saliency is not None:
        wanted = torch.cat([weight, inspection.saliency.to(weight)])
        biases = torch.cat([bias, bias.new_zeros(1)])
    high = inspection.linear(wanted, biases)
    low = torch.einsum('kc,chw->khw', weight, inspection.feats[0].double())
    low = low + bias[:, None, None]
    left = [Panel('image', image)]
    if inspection.uncertainty is not None:
        s = inspection.paint(inspection.uncertainty)
        left.append(Panel(f'uncertainty s, {_range(s)}', heat_image(s)))
    if inspection.saliency is not None:
        s = inspection.paint(high[-1])
        left.append(Panel(f'saliency, {_range(s)}', heat_image(s)))
    pairs = []
    for first in range(0, count, 3):
        pair = [x[first : first + 3] for x in (low, high)]
        painted = [inspection.paint(x).double() for x in pair]
        # The kernels need not sum to one: the range of colours is both maps'.
        span = torch.cat([x.flatten(1) for x in painted], 1)
        pictures = component_images(painted, span)
        name = f'components {first + 1} to {first + 3}'
        pairs.append(
            [
                Panel(f'{name}, {_cells(inspection.crop(x))}', picture)
                for x, picture in zip(pair, pictures)
            ]
        )
    rows = zip_longest(left, pairs)
    return [[panel, *(pair or [None, None])] for panel, pair in rows]


def kernel_rows(
    inspection: Inspection, image: Tensor, pixel: tuple[int, int]
) -> list[list[Panel | None]]:
    """Where the feature of a pixel comes from.

    Args:
        inspection (Inspection): Image in the upsampler.
        image (Tensor): The image as a picture in [0, 1], (3, H, W).
        pixel (tuple[int, int]): Pixel (y, x) of it.

    Returns:
        list[list[Panel | None]]: A row: the composed kernel and the stages'.
    """
    weights = composed_kernel(inspection, pixel)
    if weights is None:
        return []
    panels = [
        Panel(
            f'weights of the cells, {_range(weights)}',
            kernel_image(image, inspection.paint(weights)),
            _share(inspection, pixel),
        )
    ]
    for index, (kernel, size) in enumerate(stage_kernels(inspection, pixel)):
        panels.append(
            Panel(
                f'stage {index + 1} to {size[0]} x {size[1]}',
                signed_image(kernel),
            )
        )
    return [panels + [None] * (3 - len(panels))]


def similarity_rows(
    inspection: Inspection,
    image: Tensor,
    pixel: tuple[int, int] | None = None,
    query: Tensor | None = None,
    max_memory: float = 1024,
) -> list[list[Panel | None]]:
    """What is similar to a pixel or to a vector, before and after.

    Args:
        inspection (Inspection): Image in the upsampler.
        image (Tensor): The image as a picture in [0, 1], (3, H, W).
        pixel (tuple[int, int], optional): Pixel (y, x) of it; its feature
            before and after is compared with all of its kind. Defaults to
            None.
        query (Tensor, optional): Vector (C,) to compare instead. Defaults to
            None.
        max_memory (float): MiB for upsampled channels. Defaults to 1024.

    Returns:
        list[list[Panel | None]]: A row of three panels.

    Raises:
        ValueError: If the vector is not of C numbers.
    """
    low, chunk = inspection.feats[0], inspection.chunk(max_memory)
    point = None
    if query is None:
        y, x = inspection.cell(pixel, low.shape[-2:])
        fine = inspection.upsampler.output_size(
            inspection.feats, inspection.guidance
        )
        before = F.cosine_similarity(low, low[:, y, x, None, None], dim=0)
        cell = inspection.cell(pixel, fine)
        after = similarity_at(inspection.linear, low, cell, chunk)
        point = _share(inspection, pixel)
        name = 'similarity'
    else:
        check_query(query, len(low))
        query = query.to(low)
        before = F.cosine_similarity(low, query[:, None, None], dim=0)
        after = similarity_to(inspection.linear, low, query, chunk)
        name = 'similarity to the vector'
    painted = [inspection.paint(x) for x in (before, after)]
    least = min(float(x.min()) for x in painted)
    most = max(float(x.max()) for x in painted)
    panels = [
        Panel(
            f'{name}, {_cells(inspection.crop(x))}, {_range(shown)}',
            heat_image(shown, least, most),
            point,
        )
        for x, shown in zip((before, after), painted)
    ]
    return [[Panel('image', image, point), *panels]]


def _stages(
    inspection: Inspection,
) -> Iterator[tuple[nn.Module, tuple[int, int]]]:
    """Stages of a JBU and the sizes of their results."""
    upsampler = inspection.upsampler
    if not isinstance(upsampler, JBUStack):
        return
    sizes = upsampler.stage_sizes(inspection.feats, inspection.guidance)
    for index, size in enumerate(sizes):
        yield upsampler.stages[index % len(upsampler.stages)], size


def _share(
    inspection: Inspection, pixel: tuple[int, int]
) -> tuple[float, float]:
    """A pixel's centre in shares of the image."""
    return tuple((p + 0.5) / n for p, n in zip(pixel, inspection.size))


def _cells(x: Tensor) -> str:
    return f'{x.shape[-2]} x {x.shape[-1]} cells'


def _range(x: Tensor) -> str:
    return f'{float(x.min()):.2g} to {float(x.max()):.2g}'
