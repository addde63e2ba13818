"""Official CRM weights in the names of our modules."""

import re
from collections.abc import Iterator

import torch
from torch import Tensor

BACKBONE = 'feats.'
# Computed and thrown away by the official network.
DEAD = 'feats.layer4.'
STEM = 'feats.conv1.weight'
# Official name of a level -> its place, from the finest.
LEVELS = {'128': 0, '256': 1, '1024': 2}
LEVEL = re.compile(
    r'aspp_\.(aspp1|bn1)_(128|256|1024)\.(?:(atrous_conv|bn)\.)?(\w+)'
)
FUSION = re.compile(r'aspp_\.last_conv\.([01])\.(\w+)')
# Linear layers of the decoder, with a ReLU between each two.
DECODER = re.compile(r'imnet\.layers\.(\d*[02468])\.(weight|bias)')
COUNT = 'num_batches_tracked'


def convert(
    official: dict[str, Tensor],
) -> tuple[dict, dict[str, Tensor], list[str]]:
    """Weights of dvlab-research/Entity @ c4939b6 as those of a CRM.

    Args:
        official (dict[str, Tensor]): State dict of a published checkpoint,
            without ``module.`` in front of its names.

    Returns:
        tuple[dict, dict[str, Tensor], list[str]]: Config of the model that
        fits, its state dict, and what to know, in lines of text.

    Raises:
        ValueError: If a key has no place, or the first convolution is not of
            an image and a mask. Whether every parameter is filled, with its
            shape, is for the caller to check.
    """
    ours, dropped = {}, 0
    for key, value in official.items():
        if key.startswith(DEAD):
            dropped += 1
            continue
        name = _name(key)
        if name is None:
            raise ValueError(f'{key} has no place in a CRM')
        if key == STEM:
            if value.ndim != 4 or value.shape[1] != 4:
                raise ValueError(
                    f'{key} is {tuple(value.shape)}, no convolution of 4 '
                    'channels, an image and a mask'
                )
            ours[name] = value[:, :3]
            ours[name.replace('weight', 'mask_weight')] = value[:, 3:]
        else:
            ours[name] = value
    counts = [name for name in _counts(ours) if name not in ours]
    ours.update({name: torch.tensor(0) for name in counts})
    cfg = dict(
        type='mmplugins.CRM',
        decode_head=dict(type='mmplugins.CRMHead', align_corners=True),
        data_preprocessor=dict(
            type='ImgDataPreprocessor',
            mean=[123.675, 116.28, 103.53],
            std=[58.395, 57.12, 57.375],
            bgr_to_rgb=True,
        ),
    )
    return cfg, ours, _notes(dropped, len(counts))


def _name(key: str) -> str | None:
    """Our name of an official key; None for an unknown one."""
    level, fusion, decoder = (
        pattern.fullmatch(key) for pattern in (LEVEL, FUSION, DECODER)
    )
    if level:
        kind, channels, part, rest = level.groups()
        place = f'decode_head.levels.{LEVELS[channels]}'
        return {
            ('aspp1', 'atrous_conv'): f'{place}.0.conv.{rest}',
            ('aspp1', 'bn'): f'{place}.0.bn.{rest}',
            ('bn1', None): f'{place}.1.{rest}',
        }.get((kind, part))
    if fusion:
        part, rest = fusion.groups()
        return f'decode_head.fusion.{"bn" if int(part) else "conv"}.{rest}'
    if decoder:
        number, rest = decoder.groups()
        return f'decode_head.decoder.layers.{int(number) // 2}.{rest}'
    if key.startswith(BACKBONE):
        return f'backbone.net.{key.removeprefix(BACKBONE)}'
    return None


def _counts(ours: dict[str, Tensor]) -> Iterator[str]:
    """Counters of the batch norms, which old files do not have."""
    for name in ours:
        prefix, _, rest = name.rpartition('.')
        if rest == 'running_mean':
            yield f'{prefix}.{COUNT}'


def _notes(dropped: int, counts: int) -> list[str]:
    """What was dropped and filled, and what the model needs."""
    lines = []
    if dropped:
        lines.append(f'dropped {DEAD}* (never used): {dropped} tensors')
    if counts:
        lines.append(f'set {counts} missing {COUNT} to 0')
    lines.append(
        'made for levels resized by align_corners=True in CRMHead, and for '
        "images normalised by ImageNet's mean and deviation"
    )
    return lines
