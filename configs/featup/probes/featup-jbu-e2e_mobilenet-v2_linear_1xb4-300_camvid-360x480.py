_base_ = '../_base_/probe_camvid.py'

# From the published initialisation, by the labels alone.
model = dict(neck=dict(frozen=False, upsampler=dict(init_cfg=None)))
