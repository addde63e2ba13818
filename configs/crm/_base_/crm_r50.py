# CRM as published: a ResNet-50 on image and mask, maps of strides 2, 4 and 8.
model = dict(
    type='mmplugins.CRM',
    data_preprocessor=dict(
        type='ImgDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
    ),
    backbone=dict(
        type='mmplugins.CRMBackbone',
        depth=50,
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50'),
    ),
    decode_head=dict(
        type='mmplugins.CRMHead',
        in_channels=(64, 256, 1024),
        channels=(64, 64, 128),
    ),
)
