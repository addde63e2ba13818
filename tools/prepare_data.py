"""Small data sets in the layouts that the configs read.

python tools/prepare_data.py shapes OUT --num-train 48 --num-val 16
python tools/prepare_data.py depth OUT
python tools/prepare_data.py masks OUT --num-train 32 --num-val 8
python tools/prepare_data.py references OUT
python tools/prepare_data.py references OUT SOURCE --steps 1 2
python tools/prepare_data.py cufed SOURCE OUT
"""

import argparse

from makers import depth, masks, references, shapes
from makers.files import MIN_SIZE

CLASSES = shapes.CLASSES
PALETTE = shapes.PALETTE
write_shapes = shapes.write_shapes
# Views of `references` without SOURCE.
DEMO = {'counts': {'train': 96, 'val': 4}, 'size': (160, 160)}


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
        more = {
            key: getattr(args, key)
            for key in ('photographs', 'kind')
            if hasattr(args, key)
        }
        size = tuple(args.size)
        done = write(args.out, counts, size, args.seed, args.overwrite, **more)
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


def _add_references(commands):
    """Adds the command of pairs of a target and its references."""
    parser = commands.add_parser(
        'references',
        help='pairs for reference-based super-resolution, of a folder of '
        'photographs or video frames, or a demo without one',
    )
    parser.set_defaults(run=_run_references)
    add = parser.add_argument
    add('out', metavar='OUT', help='folder to write')
    add(
        'source',
        metavar='SOURCE',
        nargs='?',
        help='folder of images, or of folders, one a scene, in the order of '
        "their names (default: scikit-image's stereo pair, and views of its "
        'photographs)',
    )
    add(
        '--steps',
        type=int,
        nargs='+',
        metavar='K',
        help='references of frame t are t + K, of SOURCE (default: 1)',
    )
    add(
        '--share',
        type=float,
        help='part of the scenes for validation, 1 for all, of SOURCE '
        '(default: 0.2)',
    )
    add('--link', action='store_true', help='link to SOURCE, copy nothing')
    for split, count in DEMO['counts'].items():
        words = {'train': 'training', 'val': 'validation'}[split]
        text = f'{words} views without SOURCE (default: {count})'
        add(f'--num-{split}', type=int, help=text)
    add(
        '--size',
        type=int,
        nargs=2,
        metavar=('HEIGHT', 'WIDTH'),
        help='of the views in pixels, without SOURCE (default: 160 160)',
    )
    add('--seed', type=int, default=0, help='at least 0 (default: 0)')
    add('--overwrite', action='store_true', help='replace another set')


def _run_references(args):
    counts = {'train': args.num_train, 'val': args.num_val}
    views = {f'num-{split}': count for split, count in counts.items()}
    views |= {'size': args.size}
    frames = {'steps': args.steps, 'share': args.share}
    frames |= {'link': args.link or None}
    refused = views if args.source else frames
    given = [name for name, value in refused.items() if value is not None]
    if given:
        reason = 'does not go with' if args.source else 'needs'
        raise ValueError(f'{given[0]} {reason} SOURCE')
    if args.source is None:
        counts = {
            split: DEMO['counts'][split] if count is None else count
            for split, count in counts.items()
        }
        size = tuple(args.size or DEMO['size'])
        done = references.write_demo(
            args.out, counts, size, args.seed, args.overwrite
        )
        _report(args.out, done, counts['train'], counts['val'] + 1, 'pairs')
        return
    done = references.write_frames(
        args.out,
        args.source,
        args.steps or (1,),
        0.2 if args.share is None else args.share,
        args.seed,
        args.link,
        args.overwrite,
    )
    counts, same = done or ({'train': 0, 'val': 0}, 0)
    _report(args.out, done, counts['train'], counts['val'], 'pairs')
    if same:
        print(f'left out {same} references equal to their target')


def _add_cufed(commands):
    """Adds the command that checks a copy of CUFED."""
    parser = commands.add_parser(
        'cufed', help='check a copy of CUFED or CUFED5 and list its pairs'
    )
    parser.set_defaults(run=_run_cufed)
    add = parser.add_argument
    add('source', metavar='SOURCE', help='folder of the copy')
    add('out', metavar='OUT', help='folder for train.json and test.json')
    add('--overwrite', action='store_true', help='replace other files')


def _run_cufed(args):
    counts, odd = references.write_cufed(args.out, args.source, args.overwrite)
    if counts is None:
        print(f'{args.out}: holds these files already, nothing to do')
    for file, count in (counts or {}).items():
        print(f'{args.out}/{file}: wrote {count} pairs')
    for line in odd:
        print(f'note: {line}')


def _report(out, done, num_train, num_val, what='images'):
    if done:
        print(f'{out}: wrote {num_train} + {num_val} {what}')
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
    add = _add_command(
        commands,
        'masks',
        'an object over a photograph, and its exact mask',
        _run_drawn(masks.write_masks),
        {'train': 32, 'val': 8},
        (2160, 3840),
        least,
    ).add_argument
    add(
        '--photographs',
        metavar='DIR',
        help="photographs to draw over, instead of scikit-image's",
    )
    add(
        '--kind',
        choices=masks.KINDS,
        default='objects',
        help='single bodies, or plants all over the image (default: objects)',
    )
    _add_references(commands)
    _add_cufed(commands)
    args = parser.parse_args(argv)
    try:
        args.run(args)
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        parser.exit(1, f'{parser.prog}: error: {error}\n')


if __name__ == '__main__':
    main()
