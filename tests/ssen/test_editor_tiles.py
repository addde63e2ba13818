import pytest
import torch
from small_editor import NET, build

pytestmark = pytest.mark.usefixtures('mmagic_scope')

RCAN = {**NET, 'trunk': 'rcan', 'num_groups': 2}


@pytest.mark.parametrize('generator', [NET, RCAN])
@pytest.mark.parametrize(
    ('dtype', 'error'), [(torch.float32, 1e-5), (torch.float64, 1e-10)]
)
def test_tiles_give_the_whole(generator, dtype, error):
    # Larger than what lies around a tile, so that it is really cut.
    image = torch.rand(1, 3, 41, 30, dtype=dtype)
    ref = torch.rand(1, 3, 50, 99, dtype=dtype)
    whole = build(generator).to(dtype).eval()
    tiled = build(generator, test_cfg=dict(tile=9)).to(dtype).eval()
    tiled.load_state_dict(whole.state_dict())
    with torch.no_grad():
        for inputs in (image, dict(img=image, ref=ref)):
            found, wanted = tiled(inputs), whole(inputs)
            assert (found - wanted).abs().max() < error
    assert found.shape == (1, 3, 82, 60)


def test_tiles_of_rcan_alone():
    generator = dict(
        type='mmplugins.RCAN',
        num_groups=1,
        num_blocks=1,
        mid_channels=8,
        reduction=2,
        upscale_factor=3,
    )
    tiled = build(generator, test_cfg=dict(tile=5)).double().eval()
    image = torch.rand(2, 3, 11, 16).double()
    with torch.no_grad():
        error = tiled(image) - tiled.generator(image)
    assert error.abs().max() < 1e-10
    with pytest.raises(ValueError, match='RCAN takes no references'):
        tiled(dict(img=image, ref=image))


def test_tiles_are_not_for_training(monkeypatch):
    from mmplugins.ssen import tiling

    monkeypatch.delattr(tiling, 'upscale_tiles')
    model = build(test_cfg=dict(tile=2)).train()
    assert model(torch.rand(1, 3, 6, 6)).requires_grad


def test_a_small_image_is_one(monkeypatch):
    from mmplugins.ssen import tiling

    monkeypatch.delattr(tiling, 'upscale_tiles')
    model = build(test_cfg=dict(tile=6)).eval()
    assert model(torch.rand(1, 3, 6, 6)).shape == (1, 3, 12, 12)


def test_other_tiles_and_generators_are_errors():
    with pytest.raises(ValueError, match='tile must be 1 or more'):
        build(test_cfg=dict(tile=0))
    generator = dict(
        type='EDSRNet',
        in_channels=3,
        out_channels=3,
        mid_channels=4,
        num_blocks=1,
        upscale_factor=2,
    )
    model = build(generator, test_cfg=dict(tile=4)).eval()
    assert model(torch.rand(1, 3, 4, 4)).shape == (1, 3, 8, 8)
    with pytest.raises(ValueError, match='generator is EDSRNet'):
        model(torch.rand(1, 3, 5, 4))
