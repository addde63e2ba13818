_base_ = '../_base_/depth-probe_motorcycle.py'

model = dict(
    neck=dict(
        upsampler=dict(
            _delete_=True, type='mmplugins.BilinearUpsampler', num_stages=3
        )
    )
)
