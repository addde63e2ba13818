import cv2
import numpy as np
import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel, ImgDataPreprocessor
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement, PixelData
from skimage import data
from torch import nn
from torch.utils.data import Dataset

from mmplugins.crm import CRM, RefinementVisualizationHook
from mmplugins.crm import hooks as module
from mmplugins.crm.baselines import GrabCutRefiner

HOOK = 'mmplugins.RefinementVisualizationHook'
NORM = dict(
    type='ImgDataPreprocessor',
    mean=[128.0] * 3,
    std=[64.0] * 3,
    bgr_to_rgb=True,
    pad_size_divisor=32,
)


class Photos(Dataset):
    """Parts of a photograph with masks, some without the truth."""

    metainfo = dict()

    def __init__(self, count=5):
        self.count = count
        self.image = data.astronaut()[:48, 100:150, ::-1]

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        size = 40 + index, 50 - index
        image = self.image[: size[0], : size[1]].transpose(2, 0, 1).copy()
        mask = torch.zeros(1, *size)
        mask[:, 10:30, 10:30] = 1
        sample = BaseDataElement(metainfo=dict(img_path=f'd{index}/photo.png'))
        sample.coarse_sem_seg = PixelData(data=mask)
        if index:
            truth = mask.roll(2, 1).to(torch.uint8)
            sample.gt_sem_seg = PixelData(data=truth)
        return dict(inputs=torch.from_numpy(image), data_samples=sample)


