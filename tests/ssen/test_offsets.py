import mmcv.cnn
import pytest
import torch
import torch.nn.functional as F
from helpers import assert_all_parameters_get_gradients
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import nn

from mmplugins.ssen.offsets import DynamicOffsetEstimator


def build(**kwargs):
    cfg = dict(type='mmplugins.DynamicOffsetEstimator', mid_channels=8)
    return MODELS.build({**cfg, **kwargs})


def stirred(**kwargs):
    """With weights where it begins with zeros, in float64."""
    model = build(**kwargs).double()
    for module in model.attend:
        for p in module.parameters():
            nn.init.normal_(p, std=0.5)
    nn.init.normal_(model.head.weight)
    nn.init.normal_(model.head.bias)
    return model


def maps(size, batch=2, channels=8):
    return torch.randn(2, batch, channels, *size).double().unbind()


class Literal:
    """The published estimator, from the weights of ours.

    Attention is mmcv's, and a transposed convolution is what a convolution's
    gradient says it is.
    """

    def __init__(self, model, skip, non_local):
        self.state = model.state_dict()
        self.skip = skip
        self.blocks = [nn.Identity()] * 3
        if non_local:
            self.blocks = [mmcv.cnn.NonLocal2d(8).double() for _ in range(3)]
            for k, block in enumerate(self.blocks):
                prefix = f'attend.{k}.'
                block.load_state_dict(
                    {
                        key.removeprefix(prefix): value
                        for key, value in self.state.items()
                        if key.startswith(prefix)
                    }
                )

    def layer(self, name):
        return self.state[f'{name}.weight'], self.state[f'{name}.bias']

    def up(self, x, k, size):
        weight, bias = self.layer(f'up.{k}.conv')
        like = torch.zeros(len(x), weight.shape[1], *size).double()
        y = torch.nn.grad.conv2d_input(
            like.shape, weight, x, stride=2, padding=1
        )
        return F.leaky_relu(y + bias.view(-1, 1, 1), 0.1)

    def __call__(self, feat, ref_feat):
        levels = [torch.cat([feat, ref_feat], 1)]
        for k in range(3):
            x = F.conv2d(
                levels[-1], *self.layer(f'down.{k}'), stride=2, padding=1
            )
            levels.append(F.leaky_relu(x, 0.1))
        x = levels[3]
        for k in range(3):
            y, other = self.blocks[k](x), levels[3 - k]
            y = (
                torch.cat([y, other], 1)
                if self.skip == 'concat'
                else y + other
            )
            x = self.up(y, k, levels[2 - k].shape[-2:])
        x = F.conv2d(x, *self.layer('head'), padding=1)
        points = x.shape[1] // 3
        offset, mask = x[:, : 2 * points], x[:, 2 * points :]
        largest = max(feat.shape[-2:])
        return (
            largest * torch.tanh(offset / largest),
            2 / (1 + torch.exp(-mask)),
        )


@pytest.mark.parametrize('size', [(16, 24), (13, 17), (9, 5)])
@pytest.mark.parametrize('skip', ['concat', 'add'])
@pytest.mark.parametrize('non_local', [True, False])
@torch.no_grad()
def test_it_is_the_published_estimator(size, skip, non_local):
    model = stirred(skip=skip, non_local=non_local)
    feats = maps(size)
    before = [x.clone() for x in feats]
    wanted = Literal(model, skip, non_local)(*feats)
    assert wanted[0].std() > 0.1
    for out, expected in zip(model(*feats), wanted, strict=True):
        torch.testing.assert_close(out, expected)
    assert all(torch.equal(a, b) for a, b in zip(before, feats))


@pytest.mark.parametrize(('skip', 'extra'), [('add', 0), ('concat', 110_592)])
def test_the_published_size(skip, extra):
    """Halvings, their way back, attention, and one head of 27 channels."""
    model = DynamicOffsetEstimator(skip=skip)
    # 128 -> 64 once and 64 -> 64 five times, of 3x3; concat: 3 times 64 more.
    convs = 73_728 + 5 * 36_864 + 6 * 64 + extra
    attention = 3 * (3 * (64 * 32 + 32) + 32 * 64 + 64)
    head = 64 * 27 * 9 + 27
    given = sum(p.numel() for p in model.parameters())
    assert given == convs + attention + head


