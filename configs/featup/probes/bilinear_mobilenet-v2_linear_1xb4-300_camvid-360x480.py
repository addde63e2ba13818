_base_ = '../_base_/probe_camvid.py'

model = dict(
    neck=dict(
        upsampler=dict(
            _delete_=True, type='mmplugins.BilinearUpsampler', num_stages=3
        )
    )
)
