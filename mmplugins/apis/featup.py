"""Features of photographs before and after upsampling, as a contact sheet.

``tools/infer.py featup`` is the command line of it. An image is (H, W, 3) in
OpenCV's order, a pixel (y, x), C the channels of the features.
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.config import Config
from torch import Tensor, nn

from mmplugins.featup import FeatUp, ImplicitUpsampler
from mmplugins.featup.inspection import (
    Inspection,
    component_rows,
    find_neck,
    inspect_image,
    kernel_rows,
    similarity_rows,
)
from mmplugins.featup.similarity import check_query
from mmplugins.featup.upsamplers import BaseUpsampler
from mmplugins.visualization import contact_sheet

from .inference import (
    add_model_arguments,
    build_model,
    check_model_arguments,
    complete,
    load_weights,
    quiet,
    read_image,
    times,
    write_pictures,
)
from .launch import require_file

# What to make smaller where memory runs out.
MEMORY_OPTION = '--max-size'
# Parts of a model that the pictures show.
_PARTS = {
    'backbone',
    'norm',
    'upsampler',
    'downsampler',
    'scale_net',
    'neck',
    'featup',
}


class FeatUpInferencer:
    """Shows the features of single images and how they are upsampled.

    In the manner of mmengine's inferencers, but one image at a time: their
    features do not fit into memory together.

    Args:
        model (str | Config): Config, or its file, of
            :class:`mmplugins.featup.FeatUp` or of a model with a FeatUpNeck.
        weights (str, optional): Checkpoint file. Defaults to None: weights
            as the config initialises them.
        device (str): Where to compute. Defaults to ``'cpu'``.
        max_memory (float): MiB for upsampled channels; what needs all of
            them takes several turns. Defaults to 1024.

    Raises:
        ValueError: If the config holds no such model, or the checkpoint does
            not fit it.
    """

    def __init__(
        self,
        model: str | Config,
        weights: str | None = None,
        device: str = 'cpu',
        max_memory: float = 1024,
    ) -> None:
        self.model = build_model(model)
        if not isinstance(self.model, FeatUp):
            find_neck(self.model)
        if weights is None:
            with quiet():
                self.model.init_weights()
        else:
            load_all(self.model, weights)
        self.model.requires_grad_(False).to(device).eval()
        self.max_memory = max_memory

    @property
    def upsampler(self) -> BaseUpsampler:
        """The upsampler that is shown."""
        if isinstance(self.model, FeatUp):
            return self.model.upsampler
        return find_neck(self.model).upsamplers[-1]

    @property
    def in_channels(self) -> int:
        """Channels C of the features that are upsampled."""
        return self.upsampler.in_channels

    def __call__(
        self,
        image: str | np.ndarray,
        pixel: tuple[int, int] | None = None,
        query: np.ndarray | Tensor | None = None,
        max_size: int | None = None,
    ) -> tuple[np.ndarray, Inspection]:
        """Show one image.

        Args:
            image (str | np.ndarray): Image or its file.
            pixel (tuple[int, int], optional): Pixel to show the kernels of
                and what is similar to it. Defaults to None.
            query (np.ndarray | Tensor, optional): Vector (C,) to show what is
                similar to it. Defaults to None.
            max_size (int, optional): Longer side in pixels that a larger
                image is reduced to. Defaults to None, any. For an
                ImplicitUpsampler all images become as large as the one it
                was trained on, so that both cover the same area.

        Returns:
            tuple[np.ndarray, Inspection]: RGB sheet (H, W, 3), uint8, and
            what is in it.

        Raises:
            ValueError: If the file holds no image, the pixel lies outside,
                the vector is not of C numbers, or an ImplicitUpsampler
                belongs to another image.
        """
        if isinstance(image, str):
            image = read_image(image)
        if query is not None:
            query = torch.as_tensor(query)
            check_query(query, self.in_channels)
        if pixel is not None:
            check_pixel(pixel, image)
        whole = image.shape[:2]
        upsampler = self.upsampler
        trained = isinstance(upsampler, ImplicitUpsampler)
        trained = trained and upsampler.prepared
        if trained:
            size = upsampler.image_size.tolist()
            image = cv2.resize(image, size[::-1])
        else:
            image = _reduce(image, max_size)
        pixels = torch.from_numpy(image).permute(2, 0, 1)
        inspection = inspect_image(self.model, pixels)
        if trained and not upsampler.belongs_to(inspection.guidance):
            raise ValueError(
                'ImplicitUpsampler belongs to the image that it was trained '
                'on, and this is another: train one for it, or use JBUStack'
            )
        picture = pixels.flip(0) / 255
        rows = component_rows(inspection, picture)
        if pixel is not None:
            # The pixel that its centre falls into.
            pixel = tuple(
                int((p + 0.5) * new / old)
                for p, new, old in zip(pixel, inspection.size, whole)
            )
            rows += kernel_rows(inspection, picture, pixel)
        if pixel is not None or query is not None:
            rows += similarity_rows(
                inspection, picture, pixel, query, self.max_memory
            )
        return contact_sheet(rows, 3 * _column(image)), inspection

    def require_size(self, size: tuple[int, int]) -> None:
        """Check that images of a size are large enough, without one.

        Args:
            size (tuple[int, int]): Height and width in pixels.

        Raises:
            ValueError: If they have too few cells for the upsampler.
        """
        image = torch.zeros(3, *size, dtype=torch.uint8)
        inspection = inspect_image(self.model, image)
        inspection.linear(torch.zeros(1, self.in_channels))

    def save_features(
        self, inspection: Inspection, low: Path, high: Path
    ) -> None:
        """Write features as ``.npy``, some channels at a time.

        Args:
            inspection (Inspection): Image in the upsampler.
            low (Path): File for the features before, (C, h, w).
            high (Path): File for those after, (C, h', w').
        """
        with complete(high) as part:
            file, start = None, 0
            for block in inspection.high_chunks(self.max_memory):
                if file is None:
                    shape = (len(inspection.low), *block.shape[1:])
                    file = np.lib.format.open_memmap(
                        part, 'w+', np.float32, shape
                    )
                file[start : start + len(block)] = block.cpu().numpy()
                start += len(block)
            file.flush()
            del file
        with complete(low) as part, part.open('wb') as stream:
            np.save(stream, inspection.low.float().cpu().numpy())


def load_all(model: nn.Module, path: str) -> None:
    """Load a checkpoint and make sure that it held what will be shown.

    mmengine loads what fits and only logs the rest. A checkpoint without any
    backbone is fine, the backbone is then as the config initialises it.

    Args:
        model (nn.Module): Model to load into.
        path (str): Checkpoint file.

    Raises:
        ValueError: If it does not read, or lacks weights or has others.
    """
    held = {k: _shape(v) for k, v in load_weights(model, path).items()}
    wanted = {
        key: _shape(value)
        for key, value in model.state_dict().items()
        if key.partition('.')[0] in _PARTS
        and not key.endswith('num_batches_tracked')
    }
    if not any(key.startswith('backbone.') for key in held):
        wanted = {k: v for k, v in wanted.items() if k[:9] != 'backbone.'}
        with quiet():
            model.backbone.init_weights()
    missing = [key for key in wanted if key not in held]
    if missing:
        raise ValueError(
            f'checkpoint {path} does not fit the config: it lacks '
            f'{_list(missing)}'
        )
    others = [key for key, shape in wanted.items() if held[key] != shape]
    if others:
        raise ValueError(
            f'checkpoint {path} does not fit the config: other shapes of '
            f'{_list(others)}'
        )


def check_pixel(pixel: tuple[int, int], image: np.ndarray) -> None:
    """Raise unless a pixel lies in an image.

    Raises:
        ValueError: If it lies outside.
    """
    if not all(0 <= p < n for p, n in zip(pixel, image.shape)):
        raise ValueError(
            f'pixel {pixel[0]} {pixel[1]} (row, column) lies outside of the '
            f'image of {image.shape[0]} x {image.shape[1]}'
        )


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of ``tools/infer.py featup``.

    Args:
        parser (ArgumentParser): Parser to extend.
    """
    parser.add_argument('images', nargs='+', metavar='IMAGE')
    add_model_arguments(
        parser,
        config='config of mmplugins.FeatUp, or of a model with a FeatUpNeck',
        checkpoint='its weights; as the config initialises them by default',
    )
    query = parser.add_mutually_exclusive_group()
    query.add_argument(
        '--pixel',
        nargs=2,
        type=int,
        metavar=('Y', 'X'),
        help='show the kernels of this pixel and what is similar to it',
    )
    query.add_argument(
        '--text-embedding',
        metavar='FILE',
        help='.npy of a vector: show what is similar to it',
    )
    parser.add_argument(
        '--save-features',
        action='store_true',
        help='also write the features before and after, as .npy',
    )
    parser.add_argument(
        '--max-size',
        type=int,
        default=1024,
        metavar='N',
        help='reduce larger images to a longer side of N; 1024 by default',
    )


