# FeatUp on MobileNetV2: cells of 32 pixels become cells of 4.
model = dict(
    type='mmplugins.FeatUp',
    data_preprocessor=dict(
        type='ImgDataPreprocessor',
        mean=[128.0] * 3,
        std=[128.0] * 3,
        bgr_to_rgb=True,
    ),
    backbone=dict(type='mmpretrain.MobileNetV2', out_indices=(7,)),
    in_channels=1280,
    norm=dict(type='mmplugins.ChannelNorm'),
    # What measure_offset says of this backbone, in whole cells of 4 pixels.
    offset=-20,
    # Without residuals the kernels sum to one and fit any channels.
    upsampler=dict(
        type='mmplugins.JBUStack',
        num_stages=3,
        kernel_fixup=False,
        channel_fixup=False,
        similarity='gaussian',
    ),
    # A window somewhat wider than the cell of 2^3 samples.
    downsampler=dict(
        type='mmplugins.AttentionDownsampler', kernel_size=12, stride=8
    ),
)
