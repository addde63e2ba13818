"""Official RCAN weights in the names of our modules."""

import re
from collections.abc import Iterator

import torch
from torch import Tensor

from .rcan import DIV2K_MEAN, SHUFFLES

# Official name of a layer, and ours.
RULES = [
    (r'head\.0', 'head'),
    (r'body\.(\d+)\.body\.(\d+)\.body\.0', 'trunk.groups.{}.blocks.{}.conv1'),
    (r'body\.(\d+)\.body\.(\d+)\.body\.2', 'trunk.groups.{}.blocks.{}.conv2'),
    (
        r'body\.(\d+)\.body\.(\d+)\.body\.3\.conv_du\.0',
        'trunk.groups.{}.blocks.{}.attention.reduce',
    ),
    (
        r'body\.(\d+)\.body\.(\d+)\.body\.3\.conv_du\.2',
        'trunk.groups.{}.blocks.{}.attention.expand',
    ),
    (r'tail\.1', 'upsampler.last'),
]
RULES = [(re.compile(pattern), name) for pattern, name in RULES]
# Behind the blocks of a group, and behind the groups.
GROUP_END = re.compile(r'body\.(\d+)\.body\.(\d+)')
TRUNK_END = re.compile(r'body\.(\d+)')
# A pixel shuffle, without weights, lies between each two.
STAGE = re.compile(r'tail\.0\.(\d*[02468])')
BLOCK = re.compile(r'body\.(\d+)\.body\.(\d+)\.body\..*')
LAYER = re.compile(r'(.+)\.(weight|bias)')
# Constants: the mean colour off the image, and onto the result.
SHIFTS = {'sub_mean': -1, 'add_mean': 1}
# Ranges of values that networks are trained on.
RANGES = (255.0, 1.0)


def convert(
    official: dict[str, Tensor],
) -> tuple[dict, dict[str, Tensor], list[str]]:
    """Weights of yulunzhang/RCAN @ f722e5d as those of an RCAN.

    Args:
        official (dict[str, Tensor]): State dict of a published checkpoint,
            without ``module.`` in front of its names.

    Returns:
        tuple[dict, dict[str, Tensor], list[str]]: Config of the model that
        fits, its state dict, and what to know, in lines of text.

    Raises:
        ValueError: If a key has no place, a key that tells a size is missing,
            or the mean colour is another one. Whether every parameter is
            filled, with its shape, is for the caller to check.
    """
    num_groups, num_blocks = _counts(official)
    ours, shifts = {}, {}
    for key, value in official.items():
        layer = LAYER.fullmatch(key)
        if layer and layer[1] in SHIFTS:
            shifts[key] = value
            continue
        name = layer and _name(layer[1], num_groups, num_blocks)
        if name is None:
            raise ValueError(
                f'{key} has no place in an RCAN of {num_groups} groups of '
                f'{num_blocks} blocks'
            )
        ours[f'{name}.{layer[2]}'] = value
    cfg = dict(
        type='mmplugins.RCAN',
        num_groups=num_groups,
        num_blocks=num_blocks,
        **_widths(ours),
        img_range=_img_range(shifts),
    )
    return cfg, ours, _notes(shifts, cfg['img_range'])


def _counts(official: dict[str, Tensor]) -> tuple[int, int]:
    """Groups, and blocks of each, that the names tell."""
    places = [
        tuple(map(int, found.groups()))
        for found in map(BLOCK.fullmatch, official)
        if found
    ]
    if not places:
        raise ValueError(
            f'no body.0.body.0.body.* among the {len(official)} keys, the '
            'first block of an RCAN'
        )
    groups, blocks = zip(*places)
    return max(groups) + 1, max(blocks) + 1


def _name(layer: str, num_groups: int, num_blocks: int) -> str | None:
    """Our name of an official layer; None for an unknown one."""
    for pattern, name in RULES:
        found = pattern.fullmatch(layer)
        if found:
            return name.format(*found.groups())
    group, trunk, stage = (
        pattern.fullmatch(layer) for pattern in (GROUP_END, TRUNK_END, STAGE)
    )
    if group and int(group[2]) == num_blocks:
        return f'trunk.groups.{group[1]}.conv'
    if trunk and int(trunk[1]) == num_groups:
        return 'trunk.conv'
    if stage:
        return f'upsampler.stages.{int(stage[1]) // 2}'
    return None


def _widths(ours: dict[str, Tensor]) -> dict[str, int]:
    """Arguments of the RCAN that the shapes tell."""
    attention = 'trunk.groups.0.blocks.0.attention.reduce.weight'
    stages = sorted(_stages(ours))
    for key in (attention, *(stages or ['upsampler.stages.0.weight'])):
        if key not in ours:
            raise ValueError(f'no key fills {key} of the RCAN')
        if ours[key].ndim != 4:
            raise ValueError(
                f'{key} is {tuple(ours[key].shape)}, no convolution'
            )
    hidden, channels = ours[attention].shape[:2]
    factors = tuple(
        round((ours[key].shape[0] / channels) ** 0.5) for key in stages
    )
    scale = next((s for s, f in SHUFFLES.items() if f == factors), None)
    if scale is None:
        raise ValueError(
            f'tail.0 enlarges by {factors}, no RCAN of the scales '
            f'{list(SHUFFLES)}'
        )
    return dict(
        mid_channels=channels,
        reduction=channels // hidden,
        upscale_factor=scale,
    )


def _stages(ours: dict[str, Tensor]) -> Iterator[str]:
    for key in ours:
        if key.startswith('upsampler.stages.') and key.endswith('.weight'):
            yield key


def _img_range(shifts: dict[str, Tensor]) -> float:
    """Range of the values that the constants are for."""
    mean = torch.tensor(DIV2K_MEAN)
    for img_range in RANGES:
        wanted = {}
        for layer, sign in SHIFTS.items():
            wanted[f'{layer}.weight'] = torch.eye(3).view(3, 3, 1, 1)
            wanted[f'{layer}.bias'] = sign * img_range * mean
        if all(
            value.shape == wanted[key].shape
            and torch.allclose(value.float(), wanted[key], rtol=1e-3)
            for key, value in shifts.items()
        ):
            return img_range
    raise ValueError(
        f'{", ".join(shifts)} are not the mean colour {DIV2K_MEAN} of DIV2K '
        f'in the range of {RANGES}'
    )


def _notes(shifts: dict[str, Tensor], img_range: float) -> list[str]:
    """What was dropped and what the images have to be."""
    lines = []
    if shifts:
        lines.append(
            f'dropped {", ".join(shifts)}: the mean colour of DIV2K, a '
            'constant of ours'
        )
    lines.append(
        f'takes RGB in [0, 1], which img_range={img_range:g} brings to the '
        'range that it was trained on'
    )
    return lines
