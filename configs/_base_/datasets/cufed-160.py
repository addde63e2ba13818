# CUFED, 11,871 pairs of 160x160, and CUFED5 with its most similar references.
# Images are loaded as BGR. Is a copy whole?
# python tools/prepare_data.py cufed data/CUFED OUT
data_root = 'data/CUFED/'
scale = 4
meta_keys = ['key', 'ref_path', 'reference', 'ref_channel_order']

train_pipeline = [
    dict(type='LoadImageFromFile', key='gt'),
    dict(type='SetValues', dictionary=dict(scale=scale)),
    dict(
        type='Resize',
        keys=['gt'],
        output_keys=['img'],
        scale=1 / scale,
        keep_ratio=True,
        interpolation='bicubic',
        backend='pillow',
    ),
    dict(type='mmplugins.LoadReference'),
    dict(type='mmplugins.RandomRot90', keys=('img', 'gt')),
    dict(type='mmplugins.RandomRot90', keys='ref'),
    dict(type='mmplugins.FitReference'),
    dict(type='PackInputs', keys=['img', 'ref'], meta_keys=meta_keys),
]
test_pipeline = [
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
    dict(type='mmplugins.LoadReference'),
    dict(type='mmplugins.FitReference', trim=scale - 1),
    dict(type='PackInputs', keys=['img', 'ref'], meta_keys=meta_keys),
]

train_dataloader = dict(
    batch_size=32,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='mmplugins.CUFEDDataset',
        data_root=data_root,
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmplugins.CUFED5Dataset',
        data_root=data_root,
        data_prefix=dict(gt='CUFED5', ref='CUFED5'),
        level=1,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
# As TTSR and MASA measure: luma, without a border.
val_evaluator = [
    dict(type='PSNR', convert_to='Y'),
    dict(type='SSIM', convert_to='Y'),
]
test_evaluator = val_evaluator
val_cfg = dict(type='MultiValLoop')
test_cfg = dict(type='MultiTestLoop')
