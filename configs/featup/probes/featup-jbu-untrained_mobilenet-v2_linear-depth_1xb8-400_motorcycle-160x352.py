_base_ = (
    './featup-jbu_mobilenet-v2_linear-depth_1xb8-400_motorcycle-160x352.py'
)

# The bilateral filter that the kernels start as.
model = dict(neck=dict(upsampler=dict(init_cfg=None)))
