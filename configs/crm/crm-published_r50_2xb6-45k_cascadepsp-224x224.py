# As published: every crop is 224 pixels and decoded at its own resolution, so
# that ratio and offsets never vary; levels are resized from corner to corner.
_base_ = './crm_r50_2xb6-45k_cascadepsp-224x224.py'

model = dict(decode_head=dict(align_corners=True))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mmplugins.LoadMasks'),
    dict(type='mmplugins.RandomScaleCrop', input_size=224, scales=(1.0, 1.0)),
    dict(type='mmplugins.PerturbMask', iou=(0.8, 1.0)),
    dict(type='RandomFlip', prob=0.5),
    dict(
        type='mmpretrain.ColorJitter',
        brightness=0.2,
        contrast=0.05,
        saturation=0.05,
    ),
    dict(type='RandomGrayscale', prob=0.1, keep_channels=True),
    dict(type='mmplugins.PackRefineInputs'),
]
train_dataloader = dict(
    dataset=dict(
        datasets=[
            dict(
                type=f'mmplugins.{name}Dataset',
                data_root=f'data/{folder}/',
                pipeline=train_pipeline,
                **split,
            )
            for name, folder, split in (
                ('MSRA10K', 'MSRA10K', {}),
                ('DUTS', 'DUTS', {}),
                ('DUTS', 'DUTS', dict(split='TE')),
                ('ECSSD', 'ECSSD', {}),
                ('FSS1000', 'fss1000', {}),
            )
        ]
    )
)
