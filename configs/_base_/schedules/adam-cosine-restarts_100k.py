# The published 100,000 iterations of 32 crops: Adam, and a cosine with a
# factor of 0.9, taken for one that starts anew with 0.9 of the learning rate.
# How often is not said: four times here.
train_cfg = dict(
    type='IterBasedTrainLoop', max_iters=100_000, val_interval=5000
)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='Adam', lr=1e-4, betas=(0.9, 0.999)),
)
param_scheduler = dict(
    type='CosineRestartLR',
    by_epoch=False,
    periods=[25_000] * 4,
    restart_weights=[1, 0.9, 0.9**2, 0.9**3],
    eta_min=1e-7,
)
auto_scale_lr = dict(base_batch_size=32, enable=False)
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=100, log_metric_by_epoch=False),
    checkpoint=dict(
        type='CheckpointHook', by_epoch=False, interval=5000, max_keep_ckpts=5
    ),
)
randomness = dict(seed=0)
