_base_ = (
    'mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb2-80k_cityscapes-512x1024.py'
)

model = dict(
    type='mmplugins.GuidedEncoderDecoder',
    neck=dict(
        type='mmplugins.FeatUpNeck',
        in_channels=2048,
        out_channels=512,
        # 8 / 2: the stride of the details that the head adds.
        upsampler=dict(type='mmplugins.JBUStack', num_stages=1),
    ),
    # Cells of half the size, twice the dilation: the head sees as far.
    decode_head=dict(in_channels=512, dilations=(1, 24, 48, 72)),
)
