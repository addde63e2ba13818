# CRM for a CPU: MobileNetV2's maps of strides 2, 4, 8 and 16, 64 channels.
model = dict(
    type='mmplugins.CRM',
    data_preprocessor=dict(
        type='ImgDataPreprocessor',
        mean=[128.0] * 3,
        std=[128.0] * 3,
        bgr_to_rgb=True,
    ),
    backbone=dict(
        type='mmplugins.CRMBackbone',
        backbone=dict(
            type='mmpretrain.MobileNetV2',
            out_indices=(0, 1, 2, 4),
            init_cfg=dict(
                type='Pretrained',
                checkpoint='data/weights/mobilenet_v2_imagenet.pth',
                prefix='backbone',
            ),
        ),
    ),
    decode_head=dict(
        type='mmplugins.CRMHead',
        in_channels=(16, 24, 32, 96),
        channels=(16, 16, 16, 16),
        dropout_ratio=0.0,
    ),
    # Begins with the mask as it is: a short training learns what to change.
    residual=4.0,
    # No stage on an image smaller than what it is trained on.
    min_size=200,
    # Small scales average the image, as training does.
    antialias=True,
    min_pixels=16,
    # Best of 0, 1 and 2 on sequences of the training.
    trust=2.0,
)
