# Without a search, all layers at one rate, as published.
_base_ = './ssen-rec_x4c32b8_1xb8-amp-2k_references-128.py'

model = dict(generator=dict(search=None))
optim_wrapper = dict(paramwise_cfg=None)
