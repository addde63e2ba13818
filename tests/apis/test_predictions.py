"""What a test run leaves on disk, field by field."""

import json
import math
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.structures import BaseDataElement, PixelData

from mmplugins.apis import predictions
from mmplugins.apis.predictions import (
    SaveMetricsHook,
    SavePredictionsHook,
    write_metrics,
)


@pytest.fixture
def write(tmp_path):
    """Write samples with a fresh hook and return the folder."""
    folder = tmp_path / 'deep' / 'out'

    def written(*samples):
        hook = SavePredictionsHook(str(folder))
        hook.before_test(None)
        hook.after_test_iter(None, 0, outputs=samples)
        return folder

    return written


def read(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def segmented(classes, path='images/a.jpg', **meta):
    meta = {'img_path': path, **meta}
    data = PixelData(data=torch.tensor(classes)[None])
    return BaseDataElement(metainfo=meta, pred_sem_seg=data)


def classified(label, score, path='images/a.jpg'):
    return BaseDataElement(
        metainfo={'img_path': path},
        pred_label=torch.tensor(label),
        pred_score=torch.tensor(score),
    )


def restored(image, **meta):
    output = BaseDataElement(pred_img=torch.as_tensor(image))
    return BaseDataElement(metainfo=meta, output=output)


class TestClassMaps:
    def test_hold_class_ids(self, write):
        folder = write(segmented([[0, 1, 2], [255, 4, 5]]))
        image = read(folder / 'a.png')
        assert image.dtype == np.uint8
        assert image.tolist() == [[0, 1, 2], [255, 4, 5]]

    def test_count_classes_as_annotations_do(self, write):
        folder = write(segmented([[0, 149]], reduce_zero_label=True))
        assert read(folder / 'a.png').tolist() == [[1, 150]]

    @pytest.mark.parametrize(
        ('classes', 'meta'),
        [([[0, 256, 65535]], {}), ([[0, 255]], {'reduce_zero_label': True})],
    )
    def test_beyond_255_need_16_bits(self, classes, meta, write):
        image = read(write(segmented(classes, **meta)) / 'a.png')
        assert image.dtype == np.uint16
        assert image.tolist() == [[c + len(meta) for c in classes[0]]]


def test_depth_maps_keep_their_unit(write):
    depth = torch.tensor([[[0.5, 1e4], [math.pi, 0.0]]])
    sample = BaseDataElement(
        metainfo={'img_path': 'a.png'}, pred_depth_map=PixelData(data=depth)
    )
    read_back = np.load(write(sample) / 'a.npy')
    assert read_back.dtype == np.float32
    assert np.array_equal(read_back, depth[0].numpy())


class TestClasses:
    def lines(self, folder):
        text = (folder / 'predictions.jsonl').read_text()
        return [json.loads(line) for line in text.splitlines()]

    def test_are_one_line_each(self, write):
        folder = write(
            classified([1], [0.25, 0.75], 'red/a.png'),
            classified([0], [0.5, 0.5], 'blue/a.png'),
        )
        assert self.lines(folder) == [
            {'image': 'red/a.png', 'label': [1], 'score': [0.25, 0.75]},
            {'image': 'blue/a.png', 'label': [0], 'score': [0.5, 0.5]},
        ]

    def test_have_their_activation_maps_beside_them(self, write):
        sample = classified([1], [0.25, 0.75], 'red/a.png')
        sample.cam = torch.tensor([[0.0, 0.5], [1.0, 0.25]])
        folder = write(sample)
        np.testing.assert_array_equal(np.load(folder / 'a.npy'), sample.cam)
        assert len(self.lines(folder)) == 1

    def test_follow_the_averaged_score_of_several_views(self, write):
        folder = write(classified([0], [0.25, 0.75]))
        assert self.lines(folder)[0]['label'] == [1]

    @pytest.mark.parametrize('labels', [[], [0, 2]])
    def test_of_several_labels_stay(self, labels, write):
        folder = write(classified(labels, [0.75, 0.125, 0.875]))
        assert self.lines(folder)[0]['label'] == labels

    def test_of_an_earlier_run_go(self, write):
        write(classified([0], [1.0], 'old.png'))
        folder = write(classified([0], [1.0], 'new.png'))
        assert [line['image'] for line in self.lines(folder)] == ['new.png']

    @pytest.mark.parametrize(('main', 'left'), [(True, []), (False, ['x'])])
    def test_go_before_any_process_writes(
        self, main, left, tmp_path, monkeypatch
    ):
        file = tmp_path / 'predictions.jsonl'
        file.write_text('x')
        seen = []
        monkeypatch.setattr(predictions, 'is_main_process', lambda: main)
        monkeypatch.setattr(
            predictions,
            'barrier',
            lambda: seen.append([p.read_text() for p in tmp_path.iterdir()]),
        )
        SavePredictionsHook(str(tmp_path)).before_test(None)
        assert seen == [left]


class TestImages:
    def test_keep_the_colours_of_the_host(self, write):
        image = torch.tensor([255.0, 128.0, 0.0]).reshape(3, 1, 1)
        folder = write(restored(image, gt_path='a.png'))
        assert read(folder / 'a.png').tolist() == [[[255, 128, 0]]]

    def test_are_rounded_and_clipped(self, write):
        image = torch.tensor([[[-3.0, 1.4, 1.6, 300.0]]])
        folder = write(restored(image, gt_path='a.png'))
        assert read(folder / 'a.png').tolist() == [[0, 1, 2, 255]]

    def test_of_a_video_are_refused(self, write):
        frames = torch.zeros(2, 3, 4, 4)
        message = r'one image \(C, H, W\), got \(2, 3, 4, 4\)'
        with pytest.raises(ValueError, match=message):
            write(restored(frames, gt_path=['0.png', '1.png']))

    def test_that_cannot_be_written_are_not_lost_silently(
        self, write, monkeypatch
    ):
        monkeypatch.setattr(cv2, 'imwrite', lambda *args: False)
        with pytest.raises(OSError, match=r'cannot write .*a\.png'):
            write(restored(torch.zeros(3, 1, 1), gt_path='a.png'))


class Images:
    """Data set of images, as mmengine's tell them."""

    def __init__(self, *paths, key='img_path'):
        self.infos = [{key: path} for path in paths]

    def __len__(self):
        return len(self.infos)

    def get_data_info(self, index):
        return self.infos[index]


class TestNamesOfASet:
    def written(self, folder, dataset):
        loader = SimpleNamespace(dataset=dataset)
        loop = SimpleNamespace(dataloader=loader)
        runner = SimpleNamespace(test_loop=loop)
        hook = SavePredictionsHook(str(folder))
        hook.before_test(runner)
        for value, info in enumerate(dataset.infos):
            sample = restored(torch.full((1, 1, 1), float(value)), **info)
            hook.after_test_iter(runner, 0, outputs=[sample])
        return {
            str(path.relative_to(folder)): read(path).item()
            for path in folder.rglob('*.png')
        }

    @pytest.mark.parametrize('root', ['', '/data/', '../data/'])
    @pytest.mark.parametrize('key', ['img_path', 'gt_path', 'key'])
    def test_equal_ones_keep_their_folders(self, root, key, tmp_path):
        frames = ['dog/0.0.jpg', 'dog/0.1.jpg', 'run/cow/0.0.jpg', '0.0.jpg']
        paths = [f'{root}video/{frame}' for frame in frames]
        assert self.written(tmp_path, Images(*paths, key=key)) == {
            frame.replace('.jpg', '.png'): value
            for value, frame in enumerate(frames)
        }

    def test_others_have_none(self, tmp_path):
        images = Images('dog/0.jpg', 'cow/1.jpg')
        assert self.written(tmp_path, images) == {'0.png': 0, '1.png': 1}

    def test_equal_ones_in_a_folder_keep_their_suffix(self, tmp_path):
        images = Images('d/a.jpg', 'd/a.png', 'd/b.jpg')
        assert self.written(tmp_path, images) == {
            'a.jpg.png': 0,
            'a.png.png': 1,
            'b.jpg.png': 2,
        }

    def test_of_one_image_again_is_the_same(self, tmp_path):
        images = Images('d/a.jpg', 'd/a.jpg')
        assert self.written(tmp_path, images) == {'a.png': 1}

    def test_images_that_the_set_does_not_tell(self, tmp_path):
        dataset = Images('b/a.jpg', 'c/a.jpg')
        dataset.get_data_info = lambda index: {}
        with pytest.raises(ValueError, match=r'b/a\.jpg and c/a\.jpg would'):
            self.written(tmp_path, dataset)


class TestNames:
    @pytest.mark.parametrize(
        ('meta', 'name'),
        [
            ({'img_path': 'x/a.jpg', 'gt_path': 'y/b.png'}, 'a.png'),
            ({'gt_path': ['y/b.png', 'y/c.png']}, 'b.png'),
            ({'key': '000/00000007'}, '00000007.png'),
        ],
    )
    def test_come_from_the_image(self, meta, name, write):
        assert names(write(restored(torch.zeros(1, 2, 2), **meta))) == [name]

    def test_keep_their_dots(self, write):
        depth = PixelData(data=torch.zeros(1, 1, 1))
        folder = write(
            segmented([[0]], 'a/frame.0001.jpg'),
            segmented([[0]], 'a/frame.0002.jpg'),
            BaseDataElement(
                metainfo={'img_path': 'a/frame.0001.jpg'}, pred_depth_map=depth
            ),
            BaseDataElement(
                metainfo={'img_path': 'a/frame.0002.jpg'}, pred_depth_map=depth
            ),
        )
        assert names(folder) == [
            *('frame.0001.npy', 'frame.0001.png'),
            *('frame.0002.npy', 'frame.0002.png'),
        ]

    def test_of_two_images_must_differ(self, write):
        samples = [segmented([[i]], f'{i}/same.jpg') for i in range(2)]
        message = '0/same.jpg and 1/same.jpg would both be .*same.png'
        with pytest.raises(ValueError, match=message):
            write(*samples)

    def test_of_one_image_may_come_twice(self, write):
        # As where the last batch of several processes is filled up.
        samples = [segmented([[i]], '0/same.jpg') for i in range(2)]
        assert read(write(*samples) / 'same.png').tolist() == [[1]]

    def test_are_asked_for(self, write):
        with pytest.raises(ValueError, match='img_path, gt_path or key'):
            write(restored(torch.zeros(1, 2, 2)))


def test_of_several_sets_have_folders(tmp_path):
    hook = SavePredictionsHook(str(tmp_path))
    # The second one has two images of that name.
    sets = [Images('images/a.jpg'), Images('images/a.jpg', 'a.jpg')]
    loaders = [SimpleNamespace(dataset=one) for one in sets]
    loop = SimpleNamespace(dataloaders=loaders)
    runner = SimpleNamespace(test_loop=loop)
    hook.before_test(runner)
    for loop.dataloader, value in zip(loaders, (1, 2)):
        hook.after_test_iter(runner, 0, outputs=[segmented([[value]])])
    for name, value in (('0/a.png', 1), ('1/images/a.png', 2)):
        assert read(tmp_path / name).tolist() == [[value]]


def test_unknown_predictions_are_named(write):
    sample = BaseDataElement(
        metainfo={'img_path': 'a.png'}, pred_flow=torch.zeros(1)
    )
    with pytest.raises(ValueError, match=r"has \['pred_flow'\]"):
        write(sample)


class TestMetrics:
    @pytest.mark.parametrize(
        ('value', 'expected'),
        [
            (12.5, 12.5),
            (3, 3.0),
            (np.float32(0.5), 0.5),
            (np.int64(7), 7.0),
            (np.array(0.25), 0.25),
            (torch.tensor(0.75), 0.75),
            (math.nan, None),
            (np.float64('inf'), None),
            (torch.tensor(-math.inf), None),
            (None, None),
            ([1.0, math.nan], [1.0, None]),
            (np.array([[1, 2]]), [[1.0, 2.0]]),
            (torch.tensor([0.5, math.nan]), [0.5, None]),
            ({'deep': np.float32(1)}, {'deep': 1.0}),
            ('see the log', 'see the log'),
        ],
    )
    def test_become_plain_json(self, value, expected, tmp_path):
        path = tmp_path / 'new' / 'metrics.json'
        write_metrics({'a/figure': value}, str(path))

        def refuse(constant):
            raise AssertionError(f'{constant} is not JSON')

        figures = json.loads(path.read_text(), parse_constant=refuse)
        assert figures == {'a/figure': expected}

    @pytest.mark.parametrize(('main', 'written'), [(True, 1), (False, 0)])
    def test_are_written_by_one_process(
        self, main, written, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(predictions, 'is_main_process', lambda: main)
        hook = SaveMetricsHook(str(tmp_path / 'm.json'))
        hook.after_test_epoch(None, {'mIoU': 50.0})
        assert len(list(tmp_path.iterdir())) == written
