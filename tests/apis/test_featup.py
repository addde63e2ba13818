import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

from mmplugins.apis.featup import FeatUpInferencer, load_all
from mmplugins.featup import FeatUp
from mmplugins.featup.inspection import composed_kernel, inspect_image

CHANNELS = 8
BACKBONE = dict(
    type='mmpretrain.ResNet', depth=18, base_channels=4, out_indices=(1,)
)
UPSAMPLER = dict(type='mmplugins.JBUStack', num_stages=2)
CFG = Config(
    dict(
        model=dict(
            type='mmplugins.FeatUp',
            backbone=BACKBONE,
            in_channels=CHANNELS,
            upsampler=UPSAMPLER,
            downsampler=dict(
                type='mmplugins.AttentionDownsampler', kernel_size=4, stride=4
            ),
            data_preprocessor=dict(
                type='ImgDataPreprocessor',
                mean=[128.0] * 3,
                std=[64.0] * 3,
                bgr_to_rgb=True,
            ),
        )
    )
)
SEGMENTOR = Config(
    dict(
        default_scope='mmseg',
        model=dict(
            type='mmplugins.GuidedEncoderDecoder',
            data_preprocessor=dict(
                type='SegDataPreProcessor',
                mean=[128.0] * 3,
                std=[64.0] * 3,
                bgr_to_rgb=True,
                size=(64, 64),
                test_cfg=dict(size_divisor=32),
            ),
            backbone=BACKBONE,
            neck=dict(
                type='mmplugins.FeatUpNeck',
                in_channels=CHANNELS,
                out_channels=6,
                upsampler=UPSAMPLER,
            ),
            decode_head=dict(
                type='FCNHead',
                in_channels=6,
                channels=4,
                num_convs=1,
                concat_input=False,
                num_classes=3,
            ),
            test_cfg=dict(mode='whole'),
        ),
    )
)


