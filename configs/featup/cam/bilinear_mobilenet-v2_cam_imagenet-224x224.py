_base_ = './_base_/cam_mobilenet-v2.py'

# Interpolated, but where the backbone looks.
model = dict(
    featup=dict(
        type='mmplugins.FeatUpNeck',
        in_channels=1280,
        offsets=-20,
        upsampler=dict(type='mmplugins.BilinearUpsampler', num_stages=3),
    ),
)
