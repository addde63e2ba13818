"""Official FeatUp weights in the names of our modules."""

import re
from math import isqrt

from torch import Tensor

PREFIX = 'upsampler.'
# What a whole checkpoint holds besides.
OTHERS = {
    'model.': 'backbone',
    'downsampler.': 'downsampler',
    'scale_net.': 'uncertainty',
}
NORM = 'model.1.norm.'
NECK_NORM = "norm=dict(type='mmplugins.ChannelNorm')"
# up3.range_proj.0.weight -> stage 3; SimFeatUp has one stage, up, for all.
STAGE = re.compile(
    r'up([1-9]\d*)?\.(range_temp|sigma_spatial|'
    r'(?:range_proj|fixup_proj)\.[03]\.(?:weight|bias))'
)
RESIDUAL = re.compile(r'fixup_proj\.1\.(?:weight|bias)')
# SimFeatUp applies its stage so many times.
SHARED_STAGES = 4


def convert(
    official: dict[str, Tensor],
) -> tuple[dict, dict[str, Tensor], list[str]]:
    """Weights of mhamilton723/FeatUp @ 6b5a6c0 as those of a JBUStack.

    Args:
        official (dict[str, Tensor]): State dict of a published checkpoint, or
            of its upsampler alone, then without ``upsampler.`` in the names.
            A shared stage (likyoo/SimFeatUp @ 76a91a2) is fine.

    Returns:
        tuple[dict, dict[str, Tensor], list[str]]: Config of the module that
        fits, its state dict, and what to know, in lines of text.

    Raises:
        ValueError: If a key has no place, a key that tells a size is missing
            or both kinds of stages are there. Whether every parameter is
            filled, with its shape, is for the caller to check.
    """
    whole = any(key.startswith(PREFIX) for key in official)
    prefix = PREFIX if whole else ''
    ours, numbers = {}, set()
    dropped = dict.fromkeys(OTHERS if whole else (), 0)
    for key, value in official.items():
        other = next((name for name in dropped if key.startswith(name)), None)
        name = key.removeprefix(prefix)
        stage = STAGE.fullmatch(name)
        if other:
            dropped[other] += 1
        elif not key.startswith(prefix) or not (
            stage or RESIDUAL.fullmatch(name)
        ):
            raise ValueError(f'{key} has no place in a JBUStack')
        elif stage:
            number, rest = stage.groups()
            numbers.add(number)
            ours[f'stages.{int(number or 1) - 1}.{rest}'] = value
        else:
            ours[name] = value
    if None in numbers and len(numbers) > 1:
        raise ValueError('up, one stage for all, does not go with up1, up2')
    cfg = _config(ours)
    if None in numbers:
        cfg.update(num_stages=SHARED_STAGES, shared=True)
    else:
        cfg.update(num_stages=len(numbers))
    return cfg, ours, _notes(official, dropped)


def _config(ours: dict[str, Tensor]) -> dict:
    """Arguments of the JBUStack that the shapes tell."""
    keys = (
        'fixup_proj.1.bias',
        'stages.0.fixup_proj.3.bias',
        'stages.0.range_proj.0.weight',
    )
    missing = [key for key in keys if key not in ours]
    if missing:
        raise ValueError(f'no key fills {", ".join(missing)} of the JBUStack')
    channels, taps = (ours[key].numel() for key in keys[:2])
    if isqrt(taps) ** 2 != taps or taps % 2 == 0:
        raise ValueError(
            f'{keys[1]} has {taps} values, which are no window of odd width'
        )
    shape = ours[keys[2]].shape
    if len(shape) != 4:
        raise ValueError(f'{keys[2]} is {tuple(shape)}, no convolution')
    return dict(
        type='mmplugins.JBUStack',
        in_channels=channels,
        radius=isqrt(taps) // 2,
        key_channels=shape[0],
        guidance_channels=shape[1],
    )


def _notes(official: dict[str, Tensor], dropped: dict[str, int]) -> list[str]:
    """What was dropped and what the features have to be."""
    lines = [
        f'dropped {name}* ({OTHERS[name]}): {count} tensors'
        for name, count in dropped.items()
        if count
    ]
    norm = {k: v for k, v in official.items() if k.startswith(NORM)}
    if norm:
        lines.append(
            f'made for features after layer normalisation: set {NECK_NORM} '
            'in FeatUpNeck'
        )
        identity = all(
            (value == (1 if key.endswith('weight') else 0)).all()
            for key, value in norm.items()
        )
        if not identity:
            lines.append(
                f'{NORM}* also scale and shift, which is dropped: the '
                'features will differ'
            )
    elif dropped.get('model.'):
        lines.append(
            'made for features as the backbone gives them (no_norm): leave '
            'norm out of FeatUpNeck'
        )
    else:
        lines.append(
            'does not tell its features: published weights that are not of '
            f'no_norm need {NECK_NORM} in FeatUpNeck'
        )
    return lines
