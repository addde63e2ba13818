# Plants on soil, at a quarter of 3264x2448: four photographs to learn from,
# three to test on, whose masks come at the full size.
_base_ = './_base_/fcn_mobilenet-v2_foreground.py'

dataset = dict(
    type='mmplugins.MaskPairDataset',
    data_root='data/carrot_weed/',
    data_prefix=dict(img_path='images', seg_map_path='masks'),
    img_suffix='.JPG',
    seg_map_suffix='_mask.png',
)
load = dict(type='mmplugins.LoadMasks', foreground=(1, 2))
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        **dataset,
        indices=4,
        pipeline=[
            dict(type='LoadImageFromFile'),
            load,
            dict(
                type='RandomResize',
                scale=(816, 612),
                ratio_range=(0.75, 1.5),
                keep_ratio=True,
            ),
            dict(type='RandomCrop', crop_size=(320, 320)),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PhotoMetricDistortion'),
            dict(type='PackSegInputs'),
        ],
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        **dataset,
        indices=-3,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=(816, 612)),
            load,
            dict(type='PackSegInputs'),
        ],
    ),
)
test_dataloader = val_dataloader
