"""Images upscaled, with the details of references where there are any.

``tools/infer.py upscale`` is the command line of it,
:class:`~mmplugins.apis.upscaler.ReferenceUpscaler` what Python calls.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import cv2

from mmplugins.ssen.visualization import check_point

from .inference import (
    add_model_arguments,
    check_model_arguments,
    read_image,
    times,
    write_pictures,
)
from .launch import require_folder
from .upscaler import DEFAULT_TILE, ReferenceUpscaler

__all__ = ['ReferenceUpscaler', 'add_arguments', 'run']

# What to make smaller where memory runs out.
MEMORY_OPTION = '--tile'


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of ``tools/infer.py upscale``.

    Args:
        parser (ArgumentParser): Parser to extend.
    """
    parser.add_argument(
        'images', nargs='+', metavar='IMAGE', help='images to upscale'
    )
    parser.add_argument(
        '--ref',
        nargs='+',
        default=[],
        metavar='FILE',
        help='images of any size that show the same; without, each image is '
        'searched for its own repetitions',
    )
    add_model_arguments(
        parser,
        config='config of a model with mmplugins.SSENNet or mmplugins.RCAN',
        checkpoint='its weights',
    )
    parser.add_argument(
        '--tile',
        type=int,
        metavar='N',
        help='reconstruct N pixels of the image across at once, with the '
        f'same result; that of the config by default, else {DEFAULT_TILE}',
    )
    parser.add_argument(
        '--pictures',
        metavar='DIR',
        help='also draw there what is taken from the references',
    )
    parser.add_argument(
        '--point',
        nargs=2,
        type=int,
        metavar=('Y', 'X'),
        help='pixel of the image, counted from 0, whose samples the picture '
        'shows; the middle by default. Without --pictures it goes to '
        '--out-dir',
    )


def run(args: Namespace) -> None:
    """Upscale the images that a command line names.

    All that can be wrong with the arguments shows before the first file.

    Args:
        args (Namespace): Arguments of :func:`add_arguments`.

    Raises:
        OSError: If a file cannot be written.
        ValueError: If an argument is not valid.
    """
    check_model_arguments(args)
    require_folder('--pictures', args.pictures)
    pictures = args.pictures or (args.out_dir if args.point else None)
    references = [read_image(path) for path in args.ref]
    for path in args.images:
        size = read_image(path).shape[:2]
        if args.point:
            check_point(args.point, size)
    upscaler = ReferenceUpscaler(
        args.config, args.checkpoint, args.device, args.tile
    )
    if references and not upscaler.takes_references:
        raise ValueError(f'--ref: {args.config} takes no references')
    if pictures and not upscaler.aligns:
        raise ValueError(
            f'--pictures and --point: {args.config} aligns nothing'
        )
    targets = _targets(args, pictures, upscaler.scale)
    if not references and upscaler.takes_references:
        print('no --ref: each image is its own reference')
    for folder in filter(None, [args.out_dir, pictures]):
        Path(folder).mkdir(parents=True, exist_ok=True)
    for path, (target, drawing) in zip(args.images, targets):
        image = read_image(path)
        start = perf_counter()
        result = upscaler.upscale(image, references)
        seconds = perf_counter() - start
        files = {target: cv2.cvtColor(result, cv2.COLOR_BGR2RGB)}
        if drawing is not None:
            files[drawing] = upscaler.show(
                image, result, references, args.point
            )
        write_pictures(files)
        print(
            f'{target}: {times(image.shape[:2])} to '
            f'{times(result.shape[:2])}, {seconds:.2f} s'
        )


def _targets(
    args: Namespace, pictures: str | None, scale: int
) -> Sequence[tuple[Path, Path | None]]:
    """Files of each image, or an error where they are not its own."""
    inputs = {Path(x).resolve() for x in (*args.images, *args.ref)}
    targets, sources = [], {}
    for path in args.images:
        stem = Path(path).stem
        other = sources.setdefault(stem, path)
        if len(sources) == len(targets):
            raise ValueError(
                f'files are named after images: {other} and {path} would '
                'have the same'
            )
        target = Path(args.out_dir, f'{stem}_x{scale}.png')
        drawing = pictures and Path(pictures, f'{stem}_sheet.png')
        for file in filter(None, (target, drawing)):
            if file.resolve() in inputs:
                raise ValueError(f'{file} would be written over what is read')
        targets.append((target, drawing))
    return targets
