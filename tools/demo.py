"""Train and compare a segmentation config with and without FeatUp.

Everything is made on the spot: shapes drawn over scikit-image's photographs,
two trainings of minutes on a CPU, pictures and a page in ``work_dirs/demo``.
"""

import argparse
import html
import re
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import prepare_data
import torch
from mmseg.apis import init_model
from mmseg.evaluation import IoUMetric

from mmplugins.compat import load_config
from mmplugins.featup.visualization import pca_images

ROOT = Path(__file__).resolve().parents[1]
OUT = Path('work_dirs/demo')
SHAPES = OUT / 'shapes'
COUNTS = {'train': 192, 'val': 32}
SIZE = (128, 192)
RUNS = {
    'without FeatUp': 'r18_fcn_1xb8-400_shapes-128x192',
    'with FeatUp': 'featup-jbu_r18_fcn_1xb8-400_shapes-128x192',
}
PROGRESS = re.compile(r'Iter\(train\) \[\s*(\d+)/(\d+)\].* loss: ([\d.]+)')
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>mmplugins: FeatUp demo</title>
<style>
body {{ font: 16px/1.5 sans-serif; max-width: 80em; margin: 2em auto; }}
figure {{ display: inline-block; margin: 0 1em 1em 0; }}
img {{ width: 24em; image-rendering: pixelated; display: block; }}
td, th {{ padding: 0.1em 1.5em 0.1em 0; text-align: right; }}
td:first-child, th:first-child {{ text-align: left; }}
</style>
<h1>Features at the image's resolution</h1>
<p>One segmentation network, trained twice from scratch for the same
{iterations} iterations on {count} drawn images, with the same seed: on its
features of stride 32, and on the same features upsampled to stride 4 by
FeatUp's joint bilateral upsampling. The head's convolution comes before the
upsampling and its classifier after; the upsampler learns at ten times the rate
of the rest.</p>
<h2>IoU on {val} other images, in per cent</h2>
<table>
{table}
</table>
<p>Rings and bars are a few pixels thin, a tenth of a cell.</p>
<h2>One of them</h2>
<p>{legend}</p>
{figures}
<p>Both feature maps are shown in one basis of principal components.</p>
</html>
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--iterations',
        type=int,
        default=400,
        help='of each training, 21 or more; 400 by default',
    )
    args = parser.parse_args()
    if args.iterations < 21:
        parser.error(f'--iterations must be 21 or more: {args.iterations}')
    return args


def main() -> None:
    args = parse_args()
    print(
        'Demo: two trainings of a small network, with and without FeatUp; '
        'about four minutes on two CPU cores.',
        flush=True,
    )
    OUT.mkdir(parents=True, exist_ok=True)
    prepare_data.write_shapes(SHAPES, COUNTS, SIZE, seed=0, overwrite=True)
    print(f'{SHAPES}: {COUNTS["train"]} + {COUNTS["val"]} drawn images')
    figures = {
        name: train_and_test(name, config, args.iterations)
        for name, config in RUNS.items()
    }
    rows = table(figures)
    pictures = draw(args.iterations)
    page = OUT / 'index.html'
    page.write_text(render_page(rows, pictures, args.iterations))
    print()
    for row in rows:
        print(f'{row[0]:12}' + ''.join(f'{cell:>16}' for cell in row[1:]))
    print(f'\nPictures and numbers: {page.resolve()}')


def config_path(name: str) -> Path:
    return ROOT / f'configs/featup/{name}.py'


def train_and_test(name: str, config: str, iterations: int) -> np.ndarray:
    """Run the two tools on a config; IoU of each class in per cent."""
    path, work_dir = config_path(config), OUT / config
    print(f'\n{name}: tools/train.py {path.relative_to(ROOT)}', flush=True)
    run(
        *('train', path, '--work-dir', work_dir, '--cfg-options'),
        f'train_cfg.max_iters={iterations}',
        f'train_cfg.val_interval={iterations}',
        f'default_hooks.checkpoint.interval={iterations}',
        f'param_scheduler.1.end={iterations}',
    )
    predictions = work_dir / 'predictions'
    run(
        *('test', path, work_dir / f'iter_{iterations}.pth'),
        *('--work-dir', work_dir, '--out', predictions),
        *('--metrics', work_dir / 'metrics.json'),
    )
    return class_iou(predictions, SHAPES / 'labels/val')


