"""Masks as files of every kind, and what is packed for the model."""

import cv2
import numpy as np
import pytest
import torch
from mmcv.transforms.utils import cache_random_params
from mmengine.dataset import pseudo_collate
from mmengine.model import ImgDataPreprocessor
from mmengine.structures import BaseDataElement
from PIL import Image

from mmplugins.crm.loading import LoadMasks, PackRefineInputs

TRUTH = np.random.default_rng(0).random((12, 17)) < 0.4
LABELS = np.random.default_rng(1).integers(0, 4, (12, 17), np.uint8)


def load(path, coarse=None, img=True, **kwargs):
    results = dict(seg_map_path=str(path), seg_fields=[])
    if coarse:
        results['coarse_map_path'] = str(coarse)
    if img:
        results['img'] = np.zeros((12, 17, 3), np.uint8)
        results['img_path'] = 'some/image.jpg'
        results['ori_shape'] = (12, 17)
    return LoadMasks(**kwargs)(results)


def write(path, values, mode=None, palette=None):
    image = Image.fromarray(values)
    if mode:
        image = image.convert(mode)
    if palette:
        image.putpalette([x for colour in palette for x in colour])
    image.save(path)
    return path


def two_levels(mode, path):
    values = TRUTH.astype(np.uint8) * 255
    if mode == 'P':
        palette = [[0, 0, 0], [128, 0, 0]]
        return write(path, TRUTH.astype(np.uint8), palette=palette)
    return write(path, values, mode)


@pytest.mark.parametrize('key', ['seg_map_path', 'coarse_map_path'])
@pytest.mark.parametrize('kept', [0, 20, 60])
def test_damaged_files_are_named(key, kept, tmp_path):
    path = write(tmp_path / 'mask.png', LABELS)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r'mask\.png is not a mask that'):
        LoadMasks()({key: str(path)})


@pytest.mark.parametrize('mode', ['L', '1', 'P', 'RGB', 'RGBA', 'LA'])
def test_two_levels_of_every_kind(mode, tmp_path):
    path = two_levels(mode, tmp_path / 'mask.png')
    with Image.open(path) as image:
        assert image.mode == mode
    results = load(path)
    mask = results['gt_seg_map']
    np.testing.assert_array_equal(mask, TRUTH.astype(np.uint8), strict=True)
    assert results['seg_fields'] == ['gt_seg_map']


def test_zero_and_one_are_two_levels(tmp_path):
    path = write(tmp_path / 'mask.png', TRUTH.astype(np.uint8))
    results = load(path, path)
    np.testing.assert_array_equal(results['gt_seg_map'], TRUTH)
    np.testing.assert_array_equal(results['coarse_seg_map'], TRUTH)


@pytest.mark.parametrize('threshold', [1, 127, 128, 129, 255])
def test_grey_values_are_cut_at_the_threshold(threshold, tmp_path):
    """So that pixels of a soft edge are foreground from one half up."""
    values = np.random.default_rng(0).integers(0, 256, (12, 17), np.uint8)
    values[0, :5] = [0, 127, 128, 129, 255]
    path = write(tmp_path / 'mask.png', values)
    mask = load(path, threshold=threshold)['gt_seg_map']
    np.testing.assert_array_equal(mask, values >= threshold)
    default = load(path)['gt_seg_map']
    assert default[0, :5].tolist() == [0, 0, 1, 1, 1]


@pytest.mark.parametrize('foreground', [2, (1, 2), [3]])
@pytest.mark.parametrize('palette', [False, True])
def test_labels(foreground, palette, tmp_path):
    colours = [[0, 0, 0], [9, 9, 9], [200, 0, 0], [7, 0, 7]]
    path = write(
        tmp_path / 'mask.png', LABELS, palette=colours if palette else None
    )
    mask = load(path, foreground=foreground)['gt_seg_map']
    wanted = [value in np.atleast_1d(foreground) for value in LABELS.flat]
    np.testing.assert_array_equal(mask.ravel(), wanted)
    assert 0 < mask.mean() < 1