@pytest.mark.parametrize(
    'kwargs',
    [{}, dict(upsample='bilinear'), dict(non_local_cfg=dict(sub_sample=True))],
    ids=str,
)
@pytest.mark.parametrize(
    'size', [(1, 1), (1, 2), (2, 1), (3, 4), (1, 9), (7, 8), (25, 31)]
)
def test_any_size_fits(size, kwargs):
    model = stirred(**kwargs)
    offset, mask = model(*maps(size))
    assert offset.shape == (2, 18, *size)
    assert mask.shape == (2, 9, *size)
    assert offset.isfinite().all()
    assert mask.isfinite().all()


@pytest.mark.parametrize(('groups', 'kernel'), [(1, 3), (4, 3), (2, 5)])
def test_channels_follow_groups_and_taps(groups, kernel):
    model = build(deform_groups=groups, kernel_size=kernel)
    offset, mask = model(torch.rand(1, 8, 5, 6), torch.rand(1, 8, 5, 6))
    points = groups * kernel**2
    assert offset.shape == (1, 2 * points, 5, 6)
    assert mask.shape == (1, points, 5, 6)


def test_training_begins_with_the_regular_grid():
    offset, mask = build()(*(x.float() for x in maps((9, 12))))
    assert not offset.any()
    assert (mask == 1).all()


def test_offsets_stay_in_the_map():
    model = build()
    nn.init.constant_(model.head.bias, 1e9)
    offset, mask = model(*(x.float() for x in maps((9, 12))))
    assert (offset == 12).all()
    assert (mask == 2).all()
    # Small ones are what the head says, to the third order.
    nn.init.constant_(model.head.bias, 0.5)
    offset, _ = model(*(x.float() for x in maps((9, 12))))
    assert (offset - 0.5).abs().max() < 0.5**3 / 12**2


def test_an_offset_may_depend_on_all_of_both_maps():
    """The corner's, on the opposite corner, by attention alone."""
    for non_local in (True, False):
        model = stirred(non_local=non_local)
        feats = [x.requires_grad_() for x in maps((80, 80), 1)]
        offset, _ = model(*feats)
        grads = torch.autograd.grad(offset[..., 0, 0].sum(), feats)
        for grad in grads:
            assert bool(grad[..., -1, -1].any()) == non_local


def test_bilinear_upsampling_then_convolves():
    up = build(upsample='bilinear').up[0].double()
    x = torch.randn(1, 16, 3, 4).double()
    wanted = F.interpolate(x, (5, 8), mode='bilinear', align_corners=False)
    wanted = F.conv2d(wanted, up.conv.weight, up.conv.bias, padding=1)
    parts = x.split([6, 10], 1)
    torch.testing.assert_close(up(parts, (5, 8)), wanted)


@pytest.mark.parametrize('last', [False, True])
@pytest.mark.parametrize('sides', [(1, 2), (4, 3)])
def test_transposed_upsampling_is_that_of_torch(sides, last):
    """Of maps beside each other, of either size that halves to theirs."""
    up = build().up[0].double()
    x = torch.randn(2, 16, *sides).double()
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    for odd in (0, 1):
        size = [2 * n - odd for n in sides]
        wanted = up.conv(x, output_size=size)
        out = up(x.split([6, 10], 1), size)
        torch.testing.assert_close(out, wanted)
        weights = (up.conv.weight, up.conv.bias)
        for grad, want in zip(
            torch.autograd.grad(out.sin().sum(), weights),
            torch.autograd.grad(wanted.sin().sum(), weights),
            strict=True,
        ):
            torch.testing.assert_close(grad, want)


@pytest.mark.parametrize('upsample', ['transpose', 'bilinear'])
@pytest.mark.parametrize('skip', ['concat', 'add'])
@torch.no_grad()
def test_layers_keep_the_scale_of_features(skip, upsample):
    """So that no level is lost or drowns the others."""
    model = DynamicOffsetEstimator(skip=skip, upsample=upsample)
    seen = []
    for up in model.up:
        up.register_forward_hook(lambda _, args, out: seen.append(out.std()))
    model(*torch.randn(2, 1, 64, 32, 32).unbind())
    assert all(0.3 < std < 6 for std in seen)


