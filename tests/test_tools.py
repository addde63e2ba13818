"""The command lines of ``tools/``, from the shell, with each host."""

import json
import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import prepare_data
import pytest
import torch

ROOT = Path(__file__).parents[1]
TOOLS = ROOT / 'tools'
HOSTS = ('mmseg', 'mmpretrain', 'mmagic')
# What the hosts' own hooks name a picture of an image, under --show-dir.
PICTURES = {
    'mmseg': 'vis_data/vis_image/test_{}.png_*.png',
    'mmpretrain': '{}.png_*.png',
    'mmagic': 'vis_data/vis_image/{}_*.png',
}
# Small enough for mmseg to predict several classes after four iterations,
# large enough for mmpretrain.
LR = {'mmseg': 1e-4, 'mmpretrain': 0.05, 'mmagic': 1e-4}

SCHEDULE = """
train_cfg = dict(type='IterBasedTrainLoop', max_iters=4, val_interval=100)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='SGD', lr=lr, momentum=0.9)
)
# Half the batch, so that --auto-scale-lr doubles the learning rate.
auto_scale_lr = dict(base_batch_size=2, enable=False)
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=1, log_metric_by_epoch=False),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2),
)
randomness = dict(seed=0)
"""

LOADERS = """
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=train_dataset,
)
val_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=val_dataset,
)
test_dataloader = val_dataloader
test_evaluator = val_evaluator
"""

MMSEG = f"""
_base_ = [
    'mmseg::_base_/models/fcn_r50-d8.py',
    'mmseg::_base_/default_runtime.py',
]
model = dict(
    type='mmplugins.GuidedEncoderDecoder',
    pretrained=None,
    auxiliary_head=None,
    data_preprocessor=dict(size=(48, 64), test_cfg=dict(size_divisor=32)),
    backbone=dict(
        _delete_=True,
        type='mmpretrain.MobileNetV2',
        widen_factor=0.25,
        out_indices=(7,),
    ),
    neck=dict(
        type='mmplugins.FeatUpNeck',
        in_channels=1280,
        out_channels=8,
        upsampler=dict(type='mmplugins.JBUStack', num_stages=2),
    ),
    decode_head=dict(
        in_channels=8,
        in_index=-1,
        channels=8,
        num_convs=1,
        concat_input=False,
        num_classes={len(prepare_data.CLASSES)},
        norm_cfg=dict(type='BN', requires_grad=True),
    ),
)
metainfo = dict(
    classes={prepare_data.CLASSES}, palette={prepare_data.PALETTE}
)
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
dataset = dict(
    type='BaseSegDataset',
    data_root='data',
    metainfo=metainfo,
    img_suffix='.png',
    seg_map_suffix='.png',
    pipeline=pipeline,
)
train_dataset = dict(
    **dataset,
    data_prefix=dict(img_path='images/train', seg_map_path='labels/train'),
)
val_dataset = dict(
    **dataset,
    data_prefix=dict(img_path='images/val', seg_map_path='labels/val'),
)
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
tta_model = dict(type='SegTTAModel')
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='RandomFlip', prob=0.0)] * 2,
            [dict(type='LoadAnnotations')],
            [dict(type='PackSegInputs')],
        ],
    ),
]
"""

MMPRETRAIN = """
default_scope = 'mmpretrain'
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='UniversalVisualizer', vis_backends=vis_backends)
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='MobileNetV2',
        widen_factor=0.25,
        out_indices=(3,),
        norm_cfg=dict(type='BN', momentum=0.9),
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=3,
        in_channels=16,
        loss=dict(type='CrossEntropyLoss'),
    ),
    data_preprocessor=dict(mean=[128] * 3, std=[64] * 3, num_classes=3),
)
pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
train_dataset = dict(
    type='CustomDataset', data_root='data/train', pipeline=pipeline
)
val_dataset = dict(
    type='CustomDataset', data_root='data/val', pipeline=pipeline
)
val_evaluator = dict(type='Accuracy', topk=(1,))
tta_model = dict(type='AverageClsScoreTTA')
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [
                dict(type='RandomFlip', prob=0.0),
                dict(type='Rotate', angle=180.0, prob=1.0),
            ],
            [dict(type='PackInputs')],
        ],
    ),
]
"""

