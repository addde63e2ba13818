_base_ = './bilinear_mobilenet-v2_cam_imagenet-224x224.py'

# A plain folder of photographs, of which the last 20 are held out.
test_dataloader = dict(dataset=dict(data_root='data/bsds200/', indices=-20))
