"""Feature maps as pictures: principal components in one shared basis.

C channels, h x w maps of any size. Components are counted from 0 in the order
of the variance they explain.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def pca_images(maps: Sequence[Tensor], first: int = 0) -> list[Tensor]:
    """Three principal components of feature maps as red, green and blue.

    The basis and the range of colours come from the first map and serve all,
    so that equal features have equal colours.

    Args:
        maps (Sequence[Tensor]): Maps of one feature space, each (C, h, w).
        first (int): Component shown as red. Defaults to 0.

    Returns:
        list[Tensor]: Images in [0, 1], each (3, h, w).

    Raises:
        ValueError: If the maps differ in channels or have too few of them.
    """
    channels = {x.shape[0] for x in maps}
    if len(channels) != 1 or min(channels) < first + 3:
        raise ValueError(
            f'components {first} to {first + 2} need maps of one number of '
            f'channels above that, got {sorted(channels)}'
        )
    cells = maps[0].flatten(1).T.double()  # (h w, C)
    mean = cells.mean(0)
    covariance = (cells - mean).T @ (cells - mean)
    # Eigenvalues come in ascending order.
    basis = torch.linalg.eigh(covariance)[1].flip(1)[:, first : first + 3]
    # A sign of its own, the same on every machine.
    basis = basis * basis.gather(0, basis.abs().argmax(0)[None]).sign()
    shown = (cells - mean) @ basis  # (h w, 3)
    low, high = shown.quantile(
        torch.tensor([0.01, 0.99], dtype=shown.dtype, device=shown.device), 0
    )
    images = []
    for x in maps:
        values = (x.flatten(1).T.double() - mean) @ basis
        values = (values - low) / (high - low).clamp_min(1e-12)
        images.append(values.clamp(0, 1).T.reshape(3, *x.shape[1:]).float())
    return images
