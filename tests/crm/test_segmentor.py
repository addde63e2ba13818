"""RefinedSegmentor: what the refiner sees, and what becomes of its masks."""

import cv2
import numpy as np
import pytest
import torch
from mmcv.transforms import LoadImageFromFile
from mmengine.model import ImgDataPreprocessor
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from PIL import Image
from torch import nn

from mmplugins.crm.merging import merge_labels
from mmplugins.crm.segmentor import RefinedSegmentor

MEAN = torch.tensor([123.675, 116.28, 103.53])[:, None, None]
STD = torch.tensor([58.395, 57.12, 57.375])[:, None, None]


class Segmentor(nn.Module):
    """Gives a prediction, whatever the image."""

    def __init__(self, labels, logits=None, num_classes=None, **meta):
        super().__init__()
        self.labels = labels
        self.logits = logits
        self.meta = meta
        if num_classes:
            self.num_classes = num_classes

    def test_step(self, data):
        samples = []
        for _ in data['inputs']:
            sample = SegDataSample(metainfo=self.meta)
            sample.pred_sem_seg = PixelData(data=self.labels[None].clone())
            if self.logits is not None:
                sample.seg_logits = PixelData(data=self.logits)
            samples.append(sample)
        return samples


class Refiner(nn.Module):
    """Notes what it is given, and returns what a function makes of it."""

    def __init__(self, function=lambda image, mask: (mask + 1) / 2):
        super().__init__()
        self.function = function
        self.images = []
        self.masks = []

    def refine(self, image, mask):
        assert image.shape[2:] == mask.shape[2:]
        self.images.append(image)
        self.masks.append(mask)
        return self.function(image, mask)


