"""An editor that builds and runs in no time, and inputs for it."""

import cv2
import torch
from mmengine.registry import MODELS
from skimage import data

NET = dict(
    type='mmplugins.SSENNet',
    mid_channels=8,
    num_blocks=2,
    num_extract_blocks=1,
    num_layers=2,
    upscale_factor=2,
)
CRITIC = dict(
    type='PatchDiscriminator',
    in_channels=3,
    base_channels=4,
    num_conv=1,
    norm_cfg=dict(type='IN'),
)
WGAN = dict(
    discriminator=CRITIC,
    gan_loss=dict(type='GANLoss', gan_type='wgan', loss_weight=1e-3),
    gp_loss=dict(type='GradientPenaltyLoss', loss_weight=10),
)


def build(generator=NET, **kwargs):
    """An editor whose alignment is not that of the start any more."""
    cfg = dict(type='mmplugins.RefSREditor', generator=generator, **kwargs)
    model = MODELS.build(cfg)
    for parameter in model.generator.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def packed(img, gt=None, ref=None, **meta):
    """What a pipeline makes of images (H, W, 3), BGR."""
    from mmagic.datasets.transforms import PackInputs

    results = dict(img=img, gt=gt, ref=ref, **meta)
    results = {key: x for key, x in results.items() if x is not None}
    pack = PackInputs(keys=['img', 'ref'], meta_keys=['ref_channel_order'])
    return pack(results)


def batch(*samples):
    """What a data loader makes of packed samples."""
    from mmengine.dataset import pseudo_collate

    return pseudo_collate(list(samples))


def photos(size=(12, 14), count=2, scale=2):
    """Parts of a photograph: small, true, and a reference beside it."""
    image = data.astronaut()[..., ::-1]
    H, W = (scale * n for n in size)
    found = []
    for k in range(count):
        gt = image[8 * k : 8 * k + H, 100 : 100 + W]
        img = cv2.resize(gt, size[::-1], interpolation=cv2.INTER_AREA)
        ref = image[8 * k + 4 : 8 * k + 4 + H, 106 : 106 + W]
        found.append(dict(img=img, gt=gt, ref=ref))
    return found


def sgd(params, lr=0.0):
    from mmengine.optim import OptimWrapper

    return OptimWrapper(torch.optim.SGD(params, lr))


def as_input(image):
    """RGB in [0, 1], (1, 3, H, W), of BGR (H, W, 3)."""
    return torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)[
        None
    ].float() / torch.tensor(255.0)
