# Takes the reference as the search leaves it.
_base_ = './ssen-rec_x4c32b8_1xb8-amp-2k_references-128.py'

model = dict(generator=dict(num_layers=0))
