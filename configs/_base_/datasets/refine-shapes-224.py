# Shapes drawn over photographs, and their exact masks:
# python tools/prepare_data.py masks DIR
data_root = 'work_dirs/demo/masks/'

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mmplugins.LoadMasks'),
    dict(type='mmplugins.RandomScaleCrop', input_size=224),
    dict(type='mmplugins.PerturbMask', iou=(0.8, 1.0)),
    dict(type='mmplugins.SoftenMask'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='mmplugins.SampleQueries', input_size=224, query_size=112),
    dict(type='PhotoMetricDistortion'),
    dict(type='mmplugins.PackRefineInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mmplugins.LoadMasks'),
    dict(type='mmplugins.PerturbMask', iou=(0.8, 1.0), seed='name'),
    dict(type='mmplugins.PackRefineInputs'),
]

dataset = dict(type='mmplugins.MaskPairDataset', data_root=data_root)
train_dataloader = dict(
    batch_size=8,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        **dataset,
        data_prefix=dict(img_path='images/train', seg_map_path='masks/train'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        **dataset,
        data_prefix=dict(img_path='images/val', seg_map_path='masks/val'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='mmplugins.MaskRefinementMetric')
test_evaluator = val_evaluator
