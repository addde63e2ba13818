_base_ = [
    './_base_/featup_jbu.py',
    '../_base_/datasets/photographs-256x256.py',
    '../_base_/schedules/nadam_500.py',
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
# Cells of 32 pixels say little about edges: the views are explained alike by
# sharp and by soft kernels, so that these stay near the filter they start as.
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'upsampler.': dict(lr_mult=0.1)})
)
