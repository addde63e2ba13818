# Ablation: the decoder without the coordinate C_t.
_base_ = './crm_r50_2xb6-45k_cascadepsp-224x224.py'

model = dict(decode_head=dict(coord=False))
