"""Score where a network of SSEN looks, on a stereo pair of known disparity.

The left photograph is made small; the right one is the reference. What shows
at a pixel of the left one shows DISPARITY pixels further left in the right
one. `prepare_data.py references OUT` makes such a pair, OUT/images/motorcycle
and OUT/disparity.
"""

import argparse
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mmplugins.apis.inference import read_image
from mmplugins.apis.predictions import write_metrics
from mmplugins.apis.upscaler import ReferenceUpscaler
from mmplugins.ssen.transforms import resize_bicubic
from mmplugins.ssen.visualization import displacement


def cells(disparity: np.ndarray, scale: int) -> np.ndarray:
    """Median of the known disparities of each cell, pixels, NaN if none."""
    height, width = (n // scale for n in disparity.shape)
    tiles = disparity[: height * scale, : width * scale]
    tiles = tiles.reshape(height, scale, width, scale).swapaxes(1, 2)
    tiles = np.where(np.isfinite(tiles), tiles, np.nan)
    tiles = tiles.reshape(height, width, -1)
    found = np.full((height, width), np.nan, np.float32)
    known = np.isfinite(tiles).any(-1)
    found[known] = np.nanmedian(tiles[known], -1)
    return found


def score(
    found: Tensor, disparity: np.ndarray, scale: int, within: Sequence[float]
) -> dict[str, float]:
    """How far centres are from the match, in pixels of the photographs.

    Args:
        found (Tensor): Displacement in cells, (2, h, w).
        disparity (np.ndarray): Of each cell, (h, w), pixels; NaN: unknown.
        scale (int): Pixels of the photographs to a cell.
        within (Sequence[float]): Distances in pixels to count centres within.

    Returns:
        dict[str, float]: Mean and median distance, and shares in percent, of
        the cells whose match lies on the right photograph.
    """
    dy, dx = scale * found.double().numpy()
    centre = scale * np.arange(disparity.shape[1]) + (scale - 1) / 2
    seen = np.isfinite(disparity) & (centre - disparity > -0.5)
    distance = np.hypot(dy, dx + disparity)[seen]
    if not distance.size:
        raise ValueError('no cell has a match on the right photograph')
    figures = {'mean': distance.mean(), 'median': np.median(distance)}
    shares = {
        f'within {x:g} px, %': 100 * (distance <= x).mean() for x in within
    }
    return {k: float(v) for k, v in (figures | shares).items()}


def probe(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Figures of no search at all and of the outputs of each layer."""
    upscaler = ReferenceUpscaler(args.config, args.checkpoint)
    if not upscaler.takes_references:
        raise ValueError(f'{args.config} takes no references')
    left, right = (read_image(path) for path in (args.left, args.right))
    try:
        disparity = np.load(args.disparity)
    except (OSError, ValueError) as error:
        raise ValueError(f'{args.disparity} is no .npy file') from error
    if disparity.shape != left.shape[:2] or left.shape != right.shape:
        raise ValueError(
            'photographs and disparity must be of one size, got '
            f'{left.shape[:2]}, {right.shape[:2]} and {disparity.shape}'
        )
    scale = upscaler.scale
    height, width = (n // scale for n in left.shape[:2])
    window = np.s_[: height * scale, : width * scale]
    small = resize_bicubic(left[window], (height, width))
    aux = upscaler.align(small, right[window])[0]
    truth = cells(disparity, scale)
    found = {'none': torch.zeros(2, height, width)}
    names = [f'layer {k + 1}' for k in range(len(aux))]
    if upscaler.generator.search is not None:
        names = ['search', *names[:-1]]
    for k, name in enumerate(names, 1):
        found[name] = displacement(aux[:k])
    return {
        name: score(one, truth, scale, args.within)
        for name, one in found.items()
    }


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add('config', help='config of a model with mmplugins.SSENNet')
    add('checkpoint', help='its weights')
    add('left', help='photograph to make small')
    add('right', help='reference')
    add('disparity', help='.npy of the left photograph, pixels')
    add(
        '--within',
        type=float,
        nargs='+',
        default=[2, 4, 8],
        metavar='PIXELS',
        help='distances to count centres within (default: 2 4 8)',
    )
    add('--metrics', metavar='FILE', help='write the figures as JSON')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    try:
        results = probe(args)
    except ValueError as error:
        raise SystemExit(f'error: {error}') from error
    for name, figures in results.items():
        text = ', '.join(f'{k} {v:.1f}' for k, v in figures.items())
        print(f'{name}: {text}')
    if args.metrics:
        write_metrics(results, args.metrics)


if __name__ == '__main__':
    main()
