"""The command line on CRM's checkpoints in the official layout."""

import convert_checkpoint
import pytest
import torch
from converting import refused
from mmengine.registry import MODELS

from mmplugins.crm import CRM

pytest.importorskip('torchvision')


@pytest.fixture(scope='module')
def weights():
    """Shapes of the published checkpoint, without values."""
    from torchvision.models import resnet50

    with torch.device('meta'):
        net = resnet50()
    shapes = {f'feats.{k}': v.shape for k, v in net.state_dict().items()}
    shapes = {k: v for k, v in shapes.items() if '.fc.' not in k}
    shapes['feats.conv1.weight'] = (64, 4, 7, 7)
    for inner, outer, name in ((64, 64, 128), (256, 64, 256),
                               (1024, 128, 1024)):  # fmt: skip
        shapes[f'aspp_.aspp1_{name}.atrous_conv.weight'] = (outer, inner, 1, 1)
        norms = (f'aspp_.aspp1_{name}.bn', f'aspp_.bn1_{name}')
        for norm in norms:
            shapes.update(norm_shapes(norm, outer))
    shapes['aspp_.last_conv.0.weight'] = (256, 256, 3, 3)
    shapes.update(norm_shapes('aspp_.last_conv.1', 256))
    widths = (262, 32, 32, 32, 32, 1)
    for k in range(5):
        shapes[f'imnet.layers.{2 * k}.weight'] = (widths[k + 1], widths[k])
        shapes[f'imnet.layers.{2 * k}.bias'] = (widths[k + 1],)
    return {
        key: torch.full(shape, 0.1 * k) if shape else torch.tensor(k)
        for k, (key, shape) in enumerate(shapes.items())
    }


def norm_shapes(name, channels):
    keys = ('weight', 'bias', 'running_mean', 'running_var')
    return {f'{name}.{key}': (channels,) for key in keys}


@pytest.fixture
def src(tmp_path, weights):
    """A bare state dict, as parallel training leaves it."""
    state = {f'module.{key}': value for key, value in weights.items()}
    torch.save(state, tmp_path / 'model_45705')
    return tmp_path / 'model_45705'


def test_the_result_loads_strictly(src, weights, tmp_path, capsys):
    dst = tmp_path / 'new' / 'crm.pth'
    convert_checkpoint.main(['crm', str(src), str(dst)])
    head = dict(type='mmplugins.CRMHead', align_corners=True)
    model = CRM(decode_head=head)
    model.load_state_dict(torch.load(dst), strict=True)
    net = model.backbone.net
    stem = weights['feats.conv1.weight']
    assert torch.equal(net.conv1.weight, stem[:, :3])
    assert torch.equal(net.conv1.mask_weight, stem[:, 3:])
    for ours, theirs in (
        (net.layer3[5].bn3.weight, 'feats.layer3.5.bn3.weight'),
        (model.decode_head.levels[2][1].bias, 'aspp_.bn1_1024.bias'),
        (model.decode_head.decoder.layers[4].bias, 'imnet.layers.8.bias'),
    ):
        assert torch.equal(ours, weights[theirs])
    lines = capsys.readouterr().out.splitlines()
    count = len(torch.load(dst))
    assert lines[0] == f'read {len(weights)} tensors, wrote {count} to {dst}'
    assert lines[1].startswith('dropped feats.layer4.* (never used): ')
    assert lines[2] == 'set 7 missing num_batches_tracked to 0'
    # Four channels and no dead stage: 9.30 M of 24.27 M parameters.
    assert dst.stat().st_size < 38e6


def test_the_printed_config_takes_the_result(src, tmp_path, capsys):
    dst = tmp_path / 'crm.pth'
    convert_checkpoint.main(['crm', str(src), str(dst)])
    model = MODELS.build(eval(capsys.readouterr().out.splitlines()[-1]))
    model.init_weights()
    wanted = torch.load(dst)
    state = model.state_dict()
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            {'imnet.layers.6.bias': None},
            'no key fills decode_head.decoder.layers.3.bias of CRM',
        ),
        (
            {'feats.layer3.0.conv1.weight': None},
            'no key fills backbone.net.layer3.0.conv1.weight of CRM',
        ),
        ({'feats.extra': torch.zeros(1)}, 'backbone.net.extra have no place'),
        ({'psp.weight': torch.zeros(1)}, 'psp.weight has no place in a CRM'),
        (
            {'imnet.layers.0.weight': torch.zeros(32, 260)},
            'decoder.layers.0.weight is (32, 260), not (32, 262)',
        ),
        (
            {'feats.conv1.weight': torch.zeros(64, 6, 7, 7)},
            'feats.conv1.weight is (64, 6, 7, 7), no convolution of 4',
        ),
    ],
)
def test_a_failure_is_one_line_and_leaves_dst(
    change, message, weights, tmp_path
):
    state = {**weights, **change}
    state = {k: v for k, v in state.items() if v is not None}
    torch.save(state, tmp_path / 'a.ckpt')
    dst = tmp_path / 'mine.pth'
    dst.write_bytes(b'mine')
    assert message in refused('crm', tmp_path / 'a.ckpt', dst)
    assert dst.read_bytes() == b'mine'


def test_weights_of_another_system_are_refused(src, tmp_path):
    assert 'has no place' in refused('featup', src, tmp_path / 'a.pth')
