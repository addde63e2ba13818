# A segmentor that is trained already, its predictions refined by CRM: what
# tools/test.py --refine does, as a config.
_base_ = '../featup/mobilenet-v2_fcn_1xb8-400_camvid-256x256.py'

model = dict(
    _delete_=True,
    type='mmplugins.RefinedSegmentor',
    module={{_base_.model}},
    # As in _base_/crm_mobilenet-v2.py.
    refiner=dict(
        type='mmplugins.CRM',
        data_preprocessor=dict(
            type='ImgDataPreprocessor',
            mean=[128.0] * 3,
            std=[128.0] * 3,
            bgr_to_rgb=True,
        ),
        backbone=dict(
            type='mmplugins.CRMBackbone',
            backbone=dict(
                type='mmpretrain.MobileNetV2', out_indices=(0, 1, 2, 4)
            ),
        ),
        decode_head=dict(
            type='mmplugins.CRMHead',
            in_channels=(16, 24, 32, 96),
            channels=(16, 16, 16, 16),
            dropout_ratio=0.0,
        ),
        residual=4.0,
        min_size=200,
        antialias=True,
        min_pixels=16,
        trust=2.0,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='work_dirs/crm_mobilenet-v2_1xb8-amp-3k_davis+shapes-'
            '224x224/iter_3000.pth',
        ),
    ),
    # Far from every boundary the segmentor is right more often than not.
    band=0.05,
)
# The segmentor's checkpoint; the refiner's is in its init_cfg.
load_from = 'work_dirs/mobilenet-v2_fcn_1xb8-400_camvid-256x256/iter_400.pth'
test_evaluator = [
    {{_base_.test_evaluator}},
    dict(
        type='mmplugins.MaskRefinementMetric',
        ignore_index={{_base_.ignore_index}},
    ),
]
