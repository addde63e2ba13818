# DIV2K without references, crops of 192x192 of its images and what they are
# at a quarter of the size; Set5 for validation. Images are loaded as BGR.
scale = 4
meta_keys = ['key', 'reference']

train_pipeline = [
    dict(type='LoadImageFromFile', key='img'),
    dict(type='LoadImageFromFile', key='gt'),
    dict(type='mmplugins.RandomReferenceCrop', size=192, scale=scale),
    dict(type='mmplugins.RandomRot90', keys=('img', 'gt')),
    dict(type='PackInputs', keys=['img'], meta_keys=meta_keys),
]
val_pipeline = [
    dict(type='LoadImageFromFile', key='gt'),
    dict(type='SetValues', dictionary=dict(scale=scale)),
    dict(type='ModCrop', key='gt'),
    dict(
        type='Resize',
        keys=['gt'],
        output_keys=['img'],
        scale=1 / scale,
        keep_ratio=True,
        interpolation='bicubic',
        backend='pillow',
    ),
    dict(type='PackInputs', keys=['img'], meta_keys=meta_keys),
]

train_dataloader = dict(
    batch_size=32,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='mmplugins.ReferencePairDataset',
        data_root='data/DIV2K/',
        data_prefix=dict(gt='DIV2K_train_HR', img='DIV2K_train_LR_bicubic/X4'),
        filename_tmpl=dict(img='{}x4'),
        reference='self',
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmplugins.ReferencePairDataset',
        data_root='data/set5/',
        data_prefix=dict(gt='HR'),
        reference='self',
        pipeline=val_pipeline,
    ),
)
val_evaluator = [
    dict(type='PSNR', convert_to='Y', crop_border=scale),
    dict(type='SSIM', convert_to='Y', crop_border=scale),
]
val_cfg = dict(type='MultiValLoop')
