_base_ = '../_base_/probe_camvid.py'

# By the labels alone, which also teach the kernels' residual.
model = dict(
    neck=dict(frozen=False, upsampler=dict(kernel_fixup=True, init_cfg=None)),
)
