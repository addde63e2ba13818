# CUFED5's levels and controls as the rows of one table: luma without a border,
# as TTSR and MASA measure, luma without 4 pixels, as C2-Matching, and RGB
# without 4 pixels, as mmagic.
_base_ = '../../_base_/datasets/cufed5-levels.py'

test_evaluator = [
    [
        dict(
            type=metric,
            convert_to=space,
            crop_border=border,
            prefix=f'{level}/{space or "RGB"}-b{border}',
        )
        for space, border in (('Y', 0), ('Y', 4), (None, 4))
        for metric in ('PSNR', 'SSIM')
    ]
    for level in _base_.levels
]
custom_hooks = [
    dict(type='mmplugins.RobustnessTableHook'),
    dict(type='mmplugins.ReferenceVisualizationHook', interval=42),
]
