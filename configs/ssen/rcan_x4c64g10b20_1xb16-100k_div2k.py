# RCAN, to compare with: its own batch size and loss on the same data and
# schedule. It was published with far more iterations.
_base_ = [
    './_base_/ssen_x4c64.py',
    '../_base_/datasets/div2k-192.py',
    '../_base_/datasets/sisr-benchmarks-x4.py',
    '../_base_/schedules/adam-cosine-restarts_100k.py',
    '../_base_/mmagic_runtime.py',
]

model = dict(
    generator=dict(
        _delete_=True,
        type='mmplugins.RCAN',
        num_groups=10,
        num_blocks=20,
        mid_channels=64,
        reduction=16,
        upscale_factor=4,
    ),
    pixel_loss=dict(_delete_=True, type='L1Loss', reduction='mean'),
)
train_dataloader = dict(batch_size=16)
auto_scale_lr = dict(base_batch_size=16)
custom_hooks = [dict(type='mmplugins.RobustnessTableHook')]
