_base_ = 'mmseg::segmenter/segmenter_vit-s_fcn_8xb1-160k_ade20k-512x512.py'

model = dict(
    type='mmplugins.GuidedEncoderDecoder',
    # The head is a 1x1 convolution: 150 classes are upsampled instead of 384
    # channels.
    linear_head=True,
    neck=dict(
        type='mmplugins.FeatUpNeck',
        in_channels=384,
        # 16 / 2^2: a map of stride 4.
        upsampler=dict(type='mmplugins.JBUStack', num_stages=2),
    ),
)
