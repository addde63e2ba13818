"""Convert official checkpoints to ours.

    python tools/convert_checkpoint.py {featup,crm,rcan} SRC DST

DST is a plain state dict: it loads strictly into the module that is printed,
and as init_cfg=dict(type='Pretrained', checkpoint=DST).
"""

import argparse
import os
from pathlib import Path

import torch
from mmengine.registry import MODELS

from mmplugins.apis import launch
from mmplugins.apis.checkpoints import (
    read_state_dict,
    require_fit,
    write_state_dict,
)
from mmplugins.crm import checkpoints as crm
from mmplugins.featup import checkpoints as featup
from mmplugins.ssen import checkpoints as rcan

# Name -> what is converted, and the function for it: official state dict to
# config of our module, its state dict and lines that say what to know.
SYSTEMS = {
    'featup': ('FeatUp, for JBUStack', featup.convert),
    'crm': ('CRM, with a ResNet-50', crm.convert),
    'rcan': ('RCAN, of any scale', rcan.convert),
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(
        dest='system', metavar='SYSTEM', required=True
    )
    for name, (text, _) in SYSTEMS.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument(
            'src', metavar='SRC', help='official checkpoint, left as it is'
        )
        command.add_argument('dst', metavar='DST', help='file to write')
    return parser.parse_args(argv)


def convert(system: str, src: str, dst: str) -> list[str]:
    """Converts a checkpoint file.

    Args:
        system: Key of `SYSTEMS`.
        src: Official checkpoint.
        dst: File to write, replaced only by a whole new one.

    Returns:
        Lines that say what was done.
    """
    launch.require_file('checkpoint', src)
    launch.require_writable('DST', dst)
    if Path(dst).exists() and os.path.samefile(src, dst):
        raise ValueError(f'DST {dst} is SRC itself')
    official = read_state_dict(src)
    cfg, ours, notes = SYSTEMS[system][1](official)
    with torch.device('meta'):  # its shapes are enough
        model = MODELS.build(cfg)
    require_fit(model, ours)
    write_state_dict(ours, dst)
    arguments = ', '.join(f'{key}={value!r}' for key, value in cfg.items())
    return [
        f'read {len(official)} tensors, wrote {len(ours)} to {dst}',
        *notes,
        f"dict({arguments}, init_cfg=dict(type='Pretrained', "
        f'checkpoint={dst!r}))',
    ]


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    try:
        lines = convert(args.system, args.src, args.dst)
    except (OSError, ValueError) as error:
        raise SystemExit(f'error: {error}') from error
    print('\n'.join(lines))


if __name__ == '__main__':
    main()
