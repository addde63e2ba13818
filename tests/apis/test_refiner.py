import copy

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from skimage import data

from mmplugins.apis.inference import build_model
from mmplugins.apis.refine import MaskRefiner
from mmplugins.crm.merging import boundary_band

CFG = Config(
    dict(
        model=dict(
            type='mmplugins.CRM',
            backbone=dict(type='mmplugins.CRMBackbone', depth=18),
            decode_head=dict(
                type='mmplugins.CRMHead',
                in_channels=(64, 64, 256),
                channels=(4, 4, 4),
                hidden_channels=(4,),
            ),
            scales=(0.25, 1),
            data_preprocessor=dict(
                type='ImgDataPreprocessor',
                mean=[120.0, 110.0, 100.0],
                std=[60.0, 50.0, 40.0],
                bgr_to_rgb=True,
                pad_size_divisor=32,
            ),
        )
    )
)
GRABCUT = Config(
    dict(
        model=dict(
            type='mmplugins.crm.baselines.GrabCutRefiner',
            data_preprocessor=dict(
                type='ImgDataPreprocessor',
                mean=[128.0] * 3,
                std=[64.0] * 3,
                bgr_to_rgb=True,
            ),
        )
    )
)


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """Random weights that do not find all or nothing."""
    torch.manual_seed(6)
    model = build_model(CFG)
    model.init_weights()
    torch.nn.init.normal_(model.backbone.net.conv1.mask_weight, std=0.3)
    last = model.decode_head.decoder.layers[-1]
    torch.nn.init.normal_(last.weight, std=3)
    path = tmp_path_factory.mktemp('weights') / 'crm.pth'
    torch.save({'state_dict': model.state_dict(), 'meta': dict(epoch=3)}, path)
    return str(path)


@pytest.fixture(scope='module')
def refiner(weights):
    return MaskRefiner(CFG, weights)


@pytest.fixture(scope='module')
def image():
    """RGB."""
    return data.astronaut()[:45, 100:170].copy()


def disc(radius=14, x=35):
    mask = np.zeros((45, 70), np.uint8)
    return cv2.circle(mask, (x, 22), radius, 255, -1)


