_base_ = [
    '../_base_/depth-probe_mobilenet-v2.py',
    'mmseg::_base_/datasets/nyu.py',
    'mmseg::_base_/default_runtime.py',
    'mmseg::_base_/schedules/schedule_20k.py',
]

model = dict(data_preprocessor=dict(size=(480, 640)))

# The host's pipeline paints depth into some of the images and changes their
# colours; a probe asks what the features of plain images hold.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadDepthAnnotation', depth_rescale_factor=1e-3),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(batch_size=4, dataset=dict(pipeline=train_pipeline))
val_evaluator = dict(
    _delete_=True,
    type='mmplugins.AlignedDepthMetric',
    max_depth=10.0,
    crop=(45, 471, 41, 601),
)
test_evaluator = val_evaluator
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-3, weight_decay=1e-2)
)
default_hooks = dict(checkpoint=dict(save_best='rmse', rule='less'))
