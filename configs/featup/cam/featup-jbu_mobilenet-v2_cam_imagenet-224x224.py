_base_ = './_base_/cam_mobilenet-v2.py'

# Trained without labels; the classifier's weights fit the backbone's features,
# so that nothing may mix or normalise channels.
model = dict(
    featup=dict(
        type='mmplugins.FeatUpNeck',
        in_channels=1280,
        offsets=-20,
        frozen=True,
        upsampler=dict(
            type='mmplugins.JBUStack',
            # 32 / 2^3: a map of stride 4.
            num_stages=3,
            kernel_fixup=False,
            channel_fixup=False,
            similarity='gaussian',
            init_cfg=dict(
                type='Pretrained',
                checkpoint='work_dirs/'
                'featup-jbu_mobilenet-v2_1xb4-500_bsds-256x256/iter_500.pth',
                prefix='upsampler',
            ),
        ),
    ),
)
