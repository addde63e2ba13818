# A segmentor of foreground whose masks are refined: FCN, stride 32.
_base_ = [
    '../../featup/_base_/fcn_mobilenet-v2.py',
    '../../_base_/schedules/adamw_400.py',
    'mmseg::_base_/default_runtime.py',
]

model = dict(
    data_preprocessor=dict(size=(320, 320)),
    backbone=dict(
        init_cfg=dict(
            type='Pretrained',
            checkpoint='data/weights/mobilenet_v2_imagenet.pth',
            prefix='backbone',
        )
    ),
    decode_head=dict(num_classes=2),
)
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
