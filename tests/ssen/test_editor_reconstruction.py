import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import assert_all_parameters_get_gradients
from small_editor import as_input, batch, build, packed, photos, sgd

pytestmark = pytest.mark.usefixtures('mmagic_scope')


def test_the_loss_is_charbonniers():
    (sample,) = photos(count=1)
    model = build()
    data = batch(packed(**sample))
    logged = model.train_step(data, sgd(model.parameters()))
    result = model.generator(as_input(sample['img']), as_input(sample['ref']))
    gap = (result - as_input(sample['gt'])).double()
    wanted = (gap**2 + 1e-6**2).sqrt().mean()
    assert set(logged) == {'loss', 'loss_pix'}
    torch.testing.assert_close(logged['loss'].double(), wanted)


def test_every_parameter_learns():
    model = build()
    data = batch(*(packed(**x) for x in photos()))
    done = model.data_preprocessor(data, True)
    model(**done, mode='loss')['loss_pix'].backward()
    assert_all_parameters_get_gradients(model)


def test_it_learns():
    model = build()
    data = batch(*(packed(**x) for x in photos()))
    from mmengine.optim import OptimWrapper

    optimizer = OptimWrapper(torch.optim.Adam(model.parameters(), 2e-3))
    losses = [
        model.train_step(data, optimizer)['loss'].item() for _ in range(25)
    ]
    assert losses[-1] < 0.5 * losses[0]


def test_some_batches_are_trained_without_references():
    torch.manual_seed(0)
    model = build(train_cfg=dict(drop_reference=0.25))
    data = model.data_preprocessor(
        batch(*(packed(**x) for x in photos(count=2))), training=True
    )
    seen = []
    forward = model.generator.forward
    model.generator.forward = lambda lr, ref=None: (
        seen.append(ref is not None) or forward(lr, ref)
    )
    for _ in range(60):
        model(**data, mode='loss')
    assert 35 <= sum(seen) <= 55  # 45 are expected
    # Distributed training waits for a gradient of every weight.
    model.drop_reference = 1.0
    sum(model(**data, mode='loss').values()).backward()
    assert all(p.grad is not None for p in model.parameters())
    model.drop_reference = 0.25
    seen.clear()
    for _ in range(20):
        model(**data, mode='tensor')
    assert all(seen)
    with pytest.raises(ValueError, match='drop_reference of RefSREditor'):
        build(train_cfg=dict(drop_reference=2))


def test_half_precision_has_a_loss_in_float32():
    """Where image and truth agree, half precision has no gradient."""
    from mmplugins.optim import BFloat16OptimWrapper

    class Same(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = torch.nn.Parameter(torch.ones(1))

        def forward(self, lr):
            large = F.interpolate(lr, scale_factor=2)
            return (large * self.gain).bfloat16()

    model = build()
    model.generator = Same()
    gt = np.zeros((8, 8, 3), np.uint8)
    data = batch(packed(gt[::2, ::2], gt))
    wrapper = BFloat16OptimWrapper(torch.optim.SGD(model.parameters(), 1.0))
    logged = model.train_step(data, wrapper)
    assert logged['loss'].dtype == torch.float32
    assert logged['loss'].item() == pytest.approx(1e-6)
    assert model.generator.gain.isfinite().all()
