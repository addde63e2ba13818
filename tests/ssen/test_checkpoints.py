"""Official keys against a literal network of what they mean."""

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS

from mmplugins.apis.checkpoints import require_fit
from mmplugins.ssen.checkpoints import convert

MEAN = torch.tensor([0.4488, 0.4371, 0.4040])
GROUPS, BLOCKS, WIDTH, HIDDEN = 3, 2, 8, 2
# Scale -> factors of the official tail.
TAILS = {2: [2], 3: [3], 4: [2, 2], 8: [2, 2, 2]}


def official_state(scale=4, img_range=255.0):
    """Random weights in the official layout, in float64."""
    shapes = {'head.0': (WIDTH, 3, 3, 3)}
    square = (WIDTH, WIDTH, 3, 3)
    for g in range(GROUPS):
        for b in range(BLOCKS):
            block = f'body.{g}.body.{b}.body'
            shapes[f'{block}.0'] = square
            shapes[f'{block}.2'] = square
            shapes[f'{block}.3.conv_du.0'] = (HIDDEN, WIDTH, 1, 1)
            shapes[f'{block}.3.conv_du.2'] = (WIDTH, HIDDEN, 1, 1)
        shapes[f'body.{g}.body.{BLOCKS}'] = square
    shapes[f'body.{GROUPS}'] = square
    for k, factor in enumerate(TAILS[scale]):
        shapes[f'tail.0.{2 * k}'] = (factor**2 * WIDTH, WIDTH, 3, 3)
    shapes['tail.1'] = (3, WIDTH, 3, 3)
    state = {}
    for key, shape in shapes.items():
        fan_in = shape[1] * shape[2] * shape[3]
        state[f'{key}.weight'] = torch.randn(shape).double() / fan_in**0.5
        state[f'{key}.bias'] = torch.randn(shape[0]).double()
    for name, sign in (('sub_mean', -1), ('add_mean', 1)):
        state[f'{name}.weight'] = torch.eye(3).view(3, 3, 1, 1)
        state[f'{name}.bias'] = sign * img_range * MEAN
    return state


def literal(state, x, scale):
    """The official network on values in 0 to 255, layer by layer."""

    def conv(x, name):
        weight, bias = (
            state[f'{name}.{key}'].double() for key in ('weight', 'bias')
        )
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)

    x = head = conv(conv(x, 'sub_mean'), 'head.0')
    for g in range(GROUPS):
        group = x
        for b in range(BLOCKS):
            name = f'body.{g}.body.{b}.body'
            y = conv(conv(x, f'{name}.0').relu(), f'{name}.2')
            share = F.adaptive_avg_pool2d(y, 1)
            share = conv(share, f'{name}.3.conv_du.0').relu()
            x = x + y * conv(share, f'{name}.3.conv_du.2').sigmoid()
        x = conv(x, f'body.{g}.body.{BLOCKS}') + group
    x = conv(x, f'body.{GROUPS}') + head
    for k, factor in enumerate(TAILS[scale]):
        x = F.pixel_shuffle(conv(x, f'tail.0.{2 * k}'), factor)
    return conv(conv(x, 'tail.1'), 'add_mean')


@pytest.mark.parametrize('scale', list(TAILS))
@torch.no_grad()
def test_it_is_the_official_network(scale):
    state = official_state(scale)
    cfg, ours, _ = convert(state)
    model = MODELS.build(cfg).double()
    model.load_state_dict(ours, strict=True)
    image = torch.rand(2, 3, 7, 9).double()
    wanted = literal(state, 255 * image, scale) / 255
    assert wanted.std() > 1e-3
    # The constants are in float32, 1e-8 of the values.
    torch.testing.assert_close(model(image), wanted, rtol=0, atol=1e-6)


def test_the_config_is_what_the_shapes_say():
    cfg, ours, notes = convert(official_state())
    assert cfg == dict(
        type='mmplugins.RCAN',
        num_groups=GROUPS,
        num_blocks=BLOCKS,
        mid_channels=WIDTH,
        reduction=4,
        upscale_factor=4,
        img_range=255.0,
    )
    assert len(notes) == 2
    assert notes[0].startswith(
        'dropped sub_mean.weight, sub_mean.bias, add_mean.weight, '
    )
    assert 'img_range=255 ' in notes[1]
    assert not any('mean' in key for key in ours)


def test_the_published_config():
    """10 groups of 20 blocks: the defaults, but for the range."""
    with torch.device('meta'):
        model = MODELS.build(dict(type='mmplugins.RCAN'))
    names = {v: k for k, v in rules(10, 20).items()}
    official = {
        names[key]: torch.zeros(value.shape)
        for key, value in model.state_dict().items()
    }
    cfg, ours, _ = convert(official)
    require_fit(model, ours)
    assert cfg == dict(
        type='mmplugins.RCAN',
        num_groups=10,
        num_blocks=20,
        mid_channels=64,
        reduction=16,
        upscale_factor=4,
        img_range=255.0,
    )


