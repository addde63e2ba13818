_base_ = (
    'mmseg::convnext/convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py'
)

model = dict(
    type='mmplugins.GuidedEncoderDecoder',
    neck=dict(
        type='mmplugins.FeatUpNeck',
        in_channels=768,
        # 32 / 2^2: the deepest map at stride 8.
        upsampler=dict(type='mmplugins.JBUStack', num_stages=2),
    ),
)
