# Probes on whole CamVid images; features of unchanged images are remembered.
_base_ = [
    './probe_mobilenet-v2.py',
    '../../_base_/datasets/camvid-256x256.py',
    '../../_base_/schedules/adamw_400.py',
    'mmseg::_base_/default_runtime.py',
]

model = dict(
    data_preprocessor=dict(size=(360, 480), seg_pad_val=11, test_cfg=None),
    backbone=dict(memory=1024),
    decode_head=dict(num_classes=11, ignore_index=11),
)
train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    dataset=dict(
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations'),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PackSegInputs'),
        ]
    ),
)
val_dataloader = dict(num_workers=1)
test_dataloader = val_dataloader
train_cfg = dict(max_iters=300, val_interval=300)
optim_wrapper = dict(optimizer=dict(lr=3e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=20),
    dict(type='PolyLR', power=0.9, by_epoch=False, begin=20, end=300),
]
default_hooks = dict(checkpoint=dict(interval=300))
val_evaluator = [
    dict(
        type='mmplugins.PerClassIoUMetric',
        iou_metrics=['mIoU'],
        ignore_index=11,
    ),
    dict(type='mmplugins.BoundaryFScore', ignore_index=11),
]
test_evaluator = val_evaluator