def run(tool: str, *arguments: object) -> None:
    """Run a tool with its log in a file and its progress in lines."""
    log = OUT / f'{tool}.log'
    command = [sys.executable, ROOT / f'tools/{tool}.py', *arguments]
    start = time.time()
    with (
        log.open('w') as file,
        subprocess.Popen(
            [str(part) for part in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process,
    ):
        for line in process.stdout:
            file.write(line)
            if match := PROGRESS.search(line):
                step, total, loss = match.groups()
                print(
                    f'  iteration {step} of {total}, loss {loss}, '
                    f'{time.time() - start:.0f} s',
                    flush=True,
                )
    if process.returncode:
        raise SystemExit(f'error: tools/{tool}.py failed, see {log}')


def class_iou(predictions: Path, labels: Path) -> np.ndarray:
    """IoU of each class over two folders of class maps, in per cent."""
    areas = []
    for path in sorted(labels.glob('*.png')):
        pair = [
            torch.from_numpy(cv2.imread(str(file), cv2.IMREAD_UNCHANGED))
            for file in (predictions / path.name, path)
        ]
        classes = len(prepare_data.CLASSES)
        areas.append(IoUMetric.intersect_and_union(*pair, classes, 255))
    totals = [sum(area) for area in zip(*areas)]
    return 100 * IoUMetric.total_area_to_metrics(*totals)['IoU']


def table(figures: dict[str, np.ndarray]) -> list[list[str]]:
    """Rows of cells: a header, the classes, their mean."""
    rows = [['', *figures]]
    for index, name in enumerate(prepare_data.CLASSES):
        rows.append([name, *(f'{v[index]:.1f}' for v in figures.values())])
    rows.append(['mean', *(f'{v.mean():.1f}' for v in figures.values())])
    return rows


def draw(iterations: int) -> dict[str, Path]:
    """Write pictures of the first validation image; files by title."""
    name = '000000.png'
    image = cv2.imread(str(SHAPES / 'images/val' / name))
    without, guided = (OUT / config for config in RUNS.values())
    model = init_model(
        load_config(str(config_path(guided.name))),
        str(guided / f'iter_{iterations}.pth'),
        device='cpu',
    )
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    with torch.no_grad():
        inputs = model.data_preprocessor({'inputs': [pixels]})['inputs']
        feats = model.backbone(inputs)
        # As the upsampler gets them, in the space of what it returns.
        low = model.neck.reductions[0](feats[-1])[0]
        high = model.neck(feats, inputs)[-1][0]
    high, low = (
        (255 * x).byte().permute(1, 2, 0).numpy()
        for x in pca_images([high, low])
    )
    palette = np.array(prepare_data.PALETTE, np.uint8)
    labels = {
        'ground truth': SHAPES / 'labels/val' / name,
        'prediction without FeatUp': without / 'predictions' / name,
        'prediction with FeatUp': guided / 'predictions' / name,
    }
    pictures = {
        'input': cv2.cvtColor(image, cv2.COLOR_BGR2RGB),
        'backbone features (PCA)': low,
        'upsampled features (PCA)': high,
        **{
            title: palette[cv2.imread(str(path), cv2.IMREAD_UNCHANGED)]
            for title, path in labels.items()
        },
    }
    return {title: write(title, x) for title, x in pictures.items()}


def write(title: str, image: np.ndarray) -> Path:
    """Write an RGB picture at twice the image's size, cells as they are."""
    path = OUT / (re.sub(r'\W+', '_', title).strip('_') + '.png')
    size = (2 * SIZE[1], 2 * SIZE[0])
    image = cv2.resize(image, size, interpolation=cv2.INTER_NEAREST)
    if not cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR)):
        raise OSError(f'cannot write {path}')
    return path


def render_page(
    rows: list[list[str]], pictures: dict[str, Path], iterations: int
) -> str:
    lines = [
        '<tr>' + ''.join(f'<{tag}>{cell}</{tag}>' for cell in row) + '</tr>'
        for tag, row in zip(['th'] + ['td'] * len(rows), rows)
    ]
    figures = [
        f'<figure><img src="{path.name}" alt="{html.escape(title)}">'
        f'<figcaption>{html.escape(title)}</figcaption></figure>'
        for title, path in pictures.items()
    ]
    return PAGE.format(
        iterations=iterations,
        count=COUNTS['train'],
        val=COUNTS['val'],
        table='\n'.join(lines),
        legend=' '.join(
            f'<span style="color: rgb{tuple(colour)}">&#9632;</span> {name}'
            for name, colour in zip(prepare_data.CLASSES, prepare_data.PALETTE)
        ),
        figures='\n'.join(figures),
    )


if __name__ == '__main__':
    main()