def rules(groups, blocks):
    """Official name -> ours, of the default scale."""
    names = {
        'head.0': 'head',
        f'body.{groups}': 'trunk.conv',
        'tail.0.0': 'upsampler.stages.0',
        'tail.0.2': 'upsampler.stages.1',
        'tail.1': 'upsampler.last',
    }
    for g in range(groups):
        names[f'body.{g}.body.{blocks}'] = f'trunk.groups.{g}.conv'
        for b in range(blocks):
            theirs = f'body.{g}.body.{b}.body'
            ours = f'trunk.groups.{g}.blocks.{b}'
            names[f'{theirs}.0'] = f'{ours}.conv1'
            names[f'{theirs}.2'] = f'{ours}.conv2'
            names[f'{theirs}.3.conv_du.0'] = f'{ours}.attention.reduce'
            names[f'{theirs}.3.conv_du.2'] = f'{ours}.attention.expand'
    return {
        f'{theirs}.{key}': f'{ours}.{key}'
        for theirs, ours in names.items()
        for key in ('weight', 'bias')
    }


def test_values_of_another_range_are_told_by_the_constants():
    cfg, _, notes = convert(official_state(img_range=1.0))
    assert cfg['img_range'] == 1
    assert 'img_range=1 ' in notes[-1]


def test_files_without_constants_are_fine():
    state = {k: v for k, v in official_state().items() if '_mean' not in k}
    cfg, _, notes = convert(state)
    assert cfg['img_range'] == 255
    assert len(notes) == 1


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('sub_mean.bias', -255 * torch.tensor([0.485, 0.456, 0.406])),
        ('add_mean.bias', -255 * MEAN),
        ('add_mean.bias', MEAN),
        ('sub_mean.weight', 4 * torch.eye(3).view(3, 3, 1, 1)),
        ('sub_mean.weight', torch.ones(3)),
    ],
)
def test_other_constants_are_refused(key, value):
    with pytest.raises(ValueError, match='are not the mean colour'):
        convert({**official_state(), key: value})


@pytest.mark.parametrize(
    'key',
    [
        'head.1.weight',
        'head.0.scale',
        'head.0',
        f'body.{GROUPS + 1}.weight',
        f'body.0.body.{BLOCKS + 1}.weight',
        'body.0.body.0.body.1.weight',
        'body.0.body.0.body.3.conv_du.1.weight',
        'tail.0.1.weight',
        'tail.2.weight',
        'up.0.weight',
    ],
)
def test_a_key_without_a_place_is_named(key):
    message = rf'^{key} has no place in an RCAN of 3 groups of 2 blocks'
    with pytest.raises(ValueError, match=message):
        convert({**official_state(), key: torch.zeros(1)})


@pytest.mark.parametrize(
    ('key', 'named'),
    [
        ('head.0.bias', 'head.bias'),
        ('body.1.body.0.body.2.weight', 'trunk.groups.1.blocks.0.conv2'),
        ('body.0.body.0.body.3.conv_du.0.weight', 'attention.reduce'),
        ('body.2.body.2.bias', 'trunk.groups.2.conv.bias'),
        ('body.3.weight', 'trunk.conv.weight'),
        ('tail.0.2.bias', 'upsampler.stages.1.bias'),
        ('tail.1.weight', 'upsampler.last.weight'),
    ],
)
def test_a_missing_key_is_named(key, named):
    state = {k: v for k, v in official_state().items() if k != key}
    with pytest.raises(ValueError, match=f'no key fills .*{named}.*RCAN'):
        fit(state)


def fit(state):
    cfg, ours, _ = convert(state)
    with torch.device('meta'):
        model = MODELS.build(cfg)
    require_fit(model, ours)


@pytest.mark.parametrize('missing', ['tail.0.', 'body.0.body.0.body.3'])
def test_missing_layers_that_tell_a_size_are_named(missing):
    state = {
        k: v for k, v in official_state().items() if not k.startswith(missing)
    }
    with pytest.raises(ValueError, match=r'no key fills .* of the RCAN'):
        fit(state)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            {'tail.0.0.weight': torch.zeros(40, 8, 3, 3)},
            r'is \(40, 8, 3, 3\), not',
        ),
        ({'tail.0.0.weight': torch.zeros(72, 8, 3, 3)}, r'by \(3, 2\)'),
        ({'tail.0.0.weight': torch.zeros(4)}, r'is \(4,\), no convolution'),
        ({'head.0.weight': torch.zeros(8, 1, 3, 3)}, r'head.weight is \(8, 1'),
    ],
)
def test_other_shapes_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        fit({**official_state(), **change})


def test_other_networks_are_refused():
    with pytest.raises(ValueError, match=r'no body\.0\.body\.0.* of an RCAN'):
        convert({'conv_first.weight': torch.zeros(64, 3, 3, 3)})
