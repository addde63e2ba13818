# Photographs of 3264x2448 with thin leaves: the last three of seven, for the
# others are to choose options on.
data_root = 'data/carrot_weed/'

test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mmplugins.LoadMasks', foreground=(1, 2)),  # weed and carrot
    dict(type='mmplugins.PerturbMask', iou=(0.8, 1.0), seed='name'),
    dict(type='mmplugins.PackRefineInputs'),
]

val_dataloader = dict(
    batch_size=1,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmplugins.MaskPairDataset',
        data_root=data_root,
        indices=-3,
        img_suffix='.JPG',
        seg_map_suffix='_mask.png',
        data_prefix=dict(img_path='images', seg_map_path='masks'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='mmplugins.MaskRefinementMetric')
test_evaluator = val_evaluator
