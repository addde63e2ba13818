"""Small data sets in the layouts that the configs read.

python tools/prepare_data.py shapes OUT --num-train 48 --num-val 16
python tools/prepare_data.py depth OUT
python tools/prepare_data.py masks OUT --num-train 32 --num-val 8
"""

import argparse

from makers import depth, masks, shapes
from makers.files import MIN_SIZE

CLASSES = shapes.CLASSES
PALETTE = shapes.PALETTE
write_shapes = shapes.write_shapes


def _add_command(commands, name, text, run, counts, size, limits):
    """Adds a command with the options that all share."""
    parser = commands.add_parser(
        name,
        help=text,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    add('out', metavar='OUT', help='folder to write')
    for split, count in counts.items():
        words = {'train': 'training', 'val': 'validation'}[split]
        add(f'--num-{split}', type=int, default=count, help=f'{words} images')
    add(
        '--size',
        type=int,
        nargs=2,
        default=size,
        metavar=('HEIGHT', 'WIDTH'),
        help=f'in pixels, {limits}',
    )
    add('--seed', type=int, default=0, help='at least 0')
    add('--overwrite', action='store_true', help='replace another set')
    return parser


def _run_drawn(write):
    """Runner of a command whose images are drawn, by `write`."""

    def run(args):
        counts = {'train': args.num_train, 'val': args.num_val}
        done = write(
            args.out, counts, tuple(args.size), args.seed, args.overwrite
        )
        _report(args.out, done, *counts.values())

    return run


def _run_depth(args):
    size = tuple(args.size)
    done = depth.write_depth(
        args.out,
        size,
        args.seed,
        args.num_train,
        args.held_out,
        args.overwrite,
    )
    tiles = len(depth.depth_windows('val', size, held_out=args.held_out))
    _report(args.out, done, args.num_train, tiles)


def _report(out, done, num_train, num_val):
    if done:
        print(f'{out}: wrote {num_train} + {num_val} images')
    else:
        print(f'{out}: holds this set already, nothing to do')


def main(argv=None):
    """Runs a command line, by default the process's own."""
    parser = argparse.ArgumentParser(description='Prepares small data sets.')
    commands = parser.add_subparsers(metavar='COMMAND', required=True)
    least = f'each at least {MIN_SIZE}'
    _add_command(
        commands,
        'shapes',
        'exact shapes drawn over photographs',
        _run_drawn(shapes.write_shapes),
        {'train': 48, 'val': 16},
        (128, 192),
        least,
    )
    _add_command(
        commands,
        'depth',
        'crops of a photograph and its depth, one half for training',
        _run_depth,
        {'train': 24},
        (160, 352),
        f'{MIN_SIZE} {MIN_SIZE} to 500 370',
    ).add_argument(
        '--held-out',
        choices=depth.SIDES,
        default='right',
        help='half of the photograph for validation',
    )
    _add_command(
        commands,
        'masks',
        'an object over a photograph, and its exact mask',
        _run_drawn(masks.write_masks),
        {'train': 32, 'val': 8},
        (2160, 3840),
        least,
    )
    args = parser.parse_args(argv)
    try:
        args.run(args)
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        parser.exit(1, f'{parser.prog}: error: {error}\n')


if __name__ == '__main__':
    main()
