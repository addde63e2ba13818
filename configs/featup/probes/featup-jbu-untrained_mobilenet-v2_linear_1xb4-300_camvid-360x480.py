_base_ = './featup-jbu_mobilenet-v2_linear_1xb4-300_camvid-360x480.py'

# The bilateral filter that the kernels start as.
model = dict(neck=dict(upsampler=dict(init_cfg=None)))