def test_ignored_labels(tmp_path):
    labels = LABELS.copy()
    labels[:2] = 255
    path = write(tmp_path / 'mask.png', labels)
    mask = load(path, foreground=(1, 2), ignore_index=255)['gt_seg_map']
    wanted = np.isin(labels, (1, 2)).astype(np.uint8)
    wanted[:2] = 255
    np.testing.assert_array_equal(mask, wanted, strict=True)
    assert load(path, foreground=1)['gt_seg_map'].max() == 1


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_instances(dtype, tmp_path):
    numbers = (LABELS.astype(dtype) * 60).astype(dtype)
    if dtype == np.uint16:
        numbers *= 100
    path = tmp_path / 'mask.png'
    cv2.imwrite(str(path), numbers)
    values = np.unique(numbers)[1:]
    for value in values:
        mask = load(path, instance=int(value))['gt_seg_map']
        np.testing.assert_array_equal(mask, numbers == value)
    np.random.seed(0)
    seen = {
        load(path, instance='random')['gt_seg_map'].tobytes()
        for _ in range(30)
    }
    assert seen == {
        (numbers == value).astype(np.uint8).tobytes() for value in values
    }
    np.random.seed(3)
    first = load(path, instance='random')['gt_seg_map']
    np.random.seed(3)
    again = load(path, instance='random')['gt_seg_map']
    np.testing.assert_array_equal(first, again)


def test_the_draw_is_cached(tmp_path):
    path = str(write(tmp_path / 'mask.png', LABELS))
    transform = LoadMasks(instance='random')
    with cache_random_params(transform):
        masks = {
            transform(dict(seg_map_path=path))['gt_seg_map'].tobytes()
            for _ in range(20)
        }
    assert len(masks) == 1


def test_ignored_numbers_are_no_instance(tmp_path):
    numbers = np.zeros((12, 17), np.uint8)
    numbers[3:5] = 255
    path = write(tmp_path / 'mask.png', numbers)
    with pytest.raises(ValueError, match=f'mask {path} holds no instance'):
        load(path, instance='random', ignore_index=255)


def test_coarse_masks_stay_soft_unless_told(tmp_path):
    truth = two_levels('L', tmp_path / 'mask.png')
    values = np.random.default_rng(0).integers(0, 256, (12, 17), np.uint8)
    path = write(tmp_path / 'coarse.png', values)
    results = load(truth, path)
    coarse = results['coarse_seg_map']
    assert coarse.dtype == np.float32
    np.testing.assert_allclose(coarse, values / 255, rtol=1e-6)
    assert results['seg_fields'] == ['gt_seg_map', 'coarse_seg_map']
    hard = load(truth, path, soft=False)['coarse_seg_map']
    np.testing.assert_array_equal(hard, values >= 128)
    assert hard.dtype == np.float32


def test_coarse_masks_of_labels_and_palettes(tmp_path):
    truth = two_levels('L', tmp_path / 'mask.png')
    labels = write(tmp_path / 'labels.png', LABELS)
    coarse = load(truth, labels, coarse_foreground=(1, 3))['coarse_seg_map']
    np.testing.assert_array_equal(coarse, LABELS % 2)
    assert coarse.dtype == np.float32
    indexed = two_levels('P', tmp_path / 'indexed.png')
    coarse = load(truth, indexed)['coarse_seg_map']
    np.testing.assert_array_equal(coarse, TRUTH)


def test_what_is_not_there_is_left_out(tmp_path):
    results = LoadMasks()(dict(seg_map_path=None, coarse_map_path=None))
    assert 'gt_seg_map' not in results
    coarse = str(two_levels('L', tmp_path / 'coarse.png'))
    results = LoadMasks()(dict(coarse_map_path=coarse))
    assert results['seg_fields'] == ['coarse_seg_map']


def test_sizes_that_differ_name_both_files(tmp_path):
    good = two_levels('L', tmp_path / 'mask.png')
    bad = write(tmp_path / 'turned.png', np.zeros((17, 12), np.uint8))
    message = (
        r'turned.png is of 17 x 12 .* its image some/image.jpg of 12 x 17'
    )
    with pytest.raises(ValueError, match=message):
        load(bad)
    with pytest.raises(ValueError, match=message):
        load(good, bad)
    assert load(bad, img=False)['gt_seg_map'].shape == (17, 12)


def test_a_resized_image_keeps_the_mask_of_its_file(tmp_path):
    """As hosts test: the true mask is loaded after resizing."""
    path = str(two_levels('L', tmp_path / 'mask.png'))
    img = np.zeros((6, 8, 3), np.uint8)
    results = LoadMasks()(dict(img=img, ori_shape=(12, 17), seg_map_path=path))
    np.testing.assert_array_equal(results['gt_seg_map'], TRUTH)


