"""Train any config of mmseg, mmpretrain or mmagic, with mmplugins or not."""

import argparse

from mmplugins.apis import launch


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    launch.add_arguments(parser)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='PATH',
        help='continue from PATH, or from the newest checkpoint in the '
        'work_dir if no path is given',
    )
    parser.add_argument(
        '--amp', action='store_true', help='train in mixed precision'
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate with the batch size',
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    try:
        cfg = launch.read_config(args)
        if args.amp:
            launch.enable_amp(cfg)
        if args.auto_scale_lr:
            launch.enable_auto_scale_lr(cfg)
        if args.resume:
            launch.enable_resume(cfg, args.resume)
    except (ImportError, ValueError) as error:
        raise SystemExit(f'error: {error}') from error
    launch.build_runner(cfg).train()
    launch.leave_process_group()


if __name__ == '__main__':
    main()
