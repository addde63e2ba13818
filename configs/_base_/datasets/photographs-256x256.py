# A folder of photographs without labels; the last 20 are held out.
data_root = 'data/bsds200/'

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomCrop', crop_size=256, pad_if_needed=True),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]

dataset = dict(type='CustomDataset', data_prefix=data_root, with_label=False)
train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    persistent_workers=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(**dataset, indices=180, pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=1,
    persistent_workers=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(**dataset, indices=-20, pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='mmplugins.ViewReconstruction')
test_evaluator = val_evaluator
