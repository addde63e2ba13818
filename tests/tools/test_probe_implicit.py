"""``tools/probe_implicit.py`` on drawn images and a tiny backbone."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import prepare_data
import probe_implicit
import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from mmengine.runner import Runner

from mmplugins.compat import load_config
from mmplugins.featup import FeatUpNeck, ImplicitUpsampler
from mmplugins.ops import pixel_centers

SIZE = (44, 60)  # 5.5 and 7.5 cells
CONFIG = f"""
_base_ = 'mmseg::_base_/default_runtime.py'
classes = {prepare_data.CLASSES}
model = dict(
    type='mmplugins.GuidedEncoderDecoder',
    linear_head=True,
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[128] * 3,
        std=[64] * 3,
        size={SIZE},
        seg_pad_val=255,
    ),
    backbone=dict(
        type='mmplugins.FrozenBackbone',
        memory=1,
        backbone=dict(
            type='mmpretrain.ResNet',
            depth=18,
            base_channels=4,
            out_indices=(1,),
        ),
    ),
    neck=dict(
        type='mmplugins.FeatUpNeck',
        in_channels=8,
        offsets=-3,
        norm=dict(type='mmplugins.ChannelNorm', elementwise_affine=False),
        upsampler=dict(type='mmplugins.BilinearUpsampler', num_stages=2),
    ),
    decode_head=dict(
        type='FCNHead',
        in_channels=8,
        channels=8,
        num_convs=0,
        concat_input=False,
        num_classes=len(classes),
    ),
    test_cfg=dict(mode='whole'),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='BaseSegDataset',
        data_root='data',
        metainfo=dict(classes=classes, palette={prepare_data.PALETTE}),
        img_suffix='.png',
        seg_map_suffix='.png',
        data_prefix=dict(img_path='images/val', seg_map_path='labels/val'),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations'),
            dict(type='PackSegInputs'),
        ],
    ),
)
val_evaluator = [
    dict(type='mmplugins.PerClassIoUMetric', iou_metrics=['mIoU']),
    dict(type='mmplugins.BoundaryFScore'),
]
test_dataloader, test_evaluator = val_dataloader, val_evaluator
val_cfg, test_cfg = dict(type='ValLoop'), dict(type='TestLoop')
"""


@pytest.fixture
def folder(tmp_path, monkeypatch, in_scope):
    """Three images, a probe, and the same probe with a JBU."""
    monkeypatch.chdir(tmp_path)
    prepare_data.write_shapes(
        tmp_path / 'data', {'train': 1, 'val': 3}, SIZE, seed=0
    )
    Path('probe.py').write_text(CONFIG)
    text = CONFIG.replace('BilinearUpsampler', 'JBUStack')
    Path('jbu.py').write_text(text)
    with in_scope('mmseg'):
        model = MODELS.build(load_config('jbu.py').model)
    torch.nn.init.normal_(model.decode_head.conv_seg.weight)
    torch.nn.init.normal_(model.neck.upsamplers[0].fixup_proj[1].weight)
    state = model.state_dict()
    torch.save(state, 'jbu.pth')
    probe = {k: v for k, v in state.items() if 'upsamplers' not in k}
    torch.save(probe, 'probe.pth')
    return tmp_path


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, 'argv', ['probe_implicit.py', *arguments])
    probe_implicit.main()


def figures_of(config, checkpoint, options=None):
    """What ``tools/test.py`` finds, on all images."""
    cfg = load_config(config, options)
    cfg.update(
        load_from=checkpoint,
        work_dir='work',
        experiment_name=f'{config}-{len(options or {})}',
        log_level='ERROR',
    )
    return Runner.from_cfg(cfg).test()


def test_figures_are_those_of_a_test_run(
    folder, monkeypatch, capsys, in_scope
):
    with in_scope(None):
        run(
            monkeypatch,
            *('probe.py', 'probe.pth', '--jbu', 'jbu.py', 'jbu.pth'),
            *('--num-images', '3', '--steps', '2', '--metrics', 'a/b.json'),
        )
        lines = capsys.readouterr().out.splitlines()
        nearest = {'model.neck.upsampler.type': 'mmplugins.NearestUpsampler'}
        wanted = dict(
            nearest=figures_of('probe.py', 'probe.pth', nearest),
            bilinear=figures_of('probe.py', 'probe.pth'),
            jbu=figures_of('jbu.py', 'jbu.pth'),
        )
    written = json.loads(Path('a/b.json').read_text())
    maps = written['maps']
    assert list(maps) == ['nearest', 'bilinear', 'jbu', 'implicit']
    for name, figures in wanted.items():
        for key, value in maps[name].items():
            # JSON has no NaN.
            value = float('nan') if value is None else value
            assert value == pytest.approx(figures[key], nan_ok=True), key
    scores = [(one['mIoU'], one['mBF']) for one in maps.values()]
    assert len(set(scores)) == 4
    assert [Path(name).stem for name in written['images']] == [
        path.stem for path in sorted(Path('data/images/val').iterdir())
    ]
    shown = {
        line.split()[0]: line.split()[1:] for line in lines if line.split()
    }
    assert shown['map'] == ['aAcc', 'mIoU', 'mAcc', 'mBF']
    for name, figures in maps.items():
        assert shown[name] == [f'{figures[k]:.2f}' for k in shown['map']]
    seconds = [facts['seconds'] for facts in written['fits']]
    assert lines[-1] == f'{sum(seconds) / 3:.1f} s per fit'


def test_images_are_evenly_spaced(folder, monkeypatch, in_scope):
    """One of three is the middle one."""
    few = ['--num-images', '1', '--steps', '1', '--metrics', 'a.json']
    with in_scope(None):
        run(monkeypatch, 'probe.py', 'probe.pth', *few)
    written = json.loads(Path('a.json').read_text())
    names = sorted(Path('data/images/val').iterdir())
    assert [Path(n).stem for n in written['images']] == [names[1].stem]
    assert list(written['maps']) == ['nearest', 'bilinear', 'implicit']


class Known(ImplicitUpsampler):
    """Its features are where a pixel is and its colour."""

    def query(self, coords, colors):
        return torch.cat([coords, colors], 1)


@pytest.mark.parametrize('offset', [0, -3, -7])
@torch.no_grad()
def test_a_fitted_network_stays_in_its_place(offset):
    """Whatever the neck continues and cuts, at sizes of no whole cells."""
    network = Known(5).eval()
    image, feats = torch.rand(1, 3, *SIZE), torch.rand(1, 5, 6, 8)
    network.prepare(feats, image, SIZE)
    network.codec.mean.zero_()
    network.codec.basis.copy_(torch.eye(5))
    bilinear = dict(type='mmplugins.BilinearUpsampler')
    neck = FeatUpNeck(5, strides=8, offsets=offset, upsampler=bilinear)
    neck.upsamplers[0] = probe_implicit.ImplicitOverCells(
        network, image.shape[-2:], -offset
    )
    coords = pixel_centers(SIZE, 'cpu', torch.float32).movedim(-1, 0)
    wanted = torch.cat([coords[None], image], 1)  # (1, 5, H, W)
    weight, bias = torch.randn(4, 5), torch.randn(4)
    out = neck.linear([feats], image, weight, bias)
    wanted = F.conv2d(wanted, weight[..., None, None], bias)
    torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-5)
    # Not so without it: the image ends before the last cell does.
    neck.upsamplers[0] = network
    shifted = neck.linear([feats], image, weight, bias)
    assert (shifted - wanted).abs().max() > 0.1


def test_a_fit_finds_where_the_cells_look():
    """Edges come back in their places, though cells begin before them."""
    weight = torch.randn(6, 3, 1, 1)
    y, x = torch.meshgrid(torch.arange(48), torch.arange(64), indexing='ij')
    disc = (y - 20) ** 2 + (x - 27) ** 2 < 13**2
    image = torch.where(disc, 1.0, -1.0) * torch.tensor([1.0, 0.5, -0.7])[
        :, None, None
    ] + torch.stack([y / 48, x / 64, 0 * x])
    image = image[None]

    def fine(images):
        return F.conv2d(images, weight).tanh()

    def backbone(images):
        padded = F.pad(images, (4, 4, 4, 4), mode='replicate')
        return [F.avg_pool2d(fine(padded), 8)]

    bilinear = dict(type='mmplugins.BilinearUpsampler')
    neck = FeatUpNeck(6, strides=8, offsets=-4, upsampler=bilinear)
    model = SimpleNamespace(backbone=backbone, neck=neck)
    neck.upsamplers[0], facts = probe_implicit.fit(model, image, 60)
    assert facts['kept'] > 0.99
    with torch.no_grad():
        out = neck.linear(backbone(image), image, torch.eye(6))
    truth = fine(image)

    def error(y, x):
        pair = (out, truth.roll((y, x), (2, 3)))
        out_part, truth_part = (one[..., 8:-8, 8:-8] for one in pair)
        return (out_part - truth_part).square().mean() / truth.var()

    errors = {(y, x): error(y, x) for y in (-4, 0, 4) for x in (-4, 0, 4)}
    assert min(errors, key=errors.get) == (0, 0)
    assert errors[0, 0] < 0.2


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['none.py', 'probe.pth'], 'file none.py does not exist'),
        (['probe.py', 'none.pth'], 'file none.pth does not exist'),
        (['probe.py', 'jbu.pth'], 'jbu.pth does not fit .* unexpected key'),
        (['probe.py', 'probe.py'], 'checkpoint probe.py does not fit'),
        (['probe.py', 'probe.pth', '--steps', '0'], 'or more, got 0'),
        (['probe.py', 'probe.pth', '--num-images', '4'], '1 to 3, got 4'),
        (['probe.py', 'probe.pth', '--num-images', '0'], '1 to 3, got 0'),
        (['probe.py', 'probe.pth', '--metrics', 'data'], 'data is a folder'),
        (
            [
                *('probe.py', 'probe.pth', '--cfg-options'),
                'model.linear_head=False',
            ],
            'probe.py is no linear probe',
        ),
        (
            ['probe.py', 'probe.pth', '--jbu', 'jbu.py', 'b.pth'],
            'file b.pth does not exist',
        ),
    ],
)
def test_errors_are_one_line(
    folder, monkeypatch, in_scope, arguments, message
):
    with (
        in_scope(None),
        pytest.raises(SystemExit, match=f'^error: .*{message}') as error,
    ):
        run(monkeypatch, *arguments)
    assert '\n' not in str(error.value)


def test_a_jbu_of_other_channels_is_refused(folder, monkeypatch, in_scope):
    text = Path('jbu.py').read_text().replace('channels=8', 'channels=16')
    text = text.replace('base_channels=4', 'base_channels=8')
    Path('wide.py').write_text(text)
    with in_scope('mmseg'):
        model = MODELS.build(load_config('wide.py').model)
    torch.save(model.state_dict(), 'wide.pth')
    arguments = ['probe.py', 'probe.pth', '--jbu', 'wide.py', 'wide.pth']
    with (
        in_scope(None),
        pytest.raises(SystemExit, match='upsamples 16 channels, .* takes 8'),
    ):
        run(monkeypatch, *arguments)
