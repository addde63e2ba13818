# The published data and schedule, scales from 1/8 to 1.
_base_ = [
    './_base_/crm_r50.py',
    '../_base_/datasets/refine-cascadepsp-224.py',
    '../_base_/schedules/adam_45k.py',
    'mmseg::_base_/default_runtime.py',
]
