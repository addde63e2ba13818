# Class activation maps of mmpretrain's MobileNetV2 on ImageNet's validation
# images, or a part of them: A.D., A.I. and ADCC need no labels.
_base_ = [
    'mmpretrain::_base_/models/mobilenet_v2_1x.py',
    'mmpretrain::_base_/default_runtime.py',
]

model = dict(
    type='mmplugins.GuidedImageClassifier',
    # Those of data/weights/mobilenet_v2_imagenet.pth.
    data_preprocessor=dict(mean=[128.0] * 3, std=[128.0] * 3, to_rgb=True),
)
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=256, edge='short', backend='pillow'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]
test_dataloader = dict(
    batch_size=16,
    num_workers=2,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        # Every image below the folder, with or without folders of classes.
        type='CustomDataset',
        data_root='data/imagenet/val/',
        with_label=False,
        pipeline=test_pipeline,
    ),
)
test_evaluator = dict(type='mmplugins.CAMMetric')
test_cfg = dict()
randomness = dict(seed=0)
