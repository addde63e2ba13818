# A linear probe of depth: one 1x1 convolution on features that stay as they
# are, those of MobileNetV2 upsampled from stride 32 to 4 by a JBU that learned
# to without labels. It predicts disparity up to scale and shift.
model = dict(
    type='mmplugins.GuidedDepthEstimator',
    # 1x1 before the upsampling: the same prediction from 1 channel where it
    # had to be 1280.
    linear_head=True,
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[128.0] * 3,
        std=[128.0] * 3,
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=0,  # no depth
        test_cfg=dict(size_divisor=32),
    ),
    backbone=dict(
        type='mmplugins.FrozenBackbone',
        backbone=dict(
            type='mmpretrain.MobileNetV2',
            out_indices=(7,),
            init_cfg=dict(
                type='Pretrained',
                checkpoint='data/weights/mobilenet_v2_imagenet.pth',
                prefix='backbone',
            ),
        ),
    ),
    neck=dict(
        type='mmplugins.FeatUpNeck',
        in_channels=1280,
        offsets=-20,
        norm=dict(type='mmplugins.ChannelNorm', elementwise_affine=False),
        frozen=True,
        # 32 / 2^3. Another checkpoint of mmplugins.FeatUp: --cfg-options
        # model.neck.upsampler.init_cfg.checkpoint=PATH
        upsampler=dict(
            type='mmplugins.JBUStack',
            num_stages=3,
            kernel_fixup=False,
            channel_fixup=False,
            similarity='gaussian',
            init_cfg=dict(
                type='Pretrained',
                checkpoint='work_dirs/'
                'featup-jbu_mobilenet-v2_1xb4-500_bsds-256x256/iter_500.pth',
                prefix='upsampler',
            ),
        ),
    ),
    decode_head=dict(
        type='mmplugins.LinearDepthHead',
        in_channels=1280,
        loss_decode=dict(type='mmplugins.ScaleShiftInvariantLoss'),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
