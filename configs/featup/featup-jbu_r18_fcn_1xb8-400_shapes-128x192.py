_base_ = './r18_fcn_1xb8-400_shapes-128x192.py'

model = dict(
    type='mmplugins.GuidedEncoderDecoder',
    # The head's convolution moves before the upsampling, where it sees as far
    # as it did and leaves fewer channels to upsample.
    neck=dict(
        type='mmplugins.FeatUpNeck',
        in_channels=256,
        out_channels=64,
        reduction=dict(kernel_size=3, padding=1, norm_cfg=dict(type='BN')),
        # 32 / 2^3: a map of stride 4.
        upsampler=dict(type='mmplugins.JBUStack', num_stages=3),
    ),
    decode_head=dict(in_channels=64, num_convs=0),
)
# The kernels start as wide blurs; their few parameters may move faster.
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'neck.upsamplers': dict(lr_mult=10)})
)
