# A third of DAVIS and two of drawn shapes, scales from 1/8 to 1.
_base_ = [
    './_base_/crm_mobilenet-v2.py',
    '../_base_/datasets/refine-davis-224.py',
    '../_base_/schedules/adam_3k.py',
    'mmseg::_base_/default_runtime.py',
]

davis = {{_base_.train_dataloader.dataset}}
shapes = [
    dict(
        type='mmplugins.MaskPairDataset',
        data_root=f'work_dirs/demo/{name}/',
        data_prefix=dict(img_path='images/train', seg_map_path='masks/train'),
        pipeline={{_base_.train_pipeline}},
    )
    # python tools/prepare_data.py masks work_dirs/demo/masks \
    #     --size 1080 1920 --num-train 192
    # python tools/prepare_data.py masks work_dirs/demo/masks-photos \
    #     --size 400 600 --num-train 800 --photographs data/bsds200
    for name in ('masks', 'masks-photos')
]
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='ConcatDataset',
        datasets=[
            dict(type='RepeatDataset', dataset=davis, times=5),
            dict(type='RepeatDataset', dataset=shapes[0], times=2),
            shapes[1],
        ],
    )
)
# The mask's weights begin at zero, the others of the backbone do not.
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={
            'mask_weight': dict(lr_mult=3.0),
            'backbone': dict(lr_mult=0.3),
        }
    )
)
