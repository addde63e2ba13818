# Moving objects of DAVIS, by the sequences that CRM is trained on.
_base_ = './_base_/fcn_mobilenet-v2_foreground.py'

dataset = dict(
    type='mmplugins.MaskPairDataset',
    data_root='data/davis/',
    data_prefix=dict(img_path='JPEGImages', seg_map_path='Annotations'),
)
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        **dataset,
        sequences=[
            'blackswan', 'breakdance', 'cows', 'drift-chicane',
            'drift-straight', 'horsejump-high', 'kite-surf',
            'motocross-jump', 'parkour',
        ],
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='mmplugins.LoadMasks'),
            dict(
                type='RandomResize',
                scale=(854, 480),
                ratio_range=(0.5, 1.5),
                keep_ratio=True,
            ),
            dict(type='RandomCrop', crop_size=(320, 320)),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PhotoMetricDistortion'),
            dict(type='PackSegInputs'),
        ],
    ),
)  # fmt: skip
val_dataloader = dict(
    batch_size=1,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        **dataset,
        sequences=['bmx-trees', 'car-roundabout', 'dog'],
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='mmplugins.LoadMasks'),
            dict(type='PackSegInputs'),
        ],
    ),
)
test_dataloader = val_dataloader
