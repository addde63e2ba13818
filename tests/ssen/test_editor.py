from collections.abc import Sequence

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import assert_all_parameters_get_gradients
from mmengine.registry import MODELS
from mmengine.runner import Runner
from skimage import data

from mmplugins import compat

NET = dict(
    type='mmplugins.SSENNet',
    mid_channels=8,
    num_blocks=2,
    num_extract_blocks=1,
    num_layers=2,
    upscale_factor=2,
)
RCAN = {**NET, 'trunk': 'rcan', 'num_groups': 2}
CRITIC = dict(
    type='PatchDiscriminator',
    in_channels=3,
    base_channels=4,
    num_conv=1,
    norm_cfg=dict(type='IN'),
)
WGAN = dict(
    discriminator=CRITIC,
    gan_loss=dict(type='GANLoss', gan_type='wgan', loss_weight=1e-3),
    gp_loss=dict(type='GradientPenaltyLoss', loss_weight=10),
)


@pytest.fixture(autouse=True)
def _scope(in_scope):
    with in_scope('mmagic'):
        yield


def build(generator=NET, **kwargs):
    """An editor whose alignment is not that of the start any more."""
    cfg = dict(type='mmplugins.RefSREditor', generator=generator, **kwargs)
    model = MODELS.build(cfg)
    for parameter in model.generator.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def packed(img, gt=None, ref=None, **meta):
    """What a pipeline makes of images (H, W, 3), BGR."""
    from mmagic.datasets.transforms import PackInputs

    results = dict(img=img, gt=gt, ref=ref, **meta)
    results = {key: x for key, x in results.items() if x is not None}
    pack = PackInputs(keys=['img', 'ref'], meta_keys=['ref_channel_order'])
    return pack(results)


def batch(*samples):
    """What a data loader makes of packed samples."""
    from mmengine.dataset import pseudo_collate

    return pseudo_collate(list(samples))


def photos(size=(12, 14), count=2, scale=2):
    """Parts of a photograph: small, true, and a reference beside it."""
    image = data.astronaut()[..., ::-1]
    H, W = (scale * n for n in size)
    found = []
    for k in range(count):
        gt = image[8 * k : 8 * k + H, 100 : 100 + W]
        img = cv2.resize(gt, size[::-1], interpolation=cv2.INTER_AREA)
        ref = image[8 * k + 4 : 8 * k + 4 + H, 106 : 106 + W]
        found.append(dict(img=img, gt=gt, ref=ref))
    return found


def sgd(params, lr=0.0):
    from mmengine.optim import OptimWrapper

    return OptimWrapper(torch.optim.SGD(params, lr))


def as_input(image):
    """RGB in [0, 1], (1, 3, H, W), of BGR (H, W, 3)."""
    return torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)[
        None
    ].float() / torch.tensor(255.0)


