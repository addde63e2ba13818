# What CRM is compared with: OpenCV's GrabCut near the coarse boundary.
model = dict(
    type='mmplugins.GrabCutRefiner',
    data_preprocessor=dict(
        type='ImgDataPreprocessor',
        mean=[128.0] * 3,
        std=[128.0] * 3,
        bgr_to_rgb=True,
    ),
)
