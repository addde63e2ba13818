"""Run one of the systems on images of your own."""

import argparse

import torch

from mmplugins.apis import featup, refine, upscale

# Each module has add_arguments(parser), run(args) and MEMORY_OPTION.
COMMANDS = {'featup': featup, 'refine': refine, 'upscale': upscale}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest='command', required=True)
    for name, module in COMMANDS.items():
        line = module.__doc__.partition('\n')[0]
        module.add_arguments(
            commands.add_parser(name, help=line, description=line)
        )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    command = COMMANDS[args.command]
    try:
        command.run(args)
    except torch.cuda.OutOfMemoryError as error:
        raise SystemExit(
            f'error: out of memory: give a smaller {command.MEMORY_OPTION}'
        ) from error
    except (ImportError, OSError, ValueError) as error:
        raise SystemExit(f'error: {error}') from error


if __name__ == '__main__':
    main()
