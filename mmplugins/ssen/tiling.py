"""Super-resolution of large images: alignment at once, details in tiles.

h x w low-resolution image, s scale. Images are RGB in [0, 1]. A reference may
be anywhere in relation to the image, so what is read from it is never cut: the
maps of image and references, which are small, are those of the whole. Only
what follows runs on tiles, and gives what it gives without them.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from mmplugins.ops.implicit import Window
from mmplugins.ops.tiling import tiles

from .generator import SSENNet
from .rcan import RCAN


def upscale(
    generator: nn.Module,
    image: Tensor,
    references: Sequence[Tensor] | None = None,
    tile: int | None = None,
) -> Tensor:
    """Upscale images, in tiles where they are large.

    Args:
        generator (nn.Module): :class:`mmplugins.ssen.SSENNet` or
            :class:`mmplugins.ssen.RCAN`; without ``tile`` any network of
            images, or of images and a list of references.
        image (Tensor): Low-resolution images, (B, 3, h, w).
        references (Sequence[Tensor], optional): References, each
            (B, 3, H, W) of a size of its own. Defaults to None, none: the
            image is its own reference.
        tile (int, optional): Pixels of the low-resolution image across that
            are worked on at once. Defaults to None, all.

    Returns:
        Tensor: Upscaled images, (B, 3, s h, s w).

    Raises:
        ValueError: If ``tile`` is below 1, or the generator does not run in
            tiles.
    """
    check_tile(tile)
    if tile is None or max(image.shape[-2:]) <= tile:
        if references is None:
            return generator(image)
        return generator(image, references)
    found = None
    for window, part in upscale_tiles(generator, image, references, tile):
        if found is None:
            size = [generator.upscale_factor * n for n in image.shape[-2:]]
            found = part.new_empty(*part.shape[:2], *size)
        found[(..., *window.slices)] = part
    return found


def upscale_tiles(
    generator: nn.Module,
    image: Tensor,
    references: Sequence[Tensor] | None = None,
    tile: int | None = None,
) -> Iterator[tuple[Window, Tensor]]:
    """Upscale images window by window, in little memory.

    Args:
        generator (nn.Module): :class:`mmplugins.ssen.SSENNet` or
            :class:`mmplugins.ssen.RCAN`.
        image (Tensor): Low-resolution images, (B, 3, h, w).
        references (Sequence[Tensor], optional): As of :func:`upscale`.
            Defaults to None.
        tile (int, optional): As of :func:`upscale`. Defaults to None.

    Yields:
        tuple[Window, Tensor]: Window, in pixels of the result, and what there
        is in the whole result, to rounding.

    Raises:
        ValueError: As of :func:`upscale`.
    """
    check_tile(tile)
    if isinstance(generator, SSENNet):
        # Offsets and masks need not stay.
        feat, fused = generator.encode(image, references)[:2]
        yield from generator.reconstruct_tiles(feat, fused, tile)
    elif isinstance(generator, RCAN):
        if references is not None:
            raise ValueError('mmplugins.RCAN takes no references')
        feat = generator.extract(image)
        for window in tiles(image.shape[-2:], tile):
            large = Window(*(generator.upscale_factor * n for n in window))
            yield large, generator.reconstruct(feat, window)
    else:
        raise ValueError(
            'tile is for mmplugins.SSENNet and mmplugins.RCAN, the generator '
            f'is {type(generator).__name__}'
        )


def check_tile(tile: int | None) -> None:
    """Check the size of tiles.

    Args:
        tile (int, optional): Pixels of a tile across; None for no tiles.

    Raises:
        ValueError: If it is below 1.
    """
    if tile is not None and tile < 1:
        raise ValueError(f'tile must be 1 or more pixels, or None, got {tile}')


def as_references(x: Tensor | Sequence[Tensor] | None) -> list[Tensor] | None:
    """References in one form.

    Args:
        x (Tensor | Sequence[Tensor], optional): One reference (B, 3, H, W),
            several of one size (B, R, 3, H, W), or a sequence of one or more;
            none is fine.

    Returns:
        list[Tensor] | None: Each (B, 3, H, W); None without any.
    """
    if x is None:
        return None
    if torch.is_tensor(x):
        return [*x.unbind(1)] if x.ndim == 5 else [x]
    return [*x] or None