class TestPreprocessor:
    @pytest.mark.parametrize('training', [True, False])
    def test_image_and_reference_are_normalised_alike(self, training):
        samples = photos()
        model = build()
        done = model.data_preprocessor(
            batch(*(packed(**x) for x in samples)), training
        )
        (ref,) = done['inputs']['ref']
        for k, sample in enumerate(samples):
            torch.testing.assert_close(
                done['inputs']['img'][k : k + 1], as_input(sample['img'])
            )
            torch.testing.assert_close(ref[k : k + 1], as_input(sample['ref']))
            gt = as_input(sample['gt'])[0]
            if not training:
                gt = 255 * gt.flip(0)
            torch.testing.assert_close(
                done['data_samples'].gt_img[k].float(), gt
            )

    def test_a_reference_has_the_order_of_its_image(self):
        (sample,) = photos(count=1)
        rgb = {key: x[..., ::-1].copy() for key, x in sample.items()}
        model = build()
        for meta in (
            dict(img_channel_order='RGB', gt_channel_order='RGB'),
            dict(img_channel_order='RGB', ref_channel_order='RGB'),
        ):
            found = model.data_preprocessor(batch(packed(**rgb, **meta)))
            torch.testing.assert_close(
                found['inputs']['ref'][0], as_input(sample['ref'])
            )
        mixed = {**rgb, 'ref': sample['ref']}
        meta = dict(img_channel_order='RGB', ref_channel_order='BGR')
        found = model.data_preprocessor(batch(packed(**mixed, **meta)))
        for key in ('img', 'ref'):
            (x,) = found['inputs'][key]
            torch.testing.assert_close(
                x.view(3, *x.shape[-2:]), as_input(sample[key])[0]
            )

    def test_references_of_other_sizes_repeat_their_border(self):
        one, two = (torch.rand(3, 5, 9), torch.rand(3, 8, 4))
        model = build()
        data = dict(
            inputs=dict(img=[torch.zeros(3, 4, 4)] * 2, ref=[one, two])
        )
        (ref,) = model.data_preprocessor(data)['inputs']['ref']
        assert ref.shape == (2, 3, 8, 9)
        for found, x in zip(ref, (one, two)):
            x = x.flip(0) / 255
            h, w = x.shape[-2:]
            torch.testing.assert_close(found[:, :h, :w], x)
            torch.testing.assert_close(
                found[:, h:, :w], x[:, -1:].expand(-1, 8 - h, -1)
            )

    def test_several_references(self):
        samples = photos()
        for sample in samples:
            sample['ref'] = [sample['ref'], sample['gt'][::-1].copy()]
        model = build()
        done = model.data_preprocessor(batch(*(packed(**x) for x in samples)))
        refs = done['inputs']['ref']
        assert len(refs) == 2
        torch.testing.assert_close(refs[1][1:], as_input(samples[1]['ref'][1]))

    def test_unlike_counts_are_an_error(self):
        model = build()
        refs = [torch.rand(1, 3, 4, 4), torch.rand(2, 3, 4, 4)]
        data = dict(inputs=dict(img=[torch.zeros(3, 2, 2)] * 2, ref=refs))
        with pytest.raises(ValueError, match=r'equally many .* \[1, 2\]'):
            model.data_preprocessor(data)

    def test_one_of_mmagic_does_as_well(self):
        own = dict(
            type='DataPreprocessor',
            mean=[0.0] * 3,
            std=[255.0] * 3,
            output_channel_order='RGB',
        )
        data = batch(*(packed(**x) for x in photos()))
        model = build().eval()
        other = build(data_preprocessor=own).eval()
        other.load_state_dict(model.state_dict())
        for one, two in zip(model.test_step(data), other.test_step(data)):
            torch.testing.assert_close(
                one.output.pred_img, two.output.pred_img
            )


class TestPredictions:
    def test_are_those_of_the_generator(self):
        (sample,) = photos(count=1)
        model = build().eval()
        (found,) = model.test_step(batch(packed(**sample)))
        result = model.generator(
            as_input(sample['img']), as_input(sample['ref'])
        )
        wanted = 255 * result[0].flip(0).clamp(0, 1)
        torch.testing.assert_close(found.output.pred_img, wanted)
        np.testing.assert_array_equal(
            found.gt_img.permute(1, 2, 0).numpy(), sample['gt']
        )
        np.testing.assert_allclose(
            found.input.permute(1, 2, 0).numpy(), sample['img'], atol=1e-3
        )
        assert found.ref_img.shape == (3, *sample['ref'].shape[:2])

    def test_the_reference_matters_and_may_be_missing(self):
        (sample,) = photos(count=1)
        alone = {key: sample[key] for key in ('img', 'gt')}
        other = {**sample, 'ref': 255 - sample['ref']}
        model = build().eval()
        images = [
            model.test_step(batch(packed(**x)))[0].output.pred_img
            for x in (sample, other, alone)
        ]
        assert (images[0] - images[1]).abs().max() > 0.1
        wanted = model.generator(as_input(sample['img']), None)[0]
        torch.testing.assert_close(images[2], 255 * wanted.flip(0).clamp(0, 1))

    def test_without_the_truth(self):
        (sample,) = photos(count=1)
        data = batch(packed(sample['img'], ref=sample['ref']))
        (found,) = build().eval().test_step(data)
        assert found.output.pred_img.shape == (3, 24, 28)

    def test_forms_of_references(self):
        model = build().eval()
        image = torch.rand(2, 3, 6, 7)
        refs = torch.rand(2, 3, 3, 12, 14)
        stacked = model(dict(img=image, ref=refs))
        listed = model(dict(img=image, ref=[*refs.unbind(1)]))
        torch.testing.assert_close(stacked, listed)
        one = model(dict(img=image, ref=refs[:, 0]))
        assert (one - stacked).abs().max() > 1e-4
        alone = model(image)
        for none in (None, []):
            torch.testing.assert_close(model(dict(img=image, ref=none)), alone)

    def test_an_unknown_mode_is_an_error(self):
        with pytest.raises(ValueError, match="'loss', got 'predicted'"):
            build()(torch.rand(1, 3, 4, 4), mode='predicted')


