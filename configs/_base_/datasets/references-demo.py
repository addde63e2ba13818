# Pairs of a target and a reference, as the next line makes them; of a folder
# of photographs or video frames, if one is named after OUT.
# python tools/prepare_data.py references work_dirs/demo/references
data_root = 'work_dirs/demo/references/'
scale = 4
meta_keys = ['key', 'ref_path', 'reference', 'ref_channel_order']

train_pipeline = [
    dict(type='LoadImageFromFile', key='gt'),
    dict(type='mmplugins.LoadReference', choice='random'),
    dict(type='mmplugins.RandomReferenceCrop', size=128, scale=scale),
    dict(
        type='Resize',
        keys=['gt'],
        output_keys=['img'],
        scale=1 / scale,
        keep_ratio=True,
        interpolation='bicubic',
        backend='pillow',
    ),
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

dataset = dict(
    type='mmplugins.ReferencePairDataset',
    data_root=data_root,
    data_prefix=dict(gt='images', ref='images'),
)
train_dataloader = dict(
    batch_size=8,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        **dataset,
        ann_file='train.json',
        num_refs=None,
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(**dataset, ann_file='val.json', pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = [
    dict(type='PSNR', convert_to='Y', crop_border=scale),
    dict(type='SSIM', convert_to='Y', crop_border=scale),
]
test_evaluator = val_evaluator
val_cfg = dict(type='MultiValLoop')
test_cfg = dict(type='MultiTestLoop')