class TestRefine:
    def test_equals_the_model(self, refiner, weights, image):
        """Normalised by hand, against the model itself."""
        model = build_model(CFG).eval()
        model.load_state_dict(torch.load(weights)['state_dict'])
        norm = CFG.model.data_preprocessor
        x = (image - np.array(norm.mean)) / np.array(norm.std)
        x = torch.from_numpy(x).float().permute(2, 0, 1)[None]
        mask = torch.from_numpy(disc()).float()[None, None] / 127.5 - 1
        wanted, stages = model.refine(x, mask, stages=True)
        prob, probs = refiner.refine(image, disc(), 'rgb', stages=True)
        assert prob.dtype == np.float32
        assert prob.shape == (45, 70)
        assert prob.std() > 0
        np.testing.assert_allclose(prob, wanted[0, 0], atol=1e-5)
        assert len(probs) == len(stages) == 2
        for one, other in zip(probs, stages):
            np.testing.assert_allclose(one, other[0, 0], atol=1e-5)
        assert not refiner.model.training

    def test_order_of_the_channels_matters(self, refiner, image):
        rgb = refiner.refine(image, disc(), channel_order='rgb')
        bgr = refiner.refine(image[..., ::-1], disc())
        swapped = refiner.refine(image, disc())
        np.testing.assert_array_equal(rgb, bgr)
        assert np.abs(rgb - swapped).max() > 1e-4

    def test_files_are_read(self, refiner, image, tmp_path):
        paths = [str(tmp_path / name) for name in ('a.png', 'm.png')]
        cv2.imwrite(paths[0], image[..., ::-1])
        cv2.imwrite(paths[1], disc())
        wanted = refiner.refine(image, disc(), 'rgb')
        # The order of a file is no question.
        for order in ('rgb', 'bgr'):
            np.testing.assert_array_equal(
                refiner.refine(*paths, channel_order=order), wanted
            )

    @pytest.mark.parametrize('given', [None, 'tensor', 'labels'])
    def test_what_is_no_mask_is_named(self, refiner, image, given):
        mask, message = given, 'mask must be a file or an array, got '
        if given == 'tensor':
            mask = torch.from_numpy(disc())
        elif given == 'labels':
            mask = (disc() > 0).astype(np.uint8)
            mask[:5] = 255
            message = '0, 1 and 255 alone is a label map'
        with pytest.raises(ValueError, match=message):
            refiner.refine(image, mask)
        with pytest.raises(ValueError, match='image must be a file or an'):
            refiner.refine(None, disc())

    def test_images_of_any_depth(self, refiner, image):
        wanted = refiner.refine(image, disc(), 'rgb')
        alpha = np.dstack([image, image[..., 0]])
        for other in (image.astype(np.uint16) * 257, alpha):
            np.testing.assert_array_equal(
                refiner.refine(other, disc(), 'rgb'), wanted
            )
        grey = image[..., 0]
        wanted = refiner.refine(np.dstack([grey] * 3), disc())
        for other in (grey, grey[..., None]):
            np.testing.assert_array_equal(
                refiner.refine(other, disc()), wanted
            )

    def test_masks_of_any_type(self, refiner, image):
        wanted = refiner.refine(image, disc())
        for mask in (disc() > 0, disc() // 255, disc() / 255.0):
            np.testing.assert_array_equal(refiner.refine(image, mask), wanted)
        soft = cv2.GaussianBlur(disc(), (9, 9), 3)
        assert np.abs(refiner.refine(image, soft) - wanted).max() > 1e-4

    def test_several_masks(self, refiner, image):
        masks = np.stack([disc(), disc(9, 20), disc(5, 60)])
        probs, stages = refiner.refine(image, masks, stages=True)
        assert probs.shape == masks.shape
        for k, mask in enumerate(masks):
            one, each = refiner.refine(image, mask, stages=True)
            np.testing.assert_array_equal(probs[k], one)
            for all_of, wanted in zip(stages, each, strict=True):
                np.testing.assert_array_equal(all_of[k], wanted)
        none, stages = refiner.refine(image, masks[:0], stages=True)
        assert none.shape == (0, 45, 70)
        assert len(stages) == 2

    def test_far_from_the_boundary_nothing_changes(self, weights, image):
        refiner = MaskRefiner(CFG, weights, band=3)
        soft = cv2.GaussianBlur(disc() / np.float32(255), (9, 9), 3)
        near = boundary_band(torch.from_numpy(soft > 0.5), 3).numpy()
        prob = refiner.refine(image, soft)
        plain = MaskRefiner(CFG, weights).refine(image, soft)
        np.testing.assert_array_equal(prob[~near], soft[~near])
        np.testing.assert_array_equal(prob[near], plain[near])
        assert (plain != soft)[~near].any()

    def test_scales_are_those_of_the_image_unless_told(self, weights, image):
        cfg = copy.deepcopy(CFG)
        cfg.model.min_size = 20
        for scales, used in ((None, (1,)), ([0.25, 1], (0.25, 1))):
            refiner = MaskRefiner(cfg, weights, scales=scales)
            assert refiner.stage_scales(image) == used
            stages = refiner.refine(image, disc(), stages=True)[1]
            assert len(stages) == len(used)

    def test_options_replace_those_of_the_config(self, weights, image):
        refiner = MaskRefiner(CFG, weights, scales=[1], tile=33)
        assert refiner.scales == (1,)
        prob, stages = refiner.refine(image, disc(), stages=True)
        assert len(stages) == 1
        whole = MaskRefiner(CFG, weights, scales=[1]).refine(image, disc())
        assert refiner.model.tile == 33
        np.testing.assert_allclose(prob, whole, atol=1e-4)

    @pytest.mark.gpu
    def test_on_a_gpu(self, weights, refiner, image):
        prob = MaskRefiner(CFG, weights, 'cuda').refine(image, disc())
        np.testing.assert_allclose(
            prob, refiner.refine(image, disc()), atol=1e-2
        )

    @pytest.mark.parametrize(
        ('change', 'message'),
        [
            (dict(mask=np.zeros((45, 71))), r'\(45, 70\), got \(45, 71\)'),
            (dict(mask=np.zeros((45, 70, 3))), r'got \(45, 70, 3\)'),
            (dict(mask=np.full((45, 70), 1.5)), r'in \[0, 1\]'),
            (dict(mask='no.png'), 'mask no.png does not exist'),
            (dict(image='no.png'), 'image no.png does not exist'),
            (dict(image=np.zeros((45, 70, 3))), 'uint8 or uint16, .* float64'),
            (dict(image=np.zeros((45, 70, 2), np.uint8)), r'\(45, 70, 2\)'),
            (dict(channel_order='rbg'), "'bgr' or 'rgb', got 'rbg'"),
        ],
    )
    def test_bad_input_is_named(self, refiner, image, change, message):
        with pytest.raises(ValueError, match=message):
            refiner.refine(**{'image': image, 'mask': disc(), **change})


class TestLabels:
    @pytest.fixture
    def labels(self):
        labels = np.full((45, 70), 3, np.uint8)
        labels[:, 40:] = 0
        labels[disc() > 0] = 7
        labels[:4] = 255
        return labels

    def test_classes_compete(self, refiner, image, labels):
        merged = refiner.refine_labels(image, labels)
        probs = np.stack(
            [refiner.refine(image, labels == index) for index in (0, 3, 7)]
        )
        wanted = np.array([0, 3, 7])[probs.argmax(0)]
        wanted = np.where(probs.max(0) > 0.5, wanted, labels)
        wanted[:4] = 255
        assert merged.dtype == np.uint8
        np.testing.assert_array_equal(merged, wanted)
        assert (merged != labels).any()

    def test_only_some_classes(self, refiner, image, labels):
        merged = refiner.refine_labels(image, labels, [7, 99])
        prob = refiner.refine(image, labels == 7)
        valid = labels != 255
        np.testing.assert_array_equal(
            (merged == 7)[valid], (prob > 0.5)[valid]
        )
        rest = valid & (merged != 7) & (labels != 7)
        np.testing.assert_array_equal(merged[rest], labels[rest])

    def test_the_background_of_two_is_what_is_left(self, refiner, image):
        labels = (disc() > 0).astype(np.int64)
        merged = refiner.refine_labels(image, labels)
        prob = refiner.refine(image, labels)
        assert merged.dtype == np.int64
        np.testing.assert_array_equal(merged, prob > 0.5)

    def test_one_label_stays(self, refiner, image):
        labels = np.full((45, 70), 4, np.uint8)
        labels[:9] = 255
        merged = refiner.refine_labels(image, labels)
        np.testing.assert_array_equal(merged, labels)
        assert merged is not labels

    def test_far_from_the_boundaries_nothing_changes(
        self, weights, image, labels
    ):
        refiner = MaskRefiner(CFG, weights, band=2)
        merged = refiner.refine_labels(image, labels)
        near = boundary_band(torch.from_numpy(labels), 2).numpy()
        np.testing.assert_array_equal(merged[~near], labels[~near])
        assert (merged != labels)[near].any()

    @pytest.mark.parametrize(
        ('labels', 'message'),
        [
            (np.zeros((45, 70)), 'must hold integers, got float64'),
            (np.zeros((1, 45, 70), int), r'got \(1, 45, 70\)'),
            (np.zeros((45, 71), int), r'got \(45, 71\)'),
        ],
    )
    def test_bad_maps_are_named(self, refiner, image, labels, message):
        with pytest.raises(ValueError, match=message):
            refiner.refine_labels(image, labels)


class TestConfig:
    def test_refiners_without_weights_need_none(self, image):
        refiner = MaskRefiner(GRABCUT, band=4)
        prob, stages = refiner.refine(image, disc(), stages=True)
        assert stages == []
        assert set(np.unique(prob)) == {0, 1}

    @pytest.mark.parametrize(
        ('kwargs', 'message'),
        [
            (dict(scales=[0.5, 0]), r'scales must be above 0, got \[0.5, 0\]'),
            (dict(scales=[]), 'scales must be above 0'),
            (dict(tile=0), 'tile must be above 0, got 0'),
            (dict(band=-1), 'band must be 0 or more whole pixels, got -1'),
            # A share, as RefinedSegmentor takes it.
            (dict(band=0.05), 'whole pixels, got 0.05'),
            (dict(checkpoint=None), 'CRM needs a checkpoint'),
        ],
    )
    def test_options_are_checked(self, weights, kwargs, message):
        with pytest.raises(ValueError, match=message):
            MaskRefiner(**{'config': CFG, 'checkpoint': weights, **kwargs})

    def test_options_of_crm_are_not_for_others(self):
        with pytest.raises(ValueError, match='tile is an option of CRM'):
            MaskRefiner(GRABCUT, tile=9)

    def test_other_models_are_named(self):
        cfg = Config(
            dict(model=dict(type='mmplugins.BilinearUpsampler', in_channels=4))
        )
        with pytest.raises(ValueError, match='its model is BilinearUps'):
            MaskRefiner(cfg)
        with pytest.raises(ValueError, match='has no model'):
            MaskRefiner(Config(dict(train_cfg=None)))

    def test_checkpoints_have_to_fit(self, weights, tmp_path):
        state = torch.load(weights)['state_dict']
        path = str(tmp_path / 'a.pth')
        broken = [
            (dict(list(state.items())[5:]), 'no key fills'),
            ({**state, 'more': torch.zeros(1)}, 'more have no place'),
            (
                {**state, 'decode_head.levels.0.0.conv.weight': torch.ones(1)},
                'shapes do not fit CRM',
            ),
        ]
        for content, message in broken:
            torch.save(content, path)
            with pytest.raises(
                ValueError, match=f'a.pth does not fit the config: .*{message}'
            ):
                MaskRefiner(CFG, path)
        (tmp_path / 'a.pth').write_text('no checkpoint')
        with pytest.raises(ValueError, match=r'a\.pth does not read'):
            MaskRefiner(CFG, path)

    def test_weights_of_a_parallel_model_load(self, weights, tmp_path, image):
        state = torch.load(weights)['state_dict']
        path = str(tmp_path / 'a.pth')
        torch.save({f'module.{k}': v for k, v in state.items()}, path)
        np.testing.assert_array_equal(
            MaskRefiner(CFG, path).refine(image, disc()),
            MaskRefiner(CFG, weights).refine(image, disc()),
        )