MMAGIC = """
default_scope = 'mmagic'
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(
    type='ConcatImageVisualizer',
    vis_backends=vis_backends,
    fn_key='gt_path',
    img_keys=['gt_img', 'input', 'pred_img'],
    bgr2rgb=True,
)
log_processor = dict(type='LogProcessor', by_epoch=False)
model = dict(
    type='BaseEditModel',
    generator=dict(
        type='EDSRNet',
        in_channels=3,
        out_channels=3,
        mid_channels=4,
        num_blocks=1,
        upscale_factor=2,
        rgb_mean=[0.8, 0.4, 0.1],
    ),
    pixel_loss=dict(type='L1Loss'),
    data_preprocessor=dict(
        type='DataPreprocessor', mean=[0.0] * 3, std=[255.0] * 3
    ),
)
pipeline = [
    dict(type='LoadImageFromFile', key='img', channel_order='rgb'),
    dict(type='LoadImageFromFile', key='gt', channel_order='rgb'),
    dict(type='PackInputs'),
]
train_dataset = dict(
    type='BasicImageDataset',
    metainfo=dict(dataset_type='waves', task_name='sisr'),
    data_root='data/train',
    data_prefix=dict(img='small', gt='large'),
    pipeline=pipeline,
)
val_dataset = {**train_dataset, 'data_root': 'data/val'}
val_evaluator = dict(
    type='Evaluator', metrics=[dict(type='PSNR', crop_border=2)]
)
"""


def write_seg_data(root):
    counts = {'train': 8, 'val': 3}
    prepare_data.write_shapes(root, counts, (48, 64), seed=0)


def write_class_data(root):
    rng = np.random.default_rng(0)
    for split, count in (('train', 4), ('val', 2)):
        for label, name in enumerate(('blue', 'green', 'red')):
            for index in range(count):
                image = rng.integers(0, 120, (32, 32, 3), np.uint8)
                image[:16, :, label] += 130  # not symmetric: a turn shows
                save(root / split / name / f'{name}.{index}.png', image)


def write_edit_data(root):
    for split, count in (('train', 8), ('val', 3)):
        for index in range(count):
            y, x = np.mgrid[:64, :64] / 64
            wave = np.sin(9 * x + 5 * y + index)[..., None]
            blue_green_red = np.array([0.1, 0.4, 0.8]) + 0.1 * wave
            large = (blue_green_red * 255).astype(np.uint8)
            small = cv2.resize(large, (32, 32), interpolation=cv2.INTER_AREA)
            save(root / split / 'large' / f'wave-{index}.png', large)
            save(root / split / 'small' / f'wave-{index}.png', small)


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


CONFIGS = {'mmseg': MMSEG, 'mmpretrain': MMPRETRAIN, 'mmagic': MMAGIC}
WRITERS = {
    'mmseg': write_seg_data,
    'mmpretrain': write_class_data,
    'mmagic': write_edit_data,
}


def environment(**more):
    """One thread each, no GPU, the checkout's own package."""
    return os.environ | {
        'PYTHONPATH': str(ROOT),
        'PYTHON': sys.executable,
        'OMP_NUM_THREADS': '1',
        'CUDA_VISIBLE_DEVICES': '',
        **more,
    }


def run(tool, *args, cwd, **env):
    """Output of a tool that must succeed."""
    result = attempt([sys.executable, TOOLS / tool, *args], cwd, **env)
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout + result.stderr


