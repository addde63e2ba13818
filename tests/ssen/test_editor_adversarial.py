import pytest
import torch
from small_editor import (
    CRITIC,
    WGAN,
    as_input,
    batch,
    build,
    packed,
    photos,
    sgd,
)

pytestmark = pytest.mark.usefixtures('mmagic_scope')


def adversarial(model, lr=1e-3):
    from mmengine.optim import OptimWrapperDict

    return OptimWrapperDict(
        generator=sgd(model.generator.parameters(), lr),
        discriminator=sgd(model.discriminator.parameters(), lr),
    )


def test_losses_are_those_of_wgan_gp():
    """The same by hand, with the same random numbers."""
    samples = photos()
    model = build(**WGAN)
    gt = torch.cat([as_input(x['gt']) for x in samples])
    with torch.no_grad():
        fake = model.generator(
            torch.cat([as_input(x['img']) for x in samples]),
            torch.cat([as_input(x['ref']) for x in samples]),
        )
        real_score, fake_score = map(model.discriminator, (gt, fake))
    data = batch(*(packed(**x) for x in samples))
    torch.manual_seed(3)
    logged = model.train_step(data, adversarial(model, 0.0))
    torch.manual_seed(3)
    share = torch.rand(2, 1, 1, 1)
    mixed = (share * gt + (1 - share) * fake).requires_grad_()
    (slope,) = torch.autograd.grad(model.discriminator(mixed).sum(), mixed)
    wanted = dict(
        loss_pix=((fake - gt) ** 2 + 1e-12).sqrt().mean(),
        loss_gan=-1e-3 * fake_score.mean(),
        loss_d_real=-real_score.mean(),
        loss_d_fake=fake_score.mean(),
        loss_gp=10 * ((slope.norm(dim=1) - 1) ** 2).mean(),
    )
    assert set(logged) == set(wanted)
    for key, value in wanted.items():
        torch.testing.assert_close(logged[key], value.detach())


def test_both_parts_learn():
    model = build(**WGAN)
    data = batch(*(packed(**x) for x in photos()))
    parts = (model.generator, model.discriminator)
    before = [
        [p.detach().clone() for p in part.parameters()] for part in parts
    ]
    model.train_step(data, adversarial(model, 0.1))
    for part, old in zip(parts, before):
        changed = [(p != q).any() for p, q in zip(part.parameters(), old)]
        assert sum(changed) > len(changed) / 2


def test_the_discriminator_may_start_alone():
    model = build(**WGAN, train_cfg=dict(disc_init_steps=1))
    data = batch(*(packed(**x) for x in photos()))
    optimizers = adversarial(model, 0.1)
    state = {k: v.clone() for k, v in model.generator.state_dict().items()}
    logged = model.train_step(data, optimizers)
    assert 'loss_pix' not in logged
    for key, value in model.generator.state_dict().items():
        assert (value == state[key]).all()
    assert 'loss_pix' in model.train_step(data, optimizers)


def test_a_critic_without_a_penalty():
    model = build(
        discriminator=CRITIC,
        gan_loss=dict(type='GANLoss', gan_type='vanilla'),
    )
    data = batch(*(packed(**x) for x in photos()))
    logged = model.train_step(data, adversarial(model))
    assert set(logged) == {
        *('loss_pix', 'loss_gan', 'loss_d_real', 'loss_d_fake')
    }


def test_losses_in_half_precision_are_in_full():
    from mmengine.optim import OptimWrapperDict

    from mmplugins.optim import BFloat16OptimWrapper

    model = build(**WGAN)
    data = batch(*(packed(**x) for x in photos()))
    optimizers = OptimWrapperDict(
        **{
            name: BFloat16OptimWrapper(
                torch.optim.SGD(getattr(model, name).parameters(), 1e-3)
            )
            for name in ('generator', 'discriminator')
        }
    )
    logged = model.train_step(data, optimizers)
    for value in logged.values():
        assert value.dtype == torch.float32
        assert value.isfinite()


def test_optimizers_have_to_fit():
    data = batch(*(packed(**x) for x in photos()))
    model, plain = build(**WGAN), build()
    with pytest.raises(ValueError, match='MultiOptimWrapperConstructor'):
        model.train_step(data, sgd(model.parameters()))
    wrong = adversarial(model)
    with pytest.raises(ValueError, match=r"\['generator'\], got"):
        plain.train_step(data, wrong)
    del wrong.optim_wrappers['discriminator']
    logged = plain.train_step(data, wrong)
    assert set(logged) == {'loss_pix'}
    with pytest.raises(ValueError, match=r"got \['generator'\]"):
        model.train_step(data, wrong)


@pytest.mark.parametrize(
    ('missing', 'message'),
    [
        ('discriminator', 'gan_loss alone'),
        ('gan_loss', 'discriminator alone'),
    ],
)
def test_parts_go_together(missing, message):
    parts = {key: x for key, x in WGAN.items() if key != missing}
    with pytest.raises(ValueError, match=message):
        build(**parts)
    with pytest.raises(ValueError, match='penalises a discriminator'):
        build(gp_loss=WGAN['gp_loss'])