class TestTiles:
    @pytest.mark.parametrize('generator', [NET, RCAN])
    @pytest.mark.parametrize(
        ('dtype', 'error'), [(torch.float32, 1e-5), (torch.float64, 1e-10)]
    )
    def test_give_the_whole(self, generator, dtype, error):
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

    def test_of_rcan_alone(self):
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

    def test_are_not_for_training(self, monkeypatch):
        from mmplugins.ssen import tiling

        monkeypatch.delattr(tiling, 'upscale_tiles')
        model = build(test_cfg=dict(tile=2)).train()
        assert model(torch.rand(1, 3, 6, 6)).requires_grad

    def test_a_small_image_is_one(self, monkeypatch):
        from mmplugins.ssen import tiling

        monkeypatch.delattr(tiling, 'upscale_tiles')
        model = build(test_cfg=dict(tile=6)).eval()
        assert model(torch.rand(1, 3, 6, 6)).shape == (1, 3, 12, 12)

    def test_errors(self):
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


class TestReconstruction:
    def test_loss_is_charbonniers(self):
        (sample,) = photos(count=1)
        model = build()
        data = batch(packed(**sample))
        logged = model.train_step(data, sgd(model.parameters()))
        result = model.generator(
            as_input(sample['img']), as_input(sample['ref'])
        )
        gap = (result - as_input(sample['gt'])).double()
        wanted = (gap**2 + 1e-6**2).sqrt().mean()
        assert set(logged) == {'loss', 'loss_pix'}
        torch.testing.assert_close(logged['loss'].double(), wanted)

    def test_every_parameter_learns(self):
        model = build()
        data = batch(*(packed(**x) for x in photos()))
        done = model.data_preprocessor(data, True)
        model(**done, mode='loss')['loss_pix'].backward()
        assert_all_parameters_get_gradients(model)

    def test_learns(self):
        model = build()
        data = batch(*(packed(**x) for x in photos()))
        from mmengine.optim import OptimWrapper

        optimizer = OptimWrapper(torch.optim.Adam(model.parameters(), 2e-3))
        losses = [
            model.train_step(data, optimizer)['loss'].item() for _ in range(25)
        ]
        assert losses[-1] < 0.5 * losses[0]

    def test_some_batches_are_trained_without_references(self):
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

    def test_half_precision_has_a_loss_in_float32(self):
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
        wrapper = BFloat16OptimWrapper(
            torch.optim.SGD(model.parameters(), 1.0)
        )
        logged = model.train_step(data, wrapper)
        assert logged['loss'].dtype == torch.float32
        assert logged['loss'].item() == pytest.approx(1e-6)
        assert model.generator.gain.isfinite().all()


def adversarial(model, lr=1e-3):
    from mmengine.optim import OptimWrapperDict

    return OptimWrapperDict(
        generator=sgd(model.generator.parameters(), lr),
        discriminator=sgd(model.discriminator.parameters(), lr),
    )


class TestAdversarial:
    def test_losses_are_those_of_wgan_gp(self):
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

    def test_both_parts_learn(self):
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

    def test_the_discriminator_may_start_alone(self):
        model = build(**WGAN, train_cfg=dict(disc_init_steps=1))
        data = batch(*(packed(**x) for x in photos()))
        optimizers = adversarial(model, 0.1)
        state = {k: v.clone() for k, v in model.generator.state_dict().items()}
        logged = model.train_step(data, optimizers)
        assert 'loss_pix' not in logged
        for key, value in model.generator.state_dict().items():
            assert (value == state[key]).all()
        assert 'loss_pix' in model.train_step(data, optimizers)

    def test_without_a_penalty(self):
        model = build(
            discriminator=CRITIC,
            gan_loss=dict(type='GANLoss', gan_type='vanilla'),
        )
        data = batch(*(packed(**x) for x in photos()))
        logged = model.train_step(data, adversarial(model))
        assert set(logged) == {
            *('loss_pix', 'loss_gan', 'loss_d_real', 'loss_d_fake')
        }

    def test_in_half_precision(self):
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

    def test_optimizers_have_to_fit(self):
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
    def test_parts_go_together(self, missing, message):
        parts = {key: x for key, x in WGAN.items() if key != missing}
        with pytest.raises(ValueError, match=message):
            build(**parts)
        with pytest.raises(ValueError, match='penalises a discriminator'):
            build(gp_loss=WGAN['gp_loss'])


