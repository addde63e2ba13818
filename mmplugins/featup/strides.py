"""How many pixels a cell of a feature map covers.

H x W image in pixels, h x w grid of cells, stride s: cell (i, j) covers the
pixels [s i, s (i + 1)) x [s j, s (j + 1)).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

# Divided by every power of two up to 256, by 14 and by 28.
_PROBE = 1792


def measure_strides(backbone: nn.Module) -> list[float | None] | None:
    """Strides of a backbone's outputs, by a forward of shapes alone.

    Nothing is computed and nothing of the backbone changes: its weights are
    replaced by tensors of the meta device for the call.

    Args:
        backbone (nn.Module): Backbone that takes images (B, 3, H, W).

    Returns:
        list[float | None] | None: Pixels per cell of each output, None for
        one that is not a map; None for a backbone that cannot run so, such as
        one that takes images of one size only.
    """
    tensors = dict(backbone.named_parameters())
    tensors.update(backbone.named_buffers())
    shapes = {name: x.detach().to('meta') for name, x in tensors.items()}
    image = torch.empty(1, 3, _PROBE, _PROBE, device='meta')
    training = backbone.training
    backbone.eval()
    try:
        with torch.no_grad():
            outs = functional_call(backbone, shapes, (image,))
    except Exception:  # whatever is wrong shows itself in the real forward
        return None
    finally:
        backbone.train(training)
    return [
        _PROBE / out.shape[-2]
        if isinstance(out, Tensor) and out.ndim == 4
        else None
        for out in outs
    ]


def infer_stride(image: Sequence[int], grid: Sequence[int]) -> float:
    """Pixels per cell of a grid that a backbone made of an image.

    Small images leave several strides open; :func:`measure_strides` does not.

    Args:
        image (Sequence[int]): Height and width in pixels.
        grid (Sequence[int]): Rows and columns of cells.

    Returns:
        float: A stride with ``floor(n / s) <= cells <= ceil(n / s)`` on both
        axes. Of several the one that covers the image exactly, else a usual
        one (a power of two or 14) that rounds both axes alike, else a usual
        one, else the one that covers the image best.

    Raises:
        ValueError: If no stride explains the grid.
    """
    fitting = [s for s in range(1, max(image) + 1) if fits(s, image, grid)]
    if not fitting:
        raise ValueError(
            f'no stride makes {grid[0]} x {grid[1]} cells of {image[0]} x '
            f'{image[1]} pixels: set strides of FeatUpNeck'
        )

    def rank(stride: int) -> tuple:
        missed = [n - stride * g for n, g in zip(image, grid)]
        alike = missed[0] * missed[1] >= 0
        usual = stride & (stride - 1) == 0 or stride == 14
        total = sum(map(abs, missed))
        return total > 0, not (usual and alike), not usual, total

    return min(fitting, key=rank)


def fits(
    stride: float, image: Sequence[int], grid: Sequence[int], slack: int = 0
) -> bool:
    """Whether a backbone of a stride may make a grid of an image.

    Args:
        stride (float): Pixels per cell.
        image (Sequence[int]): Height and width in pixels.
        grid (Sequence[int]): Rows and columns of cells.
        slack (int): Cells more or less than rounding explains, as by
            convolutions without padding. Defaults to 0.

    Returns:
        bool: Whether ``floor(n / s) <= cells <= ceil(n / s)`` on both axes,
        within the slack.
    """
    return all(
        n // stride - slack <= g <= -(-n // stride) + slack
        for n, g in zip(image, grid)
    )