def attempt(command, cwd, **env):
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment(**env),
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture
def refuse(monkeypatch, capsys):
    """Exit status and error lines of a tool that stops before it works."""

    def refused(tool, *args):
        monkeypatch.setenv('LOCAL_RANK', '0')
        monkeypatch.setattr(sys, 'argv', [tool, *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(TOOLS / tool), run_name='__main__')
        if isinstance(stop.value.code, str):  # the interpreter prints it
            return 1, stop.value.code
        return stop.value.code, capsys.readouterr().err

    return refused


def write_config(folder, host):
    path = folder / 'tiny.py'
    text = f'lr = {LR[host]}\n' + CONFIGS[host] + LOADERS + SCHEDULE
    if host == 'mmagic':  # its evaluator needs its own loops
        text = text.replace("'ValLoop'", "'MultiValLoop'")
        text = text.replace("'TestLoop'", "'MultiTestLoop'")
    path.write_text(text)
    return path


@pytest.fixture(scope='module', params=HOSTS)
def trained(request, tmp_path_factory):
    """A host's config, data and the work_dir of a training of 4 iterations."""
    host = request.param
    folder = tmp_path_factory.mktemp(host)
    WRITERS[host](folder / 'data')
    config = write_config(folder, host)
    run('train.py', config.name, '--auto-scale-lr', cwd=folder)
    work = folder / 'work_dirs' / 'tiny'
    return SimpleNamespace(host=host, folder=folder, config=config, work=work)


@pytest.fixture(scope='module')
def tested(trained):
    """What a test wrote that was asked for everything."""
    pictures = trained.folder / 'plain' / 'pictures'
    return run_test(trained, 'plain', '--show-dir', pictures)


def run_test(trained, name, *args):
    out = trained.folder / name
    run(
        'test.py',
        trained.config.name,
        trained.work / 'iter_4.pth',
        *('--work-dir', out / 'work'),
        *('--out', out / 'predictions'),
        *('--metrics', out / 'figures' / 'metrics.json'),
        *args,
        cwd=trained.folder,
    )
    figures = json.loads((out / 'figures' / 'metrics.json').read_text())
    return SimpleNamespace(**vars(trained), out=out, figures=figures)


def logged(work):
    """Scalars of the training iterations of all runs in a work_dir."""
    lines = [
        json.loads(line)
        for path in sorted(work.glob('*/vis_data/scalars.json'))
        for line in path.read_text().splitlines()
    ]
    return [line for line in lines if 'loss' in line]


def read_predictions(tested):
    """Image path of the data set -> its prediction."""
    folder = tested.out / 'predictions'
    data = tested.folder / 'data'
    if tested.host == 'mmpretrain':
        lines = (folder / 'predictions.jsonl').read_text().splitlines()
        records = [json.loads(line) for line in lines]
        return {tested.folder / r['image']: r for r in records}
    part = {'mmseg': 'labels/val', 'mmagic': 'val/large'}[tested.host]
    return {
        path: cv2.imread(str(folder / path.name), cv2.IMREAD_UNCHANGED)
        for path in sorted((data / part).iterdir())
    }


def score(tested):
    """The host's headline figure from the files that --out wrote."""
    pairs = read_predictions(tested)
    if tested.host == 'mmseg':
        return 'mIoU', mean_iou(pairs)
    if tested.host == 'mmpretrain':
        classes = ['blue', 'green', 'red']
        hits = [
            record['label'] == [classes.index(path.parent.name)]
            for path, record in pairs.items()
        ]
        return 'accuracy/top1', 100 * np.mean(hits)
    return 'PSNR', np.mean([psnr(*pair) for pair in pairs.items()])


def mean_iou(pairs):
    count = len(prepare_data.CLASSES)
    table = np.zeros((count, count))
    for path, prediction in pairs.items():
        label = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        np.add.at(table, (label.ravel(), prediction.ravel()), 1)
    hits = np.diag(table)
    union = table.sum(0) + table.sum(1) - hits
    return 100 * np.mean(hits[union > 0] / union[union > 0])


def psnr(path, prediction):
    inner = np.s_[2:-2, 2:-2]
    truth = cv2.imread(str(path)).astype(float)[inner]
    error = np.mean((truth - prediction.astype(float)[inner]) ** 2)
    return 10 * np.log10(255**2 / error)


@pytest.mark.slow
class TestTrain:
    def test_writes_checkpoints_into_the_default_work_dir(self, trained):
        names = {path.name for path in trained.work.glob('*.pth')}
        assert names == {'iter_2.pth', 'iter_4.pth'}

    def test_auto_scale_lr_follows_the_batch_size(self, trained):
        scalars = logged(trained.work)
        assert [line['step'] for line in scalars] == [1, 2, 3, 4]
        expected = 2 * LR[trained.host]
        assert [line['lr'] for line in scalars] == pytest.approx(
            [expected] * 4
        )

    def test_resume_goes_on_where_the_newest_checkpoint_ends(self, trained):
        work = copy_of(trained.work, trained.folder / 'auto')
        resume(trained, work, 6, '--resume')
        assert [line['step'] for line in logged(work)] == [5, 6]
        assert iteration(work / 'iter_6.pth') == 6

    def test_resume_goes_on_from_the_path_that_is_given(self, trained):
        work = copy_of(trained.work, trained.folder / 'path')
        resume(trained, work, 3, '--resume', trained.work / 'iter_2.pth')
        assert [line['step'] for line in logged(work)] == [3]


def copy_of(work, folder):
    """A work_dir with the checkpoints of another, without its logs."""
    folder.mkdir()
    for path in work.glob('*.pth'):
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / 'last_checkpoint').write_text(str(folder / 'iter_4.pth'))
    return folder


def resume(trained, work, iterations, *args):
    run(
        'train.py',
        trained.config.name,
        *('--work-dir', work, *args),
        *('--cfg-options', f'train_cfg.max_iters={iterations}'),
        cwd=trained.folder,
    )


def iteration(checkpoint):
    return torch.load(checkpoint, weights_only=False)['meta']['iter']


