# One network for one photograph, the first of CamVid's validation set.
_base_ = [
    './_base_/featup_jbu.py',
    '../_base_/datasets/photographs-256x256.py',
    '../_base_/schedules/nadam_500.py',
]

default_scope = 'mmpretrain'
model = dict(
    backbone=dict(
        init_cfg=dict(
            type='Pretrained',
            checkpoint='data/weights/mobilenet_v2_imagenet.pth',
            prefix='backbone',
        )
    ),
    # Trained with 4 samples per cell of 32 pixels; sharper at any size. A few
    # hundred steps leave nothing for dropout to prevent.
    upsampler=dict(
        _delete_=True, type='mmplugins.ImplicitUpsampler', scale=4, dropout=0.0
    ),
    downsampler=dict(kernel_size=8, stride=4),
    num_views=6,
    views=dict(max_pad=30, max_zoom=1.8),
    priors=[
        dict(type='mmplugins.TotalVariationLoss', loss_weight=0.05),
        dict(type='mmplugins.BlurLoss', loss_weight=0.1),
    ],
)
custom_hooks = [dict(type='mmplugins.PrepareImplicitHook')]

# Whole cells, so that training and use cover the same area.
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(480, 352)),
    dict(type='PackInputs'),
]
dataset = dict(data_prefix='data/camvid/val/', indices=1, pipeline=pipeline)
train_dataloader = dict(batch_size=1, dataset=dataset)
val_dataloader = dict(dataset=dataset)
test_dataloader = val_dataloader

train_cfg = dict(max_iters=300, val_interval=300)
optim_wrapper = dict(optimizer=dict(lr=2e-3))
default_hooks = dict(checkpoint=dict(interval=300))
