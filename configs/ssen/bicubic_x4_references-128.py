# To compare with: bicubic interpolation of the small image.
_base_ = './noref-rec_x4c32b8_1xb8-amp-2k_references-128.py'

model = dict(
    generator=dict(_delete_=True, type='mmplugins.Bicubic', upscale_factor=4),
    train_cfg=None,
)
