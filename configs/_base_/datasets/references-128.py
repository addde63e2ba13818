# Trains on frames of videos, one or three steps apart (here every fifth frame
# of DAVIS), and on photographs beside moved views of them; tests on other
# videos, photographs of a castle and of a town, and a stereo pair, scenes that
# no training saw:
# python tools/prepare_data.py references work_dirs/references/davis \
#     data/davis/JPEGImages --steps 1 3 --share 0.25
# python tools/prepare_data.py references work_dirs/references/davis-3 \
#     data/davis/JPEGImages --steps 3 --share 0.25
# python tools/prepare_data.py references work_dirs/references/multiview \
#     data/multiview --steps 1 --share 1
# python tools/prepare_data.py references work_dirs/references/multiview-3 \
#     data/multiview --steps 3 --share 1
# python tools/prepare_data.py references work_dirs/references/views
data_root = 'work_dirs/references/'
scale = 4
meta_keys = ['key', 'ref_path', 'reference', 'ref_channel_order']

load = [
    dict(type='LoadImageFromFile', key='gt'),
    dict(type='mmplugins.LoadReference', choice='random'),
    # Together: a short training has no time for references on their side.
    dict(type='mmplugins.RandomRot90', keys=('gt', 'ref')),
]
crop = [
    dict(type='mmplugins.RandomReferenceCrop', size=128, scale=scale, shift=0),
    dict(
        type='Resize',
        keys=['gt'],
        output_keys=['img'],
        scale=1 / scale,
        keep_ratio=True,
        interpolation='bicubic',
        backend='pillow',
    ),
    dict(type='mmplugins.FitReference'),
    dict(type='PackInputs', keys=['img', 'ref'], meta_keys=meta_keys),
]
train_pipeline = [
    *load,
    dict(type='mmplugins.MovedReference', size=128, prob=0.5, shift=0.3),
    *crop,
]
unrelated_pipeline = [*load, *crop]
videos = dict(
    type='mmplugins.ReferencePairDataset',
    data_root=data_root + 'davis/',
    data_prefix=dict(gt='images', ref='images'),
    ann_file='train.json',
    num_refs=None,
    pipeline=train_pipeline,
)
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='ConcatDataset',
        datasets=[
            dict(type='RepeatDataset', dataset=videos, times=2),
            # That a reference may be of no use has to be learned, too.
            dict(videos, reference='unrelated', pipeline=unrelated_pipeline),
            dict(
                type='mmplugins.ReferencePairDataset',
                data_prefix=dict(gt='data/bsds200'),
                reference='self',
                pipeline=train_pipeline,
            ),
        ],
    ),
)

test_pipeline = [
    dict(type='LoadImageFromFile', key='gt'),
    dict(type='SetValues', dictionary=dict(scale=scale)),
    dict(type='ModCrop', key='gt'),
    dict(
        type='Resize',
        keys=['gt'],
        output_keys=['img'],
        scale=1 / scale,
        keep_ratio=True,
        interpolation='bicubic',
        backend='pillow',
    ),
    dict(type='mmplugins.LoadReference'),
    dict(type='mmplugins.FitReference', trim=scale - 1),
    dict(type='PackInputs', keys=['img', 'ref'], meta_keys=meta_keys),
]
test_loader = dict(
    batch_size=1,
    num_workers=1,
    sampler=dict(type='DefaultSampler', shuffle=False),
)
# Folder and what to take of it: 8 frames, 6 photographs, a pair.
frames = dict(indices=[*range(0, 47, 6)])
photos = dict(indices=[0, 3, 6, 10, 13, 16])
stereo = dict(scenes=['motorcycle'])
tests = {
    'frames/self': ('davis', dict(frames, reference='self')),
    'frames/next': ('davis', frames),
    'frames/near': ('davis-3', frames),
    'frames/unrelated': ('davis', dict(frames, reference='unrelated')),
    'frames/upsampled': ('davis', dict(frames, reference='upsampled')),
    'photos/self': ('multiview', dict(photos, reference='self')),
    'photos/next': ('multiview', photos),
    'photos/near': ('multiview-3', photos),
    'photos/unrelated': ('multiview', dict(photos, reference='unrelated')),
    'photos/upsampled': ('multiview', dict(photos, reference='upsampled')),
    'stereo/self': ('views', dict(stereo, reference='self')),
    'stereo/other': ('views', stereo),
    'stereo/unrelated': ('views', dict(stereo, reference='unrelated')),
    'stereo/upsampled': ('views', dict(stereo, reference='upsampled')),
}
test_dataloader = [
    dict(
        test_loader,
        dataset=dict(
            type='mmplugins.ReferencePairDataset',
            data_root=f'{data_root}{folder}/',
            data_prefix=dict(gt='images', ref='images'),
            ann_file='val.json',
            pipeline=test_pipeline,
            **options,
        ),
    )
    for folder, options in tests.values()
]
# And two sets without references.
names = ['set5', 'set14']
test_dataloader += [
    dict(
        test_loader,
        dataset=dict(
            type='mmplugins.ReferencePairDataset',
            data_prefix=dict(gt=f'data/{name}/HR'),
            reference='self',
            pipeline=test_pipeline,
        ),
    )
    for name in names
]
test_evaluator = [
    [
        dict(
            type=metric,
            convert_to=space,
            crop_border=scale,
            prefix=f'{row.replace("/", "-")}/{space or "RGB"}-b{scale}',
        )
        for space in ('Y', None)
        for metric in ('PSNR', 'SSIM')
    ]
    for row in [*tests, *names]
]
test_cfg = dict(type='MultiTestLoop')