def run(args: Namespace) -> None:
    """Write a figure of each image that a command line names.

    All that can be wrong with the arguments shows before the first figure.

    Args:
        args (Namespace): Arguments of :func:`add_arguments`.

    Raises:
        OSError: If a file cannot be written.
        ValueError: If an argument is not valid.
    """
    check_model_arguments(args)
    if args.max_size < 1:
        raise ValueError(f'--max-size must be 1 or more, got {args.max_size}')
    sources, smallest = _check_images(args.images, args.pixel, args.max_size)
    query = args.text_embedding and _read_vector(args.text_embedding)
    inferencer = FeatUpInferencer(args.config, args.checkpoint, args.device)
    if query is not None:
        check_query(torch.from_numpy(query), inferencer.in_channels)
    if isinstance(inferencer.upsampler, ImplicitUpsampler):
        if len(sources) > 1:
            raise ValueError(
                'ImplicitUpsampler belongs to one image, got '
                f'{len(sources)} images'
            )
    else:
        path, size = smallest
        try:
            inferencer.require_size(size)
        except ValueError as error:
            raise ValueError(f'image {path}: {error}') from error
    if not args.checkpoint:
        print('no --checkpoint: weights as the config initialises them')
    folder = Path(args.out_dir)
    for stem, source in sources.items():
        sheet, inspection = inferencer(
            source, args.pixel, query, args.max_size
        )
        folder.mkdir(parents=True, exist_ok=True)
        if args.save_features:
            inferencer.save_features(
                inspection,
                *(folder / f'{stem}_{x}.npy' for x in ('low', 'high')),
            )
        target = folder / f'{stem}.png'
        write_pictures({target: sheet})
        print(f'{target}: {_describe(inspection, inferencer.max_memory)}')


