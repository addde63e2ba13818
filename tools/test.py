"""Test a checkpoint of any config of mmseg, mmpretrain or mmagic."""

import argparse

from mmplugins.apis import launch
from mmplugins.apis.predictions import SaveMetricsHook, SavePredictionsHook


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    launch.add_arguments(parser)
    parser.add_argument(
        'checkpoint', help='checkpoint file; none for a model without weights'
    )
    parser.add_argument(
        '--show-dir', metavar='DIR', help='write pictures of the predictions'
    )
    parser.add_argument(
        '--out', metavar='DIR', help='write the predictions themselves'
    )
    parser.add_argument(
        '--metrics', metavar='FILE', help='write the figures as JSON'
    )
    views = parser.add_mutually_exclusive_group()
    views.add_argument(
        '--tta', action='store_true', help='test with augmentation'
    )
    views.add_argument(
        '--refine',
        nargs=2,
        metavar=('CRM_CONFIG', 'CRM_CHECKPOINT'),
        help='refine the predictions of a segmentor; options of '
        'mmplugins.RefinedSegmentor go to refined_model of the config, e.g. '
        '--cfg-options refined_model.per=component',
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    try:
        launch.require_checkpoint(args.checkpoint)
        cfg = launch.read_config(args)
        cfg.load_from = None if args.checkpoint == 'none' else args.checkpoint
        if args.refine:
            launch.enable_refine(cfg, *args.refine)
        if args.show_dir:
            launch.enable_pictures(cfg, args.show_dir)
        if args.tta:
            launch.enable_tta(cfg)
        launch.require_folder('--out', args.out)
        launch.require_folder('--show-dir', args.show_dir)
        launch.require_writable('--metrics', args.metrics)
    except (ImportError, ValueError) as error:
        raise SystemExit(f'error: {error}') from error
    runner = launch.build_runner(cfg)
    if args.out:
        runner.register_hook(SavePredictionsHook(args.out))
    if args.metrics:
        runner.register_hook(SaveMetricsHook(args.metrics))
    runner.test()
    launch.leave_process_group()


if __name__ == '__main__':
    main()
