# SSEN for factor 4: 64 channels and three deformable layers, as published; the
# numbers of blocks, 5 shared and 16 for the reconstruction, were not, and are
# those of comparable networks.
model = dict(
    type='mmplugins.RefSREditor',
    data_preprocessor=dict(
        type='mmplugins.RefSRDataPreprocessor',
        mean=[0.0] * 3,
        std=[255.0] * 3,
        output_channel_order='RGB',
    ),
    generator=dict(
        type='mmplugins.SSENNet',
        mid_channels=64,
        num_blocks=16,
        num_extract_blocks=5,
        trunk='residual',
        num_layers=3,
        non_local=True,
        upscale_factor=4,
    ),
    # sqrt(d^2 + eps): epsilon 1e-6, squared.
    pixel_loss=dict(type='CharbonnierLoss', eps=1e-12, reduction='mean'),
)
