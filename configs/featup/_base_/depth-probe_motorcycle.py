# Probes on crops of one photograph; features of crops seen are remembered.
_base_ = [
    './depth-probe_mobilenet-v2.py',
    '../../_base_/datasets/motorcycle-160x352.py',
    '../../_base_/schedules/adamw_400.py',
    'mmseg::_base_/default_runtime.py',
]

model = dict(data_preprocessor=dict(size=(160, 352)), backbone=dict(memory=64))
optim_wrapper = dict(optimizer=dict(lr=3e-3))
