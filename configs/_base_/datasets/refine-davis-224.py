# Masks of DAVIS at 480p, split by sequence; coarse masks are made on the spot.
data_root = 'data/davis/'
train_sequences = [
    'blackswan', 'breakdance', 'cows', 'drift-chicane', 'drift-straight',
    'horsejump-high', 'kite-surf', 'motocross-jump', 'parkour',
]  # fmt: skip
val_sequences = ['bmx-trees', 'car-roundabout', 'dog']

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mmplugins.LoadMasks'),
    dict(type='mmplugins.RandomScaleCrop', input_size=224),
    dict(type='mmplugins.PerturbMask', iou=(0.8, 1.0)),
    dict(type='mmplugins.SoftenMask'),
    dict(
        type='RandomFlip',
        prob=[0.25, 0.25, 0.25],
        direction=['horizontal', 'vertical', 'diagonal'],
    ),
    dict(type='mmplugins.SampleQueries', input_size=224, query_size=160),
    dict(type='PhotoMetricDistortion'),
    dict(type='mmplugins.PackRefineInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mmplugins.LoadMasks'),
    dict(type='mmplugins.PerturbMask', iou=(0.8, 1.0), seed='name'),
    dict(type='mmplugins.PackRefineInputs'),
]

dataset = dict(
    type='mmplugins.MaskPairDataset',
    data_root=data_root,
    data_prefix=dict(img_path='JPEGImages', seg_map_path='Annotations'),
)
train_dataloader = dict(
    batch_size=8,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        **dataset, sequences=train_sequences, pipeline=train_pipeline
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(**dataset, sequences=val_sequences, pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='mmplugins.MaskRefinementMetric')
test_evaluator = val_evaluator
