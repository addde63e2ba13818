_base_ = './featup-jbu_mobilenet-v2_linear-depth_4xb4-20k_nyu-480x640.py'

model = dict(
    neck=dict(
        upsampler=dict(
            _delete_=True, type='mmplugins.BilinearUpsampler', num_stages=3
        )
    )
)
