# CUFED for training; tests with each level of CUFED5's references, from the
# most similar to the least, and with three controls: a reference of another
# group, the low-resolution image made larger, and none.
_base_ = './cufed-160.py'

levels = dict(
    XH=1,
    H=2,
    M=3,
    L=4,
    XL=5,
    unrelated='unrelated',
    upsampled='upsampled',
    self='self',
)
test_dataloader = [
    dict(
        batch_size=1,
        num_workers=2,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dict(
            type='mmplugins.CUFED5Dataset',
            data_root='data/CUFED/',
            data_prefix=dict(gt='CUFED5', ref='CUFED5'),
            level=level,
            pipeline={{_base_.test_pipeline}},
        ),
    )
    for level in levels.values()
]
# Luma, without a border as TTSR and MASA, and without 4 pixels as C2-Matching.
test_evaluator = [
    [
        dict(
            type=metric,
            convert_to='Y',
            crop_border=border,
            prefix=f'{name}/b{border}',
        )
        for border in (0, 4)
        for metric in ('PSNR', 'SSIM')
    ]
    for name in levels
]
