# 2000 iterations of Adam in bfloat16: about 20 minutes on a CPU core.
train_cfg = dict(
    type='IterBasedTrainLoop', max_iters=2000, val_interval=100_000
)
optim_wrapper = dict(
    type='mmplugins.BFloat16OptimWrapper', optimizer=dict(type='Adam', lr=1e-3)
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=100),
    dict(
        type='CosineAnnealingLR',
        by_epoch=False,
        begin=100,
        end=2000,
        eta_min=1e-6,
    ),
]
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=1000),
)
randomness = dict(seed=0)
