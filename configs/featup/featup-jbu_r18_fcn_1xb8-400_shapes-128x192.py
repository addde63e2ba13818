_base_ = './r18_fcn_1xb8-400_shapes-128x192.py'

model = dict(
    type='mmplugins.GuidedEncoderDecoder',
    neck=dict(
        type='mmplugins.FeatUpNeck',
        in_channels=256,
        # 32 / 2^3: a map of stride 4.
        upsampler=dict(type='mmplugins.JBUStack', num_stages=3),
    ),
)
