# MSRA-10K, DUTS, ECSSD and FSS-1000, 36,572 pairs, as CascadePSP and CRM are
# trained; validation on BIG, whose coarse masks are given.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mmplugins.LoadMasks'),
    dict(type='mmplugins.RandomScaleCrop', input_size=224),
    dict(type='mmplugins.PerturbMask', iou=(0.8, 1.0)),
    dict(type='mmplugins.SoftenMask'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='mmplugins.SampleQueries', input_size=224, query_size=224),
    dict(type='PhotoMetricDistortion'),
    dict(type='mmplugins.PackRefineInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mmplugins.LoadMasks'),
    dict(type='mmplugins.PackRefineInputs'),
]

train_dataloader = dict(
    batch_size=6,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='ConcatDataset',
        datasets=[
            dict(
                type='mmplugins.MSRA10KDataset',
                data_root='data/MSRA10K/',
                pipeline=train_pipeline,
            ),
            dict(
                type='mmplugins.DUTSDataset',
                data_root='data/DUTS/',
                pipeline=train_pipeline,
            ),
            dict(
                type='mmplugins.DUTSDataset',
                data_root='data/DUTS/',
                split='TE',
                pipeline=train_pipeline,
            ),
            dict(
                type='mmplugins.ECSSDDataset',
                data_root='data/ECSSD/',
                pipeline=train_pipeline,
            ),
            dict(
                type='mmplugins.FSS1000Dataset',
                data_root='data/fss1000/',
                pipeline=train_pipeline,
            ),
        ],
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmplugins.BIGDataset',
        data_root='data/BIG/',
        data_prefix=dict(
            img_path='val', seg_map_path='val', coarse_map_path='val'
        ),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='mmplugins.MaskRefinementMetric')
test_evaluator = val_evaluator
