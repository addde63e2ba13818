_base_ = [
    './_base_/grabcut.py',
    '../_base_/datasets/refine-plants.py',
    'mmseg::_base_/default_runtime.py',
]

test_cfg = dict(type='TestLoop')
val_dataloader = None
val_evaluator = None
