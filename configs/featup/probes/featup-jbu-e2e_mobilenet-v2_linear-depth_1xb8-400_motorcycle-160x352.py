_base_ = '../_base_/depth-probe_motorcycle.py'

# By the depth alone, which also teaches the kernels' residual.
model = dict(
    neck=dict(frozen=False, upsampler=dict(kernel_fixup=True, init_cfg=None)),
)
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'neck.upsamplers': dict(lr_mult=3)})
)
