# A small one for a CPU. Beyond the paper, its layers compare both maps around
# every pixel, and are told where moved references show what.
_base_ = [
    './_base_/ssen_x4c64.py',
    '../_base_/datasets/references-128.py',
    '../_base_/schedules/adam-cosine_2k.py',
    '../_base_/mmagic_runtime.py',
]

model = dict(
    generator=dict(mid_channels=32, num_blocks=8, align=dict(search_radius=4)),
    alignment_loss=dict(type='mmplugins.AlignmentLoss'),
)
custom_hooks = [dict(type='mmplugins.RobustnessTableHook')]
# Masks that close before references are in place would stay closed.
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'estimators': dict(lr_mult=0.02)})
)
