"""Super-resolution with references as a model of mmagic.

B images of a batch, h x w low-resolution image, s scale, H x W reference.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from mmagic.models.data_preprocessors import DataPreprocessor
from mmagic.models.editors.srgan import SRGAN
from mmagic.registry import MODELS as MMAGIC_MODELS
from mmagic.structures import DataSample
from mmengine.model import BaseModel, is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import Tensor

from mmplugins.registry import MODELS
from mmplugins.typing import ConfigType, OptConfigType

from .generator import SSENNet
from .tiling import as_references, check_tile, upscale

Inputs = Tensor | dict[str, Tensor | Sequence[Tensor]]


@MODELS.register_module()
class RefSRDataPreprocessor(DataPreprocessor):
    """mmagic's preprocessor of images, with references of their own sizes.

    mmagic's own one takes a reference for an image like any other: it has to
    be padded as its image is, and one loaded as RGB counts as BGR unless its
    order is packed. Here references keep their sizes, also within a batch, for
    the network to fit each to its image. They have the channel order of their
    image unless ``ref_channel_order`` is packed.

    Args:
        mean (Sequence[float]): Means of the channels, in the order of
            ``output_channel_order``. Defaults to 0.
        std (Sequence[float]): Deviations of the channels. Defaults to 255,
            images in [0, 1].
        output_channel_order (str): ``'RGB'`` or ``'BGR'``. Defaults to
            ``'RGB'``.
        **kwargs: Of mmagic's DataPreprocessor.
    """

    def __init__(
        self,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (255.0, 255.0, 255.0),
        output_channel_order: str = 'RGB',
        **kwargs,
    ) -> None:
        super().__init__(
            mean, std, output_channel_order=output_channel_order, **kwargs
        )

    def forward(self, data: dict, training: bool = False) -> dict:
        """Prepare a batch.

        Args:
            data (dict): ``inputs``: images (3, h, w), or dicts of ``img`` and
                maybe ``ref``, which is (3, H, W), or (R, 3, H, W) of several;
                and maybe ``data_samples``.
            training (bool): Whether the true images are normalised like the
                inputs, or stay BGR in [0, 255]. Defaults to False.

        Returns:
            dict: ``inputs``: images (B, 3, h, w), or with references a dict
            of them as ``img`` and as ``ref`` a list of (B, 3, H, W), or where
            sizes differ of lists of (3, H, W); and ``data_samples``, stacked,
            where sizes differ without ``ref_img``.
        """
        inputs = data['inputs']
        if isinstance(inputs, (list, tuple)) and isinstance(inputs[0], dict):
            if len({frozenset(x) for x in inputs}) > 1:
                raise ValueError(
                    'a batch needs references for all of its images or for '
                    'none'
                )
            inputs = {key: [x[key] for x in inputs] for key in inputs[0]}
        if not isinstance(inputs, dict):
            return super().forward(data, training)
        images = inputs['img']
        data = {**data, 'inputs': images}
        if isinstance(data.get('data_samples'), (list, tuple)):
            data['data_samples'] = _stackable(data['data_samples'])
        done = super().forward(data, training)
        if inputs.get('ref') is not None:
            references = self._references(inputs['ref'], done['data_samples'])
            done['inputs'] = dict(img=done['inputs'], ref=references)
        return done

    def _references(
        self, batch: Sequence[Tensor] | Tensor, sample: DataSample
    ) -> list[Tensor | list[Tensor]]:
        """References of a batch, one after the other, normalised."""
        stacks = [x if x.ndim == 4 else x[None] for x in self.cast_data(batch)]
        counts = {len(x) for x in stacks}
        if len(counts) > 1:
            raise ValueError(
                'images of one batch need equally many references, got '
                f'{sorted(counts)}: take a batch of one image'
            )
        order = _order(sample)
        stacks = [
            self._do_norm(
                self._do_conversion(
                    x.float(), order, self.output_channel_order
                )[0]
            )
            for x in stacks
        ]
        return [
            torch.stack(images)
            if len({x.shape for x in images}) == 1
            else [*images]
            for images in zip(*stacks)
        ]


@MODELS.register_module()
class RefSREditor(SRGAN):
    """Super-resolution with references, or without any.

    Two stages: first only the reconstruction is trained, with one
    ``optim_wrapper``; then a discriminator, too, with
    ``MultiOptimWrapperConstructor`` and an optimizer for ``generator`` and
    ``discriminator`` each. Pipelines pack ``PackInputs(keys=['img', 'ref'])``;
    a sample without ``ref`` is its own reference. Losses are computed in
    float32, also in mixed precision.

    Args:
        generator (dict): Network of (B, 3, h, w) and, with references, of a
            list of (B, 3, H, W), or of B of (3, H, W) where sizes differ, such
            as :class:`mmplugins.ssen.SSENNet`.
        discriminator (dict, optional): Critic of (B, 3, s h, s w). Defaults
            to None.
        gan_loss (dict, optional): Adversarial loss, such as mmagic's GANLoss;
            goes with a discriminator. Defaults to None.
        pixel_loss (dict, optional): Loss of the reconstruction. Defaults to
            None, mmagic's CharbonnierLoss of ``eps=1e-12``, the square of the
            published 1e-6, over the mean.
        perceptual_loss (dict, optional): mmagic's PerceptualLoss. Defaults to
            None.
        gp_loss (dict, optional): Penalty of the critic's gradients, mmagic's
            GradientPenaltyLoss, for WGAN-GP. Defaults to None.
        train_cfg (dict, optional): ``disc_steps``: the generator learns every
            so many steps; ``disc_init_steps``: from which one on;
            ``disc_repeat``: steps of the discriminator in each;
            ``drop_reference``: probability with which a batch is trained
            without its references, so that the network does as well when there
            are none. Defaults to None, 1, 0, 1 and 0.
        test_cfg (dict, optional): ``tile``: pixels of the low-resolution image
            across that are reconstructed at once, see
            :mod:`mmplugins.ssen.tiling`. Defaults to None, all.
        init_cfg (dict, optional): Weight initialisation. Defaults to None.
        data_preprocessor (dict, optional): Defaults to None, a
            :class:`RefSRDataPreprocessor` of RGB in [0, 1].

    Raises:
        ValueError: If a discriminator has no loss or a loss no discriminator,
            or ``tile`` is below 1.
    """

    def __init__(
        self,
        generator: ConfigType,
        discriminator: OptConfigType = None,
        gan_loss: OptConfigType = None,
        pixel_loss: OptConfigType = None,
        perceptual_loss: OptConfigType = None,
        gp_loss: OptConfigType = None,
        train_cfg: OptConfigType = None,
        test_cfg: OptConfigType = None,
        init_cfg: OptConfigType = None,
        data_preprocessor: OptConfigType = None,
    ) -> None:
        if (discriminator is None) != (gan_loss is None):
            raise ValueError(
                'RefSREditor needs discriminator and gan_loss together, got '
                f'{"gan_loss" if discriminator is None else "discriminator"} '
                'alone'
            )
        if gp_loss is not None and discriminator is None:
            raise ValueError(
                'gp_loss of RefSREditor penalises a discriminator, got none'
            )
        super().__init__(
            generator=generator,
            discriminator=discriminator,
            gan_loss=gan_loss,
            pixel_loss=pixel_loss or dict(type='CharbonnierLoss', eps=1e-12),
            perceptual_loss=perceptual_loss,
            train_cfg=train_cfg,
            test_cfg=test_cfg,
            init_cfg=init_cfg,
            data_preprocessor=data_preprocessor
            or dict(type='mmplugins.RefSRDataPreprocessor'),
        )
        self.drop_reference = (train_cfg or {}).get('drop_reference', 0.0)
        if not 0 <= self.drop_reference <= 1:
            raise ValueError(
                'drop_reference of RefSREditor must be in [0, 1], got '
                f'{self.drop_reference}'
            )
        self.gp_loss = MMAGIC_MODELS.build(gp_loss) if gp_loss else None
        self.tile = (test_cfg or {}).get('tile')
        check_tile(self.tile)

    def _load_from_state_dict(
        self, state_dict: Mapping, prefix: str, *args
    ) -> None:
        # Here, for only what is loaded as a whole has the list of modules.
        generator = self.generator
        if is_model_wrapper(generator):
            generator = generator.module
        if isinstance(generator, SSENNet):
            generator.check_search(state_dict, f'{prefix}generator.')
        super()._load_from_state_dict(state_dict, prefix, *args)

    def init_weights(self) -> None:
        """Initialise; a discriminator first and on its own.

        mmagic's PatchDiscriminator fails as a part of a model that initialises
        itself.
        """
        critic = self.discriminator
        if is_model_wrapper(critic):
            critic = critic.module
        if hasattr(critic, 'init_weights') and not critic.is_init:
            critic.init_weights()
        super().init_weights()

    def forward(
        self,
        inputs: Inputs,
        data_samples: DataSample | None = None,
        mode: str = 'tensor',
    ) -> Tensor | list[DataSample] | dict[str, Tensor]:
        """Upscale images, as tensors, predictions or losses.

        Args:
            inputs (Tensor | dict): Normalised images, (B, 3, h, w), or a dict
                of them as ``img`` and as ``ref`` references: one
                (B, 3, H, W), several (B, R, 3, H, W), or a list.
            data_samples (DataSample, optional): Stacked samples; losses need
                their ``gt_img``. Defaults to None.
            mode (str): ``'tensor'``, ``'predict'`` or ``'loss'``. Defaults to
                ``'tensor'``.

        Returns:
            Tensor | list[DataSample] | dict[str, Tensor]: Upscaled images,
            (B, 3, s h, s w); samples with ``output.pred_img``, BGR in
            [0, 255]; or the losses of the reconstruction.

        Raises:
            ValueError: If there is no such mode.
        """
        if mode == 'tensor':
            return self.forward_tensor(inputs, data_samples)
        if mode == 'predict':
            predictions = self.forward_inference(inputs, data_samples)
            return self.convert_to_datasample(
                predictions, data_samples, split_inputs(inputs)[0]
            )
        if mode == 'loss':
            truth = self.extract_gt_data(data_samples)
            outputs = self.forward_train(inputs, data_samples)
            return self._reconstruction_losses(outputs, truth)
        raise ValueError(
            "mode of RefSREditor must be 'tensor', 'predict' or 'loss', got "
            f'{mode!r}'
        )

    def forward_tensor(
        self,
        inputs: Inputs,
        data_samples: DataSample | None = None,
        training: bool = False,
    ) -> Tensor:
        """Upscale images; in tiles if the model is tested and says so.

        Args:
            inputs (Tensor | dict): As of :meth:`forward`.
            data_samples (DataSample, optional): Not used. Defaults to None.
            training (bool): Whether for a loss: never in tiles, and now and
                then without references. Defaults to False.

        Returns:
            Tensor: Upscaled images, (B, 3, s h, s w).
        """
        image, references = split_inputs(inputs)
        drop = self.drop_reference if training and self.training else 0.0
        if drop and torch.rand(()) < drop:
            return self._without_references(image)
        tile = None if training or self.training else self.tile
        generator = self.generator
        if tile is not None and is_model_wrapper(generator):
            generator = generator.module
        return _full(upscale(generator, image, references, tile))

    def _without_references(self, image: Tensor) -> Tensor:
        """Upscale images alone, with a gradient for every weight all the same.

        Distributed training waits for one from each.
        """
        out = _full(self.generator(image))
        generator = self.generator
        if is_model_wrapper(generator):
            generator = generator.module
        stem = getattr(generator, 'ref_stem', None)
        if stem is None:
            return out
        return out + 0 * sum(weight.sum() for weight in stem.parameters())

    def train_step(
        self, data: dict, optim_wrapper: OptimWrapper | OptimWrapperDict
    ) -> dict[str, Tensor]:
        """Train by one batch.

        Args:
            data (dict): Batch of a data loader.
            optim_wrapper (OptimWrapper | OptimWrapperDict): One for the
                reconstruction alone, or those of generator and discriminator.

        Returns:
            dict[str, Tensor]: Losses to log.

        Raises:
            ValueError: If the optimizers are not those of the parts.
        """
        several = isinstance(optim_wrapper, OptimWrapperDict)
        given = set(optim_wrapper.keys()) if several else None
        wanted = {'generator', 'discriminator'}
        if self.discriminator is None and several:
            wanted = {'generator'}
        if (several and given != wanted) or (
            not several and self.discriminator is not None
        ):
            raise ValueError(
                "optim_wrapper needs constructor='MultiOptimWrapperConstructor"
                f"' and one for each of {sorted(wanted)}, got "
                f'{sorted(given) if several else type(optim_wrapper).__name__}'
            )
        if several:
            return super().train_step(data, optim_wrapper)
        return BaseModel.train_step(self, data, optim_wrapper)

    def g_step(
        self, batch_outputs: Tensor, batch_gt_data: Tensor
    ) -> dict[str, Tensor]:
        """Losses of the generator.

        Args:
            batch_outputs (Tensor): Upscaled images, (B, 3, s h, s w).
            batch_gt_data (Tensor): True images, (B, 3, s h, s w).

        Returns:
            dict[str, Tensor]: Losses by their names.
        """
        losses = self._reconstruction_losses(batch_outputs, batch_gt_data)
        if self.discriminator is not None:
            score = self.discriminator(batch_outputs)
            losses['loss_gan'] = self.gan_loss(
                _full(score), target_is_real=True, is_disc=False
            )
        return losses

    def d_step_real(
        self, batch_outputs: Tensor, batch_gt_data: Tensor
    ) -> Tensor:
        """Loss of the discriminator on true images."""
        score = self.discriminator(batch_gt_data)
        return self.gan_loss(_full(score), target_is_real=True, is_disc=True)

    def d_step_fake(
        self, batch_outputs: Tensor, batch_gt_data: Tensor
    ) -> Tensor:
        """Loss of the discriminator on upscaled images."""
        score = self.discriminator(batch_outputs.detach())
        return self.gan_loss(_full(score), target_is_real=False, is_disc=True)

    def d_step_with_optim(
        self,
        batch_outputs: Tensor,
        batch_gt_data: Tensor,
        optim_wrapper: OptimWrapperDict,
    ) -> dict[str, Tensor]:
        """Train the discriminator; with ``gp_loss`` as a critic of WGAN-GP.

        Args:
            batch_outputs (Tensor): Upscaled images, (B, 3, s h, s w).
            batch_gt_data (Tensor): True images, (B, 3, s h, s w).
            optim_wrapper (OptimWrapperDict): Optimizers.

        Returns:
            dict[str, Tensor]: Losses to log.
        """
        wrapper = optim_wrapper['discriminator']
        with wrapper.optim_context(self):
            losses = dict(
                loss_d_real=self.d_step_real(batch_outputs, batch_gt_data),
                loss_d_fake=self.d_step_fake(batch_outputs, batch_gt_data),
            )
            if self.gp_loss is not None:
                # Gradients of gradients need all the digits.
                with _no_autocast(batch_outputs):
                    losses['loss_gp'] = self.gp_loss(
                        self.discriminator,
                        _full(batch_gt_data),
                        _full(batch_outputs.detach()),
                    )
        loss, log_vars = self.parse_losses(losses)
        wrapper.update_params(loss)
        return log_vars

    def _reconstruction_losses(
        self, outputs: Tensor, truth: Tensor
    ) -> dict[str, Tensor]:
        """Losses of all but the discriminator."""
        with _no_autocast(outputs):
            # sqrt(d^2 + 1e-12) has no gradient in half precision.
            outputs, truth = _full(outputs), _full(truth)
            losses = dict(loss_pix=self.pixel_loss(outputs, truth))
            if self.perceptual_loss is not None:
                parts = self.perceptual_loss(outputs, truth)
                for name, loss in zip(('perceptual', 'style'), parts):
                    if loss is not None:
                        losses[f'loss_{name}'] = loss
        return losses


def split_inputs(inputs: Inputs) -> tuple[Tensor, list[Tensor] | None]:
    """Images and references of what a data preprocessor gives.

    Args:
        inputs (Tensor | dict): As of :meth:`RefSREditor.forward`.

    Returns:
        tuple[Tensor, list[Tensor] | None]: Images (B, 3, h, w) and references,
        each (B, 3, H, W), or None.
    """
    if not isinstance(inputs, dict):
        return inputs, None
    return inputs['img'], as_references(inputs.get('ref'))


def _order(sample: DataSample | Sequence[DataSample] | None) -> str:
    """Channel order of a batch's references."""
    if isinstance(sample, (list, tuple)):
        sample = sample[0]
    for key in ('ref_channel_order', 'img_channel_order'):
        order = sample.metainfo.get(key) if sample is not None else None
        if order:
            return order if isinstance(order, str) else order[0]
    return 'BGR'


def _stackable(samples: Sequence[DataSample]) -> Sequence[DataSample]:
    """Samples that mmagic stacks: references of several sizes it cannot."""
    shapes = {getattr(x.get('ref_img'), 'shape', None) for x in samples}
    if len(shapes) < 2:
        return samples
    samples = [x.new() for x in samples]
    for sample in samples:
        sample.pop('ref_img', None)
    return samples


def _full(x: Tensor) -> Tensor:
    """Half precision becomes single, double stays."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _no_autocast(x: Tensor) -> AbstractContextManager:
    return torch.autocast(x.device.type, enabled=False)
