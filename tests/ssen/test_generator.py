import pytest
import torch
import torch.nn.functional as F
from helpers import assert_all_parameters_get_gradients
from mmengine.registry import MODELS
from skimage import data
from torch import nn

from mmplugins.ssen import SSENNet
from mmplugins.ssen import references as references_module

SCALES = [2, 3, 4, 8]


def build(**kwargs):
    cfg = dict(
        type='mmplugins.SSENNet',
        mid_channels=8,
        num_blocks=2,
        num_extract_blocks=1,
        num_groups=2,
        num_layers=2,
    )
    return MODELS.build({**cfg, **kwargs})


def stirred(**kwargs):
    """With weights where it begins with zeros and ones, in float64."""
    model = build(**kwargs).double()
    if model.ssen is not None:
        for estimator in model.ssen.estimators:
            for block in estimator.attend:
                nn.init.normal_(block.conv_out.conv.weight, std=0.3)
            nn.init.normal_(estimator.head.weight, std=0.3)
        for conv in model.ssen.convs:
            nn.init.normal_(conv.weight, std=0.1)
    return model


def image(*size, batch=2):
    return torch.rand(batch, 3, *size).double()


@torch.no_grad()
def test_the_network_is_its_parts():
    """Shared blocks, alignment, joint map, trunk, global skip, upsampler."""
    model = stirred()
    lr, ref = image(7, 9), image(28, 36)

    def extract(x):
        for block in model.extractor:
            x = block(x)
        return x

    feat = extract(model.stem(lr - model.mean))
    ref_feat = extract(model.ref_stem(ref - model.mean))
    aligned = model.ssen(feat, ref_feat)
    weight = model.fusion.weight[..., 0, 0]
    fused = torch.einsum('oc,bchw->bohw', weight[:, :8], feat)
    fused += torch.einsum('oc,bchw->bohw', weight[:, 8:], aligned)
    fused += model.fusion.bias.view(-1, 1, 1)
    x = fused
    for block in model.trunk.blocks:
        x = block(x)
    wanted = model.upsampler(model.trunk.conv(x) + feat) + model.mean
    out, aux = model(lr, ref, return_aux=True)
    torch.testing.assert_close(out, wanted)
    assert torch.equal(model(lr, ref), out)
    assert [len(layers) for layers in aux] == [2]
    offset, mask = aux[0][0]
    assert (offset.shape, mask.shape) == ((2, 18, 7, 9), (2, 9, 7, 9))
    # By hand, as for several images of one reference.
    feat = model.extract(lr)
    fused = model.align(feat, model.extract_reference(ref, (7, 9)))
    torch.testing.assert_close(model.reconstruct(feat, fused), wanted)


@pytest.mark.parametrize('trunk', ['residual', 'rcan'])
@pytest.mark.parametrize('scale', SCALES)
@torch.no_grad()
def test_any_size_is_enlarged(scale, trunk):
    model = stirred(upscale_factor=scale, trunk=trunk)
    for size in ((1, 1), (5, 1), (7, 10)):
        lr = image(*size)
        shape = (2, 3, scale * size[0], scale * size[1])
        for ref in (None, image(1, 1), image(40, 23), [image(9, 90)] * 2):
            out = model(lr, ref)
            assert out.shape == shape
            assert out.isfinite().all()


@torch.no_grad()
def test_without_a_reference_the_image_is_its_own():
    model = stirred()
    lr = image(7, 9)
    feat = model.extract(lr)
    wanted = model.reconstruct(feat, model.align(feat, [feat]))
    for ref in (None, [], ()):
        assert torch.equal(model(lr, ref), wanted)
    own = stirred(reference='self')
    own.load_state_dict(
        {k: v for k, v in model.state_dict().items() if 'ref_stem' not in k}
    )
    assert torch.equal(own(lr), wanted)
    # It has no way to look at another one.
    assert torch.equal(own(lr, image(28, 36)), wanted)
    with pytest.raises(ValueError, match="reference='self' takes no ref"):
        own.extract_reference(image(28, 36), (7, 9))


@torch.no_grad()
def test_the_plain_network_has_the_same_trunk():
    model, plain = build(), build(reference=False)
    shapes = {k: v.shape for k, v in model.state_dict().items()}
    for key, value in plain.state_dict().items():
        assert value.shape == shapes.pop(key)
    assert {key.split('.')[0] for key in shapes} == {
        'ssen',
        'ref_stem',
        'fusion',
    }
    lr = image(7, 9).float()
    out, aux = plain(lr, return_aux=True)
    assert aux == []
    feat = plain.extract(lr)
    assert torch.equal(out, plain.reconstruct(feat, feat))
    assert torch.equal(plain(lr, image(28, 36).float()), out)


