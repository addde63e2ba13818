_base_ = [
    './_base_/fcn_mobilenet-v2.py',
    '../_base_/datasets/camvid-256x256.py',
    '../_base_/schedules/adamw_400.py',
    'mmseg::_base_/default_runtime.py',
]

model = dict(
    data_preprocessor=dict(size=(256, 256), seg_pad_val=11),
    backbone=dict(
        init_cfg=dict(
            type='Pretrained',
            checkpoint='data/weights/mobilenet_v2_imagenet.pth',
            prefix='backbone',
        )
    ),
    decode_head=dict(num_classes=11, ignore_index=11),
)
