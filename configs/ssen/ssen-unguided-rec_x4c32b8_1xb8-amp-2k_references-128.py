# Without the loss of the alignment: the search learns from the images alone.
_base_ = './ssen-rec_x4c32b8_1xb8-amp-2k_references-128.py'

model = dict(alignment_loss=None)
