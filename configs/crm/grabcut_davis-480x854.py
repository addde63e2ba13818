_base_ = [
    './_base_/grabcut.py',
    '../_base_/datasets/refine-davis-224.py',
    'mmseg::_base_/default_runtime.py',
]

test_cfg = dict(type='TestLoop')
train_dataloader = None
val_dataloader = None
val_evaluator = None
# Of 0.0025 to 0.02 what harms least on the sequences of the training.
model = dict(band=0.0025)
