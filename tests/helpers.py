"""Checks that several test files share."""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def assert_all_parameters_get_gradients(model: nn.Module) -> None:
    """Every trainable parameter has a finite gradient that is not all zero."""
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert trainable, 'no trainable parameter'
    missing = [n for n, p in trainable.items() if p.grad is None]
    assert not missing, f'no gradient: {missing}'
    dead = [n for n, p in trainable.items() if not p.grad.any()]
    assert not dead, f'zero gradient: {dead}'
    wild = [n for n, p in trainable.items() if not p.grad.isfinite().all()]
    assert not wild, f'gradient not finite: {wild}'


def leaf(x: Tensor) -> Tensor:
    """A double precision leaf that collects gradients."""
    return x.detach().double().requires_grad_()


def centres(size: Sequence[int]) -> Tensor:
    """Centres of cells in [-1, 1], (y, x), (P, 2)."""
    axes = [(2 * torch.arange(n).double() + 1) / n - 1 for n in size]
    return torch.stack(torch.meshgrid(*axes, indexing='ij'), -1).flatten(0, 1)


def literal_ensemble(
    feats: Tensor,
    size: Sequence[int],
    layers: Sequence[tuple[Tensor, Tensor]],
    offset: bool = True,
    coord: bool = True,
    ratio: bool = True,
) -> Tensor:
    """LIIF's local ensemble as published, in float64: (B, K, *size).

    Every target has a coordinate, and the code there is sampled.
    """
    B, _, h, w = feats.shape
    cells = torch.tensor([h, w]).double()
    where = centres(size)[None].expand(B, -1, -1)
    of_codes = centres((h, w)).T.view(1, 2, h, w).expand(B, -1, -1, -1)
    answers, areas = [], []
    for v in itertools.product((-1, 1), (-1, 1)):
        c = where + torch.tensor(v) / cells + 1e-6
        grid = c.clamp(-1 + 1e-6, 1 - 1e-6).flip(-1)[:, :, None]
        z, q = (
            F.grid_sample(x, grid, mode='nearest', align_corners=False)
            .squeeze(-1)
            .mT
            for x in (feats.double(), of_codes)
        )
        rel = (where - q) * cells
        parts = [z] + [rel] * offset + [where] * coord
        if ratio:
            cell = 2 / torch.tensor(size).double() * cells
            parts.append(cell.expand_as(rel))
        x = torch.cat(parts, -1)
        for k, (weight, bias) in enumerate(layers):
            x = x.relu() if k else x
            x = x @ weight.double().T + bias.double()
        answers.append(x)
        areas.append(rel[..., 0].mul(rel[..., 1]).abs() + 1e-9)
    blend = sum(a * s[..., None] for a, s in zip(answers, reversed(areas)))
    return (blend / sum(areas)[..., None]).mT.unflatten(-1, tuple(size))
