"""The cascade of CRM: as published, in tiles and on any mask."""

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from small_crm import build, pair, samples
from torch import nn

SCALES = (0.125, 0.25, 0.5, 1.0)


def cascade(model, image, mask, scales=SCALES, padding=32):
    """Inference as published, and what each stage gives."""
    align_corners = model.decode_head.align_corners
    image, mask = (
        F.pad(x, [padding] * 4, mode='reflect') for x in (image, mask)
    )
    height, width = image.shape[-2:]
    inside = (..., slice(padding, height - padding),
              slice(padding, width - padding))  # fmt: skip
    stages = []
    for s in scales:
        small = (round(height * s), round(width * s))
        im_s, seg_s = (
            F.interpolate(
                x, small, mode='bilinear', align_corners=align_corners
            )
            for x in (image, mask)
        )
        p = model.forward_stage(im_s, seg_s, (height, width)).sigmoid()
        stages.append(p[inside])
        mask = 2 * p - 1
    return stages


@pytest.mark.parametrize('align_corners', [True, False])
@pytest.mark.parametrize('size', [(64, 80), (51, 77)])
def test_refinement_is_the_published_cascade(size, align_corners):
    model = build(align_corners=align_corners)
    image, mask = pair(*size, batch=2)
    with torch.no_grad():
        wanted = cascade(model, image, mask)
    prob, stages = model.refine(image, mask, stages=True)
    assert prob.std() > 0.05
    for out, stage in zip(stages, wanted, strict=True):
        torch.testing.assert_close(out, stage, rtol=1e-9, atol=1e-9)
    assert torch.equal(stages[-1], prob)
    assert torch.equal(model.refine(image, mask), prob)


def test_scales_and_padding_are_those_asked_for():
    model = build(scales=(0.3, 1.0), padding=10)
    image, mask = pair(40, 50)
    with torch.no_grad():
        wanted = cascade(model, image, mask, (0.3, 1.0), 10)[-1]
        torch.testing.assert_close(model.refine(image, mask), wanted)
        wanted = cascade(model, image, mask, [2.0], 10)[-1]
    out = model.refine(image, mask, [2.0])
    torch.testing.assert_close(out, wanted)


@pytest.mark.parametrize('tile', [None, 40])
def test_trust_is_log_odds_of_the_coarse_mask(tile):
    model, plain = (build(scales=(0.5, 1.0), tile=tile) for _ in range(2))
    plain.load_state_dict(model.state_dict())
    model.trust = 1.5
    image, mask = pair(60, 52)
    mask = torch.ones_like(mask)
    mask[..., :26] = -1
    first = plain.refine(image, mask, [0.5])
    first = (first.logit() + 1.5 * mask).sigmoid()
    # A single stage on what the first one gave, with its prior again.
    out, stages = model.refine(image, mask, stages=True)
    torch.testing.assert_close(stages[0], first)
    assert out[..., :26].mean() < plain.refine(image, mask)[..., :26].mean()
    model.trust = 1000.0
    assert torch.equal(model.refine(image, mask) > 0.5, mask > 0)


def test_trust_is_positive():
    with pytest.raises(ValueError, match='trust of CRM .* got -1'):
        build(trust=-1)


def test_antialias_averages_the_small_image():
    model, plain = build(antialias=True), build()
    plain.load_state_dict(model.state_dict())
    image, mask = pair(64, 64)
    out = model.refine(image, mask, [0.125])
    assert (out - plain.refine(image, mask, [0.125])).abs().max() > 1e-3
    image, mask = (F.pad(x, [32] * 4, mode='reflect') for x in (image, mask))
    image, mask = (
        F.interpolate(x, (16, 16), mode='bilinear', antialias=True)
        for x in (image, mask)
    )
    with torch.no_grad():
        wanted = model.forward_stage(image, mask, (128, 128)).sigmoid()
    torch.testing.assert_close(out, wanted[..., 32:-32, 32:-32])


@pytest.mark.parametrize('tile', [1024, 40])
def test_images_of_a_batch_do_not_meet(tile):
    model = build(tile=tile)
    image, mask = pair(50, 61, batch=2)
    mask[1] = -mask[1]
    both = model.refine(image, mask)
    for k in (0, 1):
        alone = model.refine(image[k : k + 1], mask[k : k + 1])
        torch.testing.assert_close(both[k : k + 1], alone)


@pytest.mark.parametrize('align_corners', [True, False])
@pytest.mark.parametrize(
    ('size', 'tile', 'residual'),
    [
        ((96, 160), 64, None),
        ((97, 131), 33, 2.0),
        ((41, 230), 50, None),
        ((100, 67), 15, None),
    ],
)
def test_tiles_are_the_whole(size, tile, residual, align_corners):
    model = build(align_corners=align_corners, tile=None, residual=residual)
    image, mask = pair(*size)
    _, wanted = model.refine(image, mask, stages=True)
    model.tile = tile
    radius = model.backbone.reach().radius
    seen = []
    model.backbone.register_forward_pre_hook(
        lambda _, args: seen.append(args[0].shape[-2:])
    )
    out, stages = model.refine(image, mask, stages=True)
    for a, b in zip(stages, wanted):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    assert torch.equal(out, stages[-1])
    # Tiles they were, and what surrounds them is bounded.
    assert len(seen) > 8
    assert max(max(shape) for shape in seen) <= tile + 2 * (radius + 32)


