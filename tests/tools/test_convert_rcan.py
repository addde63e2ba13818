"""The command line on RCAN's checkpoints in the official layout."""

import convert_checkpoint
import pytest
import torch
from converting import refused
from mmengine.registry import MODELS

from mmplugins.ssen import RCAN

GROUPS, BLOCKS, WIDTH = 2, 3, 16
MEAN = torch.tensor([0.4488, 0.4371, 0.4040])


def weights():
    """A published checkpoint, but smaller."""
    square = (WIDTH, WIDTH, 3, 3)
    shapes = {'head.0': (WIDTH, 3, 3, 3)}
    for g in range(GROUPS):
        for b in range(BLOCKS):
            block = f'body.{g}.body.{b}.body'
            shapes[f'{block}.0'] = shapes[f'{block}.2'] = square
            shapes[f'{block}.3.conv_du.0'] = (1, WIDTH, 1, 1)
            shapes[f'{block}.3.conv_du.2'] = (WIDTH, 1, 1, 1)
        shapes[f'body.{g}.body.{BLOCKS}'] = square
    shapes[f'body.{GROUPS}'] = square
    shapes['tail.0.0'] = shapes['tail.0.2'] = (4 * WIDTH, WIDTH, 3, 3)
    shapes['tail.1'] = (3, WIDTH, 3, 3)
    state = {}
    for name, sign in (('sub_mean', -1), ('add_mean', 1)):
        state[f'{name}.weight'] = torch.eye(3).view(3, 3, 1, 1)
        state[f'{name}.bias'] = 255 * sign * MEAN
    for key, shape in shapes.items():
        state[f'{key}.weight'] = torch.randn(shape)
        state[f'{key}.bias'] = torch.randn(shape[0])
    return state


@pytest.fixture
def src(tmp_path):
    """A bare state dict, as parallel training leaves it."""
    state = {f'module.{key}': value for key, value in weights().items()}
    torch.save(state, tmp_path / 'RCAN_BIX4.pt')
    return tmp_path / 'RCAN_BIX4.pt'


def test_the_result_loads_strictly(src, tmp_path, capsys):
    dst = tmp_path / 'new' / 'rcan.pth'
    convert_checkpoint.main(['rcan', str(src), str(dst)])
    model = RCAN(GROUPS, BLOCKS, WIDTH, reduction=16, img_range=255)
    model.load_state_dict(torch.load(dst), strict=True)
    official = torch.load(src)
    trunk = model.trunk
    for ours, theirs in (
        (model.head.weight, 'head.0.weight'),
        (trunk.groups[1].blocks[2].conv2.bias, 'body.1.body.2.body.2.bias'),
        (
            trunk.groups[0].blocks[1].attention.expand.weight,
            'body.0.body.1.body.3.conv_du.2.weight',
        ),
        (trunk.groups[1].conv.weight, 'body.1.body.3.weight'),
        (trunk.conv.weight, 'body.2.weight'),
        (model.upsampler.stages[1].weight, 'tail.0.2.weight'),
        (model.upsampler.last.bias, 'tail.1.bias'),
    ):
        assert torch.equal(ours, official[f'module.{theirs}'])
    lines = capsys.readouterr().out.splitlines()
    count = len(torch.load(dst))
    assert count == len(official) - 4
    assert lines[0] == f'read {len(official)} tensors, wrote {count} to {dst}'
    assert lines[1].startswith('dropped sub_mean.weight, ')
    assert 'img_range=255 ' in lines[2]


def test_the_printed_config_takes_the_result(src, tmp_path, capsys):
    dst = tmp_path / 'rcan.pth'
    convert_checkpoint.main(['rcan', str(src), str(dst)])
    model = MODELS.build(eval(capsys.readouterr().out.splitlines()[-1]))
    model.init_weights()
    wanted = torch.load(dst)
    state = model.state_dict()
    assert model.img_range == 255
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'tail.1.bias': None}, 'no key fills upsampler.last.bias of RCAN'),
        (
            {'body.1.body.0.body.3.conv_du.2.bias': None},
            'no key fills trunk.groups.1.blocks.0.attention.expand.bias of',
        ),
        ({'tail.3.bias': torch.zeros(1)}, 'tail.3.bias has no place in an'),
        ({'add_mean.bias': torch.zeros(3)}, 'are not the mean colour'),
        (
            {'head.0.weight': torch.zeros(WIDTH, 1, 3, 3)},
            'head.weight is (16, 1, 3, 3), not (16, 3, 3, 3)',
        ),
    ],
)
def test_a_failure_is_one_line_and_leaves_dst(change, message, tmp_path):
    state = {**weights(), **change}
    state = {k: v for k, v in state.items() if v is not None}
    torch.save(state, tmp_path / 'a.pt')
    dst = tmp_path / 'mine.pth'
    dst.write_bytes(b'mine')
    assert message in refused('rcan', tmp_path / 'a.pt', dst)
    assert dst.read_bytes() == b'mine'


def test_weights_of_another_system_are_refused(src, tmp_path):
    assert 'has no place' in refused('crm', src, tmp_path / 'a.pth')
    torch.save({'upsampler.up1.range_temp': torch.zeros(())}, src)
    assert 'of an RCAN' in refused('rcan', src, tmp_path / 'a.pth')
