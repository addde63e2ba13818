# Without attention to all positions.
_base_ = './ssen-rec_x4c32b8_1xb8-amp-2k_references-128.py'

model = dict(generator=dict(non_local=False))
