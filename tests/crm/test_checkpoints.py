"""Official keys against a literal network of what they mean."""

import pytest
import torch
import torch.nn.functional as F
from helpers import literal_ensemble
from mmengine.registry import MODELS
from torch import nn

from mmplugins.apis.checkpoints import require_fit
from mmplugins.crm.checkpoints import convert

LEVELS = {'128': (64, 64), '256': (256, 64), '1024': (1024, 128)}
DEAD = 'feats.layer4.'


def random_norm(channels):
    return dict(
        weight=0.5 + torch.rand(channels),
        bias=0.2 * torch.randn(channels),
        running_mean=0.2 * torch.randn(channels),
        running_var=0.5 + torch.rand(channels),
        num_batches_tracked=torch.tensor(45_705),
    )


def resnet():
    """The official encoder, from its description."""
    models = pytest.importorskip('torchvision').models
    net = models.resnet50(replace_stride_with_dilation=[False, True, True])
    net.conv1 = nn.Conv2d(4, 64, 7, 2, 3, bias=False)
    del net.fc
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.load_state_dict(random_norm(module.num_features))
    return net


def official_state(encoder):
    """Random weights in the official layout."""
    state = {f'feats.{k}': v for k, v in encoder.state_dict().items()}
    for name, (inner, outer) in LEVELS.items():
        state[f'aspp_.aspp1_{name}.atrous_conv.weight'] = (
            torch.randn(outer, inner, 1, 1) / inner**0.5
        )
        for norm in (f'aspp1_{name}.bn', f'bn1_{name}'):
            for key, value in random_norm(outer).items():
                state[f'aspp_.{norm}.{key}'] = value
    state['aspp_.last_conv.0.weight'] = torch.randn(256, 256, 3, 3) / 48
    for key, value in random_norm(256).items():
        state[f'aspp_.last_conv.1.{key}'] = value
    widths = [262, 32, 32, 32, 32, 1]
    for k in range(5):
        shape = widths[k + 1], widths[k]
        weight = torch.randn(shape) / shape[1] ** 0.5
        state[f'imnet.layers.{2 * k}.weight'] = weight
        state[f'imnet.layers.{2 * k}.bias'] = torch.randn(shape[0])
    return state


class Literal:
    """The official network, section by section, in float64."""

    def __init__(self, encoder, state):
        self.net = encoder.double().eval()
        self.state = {k: v.double() for k, v in state.items()}

    def norm(self, x, name):
        keys = ('running_mean', 'running_var', 'weight', 'bias')
        return F.batch_norm(x, *[self.state[f'{name}.{k}'] for k in keys])

    def stage(self, image, seg, size):
        net = self.net
        x = torch.cat([image, seg], 1)
        x_1 = net.relu(net.bn1(net.conv1(x)))
        x_2 = net.layer1(net.maxpool(x_1))
        x_3 = net.layer3(net.layer2(x_2))
        levels = []
        for name, x in zip(LEVELS, (x_1, x_2, x_3)):
            conv = self.state[f'aspp_.aspp1_{name}.atrous_conv.weight']
            x = self.norm(F.conv2d(x, conv), f'aspp_.aspp1_{name}.bn').relu()
            x = self.norm(x, f'aspp_.bn1_{name}').relu()
            levels.append(
                F.interpolate(
                    x, x_1.shape[-2:], mode='bilinear', align_corners=True
                )
            )
        x = F.conv2d(
            torch.cat(levels, 1),
            self.state['aspp_.last_conv.0.weight'],
            padding=1,
        )
        x = self.norm(x, 'aspp_.last_conv.1').relu()
        layers = [
            tuple(
                self.state[f'imnet.layers.{k}.{key}']
                for key in ('weight', 'bias')
            )
            for k in range(0, 10, 2)
        ]
        return literal_ensemble(x, size, layers)

    def cascade(self, image, seg):
        """Section 1.3."""
        image, seg = (F.pad(x, [32] * 4, mode='reflect') for x in (image, seg))
        size = image.shape[-2:]
        for s in (0.125, 0.25, 0.5, 1.0):
            small = tuple(round(n * s) for n in size)
            im_s, seg_s = (
                F.interpolate(x, small, mode='bilinear', align_corners=True)
                for x in (image, seg)
            )
            p = self.stage(im_s, seg_s, size).sigmoid()
            seg = 2 * p - 1
        return p[..., 32:-32, 32:-32]