@torch.no_grad()
def test_a_reference_matters_where_it_is():
    """Its whole extent: the far corner of a large one too."""
    model = stirred()
    lr, ref = image(8, 8, batch=1), image(60, 20, batch=1)
    out = model(lr, ref)
    for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        other = ref.clone()
        other[(..., *corner)] = 1 - other[(..., *corner)]
        assert (model(lr, other) - out).abs().max() > 1e-9


def test_a_search_moves_references_to_the_image():
    """What it finds is told as one more layer, of a single tap."""
    net = SSENNet(mid_channels=16, num_blocks=1, num_layers=1, search=dict())
    photo = torch.from_numpy(data.astronaut()).permute(2, 0, 1)[None] / 255
    target, other = photo[..., :192, 64:256], photo[..., 16:208, 40:232]
    lr = F.interpolate(target, (48, 48), mode='bicubic', antialias=True)
    with torch.no_grad():
        net.fusion.weight[:, 16:].mul_(10)  # begins with a tenth
        wanted, _ = net(lr, target, return_aux=True)
        found, aux = net(lr, other, return_aux=True)
        net.search = None
        plain, plain_aux = net(lr, other, return_aux=True)
    assert [len(aux[0]), len(plain_aux[0])] == [2, 1]
    offset, mask = aux[0][0]
    assert (mask == 1).all()
    inner = offset[0, :, 8:40, 8:40]  # target(p) is at p + (-16, 24)
    middle = inner.flatten(1).median(1).values
    torch.testing.assert_close(
        middle, torch.tensor([-4.0, 6.0]), atol=0.1, rtol=0
    )
    near, far = (
        (x - wanted)[..., 32:160, 32:160].abs().median()
        for x in (found, plain)
    )
    assert near < 0.2 * far


def test_every_image_and_reference_is_searched_by_itself():
    """A batch of two with two references each, one of them larger."""
    net = SSENNet(mid_channels=8, num_blocks=1, num_layers=0, search=dict())
    photo = torch.from_numpy(data.astronaut()).permute(2, 0, 1)[None] / 255
    targets = torch.cat([photo[..., :128, :128], photo[..., 96:224, 160:288]])
    lr = F.interpolate(targets, (32, 32), mode='bicubic', antialias=True)
    near = torch.cat([photo[..., 8:136, :128], photo[..., 96:224, 168:296]])
    large = F.interpolate(targets.flip(0), scale_factor=2, mode='bicubic')
    with torch.no_grad():
        aux = net(lr, [near, large], return_aux=True)[1]
        for k, ref in enumerate((near, large)):
            for b in (slice(0, 1), slice(1, 2)):
                feat = net.extract(lr[b])
                alone = net.find_reference(feat, ref[b])
                torch.testing.assert_close(
                    aux[k][0].offset[b], alone, atol=1e-4, rtol=0
                )
    shifts = [move[0].offset for move in aux]
    assert (shifts[0] - shifts[1]).abs().max() > 1
    assert (shifts[0][0] - shifts[0][1]).abs().max() > 1


@torch.no_grad()
def test_references_of_one_batch_have_sizes_of_their_own():
    """As each with its own image; padded alike, the small one would shrink."""
    model = stirred(search=dict(levels=1))
    lr = image(7, 9)
    refs = [torch.rand(3, *size).double() for size in ((90, 70), (11, 20))]
    out, aux = model(lr, [refs, image(30, 3)], True)
    assert [len(layers) for layers in aux] == [3, 3]
    out, aux = model(lr, [refs], True)
    for b, ref in enumerate(refs):
        alone, wanted = model(lr[b : b + 1], ref[None], True)
        torch.testing.assert_close(out[b : b + 1], alone)
        for one, other in zip(aux[0], wanted[0], strict=True):
            torch.testing.assert_close(one.offset[b : b + 1], other.offset)
    with pytest.raises(ValueError, match='each of 2 images, got 1'):
        model(lr, [refs[:1]])
    with pytest.raises(ValueError, match=r'references .* got \(1, 1, 4, 4\)'):
        model(lr, [[refs[0], refs[0][:1, :4, :4]]])


def test_a_reference_is_fitted_once(monkeypatch):
    seen = []
    fit = F.interpolate
    monkeypatch.setattr(
        references_module.F,
        'interpolate',
        lambda x, size, **kwargs: (
            seen.append(tuple(x.shape[-2:])) or fit(x, size, **kwargs)
        ),
    )
    build(search=dict())(torch.rand(1, 3, 9, 9), torch.rand(1, 3, 80, 77))
    assert seen.count((80, 77)) == 1