def test_files_that_are_no_masks_are_named(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (12, 17, 3), np.uint8)
    path = write(tmp_path / 'photo.png', colours)
    with pytest.raises(ValueError, match='photo.png must be grey.* RGB'):
        load(path)
    path = tmp_path / 'deep.png'
    cv2.imwrite(str(path), LABELS.astype(np.uint16))
    with pytest.raises(ValueError, match='deep.png must have 8 bits.*uint16'):
        load(path)
    good = two_levels('L', tmp_path / 'mask.png')
    with pytest.raises(ValueError, match='deep.png must have 8 bits'):
        load(good, path)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(threshold=0), 'threshold of LoadMasks must be 1 to 255, got 0'),
        (dict(instance='any'), "'random' or None, got 'any'"),
        (dict(instance=1, foreground=2), 'foreground or instance, got 2'),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        LoadMasks(**arguments)


def sample(size=(6, 8), window=None, **kwargs):
    rng = np.random.default_rng(0)
    results = dict(
        img=rng.integers(0, 256, (*size, 3), np.uint8),
        gt_seg_map=rng.integers(0, 2, size, np.uint8),
        coarse_seg_map=rng.random(size, np.float32),
        img_path='a.jpg',
        seg_map_path='a.png',
        ori_shape=(60, 80),
        img_shape=size,
        other=1,
    )
    return {**results, **kwargs}


def test_packed_sample_follows_the_contract():
    results = sample(
        gt_seg_map=np.full((3, 4), 255, np.uint8),
        target_size=(12, 16),
        query_window=(2, 5, 3, 4),
    )
    packed = PackRefineInputs()(results)
    assert set(packed) == {'inputs', 'data_samples'}
    inputs, element = packed['inputs'], packed['data_samples']
    assert (inputs.shape, inputs.dtype) == ((3, 6, 8), torch.uint8)
    np.testing.assert_array_equal(
        inputs.permute(1, 2, 0).numpy(), results['img']
    )
    assert type(element) is BaseDataElement
    truth, coarse = element.gt_sem_seg.data, element.coarse_sem_seg.data
    assert (truth.shape, truth.dtype) == ((1, 3, 4), torch.uint8)
    assert (coarse.shape, coarse.dtype) == ((1, 6, 8), torch.float32)
    np.testing.assert_array_equal(coarse[0], results['coarse_seg_map'])
    assert (truth == 255).all()
    assert element.metainfo == dict(
        img_path='a.jpg',
        seg_map_path='a.png',
        ori_shape=(60, 80),
        img_shape=(6, 8),
        target_size=(12, 16),
        query_window=(2, 5, 3, 4),
    )


def test_meta_keys_and_what_is_missing():
    results = sample()
    del results['gt_seg_map'], results['coarse_seg_map']
    packed = PackRefineInputs(meta_keys=('other', 'flip'))(results)
    element = packed['data_samples']
    assert element.metainfo == dict(other=1)
    assert element.all_keys() == ['other']


def test_flipped_arrays_pack():
    results = sample()
    results['img'] = results['img'][:, ::-1]
    results['coarse_seg_map'] = results['coarse_seg_map'][:, ::-1]
    packed = PackRefineInputs()(results)
    np.testing.assert_array_equal(
        packed['inputs'].permute(1, 2, 0), results['img']
    )


def test_batches_pass_the_preprocessor_of_mmengine():
    batch = pseudo_collate([PackRefineInputs()(sample()) for _ in range(2)])
    mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    data = ImgDataPreprocessor(mean=mean, std=std, bgr_to_rgb=True)(batch)
    rgb = sample()['img'][..., ::-1].astype(float)
    wanted = (rgb - mean) / std
    got = data['inputs'].permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(got[1], wanted, atol=1e-5)
    assert data['data_samples'][1].coarse_sem_seg.data.shape == (1, 6, 8)


def test_bad_samples_are_named():
    grey = sample(img=np.zeros((6, 8), np.uint8))
    with pytest.raises(
        ValueError, match=r'\(H, W, 3\), got \(6, 8\) of a.jpg'
    ):
        PackRefineInputs()(grey)
    coarse = sample(coarse_seg_map=np.zeros((8, 6), np.float32))
    with pytest.raises(ValueError, match=r'of \(8, 6\) .* \(6, 8\): a.jpg'):
        PackRefineInputs()(coarse)
