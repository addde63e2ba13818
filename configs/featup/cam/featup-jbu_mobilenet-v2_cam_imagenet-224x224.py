_base_ = './_base_/cam_mobilenet-v2.py'

# A checkpoint of mmplugins.FeatUp on this backbone; None leaves the upsampler
# as it is drawn.
jbu_checkpoint = None

model = dict(
    featup=dict(
        type='mmplugins.FeatUpNeck',
        in_channels=1280,
        frozen=True,
        upsampler=dict(
            type='mmplugins.JBUStack',
            # 32 / 2^3: a map of stride 4.
            num_stages=3,
            # The classifier's weights fit the backbone's features; the
            # residual convolution learned on normalised ones.
            channel_fixup=False,
        ),
    ),
)
if jbu_checkpoint:
    model['featup']['upsampler']['init_cfg'] = dict(
        type='Pretrained', checkpoint=jbu_checkpoint, prefix='upsampler'
    )
