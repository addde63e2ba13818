_base_ = (
    'mmseg::mobilenet_v2/mobilenet-v2-d8_fcn_4xb2-80k_cityscapes-512x1024.py'
)

model = dict(
    type='mmplugins.GuidedEncoderDecoder',
    neck=dict(
        type='mmplugins.FeatUpNeck',
        in_channels=320,
        # 8 / 2^2: a map of stride 2.
        upsampler=dict(type='mmplugins.JBUStack', num_stages=2),
    ),
)
