# A small one for a CPU. Beyond the paper, references are searched for first.
_base_ = [
    './_base_/ssen_x4c64.py',
    '../_base_/datasets/references-128.py',
    '../_base_/schedules/adam-cosine_2k.py',
    '../_base_/mmagic_runtime.py',
]

model = dict(
    generator=dict(
        mid_channels=32,
        num_blocks=8,
        search=dict(type='mmplugins.LocalSearch'),
    ),
    train_cfg=dict(drop_reference=0.1),
)
custom_hooks = [dict(type='mmplugins.RobustnessTableHook')]
# At the full rate masks close before references are of use, and stay closed.
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'estimators': dict(lr_mult=0.1)})
)
