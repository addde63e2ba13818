"""What the inferencers share: a model, its weights, images, whole files."""

import os
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from os import PathLike
from pathlib import Path

import cv2
import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import load_checkpoint
from torch import Tensor, nn

from mmplugins.compat import load_config

from .launch import require_file, require_folder


def add_model_arguments(
    parser: ArgumentParser, config: str, checkpoint: str
) -> None:
    """Add the arguments that all inferencers have.

    Args:
        parser (ArgumentParser): Parser to extend.
        config (str): Help of ``--config``.
        checkpoint (str): Help of ``--checkpoint``.
    """
    parser.add_argument('--config', required=True, help=config)
    parser.add_argument('--checkpoint', help=checkpoint)
    parser.add_argument(
        '--out-dir',
        default='work_dirs/infer',
        metavar='DIR',
        help='where the figures go; work_dirs/infer by default',
    )
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu')


def check_model_arguments(args: Namespace) -> None:
    """Check them before the work starts.

    Args:
        args (Namespace): Arguments of :func:`add_model_arguments`.

    Raises:
        ValueError: If a file does not exist, the folder cannot be one or
            there is no such device.
    """
    require_file('config', args.config)
    if args.checkpoint == 'none':  # as of tools/test.py
        args.checkpoint = None
    if args.checkpoint:
        require_file('checkpoint', args.checkpoint)
    require_folder('--out-dir', args.out_dir)
    if args.device == 'cuda' and not torch.cuda.is_available():
        raise ValueError('--device cuda: no GPU that torch can use')


def build_model(config: str | Config) -> nn.Module:
    """Build the model of a config, in the scope of its host.

    Args:
        config (str | Config): Config or its file.

    Returns:
        nn.Module: Model, not initialised yet.

    Raises:
        ValueError: If it has no model.
    """
    cfg = load_config(config) if isinstance(config, str) else config
    if 'model' not in cfg:
        raise ValueError(f'config {cfg.filename} has no model')
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        return MODELS.build(cfg.model)


def load_weights(model: nn.Module, path: str) -> dict[str, Tensor]:
    """Load what fits of a checkpoint.

    mmengine only logs what does not: it is for the caller to compare.

    Args:
        model (nn.Module): Model to load into.
        path (str): Checkpoint file.

    Returns:
        dict[str, Tensor]: What the file holds, without ``module.`` in front
        of the names.

    Raises:
        ValueError: If it does not read.
    """
    try:
        checkpoint = load_checkpoint(model, path, 'cpu', logger='silent')
    except Exception as error:  # pickle and zip have many
        reason = str(error).partition('\n')[0]
        raise ValueError(
            f'checkpoint {path} does not read: '
            f'{type(error).__name__}: {reason}'
        ) from error
    state = checkpoint.get('state_dict', checkpoint)
    return {key.removeprefix('module.'): x for key, x in state.items()}


def read_image(path: str) -> np.ndarray:
    """Read any photograph: grey becomes colour, transparency is left out.

    Args:
        path (str): File.

    Returns:
        np.ndarray: Image, upright, (H, W, 3), uint8.

    Raises:
        ValueError: If there is no such file or it is not an image.
    """
    require_file('image', path)
    try:
        image = mmcv.imread(path, backend='cv2')
    except cv2.error:  # of an empty file
        image = None
    if image is None:
        raise ValueError(f'{path} is not an image that OpenCV reads')
    return image


def as_image(
    image: str | PathLike | np.ndarray, channel_order: str
) -> np.ndarray:
    """An image in OpenCV's order, from an array or a file.

    Args:
        image (str | PathLike | np.ndarray): File, or (H, W, C) or grey
            (H, W), uint8 or uint16; of four channels the last is left out.
        channel_order (str): Order of an array, ``'bgr'`` or ``'rgb'``.

    Returns:
        np.ndarray: Image, (H, W, 3), uint8.

    Raises:
        ValueError: If it is no such image or there is no such order.
    """
    if channel_order not in ('bgr', 'rgb'):
        raise ValueError(
            f"channel_order must be 'bgr' or 'rgb', got {channel_order!r}"
        )
    if isinstance(image, (str, PathLike)):
        return read_image(str(image))
    if not isinstance(image, np.ndarray):
        raise ValueError(
            f'an image must be a file or an array, got {type(image).__name__}'
        )
    if image.ndim == 2:
        image = image[..., None]
    if (
        image.ndim != 3
        or image.shape[-1] not in (1, 3, 4)
        or image.dtype not in (np.uint8, np.uint16)
    ):
        raise ValueError(
            'an image must be (H, W), (H, W, 3) or (H, W, 4) of uint8 or '
            f'uint16, got {image.shape} of {image.dtype}'
        )
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    if image.shape[-1] == 1:
        image = image.repeat(3, -1)
    image = image[..., :3]
    image = image[..., ::-1] if channel_order == 'rgb' else image
    return np.ascontiguousarray(image)


def write_pictures(pictures: Mapping[Path, np.ndarray]) -> None:
    """Write pictures, all of them or none.

    Args:
        pictures (Mapping[Path, np.ndarray]): Files to write, and RGB
            (H, W, 3) or grey (H, W) of 8 or 16 bits.

    Raises:
        OSError: If one cannot be written.
    """
    with ExitStack() as stack:
        for path, picture in pictures.items():
            if picture.ndim == 3:
                picture = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
            done, data = cv2.imencode('.png', picture)
            if not done:
                raise OSError(f'cannot write {path}')
            part = stack.enter_context(complete(path))
            part.write_bytes(data.tobytes())


@contextmanager
def complete(path: Path) -> Iterator[Path]:
    """A file to write, which takes its name once it is complete.

    Args:
        path (Path): Its name.

    Yields:
        Path: Its name meanwhile.
    """
    part = path.with_name(path.name + '.part')
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def quiet() -> Iterator[None]:
    """Without mmengine's three lines for each parameter it initialises."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('WARNING')
    try:
        yield
    finally:
        logger.setLevel(level)


def times(shape: Iterable[int]) -> str:
    """A shape as people write it, such as 480 x 640."""
    return ' x '.join(map(str, shape))
