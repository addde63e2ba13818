_base_ = './mobilenet-v2_fcn_1xb8-400_camvid-256x256.py'

model = dict(
    type='mmplugins.GuidedEncoderDecoder',
    # The head's convolution moves before the upsampling, where it sees as far
    # as it did and upsampling 128 channels costs a tenth of 1280.
    neck=dict(
        type='mmplugins.FeatUpNeck',
        in_channels=1280,
        out_channels=128,
        reduction=dict(kernel_size=3, padding=1, norm_cfg=dict(type='BN')),
        # 32 / 2^3: a map of stride 4.
        upsampler=dict(type='mmplugins.JBUStack', num_stages=3),
    ),
    decode_head=dict(in_channels=128, num_convs=0),
)
# The kernels start as wide blurs; their few parameters may move faster.
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'neck.upsamplers': dict(lr_mult=10)})
)