@pytest.mark.slow
class TestTest:
    def test_every_image_has_a_picture(self, tested):
        images = read_predictions(tested)
        assert images
        for path in images:
            pattern = PICTURES[tested.host].format(path.stem)
            found = list((tested.out / 'pictures').glob(pattern))
            assert len(found) == 1, (path, found)
            assert cv2.imread(str(found[0])) is not None

    def test_predictions_look_like_what_they_predict(self, tested):
        predictions = read_predictions(tested)
        counts = {'mmseg': 3, 'mmpretrain': 6, 'mmagic': 3}
        assert len(predictions) == counts[tested.host]
        for path, prediction in predictions.items():
            if tested.host == 'mmpretrain':
                assert sum(prediction['score']) == pytest.approx(1)
                continue
            truth = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            assert prediction.shape == truth.shape
            assert prediction.dtype == np.uint8

    def test_predictions_score_what_the_metrics_say(self, tested):
        name, expected = score(tested)
        assert tested.figures[name] == pytest.approx(expected, abs=0.01)

    def test_metrics_are_the_figures_that_the_host_logs(self, tested):
        logs = list((tested.out / 'work').glob('*/*.json'))
        record = json.loads(logs[0].read_text())
        figures = {k: v for k, v in record.items() if 'time' not in k}
        assert len(logs) == 1
        assert tested.figures == pytest.approx(figures)


@pytest.fixture
def augmented(trained):
    return run_test(trained, 'augmented', '--tta')


@pytest.mark.slow
@pytest.mark.parametrize('trained', ['mmseg', 'mmpretrain'], indirect=True)
class TestAugmentation:
    def test_predictions_score_what_the_metrics_say(self, augmented, tested):
        name, expected = score(augmented)
        assert augmented.figures[name] == pytest.approx(expected, abs=0.01)
        assert several(read_predictions(augmented))
        if augmented.host == 'mmseg':  # both views are the image itself
            assert augmented.figures == pytest.approx(tested.figures)


def several(predictions):
    """Whether the predictions are not all of one class."""
    values = [
        p['label'] if isinstance(p, dict) else np.unique(p)
        for p in predictions.values()
    ]
    return len(set(np.concatenate(values).tolist())) > 1


CPU_LAUNCHER = """
import atexit
import os
import sys


@atexit.register
def leave():
    # gloo's threads sometimes abort a process whose work is done.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1 if hasattr(sys, 'last_value') else 0)


import torch
# mmengine's launcher asks for a GPU by this call alone.
torch.cuda.set_device = lambda device: None
"""

DISTRIBUTED = """
_base_ = './tiny.py'
custom_imports = dict(imports=['cpu_launcher'])
model_wrapper_cfg = dict(type='MMDistributedDataParallel', device_ids=None)
env_cfg = dict(dist_cfg=dict(backend='gloo'))
"""


@pytest.mark.slow
def test_dist_train_trains_in_two_processes(tmp_path):
    write_seg_data(tmp_path / 'data')
    write_config(tmp_path, 'mmseg')
    (tmp_path / 'cpu_launcher.py').write_text(CPU_LAUNCHER)
    (tmp_path / 'two.py').write_text(DISTRIBUTED)
    result = attempt(
        ['bash', TOOLS / 'dist_train.sh', 'two.py', '2', '--work-dir', 'work'],
        tmp_path,
        PYTHONPATH=f'{ROOT}{os.pathsep}{tmp_path}',
        PORT=free_port(),
    )
    assert result.returncode == 0, result.stderr[-4000:]
    assert iteration(tmp_path / 'work' / 'iter_4.pth') == 4
    (log,) = (tmp_path / 'work').glob('*/*.log')
    assert 'GPU number: 2' in log.read_text()


def free_port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return str(probe.getsockname()[1])


def echo(folder, name):
    """A program that prints its arguments, one on each line."""
    path = folder / name
    path.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    path.chmod(0o755)
    return path


def test_dist_train_hands_all_to_torchrun(tmp_path):
    result = attempt(
        ['bash', TOOLS / 'dist_train.sh', 'a b.py', '3', '--amp'],
        tmp_path,
        PYTHON=str(echo(tmp_path, 'python')),
        NNODES='2',
        NODE_RANK='1',
        MASTER_ADDR='10.0.0.1',
        PORT='1234',
    )
    words = result.stdout.splitlines()
    assert words == [
        *('-m', 'torch.distributed.run', '--nnodes=2', '--node_rank=1'),
        *('--master_addr=10.0.0.1', '--master_port=1234'),
        *('--nproc_per_node=3', f'{TOOLS}/train.py', 'a b.py'),
        *('--launcher', 'pytorch', '--amp'),
    ]