@torch.no_grad()
def test_the_order_of_references_does_not_matter():
    model = stirred()
    lr, refs = image(7, 9), [image(28, 36), image(11, 50), image(60, 8)]
    out = model(lr, refs)
    torch.testing.assert_close(model(lr, refs[::-1]), out)
    assert not torch.allclose(model(lr, refs[:2]), out)
    _, aux = model(lr, refs, return_aux=True)
    for ref, layers in zip(refs, aux, strict=True):
        _, alone = model(lr, ref, return_aux=True)
        torch.testing.assert_close(layers, alone[0])


@torch.no_grad()
def test_a_reference_twice_is_the_reference():
    model = stirred()
    lr, ref = image(7, 9), image(28, 36)
    torch.testing.assert_close(model(lr, [ref, ref]), model(lr, ref))
    torch.testing.assert_close(model(lr, (ref,)), model(lr, ref))


@pytest.mark.parametrize('trunk', ['residual', 'rcan'])
@pytest.mark.parametrize('scale', SCALES)
@torch.no_grad()
def test_tiles_are_the_whole(scale, trunk):
    model = stirred(upscale_factor=scale, trunk=trunk, num_blocks=1)
    lr, ref = image(19, 23, batch=1), image(40, 61, batch=1)
    whole = model(lr, ref)
    feat, fused, _ = model.encode(lr, ref)
    for tile in (None, 1, 8, 21, 50):
        if tile == 1 and trunk == 'residual':
            continue  # slow
        out = torch.full_like(whole, float('nan'))
        for window, part in model.reconstruct_tiles(feat, fused, tile):
            assert out[(..., *window.slices)].isnan().all()
            out[(..., *window.slices)] = part
        torch.testing.assert_close(out, whole, rtol=0, atol=1e-12)
    part = model.reconstruct(feat, fused, (4, 0, 3, 11))
    wanted = whole[..., 4 * scale : 7 * scale, : 11 * scale]
    torch.testing.assert_close(part, wanted, rtol=0, atol=1e-12)


@torch.no_grad()
def test_the_radius_is_that_of_the_trunk_and_the_upsampler():
    model = build(num_blocks=3)
    assert model.radius == 2 * 3 + 1 + 2
    for distance, counts in ((9, True), (10, False)):
        feat = torch.zeros(1, 8, 1, 41)
        fused = feat.clone()
        fused[..., 20 + distance] = float('nan')
        out = model.reconstruct(feat, fused)[..., 80:84]
        assert out.isnan().any() == counts
    assert build(trunk='rcan').radius is None
    assert build(num_blocks=16).radius == 35


@torch.no_grad()
def test_a_window_works_on_its_surroundings_only():
    model = build()
    seen = []
    model.trunk.register_forward_pre_hook(
        lambda _, args: seen.append(tuple(args[0].shape[-2:]))
    )
    feat = torch.randn(1, 8, 60, 50)
    list(model.reconstruct_tiles(feat, feat, 10))
    assert len(seen) == 30
    # Two blocks and a convolution, and the upsampler.
    assert max(seen) == (10 + 2 * 7, 10 + 2 * 7)


@pytest.mark.parametrize('trunk', ['residual', 'rcan'])
def test_all_weights_learn(trunk):
    model = stirred(trunk=trunk, mid_channels=32).float()
    for name, p in model.named_parameters():
        if name.endswith('attention.reduce.bias'):
            nn.init.ones_(p)  # one of so few may be dead
    lr, ref = image(20, 17).float(), image(80, 68).float()
    out = model(lr, ref)
    (out * torch.randn_like(out)).sum().backward()
    assert_all_parameters_get_gradients(model)


@pytest.mark.parametrize('reference', ['self', False])
def test_all_weights_learn_without_references(reference):
    """Where none is expected, none is left unused."""
    model = stirred(reference=reference).float()
    out = model(image(20, 17).float())
    (out * torch.randn_like(out)).sum().backward()
    assert_all_parameters_get_gradients(model)


@pytest.mark.parametrize('trunk', ['residual', 'rcan'])
@torch.no_grad()
def test_a_new_network_gives_sane_images(trunk):
    """About the image's colours, whatever the reference; all parts alive."""
    model = SSENNet(trunk=trunk, num_groups=2, num_blocks=4)
    lr = F.interpolate(torch.rand(2, 3, 4, 4), (16, 16), mode='bicubic')
    refs = [F.interpolate(lr.flip(0), scale_factor=4, mode='bicubic')]
    feat = model.extract(lr)
    ref_feat = model.extract_reference(refs[0], (16, 16))
    stds = [x.std() for x in (feat, ref_feat, model.align(feat, ref_feat))]
    assert max(stds) < 3 * min(stds)
    for ref in (None, refs):
        out = model(lr, ref)
        assert out.min() > -1
        assert out.max() < 2
        assert 0.02 < out.std() < 0.5


