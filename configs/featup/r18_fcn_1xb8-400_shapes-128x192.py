_base_ = [
    'mmseg::_base_/models/fcn_r50-d8.py',
    '../_base_/datasets/shapes-128x192.py',
    '../_base_/schedules/adamw_400.py',
    'mmseg::_base_/default_runtime.py',
]

norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    # What a base carries for its own backbone goes with it.
    pretrained=None,
    auxiliary_head=None,
    data_preprocessor=dict(size=(128, 192)),
    # Half of ResNet-18's channels, from scratch: features of stride 32.
    backbone=dict(
        _delete_=True, type='mmpretrain.ResNet', depth=18, base_channels=32
    ),
    decode_head=dict(
        in_channels=256,
        in_index=-1,
        channels=64,
        num_convs=1,
        concat_input=False,
        num_classes=6,
        norm_cfg=norm_cfg,
    ),
)
