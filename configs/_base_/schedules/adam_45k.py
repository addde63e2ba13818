# The published 45000 iterations of 12 crops.
train_cfg = dict(type='IterBasedTrainLoop', max_iters=45000, val_interval=5000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='Adam', lr=2.25e-4, weight_decay=1e-4),
)
param_scheduler = [
    dict(
        type='MultiStepLR',
        milestones=[22500, 37500],
        gamma=0.1,
        by_epoch=False,
    )
]
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=5000),
)
randomness = dict(seed=0)
