_base_ = './featup-jbu_mobilenet-v2_linear_1xb4-300_camvid-360x480.py'

# A small head: 1x1 to 64 channels before the upsampling, where it costs
# less, 3x3 at stride 4, classifier.
norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    linear_head=False,
    neck=dict(
        out_channels=64, reduction=dict(kernel_size=1, norm_cfg=norm_cfg)
    ),
    decode_head=dict(in_channels=64, channels=64, num_convs=1),
)
