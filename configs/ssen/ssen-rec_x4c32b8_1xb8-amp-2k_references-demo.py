# On pairs of a folder, or the demo's, as one of the next lines makes them:
# python tools/prepare_data.py references work_dirs/demo/references [SOURCE]
_base_ = './ssen-rec_x4c32b8_1xb8-amp-2k_references-128.py'

pairs = dict(
    type='mmplugins.ReferencePairDataset',
    data_root='work_dirs/demo/references/',
    data_prefix=dict(gt='images', ref='images'),
)
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        **pairs,
        ann_file='train.json',
        num_refs=None,
        pipeline={{_base_.train_pipeline}},
    )
)
test_dataloader = [
    dict(
        _base_.test_loader,
        dataset=dict(
            **pairs,
            ann_file='val.json',
            reference=reference,
            pipeline={{_base_.test_pipeline}},
        ),
    )
    for reference in ('paired', 'unrelated', 'upsampled', 'self')
]
test_evaluator = [
    [
        dict(type='PSNR', convert_to='Y', crop_border=4, prefix=f'{row}/Y-b4'),
        dict(type='SSIM', convert_to='Y', crop_border=4, prefix=f'{row}/Y-b4'),
    ]
    for row in ('paired', 'unrelated', 'upsampled', 'self')
]
