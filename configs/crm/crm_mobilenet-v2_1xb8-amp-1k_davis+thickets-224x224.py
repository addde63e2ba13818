# Goes on from the training on DAVIS and single shapes, with plants all over
# the image: thin, many, and with edges up to six pixels wide.
_base_ = './crm_mobilenet-v2_1xb8-amp-3k_davis+shapes-224x224.py'

load_from = (
    'work_dirs/crm_mobilenet-v2_1xb8-amp-3k_davis+shapes-224x224/iter_3000.pth'
)
thickets = dict(
    type='mmplugins.MaskPairDataset',
    # python tools/prepare_data.py masks work_dirs/demo/thickets \
    #     --size 810 1440 --num-train 240 --kind thickets \
    #     --photographs data/bsds200
    data_root='work_dirs/demo/thickets/',
    data_prefix=dict(img_path='images/train', seg_map_path='masks/train'),
    pipeline={{_base_.train_pipeline}},
)
train_dataloader = dict(
    dataset=dict(
        datasets=[
            *_base_.train_dataloader.dataset.datasets,
            dict(type='RepeatDataset', dataset=thickets, times=8),
        ]
    )
)
train_cfg = dict(max_iters=1000, val_interval=1000)
optim_wrapper = dict(optimizer=dict(lr=5e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=50),
    dict(type='PolyLR', power=0.9, by_epoch=False, begin=50, end=1000),
]
