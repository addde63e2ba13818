"""IoU of each class against mmseg's own metric and torchmetrics."""

import math

import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.structures import BaseDataElement, PixelData
from torchmetrics.functional import jaccard_index

CLASSES = ('road', 'tree', 'pole', 'nothing')


def evaluate(pairs, **cfg):
    evaluator = Evaluator(cfg)
    evaluator.dataset_meta = dict(classes=CLASSES)
    for pred, target in pairs:
        item = BaseDataElement(
            pred_sem_seg=PixelData(data=pred[None]),
            gt_sem_seg=PixelData(data=target[None]),
            img_path='image.png',
        )
        evaluator.process([item])
    return evaluator.evaluate(len(pairs))


def pairs_of(count):
    pairs = [
        (torch.randint(3, (20, 30)), torch.randint(3, (20, 30)))
        for _ in range(count)
    ]
    for _, target in pairs:
        target[:4] = 255
    return pairs


@pytest.mark.parametrize(
    'cfg', [{}, dict(iou_metrics=['mIoU', 'mDice']), dict(nan_to_num=0)]
)
def test_classes_come_with_the_hosts_figures(in_scope, cfg):
    pairs = pairs_of(3)
    with in_scope('mmseg'):
        host = evaluate(pairs, type='IoUMetric', **cfg)
        ours = evaluate(pairs, type='mmplugins.PerClassIoUMetric', **cfg)
    names = [f'IoU.{name}' for name in CLASSES]
    assert {**ours, **host} == pytest.approx(ours, nan_ok=True)
    assert list(ours) == [*host, *names]
    wanted = 100 * jaccard_index(
        torch.cat([pred for pred, _ in pairs]),
        torch.cat([target for _, target in pairs]),
        'multiclass',
        num_classes=4,
        ignore_index=255,
        average='none',
    )
    for name, value in zip(names[:3], wanted.tolist()):
        assert ours[name] == pytest.approx(value, abs=0.006)
    if 'nan_to_num' in cfg:
        assert ours[names[3]] == 0
    else:
        assert math.isnan(ours[names[3]])
        mean = sum(ours[name] for name in names[:3]) / 3
        assert ours['mIoU'] == pytest.approx(mean, abs=0.01)


def test_format_only_has_no_figures(in_scope, tmp_path):
    cfg = dict(output_dir=str(tmp_path), format_only=True)
    with in_scope('mmseg'):
        figures = evaluate(
            pairs_of(1), type='mmplugins.PerClassIoUMetric', **cfg
        )
    # mmseg gives none and writes the predictions.
    assert figures == {}
    assert (tmp_path / 'image.png').exists()
