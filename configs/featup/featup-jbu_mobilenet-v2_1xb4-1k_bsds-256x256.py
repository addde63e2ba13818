_base_ = [
    './_base_/featup_jbu.py',
    '../_base_/datasets/photographs-256x256.py',
    '../_base_/schedules/nadam_1k.py',
]

default_scope = 'mmpretrain'
model = dict(
    num_views=3,
    backbone=dict(
        init_cfg=dict(
            type='Pretrained',
            checkpoint='data/weights/mobilenet_v2_imagenet.pth',
            prefix='backbone',
        )
    ),
)
