# A linear probe: one 1x1 convolution on features that stay as they are, those
# of MobileNetV2 upsampled from stride 32 to 4 by a JBU that learned to
# without labels. A leaf adds data, schedule, num_classes and the crop's size.
_base_ = 'mmseg::_base_/models/fcn_r50-d8.py'

norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    type='mmplugins.GuidedEncoderDecoder',
    pretrained=None,
    auxiliary_head=None,
    data_preprocessor=dict(
        mean=[128.0] * 3, std=[128.0] * 3, test_cfg=dict(size_divisor=32)
    ),
    # 1x1 before the upsampling: the same logits from num_classes channels
    # where it had to be 1280.
    linear_head=True,
    backbone=dict(
        _delete_=True,
        type='mmplugins.FrozenBackbone',
        backbone=dict(
            type='mmpretrain.MobileNetV2',
            out_indices=(7,),
            init_cfg=dict(
                type='Pretrained',
                checkpoint='data/weights/mobilenet_v2_imagenet.pth',
                prefix='backbone',
            ),
        ),
    ),
    neck=dict(
        type='mmplugins.FeatUpNeck',
        in_channels=1280,
        # This backbone's cells look at pixels up and left of their places.
        offsets=-20,
        norm=dict(type='mmplugins.ChannelNorm', elementwise_affine=False),
        frozen=True,
        # 32 / 2^3. Another checkpoint of mmplugins.FeatUp: --cfg-options
        # model.neck.upsampler.init_cfg.checkpoint=PATH
        upsampler=dict(
            type='mmplugins.JBUStack',
            num_stages=3,
            kernel_fixup=False,
            channel_fixup=False,
            similarity='gaussian',
            init_cfg=dict(
                type='Pretrained',
                checkpoint='work_dirs/'
                'featup-jbu_mobilenet-v2_1xb4-500_bsds-256x256/iter_500.pth',
                prefix='upsampler',
            ),
        ),
    ),
    decode_head=dict(
        in_channels=1280,
        in_index=-1,
        channels=1280,
        num_convs=0,
        concat_input=False,
        dropout_ratio=0,
        norm_cfg=norm_cfg,
    ),
)
