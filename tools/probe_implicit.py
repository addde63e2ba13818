"""Score FeatUp's implicit upsampler by a linear probe that is not retrained.

The probe learned from one upsampler's maps. On a few validation images, evenly
spaced, its weights see maps of the same features by others: nearest, bilinear,
a JBU, and the network fitted to the image.
"""

import argparse
import time

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner, load_checkpoint
from torch import Tensor, nn

from mmplugins import featup
from mmplugins.apis import launch
from mmplugins.apis.featup import FeatUpInferencer
from mmplugins.apis.predictions import write_metrics
from mmplugins.compat import load_config
from mmplugins.featup.inspection import find_neck


class ImplicitOverCells(nn.Module):
    """A fitted network as the upsampler of a neck, at the image's pixels.

    A neck continues the guidance to what its cells cover and cuts the result
    to the image. The network knows the image from edge to edge, so its map is
    made of the image alone and continued likewise: the cut leaves that map.
    """

    def __init__(self, network: nn.Module, size: torch.Size, start: int):
        super().__init__()
        self.network, self.size, self.start = network, size, start

    def linear(self, feats: Tensor, guidance: Tensor, weight: Tensor):
        """1x1 convolution of the features, (1, C, h, w) -> (1, K, H', W')."""
        (height, width), start = self.size, self.start
        image = guidance[..., start : start + height, start : start + width]
        out = self.network.linear(feats, image, weight, size=self.size)
        below, right = (
            m - start - n for m, n in zip(guidance.shape[-2:], self.size)
        )
        return F.pad(out, (start, right, start, below), mode='replicate')


def fit(model: nn.Module, image: Tensor, steps: int) -> tuple[nn.Module, dict]:
    """Fit a network to an image (1, 3, H, W) and the features of a neck."""
    neck, level = model.neck, model.neck.levels[0]

    def features(images: Tensor) -> Tensor:
        return neck.reductions[0](neck.norms[0](model.backbone(images)[level]))

    begin = time.perf_counter()
    fitted = featup.fit_implicit(
        image,
        features,
        steps=steps,
        stride=neck.strides[0] and round(neck.strides[0]),
        offset=neck.offsets[0],
        generator=torch.Generator().manual_seed(0),
    )
    facts = dict(seconds=time.perf_counter() - begin, kept=fitted.kept)
    start, size = -neck.offsets[0], image.shape[-2:]
    return ImplicitOverCells(fitted.upsampler, size, start), facts


def load_probe(cfg: Config, checkpoint: str) -> nn.Module:
    """The probe with all weights of a checkpoint."""
    model = MODELS.build(cfg.model)
    levels = getattr(getattr(model, 'neck', None), 'levels', ())
    if not getattr(model, 'linear_head', False) or len(levels) != 1:
        raise ValueError(
            f'{cfg.filename} is no linear probe: its model needs a FeatUpNeck '
            'of one level and linear_head=True'
        )
    try:
        load_checkpoint(model, checkpoint, 'cpu', strict=True, logger='silent')
    except Exception as error:  # pickle and zip have many
        raise ValueError(
            f'checkpoint {checkpoint} does not fit the config: '
            f'{" ".join(str(error).split())[:200]}'
        ) from error
    model.backbone.memory = 0  # of FrozenBackbone: no view comes again
    return model.requires_grad_(False).eval()


def load_jbu(config: str, checkpoint: str, channels: int) -> nn.Module:
    """The upsampler of another checkpoint, of FeatUp or a FeatUpNeck."""
    model = FeatUpInferencer(config, checkpoint).model
    alone = isinstance(model, featup.FeatUp)
    upsampler = model.upsampler if alone else find_neck(model).upsamplers[-1]
    if upsampler.in_channels != channels:
        raise ValueError(
            f'--jbu {config} upsamples {upsampler.in_channels} channels, the '
            f'probe takes {channels}'
        )
    return upsampler


def score(args: argparse.Namespace, cfg: Config) -> dict:
    """Figures of each map, which images they are of, what the fits took."""
    model = load_probe(cfg, args.checkpoint)
    own = model.neck.upsamplers[0]
    like = (own.in_channels, own.num_stages, own.scale)
    maps = dict(
        nearest=featup.NearestUpsampler(*like),
        bilinear=featup.BilinearUpsampler(*like),
    )
    if args.jbu:
        maps['jbu'] = load_jbu(*args.jbu, own.in_channels)
    maps['implicit'] = None  # another for each image
    dataset = Runner.build_dataloader(cfg.val_dataloader).dataset
    count, number = len(dataset), args.num_images
    if not 1 <= number <= count:
        raise ValueError(f'--num-images must be 1 to {count}, got {number}')
    evaluators = {name: Evaluator(cfg.val_evaluator) for name in maps}
    images, fits = [], []
    for k in range(number):
        batch = pseudo_collate([dataset[(2 * k + 1) * count // (2 * number)]])
        image = model.data_preprocessor(batch, False)['inputs']
        maps['implicit'], facts = fit(model, image, args.steps)
        images.append(batch['data_samples'][0].img_path)
        fits.append(facts)
        print(f'{images[-1]}: fitted in {facts["seconds"]:.1f} s', flush=True)
        for name, evaluator in evaluators.items():
            evaluator.dataset_meta = dataset.metainfo
            model.neck.upsamplers[0] = maps[name]
            evaluator.process(model.val_step(batch), batch)
    figures = {name: one.evaluate(number) for name, one in evaluators.items()}
    return dict(maps=figures, images=images, fits=fits)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add('config', help='config of the probe')
    add('checkpoint', help='its weights')
    add('--jbu', nargs=2, metavar=('CONFIG', 'CHECKPOINT'), help='a JBU too')
    add('--num-images', type=int, default=4, help='4 by default')
    add('--steps', type=int, default=300, help='of each fit; 300 by default')
    add('--metrics', metavar='FILE', help='write the figures as JSON')
    add(
        '--cfg-options',
        nargs='+',
        action=launch.KeyValueAction,
        metavar='KEY=VALUE',
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    MMLogger.get_current_instance().setLevel('ERROR')  # no table per map
    try:
        for path in (args.config, args.checkpoint, *(args.jbu or ())):
            launch.require_file('file', path)
        launch.require_writable('--metrics', args.metrics)
        if args.steps < 1:
            raise ValueError(f'--steps must be 1 or more, got {args.steps}')
        cfg = load_config(args.config, args.cfg_options)
        with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
            results = score(args, cfg)
    except (ImportError, ValueError) as error:
        raise SystemExit(f'error: {error}') from error
    # Without the figures of single classes, such as IoU.Sky.
    names = [key for key in results['maps']['implicit'] if '.' not in key]
    print(f'{"map":<9}', *(f'{name:>8}' for name in names))
    for key, figures in results['maps'].items():
        print(f'{key:<9}', *(f'{figures[name]:8.2f}' for name in names))
    seconds = [facts['seconds'] for facts in results['fits']]
    print(f'{sum(seconds) / len(seconds):.1f} s per fit')
    if args.metrics:
        write_metrics(results, args.metrics)


if __name__ == '__main__':
    main()
