# The published second stage, on with a discriminator of patches; its penalty,
# weight, learning rate and length are not said.
_base_ = [
    './_base_/ssen_x4c64.py',
    './_base_/cufed5-table.py',
    '../_base_/schedules/adam-cosine-restarts_100k.py',
    '../_base_/mmagic_runtime.py',
]

model = dict(
    discriminator=dict(
        type='PatchDiscriminator',
        in_channels=3,
        base_channels=64,
        num_conv=3,
        # The penalty is one of single images, which batch norm mixes.
        norm_cfg=dict(type='IN'),
    ),
    # The paper writes of distributions of true and made images, as WGAN does,
    # and gives no weight.
    gan_loss=dict(type='GANLoss', gan_type='wgan', loss_weight=1e-3),
    gp_loss=dict(type='GradientPenaltyLoss', loss_weight=10),
)
load_from = 'work_dirs/ssen-rec_x4c64b16_1xb32-100k_cufed/iter_100000.pth'
model_wrapper_cfg = dict(type='MMSeparateDistributedDataParallel')

adam = dict(
    type='OptimWrapper',
    optimizer=dict(type='Adam', lr=1e-4, betas=(0.9, 0.999)),
)
optim_wrapper = dict(
    _delete_=True,
    constructor='MultiOptimWrapperConstructor',
    generator=adam,
    discriminator=adam,
)
