# Without references: the image is searched for its own repetitions, and RCAN's
# trunk, ten groups of twenty blocks, reconstructs it.
_base_ = [
    './_base_/ssen_x4c64.py',
    '../_base_/datasets/div2k-192.py',
    '../_base_/datasets/sisr-benchmarks-x4.py',
    '../_base_/schedules/adam-cosine-restarts_100k.py',
    '../_base_/mmagic_runtime.py',
]

model = dict(
    generator=dict(
        trunk='rcan', num_groups=10, num_blocks=20, reference='self'
    )
)
custom_hooks = [dict(type='mmplugins.RobustnessTableHook')]