def blobs(count=4, size=(40, 56), seed=0):
    """Labels in patches of several sizes."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, count, (5, 7), dtype=np.uint8)
    shape = size[::-1]
    labels = cv2.resize(small, shape, interpolation=cv2.INTER_NEAREST)
    return torch.from_numpy(labels).long()


def picture(size=(40, 56), seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    return torch.from_numpy(image).permute(2, 0, 1)


def normalised(bgr):
    """Of ImageNet, written out."""
    return (bgr.float().flip(0) - MEAN) / STD


def refine(labels, function=None, image=None, segmentor=None, **options):
    """Sample and refiner of one image."""
    refiner = Refiner(function) if function else Refiner()
    module = segmentor or Segmentor(labels)
    model = RefinedSegmentor(module, refiner, **{'min_area': 0, **options})
    image = picture(labels.shape) if image is None else image
    (sample,) = model.test_step(dict(inputs=[image]))
    return sample, refiner


def refined(*args, **kwargs):
    return refine(*args, **kwargs)[0].pred_sem_seg.data[0]


class Noise:
    """Probabilities that differ from call to call."""

    def __init__(self):
        self.given = []

    def __call__(self, image, mask):
        self.given.append(torch.rand(mask.shape))
        return self.given[-1]


def merge_literally(coarse, probs, background=None):
    """One pixel after the other: probs maps a label to its map."""
    merged = coarse.clone()
    for y in range(coarse.shape[0]):
        for x in range(coarse.shape[1]):
            claims = {k: p[y, x].item() for k, p in probs.items()}
            label = max(claims, key=claims.get)
            if claims[label] > 0.5:
                merged[y, x] = label
            elif coarse[y, x].item() in probs and background is not None:
                merged[y, x] = background
    return merged


class TestMasks:
    def test_one_for_each_class_that_is_there(self):
        labels = blobs(3)
        labels[labels == 1] = 5
        sample, refiner = refine(labels)
        assert len(refiner.masks) == 3
        for label, mask in zip((0, 2, 5), refiner.masks):
            assert mask.dtype == torch.float32
            assert (mask[0, 0] == torch.where(labels == label, 1, -1)).all()
        assert (sample.pred_sem_seg.data[0] == labels).all()

    def test_of_the_classes_wanted(self):
        labels = blobs(4)
        _, refiner = refine(labels, classes=[3, 1, 7])
        wanted = [labels == 1, labels == 3]
        assert len(refiner.masks) == 2
        for mask, region in zip(refiner.masks, wanted):
            assert ((mask[0, 0] > 0) == region).all()

    def test_of_all_but_the_background(self):
        labels = blobs(3)
        _, refiner = refine(labels, background=1)
        assert len(refiner.masks) == 2
        assert ((refiner.masks[1][0, 0] > 0) == (labels == 2)).all()

    @pytest.mark.parametrize('count', [1, 2])
    def test_two_classes_have_a_background(self, count):
        labels = blobs(2).float()  # as of one channel
        model = Segmentor(labels, num_classes=count)
        sample, refiner = refine(labels, lambda i, m: -m, segmentor=model)
        assert len(refiner.masks) == 1
        assert ((refiner.masks[0][0, 0] > 0) == (labels == 1)).all()
        result = sample.pred_sem_seg.data[0]
        assert result.dtype == labels.dtype
        assert (result == 1 - labels).all()

    def test_soft_ones_are_the_softmax(self):
        logits = 5 * torch.randn(3, 40, 56)
        labels = logits.argmax(0)
        model = Segmentor(labels, logits)
        _, refiner = refine(labels, segmentor=model, soft=True)
        given = torch.cat(refiner.masks)[:, 0]
        torch.testing.assert_close(given, 2 * logits.softmax(0) - 1)

    def test_soft_ones_of_one_channel_are_given(self):
        prob = torch.rand(1, 40, 56)
        labels = (prob[0] > 0.5).float()
        model = Segmentor(labels, prob, num_classes=1)
        options = dict(segmentor=model, soft=True, classes=[0, 1])
        _, refiner = refine(labels, **options)
        given = torch.cat(refiner.masks)[:, 0]
        torch.testing.assert_close(given[0], 1 - 2 * prob[0])
        torch.testing.assert_close(given[1], 2 * prob[0] - 1)

    def test_soft_ones_need_logits(self):
        with pytest.raises(ValueError, match=r'soft=True .* seg_logits'):
            refine(blobs(), soft=True)

    @pytest.mark.parametrize('per', ['class', 'component'])
    def test_small_ones_keep_their_label(self, per):
        labels = torch.zeros(40, 56).long()
        labels[3:6, 3:6] = 2
        labels[10:30, 10:30] = 1
        options = dict(per=per, min_area=10, background=0)
        sample, refiner = refine(
            labels, lambda i, m: torch.zeros_like(m), **options
        )
        assert len(refiner.masks) == 1
        expected = torch.where(labels == 2, 2, 0)
        assert (sample.pred_sem_seg.data[0] == expected).all()

    @pytest.mark.parametrize('label', [0, 3])
    def test_one_class_alone_has_nothing_to_refine(self, label):
        labels = torch.full((9, 7), label)
        sample, refiner = refine(labels, lambda i, m: torch.rand(m.shape))
        assert not refiner.masks
        assert (sample.pred_sem_seg.data[0] == labels).all()
        assert (sample.coarse_sem_seg.data[0] == labels).all()


class TestComponents:
    def labels(self):
        labels = torch.zeros(40, 60).long()
        labels[10:20, 20:40] = 1
        labels[12:18, 42:46] = 1  # in the first one's box, once it has grown
        labels[30:40, 0:8] = 2
        return labels

    def test_are_seen_in_boxes_of_the_image(self):
        options = dict(per='component', background=0, expand=0.25)
        image = picture((40, 60))
        _, refiner = refine(self.labels(), image=image, **options)
        windows = [np.s_[8:22, 17:43], np.s_[11:19, 41:47], np.s_[28:40, 0:9]]
        assert len(refiner.images) == 3
        for window, seen in zip(windows, refiner.images):
            expected = normalised(image)[(..., *window)]
            torch.testing.assert_close(seen[0], expected)
        first = refiner.masks[0][0, 0] > 0
        expected = (self.labels() == 1)[8:22, 17:43]
        expected[:, 42 - 17 :] = False  # another component
        assert (first == expected).all()

    def test_leave_each_other_out_of_soft_masks(self):
        labels = self.labels()
        logits = torch.randn(3, 40, 60)
        logits += 9 * nn.functional.one_hot(labels, 3).permute(2, 0, 1)
        options = dict(per='component', background=0, soft=True)
        model = Segmentor(labels, logits)
        _, refiner = refine(labels, segmentor=model, **options)
        expected = 2 * logits.softmax(0)[1, 8:22, 17:43] - 1
        expected[4:10, 42 - 17 :] = -1
        torch.testing.assert_close(refiner.masks[0][0, 0], expected)

    def test_are_put_back_where_they_were(self):
        def grow(image, mask):
            return nn.functional.max_pool2d(mask, 3, 1, 1).relu()

        options = dict(per='component', background=0, expand=1.0)
        result = refined(self.labels(), grow, **options)
        labels = self.labels()
        boxes = {1: np.s_[9:21, 19:41], 2: np.s_[29:40, 0:9]}
        expected = torch.zeros_like(labels)
        for label, box in boxes.items():
            expected[box] = label
        expected[11:19, 41:47] = 1
        assert (result == expected).all()

    def test_can_vanish_alone(self):
        def small_ones_go(image, mask):
            return (mask > 0).float() * ((mask > 0).sum() > 50)

        options = dict(per='component', background=0)
        result = refined(self.labels(), small_ones_go, **options)
        expected = self.labels()
        expected[12:18, 42:46] = 0
        assert (result == expected).all()

    def test_a_class_in_one_part_is_the_same_as_whole(self):
        labels = torch.zeros(30, 30).long()
        labels[5:20, 5:20] = 1

        def soft(image, mask):
            return nn.functional.avg_pool2d(mask.relu(), 5, 1, 2)

        options = dict(background=0, expand=1.0)
        whole = refined(labels, soft, **options)
        parts = refined(labels, soft, per='component', **options)
        assert (whole == parts).all()
        assert (whole != labels).any()


class TestMerging:
    def test_is_the_literal_one(self):
        labels, noise = blobs(4), Noise()
        result = refined(labels, lambda i, m: noise(i, m) ** 3)
        probs = {k: p[0, 0] ** 3 for k, p in enumerate(noise.given)}
        expected = merge_literally(labels, probs)
        assert (result == expected).all()
        unclaimed = torch.stack([*probs.values()]).amax(0) <= 0.5
        assert unclaimed.any()
        assert (result[unclaimed] == labels[unclaimed]).all()
        assert (result != labels).any()

    def test_is_the_literal_one_with_a_background(self):
        labels, noise = blobs(4), Noise()
        result = refined(labels, noise, background=2)
        probs = {k: p[0, 0] for k, p in zip((0, 1, 3), noise.given)}
        expected = merge_literally(labels, probs, background=2)
        assert (result == expected).all()

    @pytest.mark.parametrize(
        ('classes', 'background'), [((0, 1, 2), None), ((1, 2), 0)]
    )
    def test_is_that_of_label_maps(self, classes, background):
        """What nothing claims is the same, in a file or predicted."""
        labels, noise = blobs(3), Noise()
        options = dict(classes=classes, background=background)
        result = refined(labels, lambda i, m: noise(i, m) ** 2, **options)
        probs = [prob[0, 0] ** 2 for prob in noise.given]
        expected = merge_labels(labels, zip(classes, probs))
        assert torch.equal(result, expected)
        unclaimed = torch.stack(probs).amax(0) <= 0.5
        kept = labels if background is None else torch.zeros_like(labels)
        assert torch.equal(result[unclaimed], kept[unclaimed])
        assert (labels[unclaimed] != 0).any()

    def test_threshold(self):
        labels = blobs(3)
        maps = iter([0.6, 0.3, 0.2])

        def constant(image, mask):
            return torch.full_like(mask, next(maps))

        assert (refined(labels, constant, threshold=0.7) == labels).all()
        maps = iter([0.3, 0.3, 0.2])
        assert (refined(labels, constant, threshold=0.25) == 0).all()

    def test_what_a_class_loses_goes_to_one_that_is_not_refined(self):
        logits = torch.randn(4, 40, 56)
        labels = logits.argmax(0)
        result = refined(
            labels,
            lambda i, m: torch.zeros_like(m),
            segmentor=Segmentor(labels, logits),
            classes=[1, 3],
        )
        second = logits[[0, 2]].argmax(0) * 2
        lost = (labels == 1) | (labels == 3)
        assert (result == torch.where(lost, second, labels)).all()

    def test_what_a_class_loses_stays_where_all_are_refined(self):
        labels = blobs(3)
        for classes in (None, [0, 1, 2]):
            result = refined(
                labels,
                lambda i, m: torch.zeros_like(m),
                segmentor=Segmentor(labels, torch.randn(3, 40, 56)),
                classes=classes,
            )
            assert (result == labels).all()

    @pytest.mark.parametrize('only', [0, 1])
    def test_one_channel_has_two_labels(self, only):
        labels = blobs(2).float()
        result = refined(
            labels,
            lambda i, m: torch.zeros_like(m),
            segmentor=Segmentor(labels, labels[None], num_classes=1),
            classes=[only],
        )
        assert (result == 1 - only).all()


class TestVeto:
    @pytest.mark.parametrize('band', [1, 3, 0.02, 0.033])
    def test_keeps_what_is_far_from_boundaries(self, band):
        labels = torch.zeros(60, 80).long()
        labels[10:40, 20:70] = 1
        labels[50:, :30] = 2
        noise = Noise()
        result = refined(labels, noise, band=band)
        reach = band if band >= 1 else int(np.ceil(band * 100))
        array = labels.numpy()
        near = np.zeros(array.shape, bool)
        for y, x in np.ndindex(array.shape):
            rows = slice(max(y - reach, 0), y + reach + 1)
            columns = slice(max(x - reach, 0), x + reach + 1)
            near[y, x] = len(np.unique(array[rows, columns])) > 1
        near = torch.from_numpy(near)
        assert torch.equal(result[~near], labels[~near])
        probs = {k: p[0, 0] for k, p in enumerate(noise.given)}
        free = merge_literally(labels, probs)
        assert torch.equal(result[near], free[near])
        assert not torch.equal(free[~near], labels[~near])

    def test_without_it_anything_may_change(self):
        labels = blobs(2)
        flipped = refined(labels, lambda i, m: (1 - m) / 2)
        assert (flipped == 1 - labels).all()


class TestSamples:
    def test_have_the_prediction_before_and_after(self):
        labels = blobs(3)
        sample, _ = refine(labels, Noise())
        assert (sample.coarse_sem_seg.data[0] == labels).all()
        assert sample.coarse_sem_seg.data.shape == (1, 40, 56)
        assert sample.pred_sem_seg.data.shape == (1, 40, 56)
        assert sample.pred_sem_seg.data.dtype == labels.dtype
        assert (sample.pred_sem_seg.data[0] != labels).any()

    def test_of_a_batch_have_each_their_image(self):
        refiner = Refiner()
        model = RefinedSegmentor(Segmentor(blobs(2)), refiner)
        images = torch.stack([picture(seed=1), picture(seed=2)])
        assert len(model.val_step(dict(inputs=images))) == 2
        for image, seen in zip(images, refiner.images[::2]):
            torch.testing.assert_close(seen[0], normalised(image))

    def test_of_augmentation_are_refused(self):
        model = RefinedSegmentor(Segmentor(blobs(2)), Refiner())
        views = [[picture()], [picture()]]
        with pytest.raises(ValueError, match='test-time augmentation'):
            model.test_step(dict(inputs=views))

    def test_without_labels_are_refused(self):
        module = Segmentor(blobs(2))
        module.test_step = lambda data: [SegDataSample()]
        model = RefinedSegmentor(module, Refiner())
        with pytest.raises(ValueError, match='needs a segmentor that gives'):
            model.test_step(dict(inputs=[picture()]))


class TestImage:
    def seen(self, inputs, size=(40, 56), refiner=None, **meta):
        refiner = refiner or Refiner()
        module = Segmentor(blobs(2, size), **meta)
        RefinedSegmentor(module, refiner).test_step(dict(inputs=[inputs]))
        return refiner.images[0][0]

    def write(self, path, image):
        array = image.permute(1, 2, 0).numpy()
        assert cv2.imwrite(str(path), np.ascontiguousarray(array))
        return str(path)

    def test_is_the_file_in_its_colours(self, tmp_path):
        image = picture()
        image[0] = 200  # blue, in OpenCV's order
        image[2] = 10
        path = self.write(tmp_path / 'a.png', image)
        seen = self.seen(picture(size=(20, 28)), img_path=path)
        torch.testing.assert_close(seen, normalised(image))
        assert seen[2].mean() > 1 > -1 > seen[0].mean()

    def test_is_the_file_upright(self, tmp_path):
        path = str(tmp_path / 'a.jpg')
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned by a quarter
        array = picture((56, 40)).permute(1, 2, 0).numpy()
        Image.fromarray(array).save(path, exif=exif, quality=95)
        loaded = LoadImageFromFile()(dict(img_path=path))['img']
        assert loaded.shape == (40, 56, 3)
        seen = self.seen(picture((4, 4)), img_path=path)
        loaded = torch.from_numpy(loaded).permute(2, 0, 1)
        torch.testing.assert_close(seen, normalised(loaded))

    @pytest.mark.parametrize('path', [None, '', 'gone.png'])
    def test_is_the_input_without_a_file(self, path):
        image = picture()
        seen = self.seen(image, img_path=path)
        torch.testing.assert_close(seen, normalised(image))

    def test_is_the_input_where_the_file_is_another(self, tmp_path):
        image = picture()
        path = self.write(tmp_path / 'a.png', picture((30, 30)))
        seen = self.seen(image, img_path=path)
        torch.testing.assert_close(seen, normalised(image))
        (tmp_path / 'a.png').write_text('no image')
        seen = self.seen(image, img_path=path)
        torch.testing.assert_close(seen, normalised(image))

    def test_input_is_brought_to_the_original_size(self):
        small = torch.zeros(3, 20, 28)
        small[:, :, 14:] = 255
        seen = self.seen(small)
        white = normalised(torch.full((3, 40, 56), 255))
        black = normalised(torch.zeros(3, 40, 56))
        assert seen.shape == (3, 40, 56)
        torch.testing.assert_close(seen[..., :27], black[..., :27])
        torch.testing.assert_close(seen[..., 29:], white[..., 29:])

    @pytest.mark.parametrize(
        ('direction', 'dim'), [('horizontal', 2), ('vertical', 1)]
    )
    def test_input_is_flipped_back(self, direction, dim):
        image = picture()
        seen = self.seen(image.flip(dim), flip=True, flip_direction=direction)
        torch.testing.assert_close(seen, normalised(image))

    def test_input_must_have_colours(self):
        with pytest.raises(ValueError, match=r'three channels, got \(4, 40'):
            self.seen(torch.zeros(4, 40, 56))

    def test_is_normalised_as_the_refiner_has_it(self):
        refiner = Refiner()
        refiner.data_preprocessor = ImgDataPreprocessor(
            [1.0, 2.0, 3.0], [4.0, 5.0, 6.0], pad_size_divisor=32
        )
        image = picture()
        seen = self.seen(image, refiner=refiner)
        mean = torch.tensor([1.0, 2.0, 3.0])[:, None, None]
        expected = (image - mean) / (mean + 3)
        torch.testing.assert_close(seen, expected)


class TestArguments:
    @pytest.mark.parametrize(
        ('options', 'message'),
        [
            (dict(per='pixel'), "'class' or 'component', got 'pixel'"),
            (dict(expand=-0.1), 'got -0.1, 64 and 0.5'),
            (dict(min_area=-1), 'got 0.25, -1 and 0.5'),
            (dict(threshold=1.0), 'got 0.25, 64 and 1.0'),
            (dict(band=0), 'above 0 or None, pixels from 1 .*, got 0'),
            (dict(classes=[1, 1]), r'labels 0 to 3, each once, got \[1, 1\]'),
            (dict(classes=[4]), r'labels 0 to 3, each once, got \[4\]'),
            (dict(classes=[0], background=0), r'got \[0\] and 0'),
            (dict(background=-1), 'got None and -1'),
        ],
    )
    def test_out_of_range(self, options, message):
        module = Segmentor(blobs(), num_classes=4)
        with pytest.raises(ValueError, match=message):
            RefinedSegmentor(module, Refiner(), **options)

    def test_a_refiner_refines(self):
        with pytest.raises(ValueError, match=r'refine\(image, mask\).*Conv2d'):
            RefinedSegmentor(Segmentor(blobs()), nn.Conv2d(1, 1, 1))
