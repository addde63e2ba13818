_base_ = 'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py'

model = dict(
    type='mmplugins.GuidedEncoderDecoder',
    # Strides 32, 16 and 8 to 4, level by level, inside the head: no neck.
    decode_head=dict(type='mmplugins.GuidedSegformerHead', shared=True),
)
