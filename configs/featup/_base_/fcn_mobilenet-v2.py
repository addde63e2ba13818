# mmseg's FCN on mmpretrain's MobileNetV2, features of stride 32.
_base_ = 'mmseg::_base_/models/fcn_r50-d8.py'

norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    # What a base carries for its own backbone goes with it.
    pretrained=None,
    auxiliary_head=None,
    data_preprocessor=dict(
        mean=[128.0] * 3, std=[128.0] * 3, test_cfg=dict(size_divisor=32)
    ),
    backbone=dict(
        _delete_=True, type='mmpretrain.MobileNetV2', out_indices=(7,)
    ),
    decode_head=dict(
        in_channels=1280,
        in_index=-1,
        channels=128,
        num_convs=1,
        concat_input=False,
        norm_cfg=norm_cfg,
    ),
)
