"""Convolution with a kernel of its own at every pixel, as matrix products.

B batch, C channels, h x w cells, S pixels per cell along each axis, K x K
window, P = K * K taps row by row. A source is padded already: it is
(h + K - 1) x (w + K - 1), and tap (i, j) of pixel (y, x) reads it at
(y // S + i, x // S + j). Maps are (B, C, ., .) with the channels next to each
other in memory (channels_last), and so are the results.

The m pixels of a tile of cells see n values of the source together. Their
kernels are a matrix (m, n) that is zero outside of a band; its product with
the source (n, C) is the result, that of the result with the source is the
matrix of the kernels' gradients, and that of its transpose with the result is
the source's gradient. The band takes up half of a matrix at K = 7, but a
product runs at many times the speed of multiply-adds over shifted maps, which
wait for the memory.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Cells along each side of a tile, at most.
_CELLS = 4
# Elements of the windows of all tiles at once: they stay in the cache.
_BLOCK = 2**20


class _Tiles(NamedTuple):
    """A grid of tiles of one size."""

    top: int
    left: int
    """Its first row and column of cells."""
    rows: int
    columns: int
    height: int
    width: int
    """Cells of each tile."""


def gather(x: Tensor, kernel: Tensor, size: int, scale: int) -> Tensor:
    """Weigh the window around each pixel by that pixel's kernel.

    ``out[b, c, y, x] = sum_ij kernel[b, i K + j, y, x]
    * x[b, c, y // S + i, x // S + j]``.

    Args:
        x (Tensor): Padded source, (B, C, h + K - 1, w + K - 1).
        kernel (Tensor): Kernels, (B, K * K, S h, S w), in the dtype of ``x``.
        size (int): Window K.
        scale (int): Pixels S per cell.

    Returns:
        Tensor: Filtered map, (B, C, S h, S w).
    """
    out = _empty(x, x.shape[1], *kernel.shape[-2:])
    with torch.autocast(x.device.type, enabled=False):
        for source, taps, pixels in zip(
            _last(x), _last(kernel), _last(out), strict=True
        ):
            work = _Work(source, source.shape[-1], size, scale)
            for tiles in work.tiles(taps):
                work.load_windows(tiles, source)
                work.load_kernels(tiles, taps)
                torch.bmm(work.matrices, work.windows, out=work.pixels)
                work.store_pixels(tiles, pixels)
    return out


def correlate(g: Tensor, x: Tensor, size: int, scale: int) -> Tensor:
    """Compare each pixel with every cell of the window around it.

    ``out[b, i K + j, y, x] = sum_c g[b, c, y, x]
    * x[b, c, y // S + i, x // S + j]``.

    Args:
        g (Tensor): Vectors at the pixels, (B, C, S h, S w).
        x (Tensor): Padded source, (B, C, h + K - 1, w + K - 1), in the dtype
            of ``g``.
        size (int): Window K.
        scale (int): Pixels S per cell.

    Returns:
        Tensor: Dot products, (B, K * K, S h, S w).
    """
    out = _empty(g, size**2, *g.shape[-2:])
    with torch.autocast(g.device.type, enabled=False):
        for pixels, source, taps in zip(
            _last(g), _last(x), _last(out), strict=True
        ):
            work = _Work(source, source.shape[-1], size, scale)
            for tiles in work.tiles(pixels):
                work.load_windows(tiles, source)
                work.load_pixels(tiles, pixels)
                torch.bmm(work.pixels, work.windows.mT, out=work.matrices)
                work.store_kernels(tiles, taps)
    return out


def scatter(g: Tensor, kernel: Tensor, size: int, scale: int) -> Tensor:
    """Spread each pixel over the window around it by its kernel.

    ``out[b, c, Y, X] = sum kernel[b, i K + j, y, x] * g[b, c, y, x]`` over
    all taps and pixels with ``y // S + i = Y`` and ``x // S + j = X``.

    Args:
        g (Tensor): Map, (B, C, S h, S w).
        kernel (Tensor): Kernels, (B, K * K, S h, S w), in the dtype of ``g``.
        size (int): Window K.
        scale (int): Pixels S per cell.

    Returns:
        Tensor: Padded source, (B, C, h + K - 1, w + K - 1).
    """
    height, width = (n // scale + size - 1 for n in g.shape[-2:])
    out = _empty(g, g.shape[1], height, width).zero_()
    with torch.autocast(g.device.type, enabled=False):
        for pixels, taps, source in zip(
            _last(g), _last(kernel), _last(out), strict=True
        ):
            work = _Work(source, source.shape[-1], size, scale)
            for tiles in work.tiles(pixels):
                work.load_kernels(tiles, taps)
                work.load_pixels(tiles, pixels)
                torch.bmm(work.matrices.mT, work.pixels, out=work.windows)
                work.add_windows(tiles, source)
    return out


def _empty(x: Tensor, channels: int, height: int, width: int) -> Tensor:
    return torch.empty(
        (x.shape[0], channels, height, width),
        dtype=x.dtype,
        device=x.device,
        memory_format=torch.channels_last,
    )


def _last(x: Tensor) -> Iterator[Tensor]:
    """Each map of a batch as (h, w, C), without a copy if it lies so."""
    for one in x:
        one = one.permute(1, 2, 0)
        # A single channel may have any stride.
        yield one if one.stride(2) == 1 else one.contiguous()


def _spans(cells: int) -> Iterator[tuple[int, int, int]]:
    """First cell, number and size of tiles of like sizes."""
    count = -(-cells // _CELLS)
    small, larger = divmod(cells, max(1, count))
    if larger:
        yield 0, larger, small + 1
    if larger < count:
        yield larger * (small + 1), count - larger, small


class _Work:
    """Matrices of the tiles at hand, and their way to and from the maps.

    Args:
        like (Tensor): Map whose dtype and device they have.
        channels (int): Channels C of source and result.
        size (int): Window K.
        scale (int): Pixels S per cell.
    """

    def __init__(
        self, like: Tensor, channels: int, size: int, scale: int
    ) -> None:
        self.new = like.new_empty
        self.channels = channels
        self.size = size
        self.scale = scale
        self.shape: tuple[int, ...] | None = None

    def tiles(self, pixels: Tensor) -> Iterator[_Tiles]:
        """Cover a map of (S h, S w, .) pixels, with memory for each part."""
        height, width = (n // self.scale for n in pixels.shape[:2])
        for top, rows, tile_h in _spans(height):
            for left, columns, tile_w in _spans(width):
                inside = tile_h * tile_w * self.scale**2
                seen = (tile_h + self.size - 1) * (tile_w + self.size - 1)
                most = _BLOCK // (seen * max(inside, self.channels))
                step_x = max(1, min(columns, most))
                step_y = max(1, min(rows, most // step_x))
                for y in range(0, rows, step_y):
                    for x in range(0, columns, step_x):
                        tiles = _Tiles(
                            top + y * tile_h,
                            left + x * tile_w,
                            min(step_y, rows - y),
                            min(step_x, columns - x),
                            tile_h,
                            tile_w,
                        )
                        self._allocate(tiles)
                        yield tiles

    def load_windows(self, tiles: _Tiles, source: Tensor) -> None:
        """Copy what the tiles see of a source (h + K - 1, w + K - 1, C)."""
        row, column, step = source.stride()
        seen = _view(
            source,
            (tiles.top, tiles.left),
            self.by_window.shape,
            (tiles.height * row, tiles.width * column, row, column, step),
        )
        self.by_window.copy_(seen)

    def add_windows(self, tiles: _Tiles, source: Tensor) -> None:
        """Add them to the source, where those of neighbours overlap."""
        row, column, step = source.stride()
        for y, windows in enumerate(self.by_window):  # one row of tiles
            # As many columns as a tile has: those do not.
            for x in range(0, windows.shape[2], tiles.width):
                part = windows[:, :, x : x + tiles.width]
                _view(
                    source,
                    (tiles.top + y * tiles.height, tiles.left + x),
                    part.shape,
                    (tiles.width * column, row, column, step),
                ).add_(part)

    def load_pixels(self, tiles: _Tiles, pixels: Tensor) -> None:
        """Copy the tiles of a map (S h, S w, C)."""
        self.by_pixel.copy_(self._pixels(tiles, pixels))

    def store_pixels(self, tiles: _Tiles, pixels: Tensor) -> None:
        """Copy the tiles into such a map."""
        self._pixels(tiles, pixels).copy_(self.by_pixel)

    def load_kernels(self, tiles: _Tiles, taps: Tensor) -> None:
        """Copy kernels (S h, S w, K * K) into the band; the rest is 0."""
        self.band.copy_(self._kernels(tiles, taps))

    def store_kernels(self, tiles: _Tiles, taps: Tensor) -> None:
        """Copy the band into such kernels."""
        self._kernels(tiles, taps).copy_(self.band)

    def _allocate(self, tiles: _Tiles) -> None:
        if tiles[2:] == self.shape:
            return  # the band is written anew, the rest is still 0
        self.shape = tiles[2:]
        rows, columns, height, width = self.shape
        size, scale, channels = self.size, self.scale, self.channels
        window = (height + size - 1, width + size - 1)
        count, seen = rows * columns, window[0] * window[1]
        pixels = (scale * height, scale * width)
        inside = pixels[0] * pixels[1]
        self.windows = self.new(count, seen, channels)
        self.pixels = self.new(count, inside, channels)
        self.matrices = self.new(count, inside, seen).zero_()
        # The same by rows and columns of tiles, and of each tile.
        self.by_window = self.windows.view(rows, columns, *window, channels)
        self.by_pixel = self.pixels.view(rows, columns, *pixels, channels)
        # Tap (i, j) of pixel (p, q) of cell (y, x): its value of the window
        # is i rows and j columns after that of the cell.
        row = pixels[1] * seen  # a row of pixels further
        self.band = self.matrices.as_strided(
            (rows, columns, height, scale, width, scale, size, size),
            (
                columns * inside * seen,
                inside * seen,
                scale * row + window[1],
                row,
                scale * seen + 1,
                seen,
                window[1],
                1,
            ),
        )

    def _pixels(self, tiles: _Tiles, pixels: Tensor) -> Tensor:
        """Part of a map, in the order of ``by_pixel``."""
        row, column, step = pixels.stride()
        height, width = self.scale * tiles.height, self.scale * tiles.width
        return _view(
            pixels,
            (self.scale * tiles.top, self.scale * tiles.left),
            self.by_pixel.shape,
            (height * row, width * column, row, column, step),
        )

    def _kernels(self, tiles: _Tiles, taps: Tensor) -> Tensor:
        """Kernels of the tiles, in the order of ``band``."""
        row, column, step = taps.stride()
        scale = self.scale
        return _view(
            taps,
            (scale * tiles.top, scale * tiles.left),
            self.band.shape,
            (
                tiles.height * scale * row,
                tiles.width * scale * column,
                scale * row,
                row,
                scale * column,
                column,
                self.size * step,
                step,
            ),
        )


def _view(
    x: Tensor,
    start: tuple[int, int],
    shape: Sequence[int],
    strides: Sequence[int],
) -> Tensor:
    """View of a map (h, w, C) from a row and a column on."""
    offset = x.storage_offset()
    offset += start[0] * x.stride(0) + start[1] * x.stride(1)
    return x.as_strided(shape, strides, offset)