def test_all_weights_learn():
    model = stirred().float()
    offset, mask = model(*(x.float() for x in maps((20, 17))))
    (offset * torch.randn_like(offset)).sum().backward(retain_graph=True)
    (mask * torch.randn_like(mask)).sum().backward()
    assert_all_parameters_get_gradients(model)


def test_the_head_learns_from_the_start():
    model = build()
    offset, mask = model(*(x.float() for x in maps((20, 17))))
    (offset.sum() + mask.sum()).backward()
    assert model.head.weight.grad.any(1).all()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.half])
@torch.no_grad()
def test_offsets_stay_exact_in_half_precision(dtype):
    """A half has a spacing of one pixel beyond 1024."""
    model = build(non_local=False)
    nn.init.constant_(model.head.bias, 1100.3)
    feats = torch.randn(2, 1, 8, 2, 9000).unbind()
    with torch.autocast('cpu', dtype):
        offset, mask = model(*feats)
    assert offset.dtype == mask.dtype == torch.float32
    wanted = 9000 * torch.tanh(torch.tensor(1100.3 / 9000))
    assert (offset - wanted).abs().max() < 1e-3
    if dtype == torch.bfloat16:
        offset, mask = model.to(dtype)(*(x.to(dtype) for x in feats))
        assert offset.dtype == torch.float32
        # The parameter itself is a bfloat16, to eight pixels.
        assert (offset - wanted).abs().max() < 8


class Wrapper(BaseModule):
    """A model whose initialisation goes over all that is in it."""

    def __init__(self, child, init_cfg):
        super().__init__(init_cfg)
        self.child = child


def test_a_generic_initialisation_leaves_the_start_as_it_is():
    cfg = dict(type='Constant', val=0.5, bias=0.5, layer='Conv2d')
    model = build(init_cfg=cfg)
    Wrapper(model, cfg).init_weights()
    assert (model.down[0].weight == 0.5).all()
    offset, mask = model(*(x.float() for x in maps((9, 12))))
    assert not offset.any()
    assert (mask == 1).all()
    for block in model.attend:
        assert not block.conv_out.conv.weight.any()
        assert 0 < block.theta.conv.weight.abs().max() < 0.1


@pytest.mark.parametrize('outer', [True, False])
def test_pretrained_weights_are_taken_as_they_are(outer, tmp_path):
    wanted = stirred().float()
    prefix = 'child.' if outer else ''
    path = tmp_path / 'weights.pth'
    state = wanted.state_dict()
    torch.save({prefix + key: value for key, value in state.items()}, path)
    cfg = dict(type='Pretrained', checkpoint=str(path))
    model = build(init_cfg=None if outer else cfg)
    (Wrapper(model, cfg) if outer else model).init_weights()
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key])


def test_arguments_of_the_attention_are_passed():
    model = build(non_local_cfg=dict(reduction=4, use_scale=False))
    assert {block.inter_channels for block in model.attend} == {2}
    assert not any(block.use_scale for block in model.attend)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(skip='cat'), r"skip .* \('concat', 'add'\), got 'cat'"),
        (dict(upsample='nearest'), "upsample .*bilinear.*, got 'nearest'"),
        (dict(deform_groups=3), 'deform_groups .* divide its 8 .* got 3'),
        (dict(deform_groups=0), 'deform_groups .* got 0'),
        (
            dict(non_local=False, non_local_cfg=dict(reduction=1)),
            'non_local_cfg .* needs non_local=True',
        ),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(**kwargs)


@pytest.mark.parametrize(
    'shapes',
    [
        [(1, 8, 4, 4), (1, 8, 4, 5)],
        [(1, 8, 4, 4), (2, 8, 4, 4)],
        [(1, 7, 4, 4), (1, 7, 4, 4)],
        [(8, 4, 4), (8, 4, 4)],
    ],
)
def test_maps_that_do_not_fit_are_named(shapes):
    with pytest.raises(ValueError, match=r'needs two maps \(B, 8, H, W\)'):
        build()(*map(torch.zeros, shapes))