def image(height=45, width=66):
    """Three flat parts of one colour each."""
    picture = np.full((height, width, 3), (200, 120, 40), np.uint8)
    cv2.circle(picture, (width // 2, height // 2), 9, (30, 60, 220), -1)
    picture[:, -width // 6 :] = 250
    return picture


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """Checkpoints of both, not as they were initialised."""
    folder = tmp_path_factory.mktemp('weights')
    torch.manual_seed(3)
    for name, cfg in (('featup', CFG), ('segmentor', SEGMENTOR)):
        model = FeatUpInferencer(cfg).model
        state = {
            key: value + 0.1 if value.is_floating_point() else value
            for key, value in model.state_dict().items()
        }
        torch.save({'state_dict': state}, folder / f'{name}.pth')
    return folder


class TestInferencer:
    def test_shows_what_the_checkpoint_holds(self, weights):
        inferencer = FeatUpInferencer(CFG, str(weights / 'featup.pth'))
        sheet, inspection = inferencer(image())
        assert isinstance(inferencer.model, FeatUp)
        assert not inferencer.model.training
        state = torch.load(weights / 'featup.pth')['state_dict']
        loaded = inferencer.model.state_dict()
        assert all(loaded[key].equal(state[key]) for key in loaded)
        assert sheet.dtype == np.uint8
        assert sheet.std() > 10
        # Cells of eight, then of two pixels.
        assert inspection.low.shape == (CHANNELS, 6, 9)
        assert next(inspection.high_chunks(9)).shape == (CHANNELS, 23, 33)

    def test_shows_a_segmentor(self, weights):
        """Padded to 64 x 96, of which the image is a part."""
        inferencer = FeatUpInferencer(
            SEGMENTOR, str(weights / 'segmentor.pth')
        )
        _, inspection = inferencer(image(), pixel=(44, 65))
        assert inspection.area == (64, 96)
        assert inspection.low.shape == (6, 6, 9)
        assert inferencer.in_channels == 6
        kernel = composed_kernel(inspection, (44, 65))
        y, x = np.unravel_index(kernel.abs().argmax(), kernel.shape)
        assert abs(y - 44 // 8) <= 1
        assert abs(x - 65 // 8) <= 1

    def test_grows_with_what_is_asked_for(self, weights):
        inferencer = FeatUpInferencer(CFG, str(weights / 'featup.pth'))
        plain = inferencer(image())[0]
        vector = inferencer(image(), query=np.ones(CHANNELS))[0]
        pixel = inferencer(image(), pixel=(20, 30))[0]
        assert len(plain) < len(vector) < len(pixel)
        for more in (vector, pixel):
            np.testing.assert_array_equal(more[: len(plain)], plain)

    def test_memory_changes_nothing(self, weights, tmp_path):
        sheets, maps = [], []
        for memory in (1e-6, 64):
            inferencer = FeatUpInferencer(
                CFG, str(weights / 'featup.pth'), max_memory=memory
            )
            sheet, inspection = inferencer(image(), pixel=(20, 30))
            paths = [tmp_path / f'{memory}_{i}.npy' for i in range(2)]
            inferencer.save_features(inspection, *paths)
            sheets.append(sheet)
            maps.append([np.load(path) for path in paths])
        assert inspection.chunk(1e-6) == 1
        # Rounded to 255 levels.
        assert np.abs(sheets[0].astype(int) - sheets[1]).max() <= 8
        for one, other in zip(*maps):
            assert one.dtype == np.float32
            np.testing.assert_allclose(one, other, atol=1e-5)
        np.testing.assert_array_equal(maps[1][0], inspection.low)
        high = inspection.upsampler(inspection.feats, inspection.guidance)
        np.testing.assert_allclose(
            maps[1][1], inspection.crop(high[0]), atol=1e-5
        )

    def test_a_failure_leaves_no_file(self, weights, tmp_path):
        inferencer = FeatUpInferencer(CFG, str(weights / 'featup.pth'))
        _, inspection = inferencer(image())

        def broken(*args):
            yield from [torch.zeros(1, 2, 2)]
            raise RuntimeError('out of memory')

        inspection.high_chunks = broken
        with pytest.raises(RuntimeError, match='out of memory'):
            inferencer.save_features(
                inspection, tmp_path / 'low.npy', tmp_path / 'high.npy'
            )
        assert not list(tmp_path.iterdir())

    def test_large_images_are_reduced(self, weights):
        inferencer = FeatUpInferencer(CFG, str(weights / 'featup.pth'))
        _, inspection = inferencer(image(90, 132), (89, 131), max_size=66)
        assert inspection.size == (45, 66)
        _, inspection = inferencer(image(), max_size=66)
        assert inspection.size == (45, 66)

    def test_without_weights_as_the_config_says(self, weights):
        checkpoint = dict(
            type='Pretrained', checkpoint=str(weights / 'featup.pth')
        )
        cfg = Config(CFG.to_dict())
        cfg.model.upsampler.init_cfg = dict(**checkpoint, prefix='upsampler')
        upsampler = FeatUpInferencer(cfg).model.upsampler
        state = torch.load(weights / 'featup.pth')['state_dict']
        for key, value in upsampler.state_dict().items():
            assert value.equal(state[f'upsampler.{key}'])

    @pytest.mark.parametrize(
        ('kwargs', 'message'),
        [
            (dict(pixel=(45, 0)), 'pixel 45 0 .* outside of the .* 45 x 66'),
            (dict(pixel=(0, -1)), 'pixel 0 -1 .* outside'),
            (dict(query=np.ones(3)), r'has shape \(8,\), got \(3,\)'),
        ],
    )
    def test_bad_queries_are_named(self, weights, kwargs, message):
        inferencer = FeatUpInferencer(CFG, str(weights / 'featup.pth'))
        with pytest.raises(ValueError, match=message):
            inferencer(image(), **kwargs)

    def test_other_models_are_told_what_they_lack(self):
        cfg = Config(SEGMENTOR.to_dict())
        cfg.model.update(type='mmseg.EncoderDecoder', neck=None)
        cfg.model.decode_head.in_channels = CHANNELS
        with pytest.raises(ValueError, match='holds no upsampler to look at'):
            FeatUpInferencer(cfg)
        with pytest.raises(ValueError, match='has no model'):
            FeatUpInferencer(Config(dict(train_cfg=None)))


class TestImplicit:
    """A checkpoint of one image, of 45 x 66 pixels in whole cells."""

    @pytest.fixture
    def inferencer(self, tmp_path):
        cfg = Config(CFG.to_dict())
        cfg.model.offset = -4
        cfg.model.upsampler = dict(
            type='mmplugins.ImplicitUpsampler', dim=4, scale=2
        )
        model = FeatUpInferencer(cfg).model
        seen = cv2.resize(image(), (64, 48))
        pixels = torch.from_numpy(seen).permute(2, 0, 1)
        inspection = inspect_image(model, pixels)
        feats, guidance = inspection.feats, inspection.guidance
        model.upsampler.prepare(feats, guidance, image_size=(48, 64))
        path = tmp_path / 'implicit.pth'
        torch.save(model.state_dict(), path)
        return FeatUpInferencer(cfg, str(path))

    def test_use_covers_the_area_of_training(self, inferencer):
        """Whatever the size of the file: cells begin 4 pixels before it."""
        small, large = (
            inferencer(cv2.resize(image(), size), max_size=70)[1]
            for size in ((66, 45), (660, 450))
        )
        for inspection in (small, large):
            assert inspection.size == (48, 64)
            assert inspection.area == (56, 72)
        one, other = (
            next(inspection.high_chunks(9)) for inspection in (small, large)
        )
        torch.testing.assert_close(one, other, rtol=0, atol=0.1)

    def test_other_images_are_refused(self, inferencer):
        for other in (255 - image(), image()[:, ::-1], image()[10:]):
            with pytest.raises(ValueError, match='and this is another'):
                inferencer(other)


class TestCheckpoints:
    def save(self, path, change):
        model = FeatUpInferencer(CFG).model
        torch.save(change(model.state_dict()), path)
        return model, str(path)

    @pytest.mark.parametrize(
        ('part', 'message'),
        [
            ('upsampler.', 'lacks upsampler.stages.0.range_temp and 21 more'),
            ('downsampler.', 'lacks downsampler.score and 2 more'),
            ('backbone.module.layer1.', 'lacks backbone.module.layer1'),
        ],
    )
    def test_missing_parts_are_named(self, tmp_path, part, message):
        model, path = self.save(
            tmp_path / 'a.pth',
            lambda state: {
                k: v for k, v in state.items() if not k.startswith(part)
            },
        )
        with pytest.raises(ValueError, match=message):
            load_all(model, path)

    def test_other_shapes_are_named(self, tmp_path):
        model, path = self.save(
            tmp_path / 'a.pth',
            lambda state: {**state, 'scale_net.bias': torch.zeros(2)},
        )
        with pytest.raises(ValueError, match='shapes of scale_net.bias$'):
            load_all(model, path)

    def test_the_backbone_may_be_absent_as_a_whole(self, tmp_path):
        model, path = self.save(
            tmp_path / 'a.pth',
            lambda state: {
                f'module.{k}': v + 1
                for k, v in state.items()
                if not k.startswith('backbone.')
            },
        )
        before = model.scale_net.bias.clone()
        load_all(model, path)
        torch.testing.assert_close(model.scale_net.bias, before + 1)

    def test_a_file_of_something_else_is_named(self, tmp_path):
        model = FeatUpInferencer(CFG).model
        path = tmp_path / 'a.pth'
        path.write_text('no checkpoint')
        with pytest.raises(ValueError, match=r'a\.pth does not read'):
            load_all(model, str(path))