def write(folder, names: Sequence[str]):
    for name, sample in zip(names, photos(count=len(names))):
        for key, image in sample.items():
            (folder / key).mkdir(exist_ok=True)
            assert cv2.imwrite(str(folder / key / f'{name}.png'), image)


def psnr(one, two, border):
    """Of two images (H, W, C) in [0, 255]."""
    inner = np.s_[border:-border, border:-border] if border else np.s_[:, :]
    error = (one[inner].astype(float) - two[inner].astype(float)) ** 2
    return 10 * np.log10(255**2 / error.mean())


def luma(image):
    """Y of BT.601 of BGR in [0, 255]."""
    return 16 + image @ np.array([24.966, 128.553, 65.481]) / 255


@pytest.mark.parametrize('stage', ['reconstruction', 'adversarial'])
def test_a_runner_trains_and_tests(tmp_path, stage):
    compat.import_mmagic()
    write(tmp_path, ['a', 'b', 'c'])
    pipeline = [
        *(
            dict(type='LoadImageFromFile', key=key)
            for key in ('img', 'gt', 'ref')
        ),
        dict(type='PackInputs', keys=['img', 'ref']),
    ]
    dataset = dict(
        type='BasicImageDataset',
        metainfo=dict(dataset_type='photos', task_name='refsr'),
        data_root=str(tmp_path),
        data_prefix=dict(img='img', gt='gt', ref='ref'),
        pipeline=pipeline,
    )
    loader = dict(
        batch_size=1,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dataset,
    )
    model = dict(type='mmplugins.RefSREditor', generator=NET)
    optim = dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=1e-4))
    if stage == 'adversarial':
        model.update(WGAN)
        optim = dict(
            constructor='MultiOptimWrapperConstructor',
            generator=optim,
            discriminator=optim,
        )

    def metrics(name):
        return dict(
            type='Evaluator',
            metrics=[
                dict(type='PSNR', crop_border=4, prefix=f'{name}/RGB-b4'),
                dict(type='PSNR', convert_to='Y', prefix=f'{name}/Y-b0'),
            ],
        )

    figures = {}

    class Keep(Runner):
        def call_hook(self, name, **kwargs):
            if name == 'after_test_epoch':
                figures.update(kwargs['metrics'])
            super().call_hook(name, **kwargs)

    runner = Keep(
        model=model,
        work_dir=str(tmp_path / 'work'),
        train_dataloader={**loader, 'batch_size': 3},
        val_dataloader=loader,
        test_dataloader=[loader, loader],
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=2, val_interval=2),
        val_cfg=dict(type='MultiValLoop'),
        test_cfg=dict(type='MultiTestLoop'),
        val_evaluator=metrics('one'),
        test_evaluator=[metrics('one'), metrics('two')],
        optim_wrapper=optim,
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2),
            logger=dict(type='LoggerHook', interval=1),
        ),
        custom_hooks=[dict(type='mmplugins.RobustnessTableHook')],
        log_processor=dict(type='LogProcessor', by_epoch=False),
        default_scope='mmagic',
        log_level='WARNING',
        experiment_name=f'editor-{stage}',
        randomness=dict(seed=0),
    )
    runner.train()
    assert (tmp_path / 'work' / 'iter_2.pth').is_file()
    runner.test()
    wanted = []
    for name in ('a', 'b', 'c'):
        img, gt, ref = (
            cv2.imread(str(tmp_path / key / f'{name}.png'))
            for key in ('img', 'gt', 'ref')
        )
        with torch.no_grad():
            x = runner.model.generator(as_input(img), as_input(ref))
        x = 255 * x[0].clamp(0, 1).flip(0).permute(1, 2, 0).numpy()
        wanted.append([psnr(x, gt, 4), psnr(luma(x), luma(gt), 0)])
    found = [
        [figures[f'{row}/{column}/PSNR'] for column in ('RGB-b4', 'Y-b0')]
        for row in ('one', 'two')
    ]
    np.testing.assert_allclose(found, [np.mean(wanted, 0)] * 2, rtol=1e-3)