def _check_images(
    paths: list[str], pixel: tuple[int, int] | None, max_size: int
) -> tuple[dict[str, str], tuple[str, tuple[int, int]]]:
    """Images by the names of their figures, and the least with its size."""
    sources, sizes = {}, {}
    for path in paths:
        image = read_image(path)
        if pixel is not None:
            check_pixel(pixel, image)
        other = sources.setdefault(Path(path).stem, path)
        if other != path:
            raise ValueError(
                f'figures are named after images: {other} and {path} would '
                'have the same'
            )
        sizes[path] = _reduced(image.shape[:2], max_size)
    return sources, min(sizes.items(), key=lambda item: min(item[1]))


def _read_vector(path: str) -> np.ndarray:
    require_file('--text-embedding', path)
    try:
        vector = np.load(path, allow_pickle=False)
    except (EOFError, ValueError) as error:
        raise ValueError(
            f'--text-embedding {path} is not an .npy of numbers'
        ) from error
    if not isinstance(vector, np.ndarray) or vector.dtype.kind not in 'fiu':
        raise ValueError(f'--text-embedding {path} is not an .npy of numbers')
    return vector.astype(np.float32)


def _reduce(image: np.ndarray, max_size: int | None) -> np.ndarray:
    """Reduce an image to a longer side, if it is larger."""
    rows, columns = _reduced(image.shape[:2], max_size)
    if (rows, columns) == image.shape[:2]:
        return np.ascontiguousarray(image)
    return cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA)


def _reduced(size: tuple[int, int], max_size: int | None) -> tuple[int, int]:
    """Height and width with a longer side of so many pixels at most."""
    if max_size is None or max(size) <= max_size:
        return size
    return tuple(max(1, round(n * max_size / max(size))) for n in size)


def _column(image: np.ndarray) -> int:
    """Width of a sheet's column: pictures of 480 to 800 pixels."""
    longer = max(image.shape[:2])
    factor = min(max(longer, 480), 800) / longer
    return max(240, round(factor * image.shape[1]))


def _describe(inspection: Inspection, max_memory: float) -> str:
    low = inspection.low
    fine = inspection.upsampler.output_size(
        inspection.feats, inspection.guidance
    )
    high = inspection.crop(torch.empty(fine, device='meta'))
    chunk = min(inspection.chunk(max_memory), len(low))
    return (
        f'image {times(inspection.size)}, features {times(low.shape)} to '
        f'{times(high.shape)}, at most {chunk} channels at a time'
    )


def _shape(value: object) -> tuple[int, ...]:
    return tuple(getattr(value, 'shape', ()))


def _list(keys: list[str]) -> str:
    """The first of many names."""
    more = f' and {len(keys) - 1} more' if len(keys) > 1 else ''
    return keys[0] + more
