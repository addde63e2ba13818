_base_ = './_base_/cam_mobilenet-v2.py'

# Maps of stride 32, made as large as the image afterwards.
model = dict(resize='bilinear')
