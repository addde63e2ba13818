_base_ = '../_base_/depth-probe_motorcycle.py'

# From the published initialisation, by the depth alone.
model = dict(neck=dict(frozen=False, upsampler=dict(init_cfg=None)))
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'neck.upsamplers': dict(lr_mult=3)})
)