class Nothing(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        return {}


def crm():
    torch.manual_seed(0)
    return CRM(
        dict(type='mmplugins.CRMBackbone', depth=18),
        dict(
            type='mmplugins.CRMHead',
            in_channels=(64, 64, 256),
            channels=(4, 4, 4),
            hidden_channels=(4,),
        ),
        scales=(0.5, 1),
        data_preprocessor=NORM,
    )


class Segmentor(BaseModel):
    """Label maps of another size than its input, as a RefinedSegmentor's."""

    refiner = None

    def forward(self, inputs, data_samples, mode):
        for sample in data_samples:
            labels = torch.zeros(1, 60, 90, dtype=torch.long)
            labels[:, 10:30, 10:30] = 2
            sample.coarse_sem_seg = PixelData(data=labels)
            sample.pred_sem_seg = PixelData(data=labels.roll(3, 2))
            sample.pop('gt_sem_seg', None)
        return data_samples


def run(folder, *hooks, model=None, test=False, **kwargs):
    mode = 'test' if test else 'val'
    runner = Runner(
        model or crm(),
        str(folder),
        **{
            f'{mode}_dataloader': dict(
                dataset=Photos(),
                sampler=dict(type='DefaultSampler', shuffle=False),
                batch_size=2,
                num_workers=0,
            ),
            f'{mode}_cfg': dict(),
            f'{mode}_evaluator': dict(type=Nothing),
        },
        default_hooks=dict(logger=None, timer=None, checkpoint=None),
        custom_hooks=[*hooks],
        visualizer=dict(
            type='Visualizer', vis_backends=[dict(type='LocalVisBackend')]
        ),
        log_level='WARNING',
        experiment_name=f'{folder.name}-{len(list(folder.iterdir()))}',
        **kwargs,
    )
    (runner.test if test else runner.val)()
    return {path.name: path for path in folder.rglob('*.png')}


@pytest.mark.parametrize('test', [False, True])
def test_every_so_many_images_are_shown(tmp_path, test):
    found = run(tmp_path, dict(type=HOOK, interval=2), test=test)
    mode = 'test' if test else 'val'
    assert set(found) == {f'{mode}_{i}_photo_0.png' for i in (0, 2, 4)}
    sheets = [cv2.imread(str(found[name])) for name in sorted(found)]
    # One of them has no truth, so no errors.
    assert len(sheets[0]) < len(sheets[1])


def test_images_are_counted_anew(tmp_path):
    hook = RefinementVisualizationHook(interval=3)
    for test in (False, False, True):
        found = run(tmp_path, hook, test=test)
    assert set(found) == {
        f'{mode}_{i}_photo_0.png' for mode in ('val', 'test') for i in (0, 3)
    }


def test_sheet_shows_what_was_predicted(tmp_path, monkeypatch):
    """Its stages end where the prediction does, in spite of the padding."""
    seen = []

    def spy(image, coarse, refined, stages, truth, size):
        seen.append((image, coarse, refined, stages, truth))
        return np.zeros((size, size, 3), np.uint8)

    monkeypatch.setattr(module, 'refinement_sheet', spy)
    run(tmp_path, dict(type=HOOK, interval=1, size=99))
    assert len(seen) == 5
    for index, (image, coarse, refined, stages, truth) in enumerate(seen):
        given = Photos()[index]
        sample = given['data_samples']
        np.testing.assert_array_equal(
            image, given['inputs'].flip(0).permute(1, 2, 0)
        )
        np.testing.assert_array_equal(coarse, sample.coarse_sem_seg.data[0])
        assert [scale for scale, _ in stages] == [0.5, 1]
        np.testing.assert_allclose(stages[-1][1], refined, atol=1e-6)
        assert np.abs(stages[0][1] - refined).max() > 1e-3
        if index:
            np.testing.assert_array_equal(truth, sample.gt_sem_seg.data[0])
        else:
            assert truth is None


def test_other_refiners_have_no_stages(tmp_path):
    norm = NORM | dict(pad_size_divisor=1)
    found = run(tmp_path, dict(type=HOOK), model=GrabCutRefiner(norm))
    assert set(found) == {'val_0_photo_0.png'}


def test_label_maps_are_shown(tmp_path):
    model = Segmentor(ImgDataPreprocessor(pad_size_divisor=32))
    found = run(tmp_path, dict(type=HOOK, size=180), model=model, test=True)
    sheet = cv2.imread(str(found['test_0_photo_0.png']))
    assert sheet.shape == (2 * (24 + 120 + 8), 8 + 4 * 208, 3)


def test_ignored_labels_are_no_errors():
    def sheet(label, **options):
        labels = torch.zeros(1, 40, 50, dtype=torch.long)
        truth = labels.clone()
        truth[:, 10:30] = label
        sample = BaseDataElement(
            coarse_sem_seg=PixelData(data=labels),
            pred_sem_seg=PixelData(data=labels.clone()),
            gt_sem_seg=PixelData(data=truth.byte()),
        )
        batch = dict(inputs=[torch.full((3, 40, 50), 9, dtype=torch.uint8)])
        hook = RefinementVisualizationHook(size=100, **options)
        errors = hook.draw(nn.Module(), batch, 0, sample)[130:240]
        return errors.tolist()

    assert sheet(5, ignore_index=5) == sheet(0)
    assert sheet(255) == sheet(0) != sheet(5)


def test_models_that_refine_nothing_are_named(tmp_path):
    class Plain(BaseModel):
        def forward(self):
            raise AssertionError

    with pytest.raises(ValueError, match=r'such as mmplugins\.CRM.*Plain'):
        run(tmp_path, dict(type=HOOK), model=Plain())


@pytest.mark.parametrize('name', ['interval', 'size'])
def test_arguments_are_checked(name):
    with pytest.raises(ValueError, match=f'{name} of .* 1 or more, got 0'):
        RefinementVisualizationHook(**{name: 0})


def test_a_training_has_no_pictures():
    """The hook has nothing to do there, but is called all the same."""
    hook = RefinementVisualizationHook()
    for name in ('before_train_iter', 'after_train_iter'):
        getattr(hook, name)(None, 0)
    for mode in ('val', 'test'):
        getattr(hook, f'before_{mode}_iter')(None, 0)
    assert hook._seen == 0
