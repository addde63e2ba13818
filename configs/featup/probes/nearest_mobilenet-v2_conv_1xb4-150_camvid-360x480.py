_base_ = './nearest_mobilenet-v2_linear_1xb4-300_camvid-360x480.py'

# A small head: 1x1 to 64 channels before the upsampling, where it costs
# less, 3x3 at stride 4, classifier. Half of the iterations.
norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    linear_head=False,
    neck=dict(
        out_channels=64, reduction=dict(kernel_size=1, norm_cfg=norm_cfg)
    ),
    decode_head=dict(in_channels=64, channels=64, num_convs=1),
)
train_cfg = dict(max_iters=150, val_interval=150)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=20),
    dict(type='PolyLR', power=0.9, by_epoch=False, begin=20, end=150),
]
default_hooks = dict(checkpoint=dict(interval=150))
