_base_ = './bilinear_mobilenet-v2_cam_imagenet-224x224.py'

# A plain folder of photographs.
test_dataloader = dict(dataset=dict(data_root='data/bsds200/'))