@pytest.fixture(scope='module')
def official():
    """A literal network and its state under the official names."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = resnet()
        state = official_state(encoder)
        # The encoder is made double below; the state stays as it is.
        state = {k: v.clone() for k, v in state.items()}
        network = Literal(encoder, state)
        # Logits of mean 0 and deviation 2, so that masks have two sides.
        inputs = torch.randn(1, 4, 48, 48).double()
        with torch.no_grad():
            out = network.stage(inputs[:, :3], inputs[:, 3:], (48, 48))
        last = 'imnet.layers.8.'
        state[f'{last}weight'] *= 2 / out.std()
        state[f'{last}bias'] -= out.mean()
        state[f'{last}bias'] *= 2 / out.std()
    return Literal(encoder, state), state


@pytest.fixture(scope='module')
def model(official):
    cfg, ours, _ = convert(official[1])
    model = MODELS.build(cfg)
    model.load_state_dict(ours, strict=True)
    return model.double().eval()


# The last two have features of odd ratios 3 and 5 to the targets, where a
# target lies on the last cell's centre.
@pytest.mark.parametrize(
    ('size', 'target'),
    [
        ((32, 48), (32, 48)),
        ((37, 51), (37, 51)),
        ((33, 40), (90, 211)),
        ((24, 32), (36, 48)),
        ((16, 24), (40, 36)),
    ],
)
@torch.no_grad()
def test_a_stage_is_that_of_the_official_network(
    size, target, official, model
):
    image = torch.randn(1, 3, *size).double()
    seg = torch.rand(1, 1, *size).double() * 2 - 1
    wanted = official[0].stage(image, seg, target)
    assert wanted.std() > 0.1
    out = model.forward_stage(image, seg, target)
    error = (out - wanted).abs().max() / wanted.abs().max()
    assert error < 1e-8
    single = MODELS.build(convert(official[1])[0]).eval()
    single.load_state_dict(model.state_dict())
    out = single.forward_stage(image.float(), seg.float(), target)
    error = (out - wanted).abs().max() / wanted.abs().max()
    assert error < 1e-4


@torch.no_grad()
def test_refinement_is_that_of_the_official_network(official, model):
    image = torch.randn(1, 3, 41, 36).double()
    seg = torch.full((1, 1, 41, 36), -1.0).double()
    seg[..., 8:30, 10:28] = 1
    wanted = official[0].cascade(image, seg)
    assert wanted.std() > 0.01
    out = model.refine(image, seg)
    torch.testing.assert_close(out, wanted, rtol=0, atol=1e-8)


def test_the_stem_is_split(official):
    stem = official[1]['feats.conv1.weight']
    _, ours, _ = convert(official[1])
    assert torch.equal(ours['backbone.net.conv1.weight'], stem[:, :3])
    assert torch.equal(ours['backbone.net.conv1.mask_weight'], stem[:, 3:])


def test_what_is_dropped_and_needed_is_said(official):
    count = sum(key.startswith(DEAD) for key in official[1])
    _, ours, notes = convert(official[1])
    assert notes[0] == f'dropped {DEAD}* (never used): {count} tensors'
    assert 'align_corners=True' in notes[-1]
    assert len(notes) == 2
    # The conv1 is one key more.
    assert len(ours) == len(official[1]) - count + 1
    less = {k: v for k, v in official[1].items() if not k.startswith(DEAD)}
    assert convert(less)[1].keys() == ours.keys()
    assert len(convert(less)[2]) == 1


def test_files_without_counters_fit(official, model):
    old = {k: v for k, v in official[1].items() if 'num_batches' not in k}
    cfg, ours, notes = convert(old)
    assert notes[1] == 'set 50 missing num_batches_tracked to 0'
    with torch.device('meta'):
        require_fit(MODELS.build(cfg), ours)
    key = 'decode_head.fusion.bn.num_batches_tracked'
    assert ours[key] == 0
    assert convert(official[1])[1][key] == 45_705


def test_the_config_is_the_official_setting(official):
    cfg, ours, _ = convert(official[1])
    model = MODELS.build(cfg)
    assert model.decode_head.align_corners
    assert model.scales == (0.125, 0.25, 0.5, 1.0)
    assert model.padding == 32
    image = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    out = model.data_preprocessor(dict(inputs=image))['inputs'][0, :, 0, 0]
    wanted = [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    assert out.tolist() == pytest.approx(wanted, rel=1e-4)
    plain = dict(type='mmplugins.CRMHead', align_corners=True)
    plain = MODELS.build(dict(type='mmplugins.CRM', decode_head=plain))
    plain.load_state_dict(ours, strict=True)


@pytest.mark.parametrize(
    'key',
    [
        'aspp_.aspp1_512.bn.weight',
        'aspp_.bn1_128.bn.weight',
        'aspp_.aspp1_128.weight',
        'aspp_.last_conv.2.weight',
        'imnet.layers.1.weight',
        'imnet.layers.0.scale',
        'conv1.weight',
        'imnet_.layers.0.weight',
    ],
)
def test_a_key_without_a_place_is_named(key, official):
    with pytest.raises(ValueError, match=rf'^{key} has no place in a CRM'):
        convert({**official[1], key: torch.zeros(1)})


@pytest.mark.parametrize('shape', [(64, 6, 7, 7), (64, 3, 7, 7), (64,)])
def test_a_stem_of_other_inputs_is_named(shape, official):
    message = r'feats.conv1.weight is \(64.*, no convolution of 4 channels'
    with pytest.raises(ValueError, match=message):
        convert({**official[1], 'feats.conv1.weight': torch.zeros(shape)})


@pytest.mark.parametrize(
    ('key', 'named'),
    [
        ('feats.layer3.5.bn3.weight', 'backbone.net.layer3.5.bn3.weight'),
        ('feats.conv1.weight', 'backbone.net.conv1.weight'),
        ('aspp_.bn1_256.running_var', 'decode_head.levels.1.1.running_var'),
        ('imnet.layers.8.bias', 'decode_head.decoder.layers.4.bias'),
        ('aspp_.last_conv.0.weight', 'decode_head.fusion.conv.weight'),
    ],
)
def test_a_missing_key_is_named(key, named, official):
    cfg, ours, _ = convert({k: v for k, v in official[1].items() if k != key})
    with torch.device('meta'):
        model = MODELS.build(cfg)
    with pytest.raises(ValueError, match=f'no key fills .*{named}.* of CRM'):
        require_fit(model, ours)
