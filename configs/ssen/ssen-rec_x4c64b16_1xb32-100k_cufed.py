# The published training, first stage: reconstruction alone.
_base_ = [
    './_base_/ssen_x4c64.py',
    './_base_/cufed5-table.py',
    '../_base_/schedules/adam-cosine-restarts_100k.py',
    '../_base_/mmagic_runtime.py',
]
