# Tests on four sets without references, luma without 4 pixels of border. The
# low-resolution images are made by Pillow's bicubic kernel, which is MATLAB's
# but for the border: bicubic upsampling of Set5 has 28.43 dB with either.
test_pipeline = [
    dict(type='LoadImageFromFile', key='gt'),
    dict(type='SetValues', dictionary=dict(scale=4)),
    dict(type='ModCrop', key='gt'),
    dict(
        type='Resize',
        keys=['gt'],
        output_keys=['img'],
        scale=1 / 4,
        keep_ratio=True,
        interpolation='bicubic',
        backend='pillow',
    ),
    dict(type='PackInputs', keys=['img'], meta_keys=['key', 'reference']),
]

dataset = dict(
    type='mmplugins.ReferencePairDataset',
    data_prefix=dict(gt='HR'),
    reference='self',
    pipeline=test_pipeline,
)
dataloader = dict(
    batch_size=1,
    num_workers=1,
    sampler=dict(type='DefaultSampler', shuffle=False),
)
luma = dict(convert_to='Y', crop_border=4)

set5_dataloader = dict(
    **dataloader, dataset=dict(**dataset, data_root='data/set5/')
)
set5_evaluator = [
    dict(type='PSNR', **luma, prefix='Set5'),
    dict(type='SSIM', **luma, prefix='Set5'),
]
set14_dataloader = dict(
    **dataloader, dataset=dict(**dataset, data_root='data/set14/')
)
set14_evaluator = [
    dict(type='PSNR', **luma, prefix='Set14'),
    dict(type='SSIM', **luma, prefix='Set14'),
]
b100_dataloader = dict(
    **dataloader, dataset=dict(**dataset, data_root='data/b100/')
)
b100_evaluator = [
    dict(type='PSNR', **luma, prefix='B100'),
    dict(type='SSIM', **luma, prefix='B100'),
]
urban100_dataloader = dict(
    **dataloader, dataset=dict(**dataset, data_root='data/urban100/')
)
urban100_evaluator = [
    dict(type='PSNR', **luma, prefix='Urban100'),
    dict(type='SSIM', **luma, prefix='Urban100'),
]

test_dataloader = [
    set5_dataloader,
    set14_dataloader,
    b100_dataloader,
    urban100_dataloader,
]
test_evaluator = [
    set5_evaluator,
    set14_evaluator,
    b100_evaluator,
    urban100_evaluator,
]
test_cfg = dict(type='MultiTestLoop')
