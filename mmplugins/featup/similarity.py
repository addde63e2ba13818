"""Cosine similarity of one feature to all upsampled ones, in bounded memory.

C channels, h' x w' upsampled map, n channels at a time. ``linear(weight
(K, C)) -> (K, h', w')`` is the 1x1 convolution of the upsampled features,
which a linear upsampler applies before it upsamples. The dot products take
one channel of it, but the lengths need all: they are summed over n at a time.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

# As in torch.nn.functional.cosine_similarity.
_EPS = 1e-8

Linear = Callable[[Tensor], Tensor]


def channel_chunks(
    linear: Linear, like: Tensor, chunk: int
) -> Iterator[Tensor]:
    """Upsampled features, some channels at a time.

    Args:
        linear (Callable): As above.
        like (Tensor): Features before they are upsampled, (C, h, w): their
            number of channels, type and device.
        chunk (int): Channels n at a time.

    Yields:
        Tensor: Channels of the upsampled features, (n, h', w') or fewer.

    Raises:
        ValueError: If ``chunk`` is below 1.
    """
    if chunk < 1:
        raise ValueError(f'chunk must be 1 or more, got {chunk}')
    channels = len(like)
    for start in range(0, channels, chunk):
        rows = torch.arange(start, min(start + chunk, channels))
        weight = like.new_zeros(len(rows), channels)
        weight[rows - start, rows] = 1
        yield linear(weight)


def similarity_to(
    linear: Linear, like: Tensor, query: Tensor, chunk: int
) -> Tensor:
    """Cosine similarity of a vector to every upsampled feature.

    Args:
        linear (Callable): As above.
        like (Tensor): Features before they are upsampled, (C, h, w).
        query (Tensor): Vector, (C,).
        chunk (int): Channels at a time.

    Returns:
        Tensor: Similarity in [-1, 1], (h', w').

    Raises:
        ValueError: If the vector is not of C numbers.
    """
    check_query(query, len(like))
    squares = sum(
        part.square().sum(0) for part in channel_chunks(linear, like, chunk)
    )
    return _cosine(linear, like, query, squares)


def similarity_at(
    linear: Linear, like: Tensor, cell: tuple[int, int], chunk: int
) -> Tensor:
    """Cosine similarity of one upsampled feature to all of them.

    Args:
        linear (Callable): As above.
        like (Tensor): Features before they are upsampled, (C, h, w).
        cell (tuple[int, int]): Row and column of the one.
        chunk (int): Channels at a time.

    Returns:
        Tensor: Similarity in [-1, 1], (h', w').
    """
    squares, query = 0, []
    for part in channel_chunks(linear, like, chunk):
        squares = squares + part.square().sum(0)
        query.append(part[:, cell[0], cell[1]])
    return _cosine(linear, like, torch.cat(query), squares)


def check_query(query: Tensor, channels: int) -> None:
    """Raise unless a vector can be compared with features.

    Args:
        query (Tensor): Vector.
        channels (int): Channels C of the features.

    Raises:
        ValueError: If it is not of shape (C,), not finite, or zero.
    """
    if query.shape != (channels,):
        raise ValueError(
            f'a query of these features has shape ({channels},), got '
            f'{tuple(query.shape)}'
        )
    if not query.isfinite().all() or not query.any():
        raise ValueError('a query must be finite and not zero')


def _cosine(
    linear: Linear, like: Tensor, query: Tensor, squares: Tensor
) -> Tensor:
    """Dot products over lengths."""
    query = query.to(like)
    product = linear(query[None])[0]
    lengths = squares.sqrt() * query.norm()
    return (product / lengths.clamp_min(_EPS)).clamp(-1, 1)
