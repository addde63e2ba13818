"""The command line on checkpoints in the official layout."""

import subprocess
import sys
from pathlib import Path

import convert_checkpoint
import pytest
import torch
from converting import refused
from mmengine.registry import MODELS

from mmplugins.featup import FeatUpNeck, JBUStack

TOOL = Path(__file__).parents[2] / 'tools' / 'convert_checkpoint.py'


def official(channels=5, radius=3, width=32):
    """Shapes of a published checkpoint, small backbone."""
    taps = (2 * radius + 1) ** 2
    shapes = {
        'model.0.cls_token': (1, 1, channels),
        'model.1.norm.weight': None,
        'downsampler.w': (14, 14),
        'scale_net.net.bias': (1,),
        'upsampler.fixup_proj.1.weight': (channels, channels, 1, 1),
        'upsampler.fixup_proj.1.bias': (channels,),
    }
    for up in ('up1', 'up2', 'up3', 'up4'):
        for key, shape in {
            'range_temp': (),
            'sigma_spatial': (),
            'range_proj.0.weight': (width, 3, 1, 1),
            'range_proj.0.bias': (width,),
            'range_proj.3.weight': (width, width, 1, 1),
            'range_proj.3.bias': (width,),
            'fixup_proj.0.weight': (taps, taps + 3, 1, 1),
            'fixup_proj.0.bias': (taps,),
            'fixup_proj.3.weight': (taps, taps, 1, 1),
            'fixup_proj.3.bias': (taps,),
        }.items():
            shapes[f'upsampler.{up}.{key}'] = shape
    return {
        key: torch.ones(channels) if shape is None else torch.randn(shape)
        for key, shape in shapes.items()
    }


@pytest.fixture
def src(tmp_path):
    """A checkpoint as Lightning writes it."""
    content = {
        'epoch': 0,
        'global_step': 2000,
        'pytorch-lightning_version': '1.9.0',
        'state_dict': official(),
        'callbacks': {'ModelCheckpoint': {'best_k_models': {}}},
        'optimizer_states': [{'state': {0: {'step': torch.tensor(1.0)}}}],
    }
    torch.save(content, tmp_path / 'official.ckpt')
    return tmp_path / 'official.ckpt'


def test_the_result_loads_strictly(src, tmp_path, capsys):
    dst = tmp_path / 'new' / 'featup.pth'
    convert_checkpoint.main(['featup', str(src), str(dst)])
    stack = JBUStack(in_channels=5)
    stack.load_state_dict(torch.load(dst), strict=True)
    weights = torch.load(src)['state_dict']
    for number, stage in enumerate(stack.stages, 1):
        for key, value in stage.named_parameters():
            assert torch.equal(value, weights[f'upsampler.up{number}.{key}'])
    for key, value in stack.fixup_proj.named_parameters():
        assert torch.equal(value, weights[f'upsampler.fixup_proj.{key}'])
    out = capsys.readouterr().out
    assert 'dropped model.* (backbone): 2 tensors' in out
    assert "norm=dict(type='mmplugins.ChannelNorm')" in out


def test_the_printed_config_takes_the_result(src, tmp_path, capsys):
    """As it is, and as the upsampler of a neck."""
    dst = tmp_path / 'featup.pth'
    convert_checkpoint.main(['featup', str(src), str(dst)])
    cfg = eval(capsys.readouterr().out.splitlines()[-1])
    stack = MODELS.build(cfg)
    stack.init_weights()
    neck = FeatUpNeck(in_channels=5, upsampler=cfg, frozen=True)
    neck.init_weights()
    wanted = torch.load(dst)
    for module in (stack, neck.upsamplers[0]):
        state = module.state_dict()
        assert state.keys() == wanted.keys()
        assert all(torch.equal(state[key], wanted[key]) for key in wanted)


def test_prefixes_of_parallel_training_go(src, tmp_path):
    weights = torch.load(src)['state_dict']
    torch.save({f'module.{k}': v for k, v in weights.items()}, src)
    convert_checkpoint.main(['featup', str(src), str(tmp_path / 'a.pth')])
    JBUStack(5).load_state_dict(torch.load(tmp_path / 'a.pth'))


@pytest.mark.parametrize('key', list(official()))
def test_every_key_of_the_upsampler_is_needed(key, src, tmp_path):
    weights = official()
    del weights[key]
    torch.save(weights, src)
    if not key.startswith('upsampler.'):
        convert_checkpoint.main(['featup', str(src), str(tmp_path / 'a.pth')])
        return
    message = refused('featup', src, tmp_path / 'a.pth')
    name = key.removeprefix('upsampler.').replace('up', 'stages.', 1)
    if name.startswith('stages.'):
        number, _, rest = name.removeprefix('stages.').partition('.')
        name = f'stages.{int(number) - 1}.{rest}'
    else:
        name = key.removeprefix('upsampler.')
    assert f'no key fills {name} of' in message
    assert not (tmp_path / 'a.pth').exists()


def changed(key, value):
    weights = official()
    weights[key] = value
    return weights


@pytest.mark.parametrize(
    ('weights', 'message'),
    [
        (
            changed('upsampler.up2.more', torch.zeros(1)),
            'upsampler.up2.more has no place',
        ),
        (
            changed('upsampler.up6.range_temp', torch.zeros(())),
            'no key fills stages.4.range_temp, ',
        ),
        (
            changed('upsampler.up3.sigma_spatial', torch.zeros(1)),
            'stages.2.sigma_spatial is (1,), not ()',
        ),
        (
            changed('upsampler.up4.range_proj.0.bias', torch.zeros(31)),
            'stages.3.range_proj.0.bias is (31,), not (32,)',
        ),
        (
            changed('upsampler.fixup_proj.1.weight', torch.zeros(5, 4, 1, 1)),
            'fixup_proj.1.weight is (5, 4, 1, 1), not (5, 5, 1, 1)',
        ),
        (changed('upsampler.up1.range_temp', 0.0), 'is float, not a tensor'),
        ([1, 2], 'holds no state dict'),
        (Path('code'), 'tensors and containers (pathlib.'),
    ],
)
def test_a_failure_is_one_line_and_leaves_dst(weights, message, src, tmp_path):
    torch.save(weights, src)
    dst = tmp_path / 'mine.pth'
    dst.write_bytes(b'mine')
    assert message in refused('featup', src, dst)
    assert dst.read_bytes() == b'mine'
    assert {p.name for p in tmp_path.iterdir()} == {src.name, dst.name}


def test_bad_paths_are_named(src, tmp_path):
    gone = tmp_path / 'gone.ckpt'
    message = refused('featup', gone, tmp_path / 'a.pth')
    assert f'checkpoint {gone} does not exist' in message
    assert 'is a folder' in refused('featup', src, tmp_path)
    assert 'is not a folder' in refused('featup', src, src / 'a.pth')
    before = src.read_bytes()
    assert 'is SRC itself' in refused('featup', src, src)
    assert src.read_bytes() == before


@pytest.mark.parametrize('args', [[], ['featup'], ['sapa', 'a', 'b']])
def test_usage(args, capsys):
    with pytest.raises(SystemExit) as failure:
        convert_checkpoint.main(args)
    assert failure.value.code == 2
    assert capsys.readouterr().err.startswith('usage: ')


@pytest.mark.slow
def test_from_the_shell(src, tmp_path):
    command = [sys.executable, TOOL, 'featup', src, tmp_path / 'a.pth']
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('read 46 tensors, wrote 42 to ')