def test_tiles_of_a_resnet_are_the_whole():
    model = MODELS.build(
        dict(
            type='mmplugins.CRM',
            backbone=dict(type='mmplugins.CRMBackbone', depth=18),
            decode_head=dict(
                type='mmplugins.CRMHead',
                in_channels=(64, 64, 256),
                channels=(4, 4, 8),
            ),
            padding=0,
        )
    )
    model = model.double().eval()
    nn.init.normal_(model.backbone.net.conv1.mask_weight)
    image, mask = pair(40, 500)
    whole = model.refine(image, mask, [1.0])
    seen = []
    model.backbone.register_forward_hook(lambda *_: seen.append(1))
    model.tile = 100
    out = model.refine(image, mask, [1.0])
    torch.testing.assert_close(out, whole, rtol=0, atol=1e-10)
    assert len(seen) > 2


def test_a_backbone_that_pools_needs_no_tiles():
    image, mask = pair(48, 64)
    model = build(backbone=dict(pooled=True), tile=64)
    with pytest.raises(ValueError, match='Pyramid.*set tile=None'):
        model.refine(image, mask)
    model.tile = None
    assert model.refine(image, mask).isfinite().all()


def test_an_empty_mask_stays_empty():
    model = build()
    image, _ = pair(40, 50)
    prob = model.refine(image, -torch.ones(1, 1, 40, 50).double())
    assert not prob.any()
    # Of a batch, only the empty ones.
    masks = torch.full((2, 1, 40, 50), -1.0).double()
    masks[1, :, 10:30, 10:30] = 1
    prob = model.refine(image.expand(2, -1, -1, -1), masks)
    assert not prob[0].any()
    assert prob[1].any()


@pytest.mark.parametrize('size', [(2, 2), (1, 1), (3, 50), (33, 2), (20, 20)])
@pytest.mark.parametrize('align_corners', [True, False])
@pytest.mark.parametrize('tile', [None, 16])
def test_small_images(size, align_corners, tile):
    model = build(align_corners=align_corners, tile=tile)
    prob = model.refine(*pair(*size))
    assert prob.shape == (1, 1, *size)
    assert prob.isfinite().all()
    assert (prob >= 0).all()
    assert (prob <= 1).all()
    bare = build(align_corners=align_corners, tile=tile, padding=0)
    assert bare.refine(*pair(*size)).isfinite().all()


def test_tiles_smaller_than_a_pixel_of_the_result():
    model = build(tile=None, padding=0)
    image, mask = pair(6, 5)
    whole = model.refine(image, mask, [3.0])
    model.tile = 1
    torch.testing.assert_close(model.refine(image, mask, [3.0]), whole)


MASKS = dict(
    full=lambda m: m.fill_(1),
    pixel=lambda m: m[..., 20, 25].fill_(1),
    corner=lambda m: m[..., 0, 0].fill_(1),
    border=lambda m: m[..., :4].fill_(1),
    soft=lambda m: m.fill_(0),
)


@pytest.mark.parametrize('name', list(MASKS))
def test_unusual_masks(name):
    model = build(double=False)
    image = torch.randn(1, 3, 41, 50)
    mask = torch.full((1, 1, 41, 50), -1.0)
    MASKS[name](mask)
    given = mask.clone(), image.clone()
    prob, stages = model.refine(image, mask, stages=True)
    for out in (prob, *stages):
        assert out.isfinite().all()
        assert out.min() >= 0
        assert out.max() <= 1
    assert prob.any()
    assert torch.equal(mask, given[0])
    assert torch.equal(image, given[1])


def test_stages_that_cannot_see_a_mask_leave_it():
    image, mask = pair(100, 100)
    mask = mask.fill_(-1)
    mask[..., 50:54, 50:54] = 1
    model = build(min_pixels=3)
    _, stages = model.refine(image, mask, stages=True)
    plain = build()
    plain.load_state_dict(model.state_dict())
    # 16 pixels are 1, 1, 4 and 16 of those picked at the scales.
    for stage in stages[:2]:
        torch.testing.assert_close(2 * stage - 1, mask)
    assert (2 * stages[2] - 1 - mask).abs().max() > 0.1
    wanted = plain.refine(image, mask, [0.5, 1.0])
    torch.testing.assert_close(stages[3], wanted)


@pytest.mark.parametrize(
    ('min_size', 'scales'),
    [(0, SCALES), (25, (0.25, 0.5, 1.0)), (26, (0.5, 1.0)), (999, (1.0,))],
)
def test_small_images_leave_out_small_scales(min_size, scales):
    image, mask = pair(100, 130)
    model = build(min_size=min_size)
    plain = build()
    plain.load_state_dict(model.state_dict())
    out, stages = model.refine(image, mask, stages=True)
    assert model.stage_scales((100, 130)) == scales
    assert len(stages) == len(scales)
    torch.testing.assert_close(out, plain.refine(image, mask, scales))
    # Those that are asked for are all there.
    assert len(model.refine(image, mask, SCALES, stages=True)[1]) == 4


def test_a_residual_is_the_mask_as_it_came():
    """At the image's resolution, whatever the scale of the stage."""
    model = build(residual=1.0)
    nn.init.zeros_(model.decode_head.decoder.layers[-1].weight)
    nn.init.zeros_(model.decode_head.decoder.layers[-1].bias)
    image, mask = pair(60, 70)
    out = model.refine(image, mask, [0.125])
    torch.testing.assert_close(out, mask.sigmoid())


def test_evaluation_is_deterministic_and_leaves_the_seed_alone():
    model = build(tile=40)
    (image, mask), coarse = pair(50, 60), samples((50, 60))
    state = torch.get_rng_state()
    assert torch.equal(model.refine(image, mask), model.refine(image, mask))
    model.predict(image, coarse)
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.refine(image, mask).requires_grad