def test_slurm_train_hands_all_to_srun(tmp_path):
    srun = echo(tmp_path, 'srun')
    result = attempt(
        ['bash', TOOLS / 'slurm_train.sh', 'night', 'try', 'c.py', '--resume'],
        tmp_path,
        PATH=f'{srun.parent}{os.pathsep}{os.environ["PATH"]}',
        PYTHON='python3',
        GPUS='4',
        GPUS_PER_NODE='2',
        CPUS_PER_TASK='3',
        SRUN_ARGS='--quiet --time=5',
    )
    words = result.stdout.splitlines()
    assert words == [
        *('--partition=night', '--job-name=try', '--ntasks=4'),
        *('--gres=gpu:2', '--ntasks-per-node=2', '--cpus-per-task=3'),
        *('--kill-on-bad-exit=1', '--quiet', '--time=5', 'python3', '-u'),
        *(f'{TOOLS}/train.py', 'c.py', '--launcher', 'slurm', '--resume'),
    ]


@pytest.mark.parametrize(
    ('tool', 'args'), [('dist_train.sh', ['c.py']), ('slurm_train.sh', ['p'])]
)
def test_launchers_say_how_they_are_used(tool, args, tmp_path):
    result = attempt(['bash', TOOLS / tool, *args], tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith(f'usage: tools/{tool} ')


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr('mmplugins.apis.launch.get_device', lambda: 'cpu')


PLAIN = "default_scope = 'mmseg'\nmodel = dict(type='EncoderDecoder')\n"
# Arguments after the config -> what the error says.
TRAIN_ERRORS = {
    '--auto-scale-lr': 'needs auto_scale_lr = dict(base_batch_size=...)',
    '--amp': 'needs optim_wrapper in the config',
    '--resume gone.pth': 'checkpoint gone.pth does not exist',
    '--cfg-options model.type.x=1': 'type is a dict in the child config',
}
TEST_ERRORS = {
    'gone.pth': 'checkpoint gone.pth does not exist',
    'here.pth --tta': (
        '--tta needs tta_model, tta_pipeline, test_dataloader in the config'
    ),
    'here.pth --show-dir d': '--show-dir needs visualizer in the config',
    'here.pth --out here.pth': '--out here.pth: here.pth is not a folder',
    'here.pth --metrics .': '--metrics . is a folder, not a file',
    'here.pth --metrics here.pth/m': 'here.pth is not a folder',
}


class TestErrors:
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path, monkeypatch, no_gpu):
        monkeypatch.chdir(tmp_path)
        Path('plain.py').write_text(PLAIN)
        Path('here.pth').touch()

    @pytest.mark.parametrize('args', TRAIN_ERRORS)
    def test_train(self, args, refuse):
        status, error = refuse('train.py', 'plain.py', *args.split())
        assert status == 1
        assert one_line(error, TRAIN_ERRORS[args])

    @pytest.mark.parametrize('args', TEST_ERRORS)
    def test_test(self, args, refuse):
        status, error = refuse('test.py', 'plain.py', *args.split())
        assert status == 1
        assert one_line(error, TEST_ERRORS[args])
        assert {p.name for p in Path().iterdir()} == {'plain.py', 'here.pth'}

    @pytest.mark.parametrize(
        ('text', 'message'),
        [
            (None, 'config c.py does not exist'),
            ("_base_ = './gone.py'", 'gone.py'),
            ("_base_ = 'mmseg::_base_/gone.py'", 'gone.py'),
            ('x = (', 'config c.py does not read: SyntaxError'),
            ('x = nobody', "name 'nobody' is not defined"),
        ],
    )
    def test_config_that_does_not_read(self, text, message, refuse):
        if text:
            Path('c.py').write_text(text + '\n')
        status, error = refuse('train.py', 'c.py')
        assert status == 1
        assert one_line(error, message)

    @pytest.mark.parametrize(
        ('tool', 'args'),
        [
            ('train.py', []),
            ('train.py', ['plain.py', '--launcher', 'rocket']),
            ('train.py', ['plain.py', '--unknown']),
            ('test.py', ['plain.py']),
        ],
    )
    def test_usage(self, tool, args, refuse):
        status, error = refuse(tool, *args)
        assert status == 2
        assert error.startswith('usage: ')

    def test_no_traceback_reaches_the_shell(self, tmp_path):
        command = [sys.executable, TOOLS / 'train.py', 'plain.py', '--amp']
        result = attempt(command, tmp_path)
        assert result.returncode == 1
        assert one_line(result.stderr, '--amp needs optim_wrapper')


def one_line(error, message):
    error = error.rstrip('\n')
    return (
        error.startswith('error: ')
        and message in error
        and ('\n' not in error)
    )
