_base_ = './mobilenet-v2_fcn_1xb8-400_camvid-256x256.py'

model = dict(
    type='mmplugins.GuidedEncoderDecoder',
    neck=dict(
        type='mmplugins.FeatUpNeck',
        in_channels=1280,
        out_channels=128,
        # 32 / 2^3: a map of stride 4.
        upsampler=dict(type='mmplugins.JBUStack', num_stages=3),
    ),
    # The same receptive field: 8 cells of stride 4 instead of 1 of 32.
    decode_head=dict(in_channels=128, dilation=8),
)
# The kernels start as wide blurs; their few parameters may move faster.
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'neck.upsamplers': dict(lr_mult=10)})
)