def test_it_learns_from_a_reference():
    """Signs of a pattern of mean 1/2: the best guess without errs by 1/2."""
    model = build(
        upscale_factor=2, num_blocks=1, num_extract_blocks=1, num_layers=1
    )
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(60):
        hr = (torch.rand(2, 3, 8, 8) > 0.5).float()
        hr[..., 1::2] = 1 - hr[..., ::2]
        lr = F.avg_pool2d(hr, 2)
        assert (lr == 0.5).all()
        loss = (model(lr, hr) - hr).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) / 5 < 0.4


@torch.no_grad()
def test_half_precision_is_near():
    model = stirred().float()
    lr, ref = image(12, 15).float(), image(48, 60).float()
    wanted = model(lr, ref)
    with torch.autocast('cpu', torch.bfloat16):
        out = model(lr, ref)
    assert (out - wanted).abs().mean() < 0.05


def test_the_published_size():
    """5 shared blocks and 16 of 64 channels; SSEN 1,339,569 of them."""
    with torch.device('meta'):
        model = SSENNet()
    conv = 64 * 64 * 9 + 64
    # Behind the image's 3x3 kernels the reference's two of 4x4.
    stems = 3 * 64 * (9 + 16) + 64 * 64 * 16 + 3 * 64
    fusion = 128 * 64 + 64
    upsampler = 2 * (64 * 256 * 9 + 256) + 64 * 3 * 9 + 3
    wanted = stems + (5 + 16) * 2 * conv + conv + fusion + upsampler
    assert sum(p.numel() for p in model.parameters()) == wanted + 1_339_569


def test_the_trunk_of_an_rcan_takes_its_weights():
    """As the published RCAN in the trunk and the upsampler."""
    from mmplugins.ssen import RCAN

    rcan = RCAN(2, 2, 8, upscale_factor=4)
    model = build(trunk='rcan', num_groups=2, num_blocks=2)
    keys = model.load_state_dict(rcan.state_dict(), strict=False)
    assert keys.unexpected_keys == ['head.weight', 'head.bias']
    left = {key.split('.')[0] for key in keys.missing_keys}
    assert not left & {'trunk', 'upsampler'}


def test_arguments_reach_the_alignment():
    model = build(
        num_layers=1,
        non_local=False,
        deform_groups=2,
        align=dict(skip='add', offsets=dict(upsample='bilinear')),
    )
    (estimator,) = model.ssen.estimators
    assert estimator.skip == 'add'
    assert estimator.up[0].mode == 'bilinear'
    assert estimator.points == 18
    assert isinstance(estimator.attend[0], nn.Identity)
    assert build(num_layers=0)(torch.rand(1, 3, 4, 4)).shape[-1] == 16


def test_other_channels_have_a_mean_of_their_own():
    model = build(in_channels=1, out_channels=1)
    assert not model.mean.any()
    assert model(torch.rand(1, 1, 4, 5), torch.rand(1, 1, 9, 9)).shape[1] == 1
    model = build(mean=(0.1, 0.2, 0.3))
    assert model.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert 'mean' not in model.state_dict()


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(trunk='edsr'), r"trunk .* \('residual', 'rcan'\), got 'edsr'"),
        (dict(upscale_factor=6), r'upscale_factor .* got 6'),
        (dict(reference='none'), "reference .* or 'self', got 'none'"),
        (dict(out_channels=1), 'in_channels and out_channels .* 3 and 1'),
        (dict(mean=(0.5,)), r'mean of SSENNet needs 3 values, got \(0.5,'),
        (dict(num_layers=7), 'num_layers of SSEN .* got 7'),
        (
            dict(reference='self', search=dict(levels=2), num_layers=7),
            "search .* reference=True, .* got search={'levels': 2} and "
            "reference='self'",
        ),
        (
            dict(reference=False, search={}),
            'search .* got search={} and reference=False',
        ),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(**kwargs)


@pytest.mark.parametrize(
    ('lr', 'ref', 'message'),
    [
        ((2, 1, 8, 8), None, r'images \(B, 3, H, W\), got \(2, 1, 8, 8\)'),
        ((3, 8, 8), None, r'images .* got \(3, 8, 8\)'),
        ((2, 3, 8, 8), (2, 1, 8, 8), r'references .* got \(2, 1, 8, 8\)'),
        ((2, 3, 8, 8), (3, 8, 8), 'reference for each of 2 images, got 3'),
        ((2, 3, 8, 8), (1, 3, 8, 8), 'each of 2 images, got 1'),
        ((2, 3, 8, 8), (2, 3, 0, 8), r'must be images .* \(2, 3, 0, 8\)'),
    ],
)
def test_other_images_are_named(lr, ref, message):
    ref = ref and torch.zeros(ref)
    with pytest.raises(ValueError, match=message):
        build()(torch.zeros(lr), ref)
