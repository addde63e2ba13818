# 700 iterations of Adam: about 15 minutes on two CPU cores.
train_cfg = dict(type='IterBasedTrainLoop', max_iters=700, val_interval=700)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=3e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=50),
    dict(type='PolyLR', power=0.9, by_epoch=False, begin=50, end=700),
]
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=20, log_metric_by_epoch=False),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=700),
)
randomness = dict(seed=0)
