"""Training and validation of the diffusion head: loss, loss by noise level, samples as previews."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from einops import repeat
from torch import Tensor, nn

from unetdiff.data.base import ImageDataset, collate
from unetdiff.data.hashing import generator_of
from unetdiff.data.regularization import REGULARIZATION
from unetdiff.data.sampling import evenly_spaced_indices
from unetdiff.diffusion import objectives
from unetdiff.diffusion.codecs import Codec, LatentCodec, PixelCodec
from unetdiff.diffusion.conditioning.base import Conditioner, Conditioning, Size
from unetdiff.diffusion.conditioning.captions import CaptionConditioner
from unetdiff.diffusion.conditioning.text_encoder import CachedFeatures
from unetdiff.diffusion.config import DiffusionConfig
from unetdiff.diffusion.images import color_error, grid, table
from unetdiff.diffusion.inpainting import (
    has_mask_input,
    inpainting_channels,
    mask_numbers,
    random_masks,
    with_mask,
)
from unetdiff.diffusion.mask_codec import MaskCodec, loss_mask
from unetdiff.diffusion.noise import generators_for, image_indices
from unetdiff.diffusion.pipeline import GenerationOutput, GenerationPipeline
from unetdiff.diffusion.processes.base import QUARTILES, Process
from unetdiff.diffusion.processes.load import process_of
from unetdiff.models.unet import UNet
from unetdiff.segmentation.inference import eval_mode
from unetdiff.training.draws import RowDraws
from unetdiff.training.step_layers import StepLayers
from unetdiff.training.sums import Sums
from unetdiff.training.tasks.base import Batch, Previews, Task, ValidationData, freeze_unused_heads
from unetdiff.training.tasks.inpainting import eval_numbers, masked_start

PREVIEW_ROWS = 8
"""Captions, masks or images of the validation split that previews are sampled for."""
COLOR_IMAGES = 200  # real images that the colors of the samples are compared with


@dataclass(frozen=True)
class NoisyBatch:
    """Inputs and target of the denoiser."""

    sample: Tensor
    """x_t, concatenated with the condition's channels, (B, K + C, H, W)."""
    timesteps: Tensor
    """(B,)."""
    conditioning: Conditioning
    """Tokens and channels of the condition."""
    target: Tensor
    """The noise, x0 or v, (B, K, H, W)."""
    loss_mask: Tensor | None = None
    """Pixels included in the loss, bool (B, 1, H, W); None: all."""
    x0: Tensor | None = None
    """The clean images, latents or masks, (B, K, H, W)."""
    is_prior: Tensor | None = None
    """Which images are regularization images, bool (B,); None: none."""


class DiffusionTask(Task):
    """Predict the noise (or x0, or v) in an image (or in its mask), given the timestep and a condition.

    Args:
        unet: a UNet with a diffusion head.
        conditioner: encodes the condition; None: unconditional.
        config: objective, conditioning and sampling.
        val: the validation split.
        seed: of the previews' noise.
        codec: maps images (or masks) to x0; None: pixels.
        size: (height, width) of the dataset's images, in pixels; None: the network's `sample_size`.
    """

    best_metric = ("diffusion/loss", "min")

    def __init__(
        self,
        unet: UNet,
        conditioner: Conditioner | None,
        config: DiffusionConfig,
        val: ImageDataset,
        seed: int,
        codec: Codec | None = None,
        size: list[int] | None = None,
    ) -> None:
        super().__init__()
        self.unet, self.conditioner, self.config, self.seed = unet, conditioner, config, seed
        self.data = ValidationData(val, size)
        self.codec = codec or PixelCodec()
        self.scheduler = objectives.build_scheduler(config, self.codec.bound)
        freeze_unused_heads(unet, "diffusion")

    def trainable_modules(self) -> dict[str, nn.Module]:
        return {"unet": self.unet} | ({} if self.conditioner is None else {"conditioner": self.conditioner})

    def image_size(self) -> Size:
        """Height and width of samples in pixels: `data.size`, else the size that the network was trained at, else the
        first validation image's."""
        if isinstance(self.data.size, list):
            height, width = self.data.size
            return height, width
        if self.unet.config["sample_size"] is not None:
            return self.pipeline().size()
        height, width = self.data.val[0]["image"].shape[-2:]
        return height, width

    @property
    def forward_process(self) -> Process:
        """The forward process, with the distribution of the training timesteps."""
        return process_of(self.scheduler, self.config.noise)

    def forward(self, batch: Batch, draws: RowDraws) -> Sums:
        noisy = self.add_noise(batch, draws)
        return self.sums(self.predict(noisy), noisy)

    def add_noise(self, batch: Batch, draws: RowDraws) -> NoisyBatch:
        """A training batch at random timesteps, with condition dropout."""
        timesteps = self.timesteps(batch, draws)
        x0 = self.encode(batch, draws)
        is_prior = batch[REGULARIZATION].to(x0.device) > 0 if REGULARIZATION in batch else None
        noise = self.image_noise(draws, x0, self.config.offset_noise)
        conditions = self.conditions(batch, x0.device)
        if self.conditioner is not None and conditions is not None:
            dropped = draws(objectives.uniform) < self.config.condition_dropout
            conditions = self.conditioner.drop_where(conditions, dropped)
        channels = None
        if self.is_inpainting:
            numbers, fraction = draws(mask_numbers), self.config.inpainting.full_mask_fraction
            channels = self.masked(batch, numbers, fraction, self._posterior_noise(x0.shape[1:], draws))
        noisy = self.add_noise_at(x0, noise, timesteps, conditions, self.loss_mask(batch), channels)
        return replace(noisy, is_prior=is_prior)

    def timesteps(self, batch: Batch, draws: RowDraws) -> Tensor:
        """The timesteps of a training batch, (B,): the first draw of its step."""
        kinds = 2 if REGULARIZATION in batch else 1  # training and regularization images alternate
        return draws(partial(objectives.sample_timesteps_of_kinds, self.forward_process, kinds))

    def encode(self, batch: Batch, draws: RowDraws | None = None) -> Tensor:
        """x0 of a batch: pixels in [-1, 1], latents, or encoded masks, (B, K, h, w).

        draws: latents are sampled from the posterior; None: its mean.
        """
        if isinstance(self.codec, MaskCodec):
            x0 = self.codec.encode_masks(self._masks(batch)).to(self.unet.dtype)
            return x0.contiguous(memory_format=torch.channels_last) if self.channels_last else x0
        if isinstance(self.codec, PixelCodec):
            return self.pixels(batch["image"])
        moments = self.moments(batch, self.codec)
        noise = self._posterior_noise((self.codec.channels, *moments.shape[-2:]), draws)
        return self.codec.sample(moments, noise).to(self.unet.dtype)

    def _posterior_noise(self, shape: Sequence[int], draws: RowDraws | None) -> Tensor | None:
        """Noise of images' latents of this shape (C, h, w), (B, C, h, w); None: their mean."""
        if draws is None or not isinstance(self.codec, LatentCodec) or not self.codec.has_posterior:
            return None
        size = tuple(shape)
        return draws(lambda count, generator: objectives.sample_noise((count, *size), generator), size)

    @property
    def is_inpainting(self) -> bool:
        """Whether the network sees a mask and the masked image's latents."""
        return has_mask_input(self.conditioner)

    def masked(self, batch: Batch, numbers: Tensor, full_fraction: float, noise: Tensor | None = None) -> Tensor:
        """`inpainting_channels` of a batch with the random masks of these numbers, (B, 1 + C, h, w)."""
        pixels = self.pixels(batch["image"])
        masks = random_masks(numbers.to(pixels.device), (pixels.shape[-2], pixels.shape[-1]), full_fraction)
        return inpainting_channels(masks, pixels, self.codec, noise)

    def loss_mask(self, batch: Batch) -> Tensor | None:
        """Pixels included in the loss, bool (B, 1, H, W): those of generated masks that are not ignored; None: all."""
        return loss_mask(self._masks(batch)) if isinstance(self.codec, MaskCodec) else None

    def _masks(self, batch: Batch) -> Tensor:
        return batch["mask"].to(self.unet.device, non_blocking=True)  # (B, H, W)

    def conditions(self, batch: Batch, device: torch.device) -> Tensor | None:
        """The conditions of a batch, without dropout; None for an unconditional denoiser."""
        return None if self.conditioner is None else self.conditioner.from_batch(batch).to(device)

    def conditioning(self, conditions: Tensor | None, size: Size) -> Conditioning:
        """Tokens and channels of the conditions, for images or latents of `size`; of inpainting, to paint all of it."""
        if self.conditioner is None:
            return Conditioning()
        conditioning: Conditioning = self.conditioner(conditions, size)
        return with_mask(conditioning, self.conditioner, size, self.codec)

    def predict(self, noisy: NoisyBatch) -> Tensor:
        """The network's output, (B, C, H, W)."""
        tokens = noisy.conditioning.tokens
        return self.unet(noisy.sample, noisy.timesteps, tokens, return_dict=False)[0]  # (B, C, H, W)

    def sums(self, output: Tensor, noisy: NoisyBatch) -> Sums:
        """The network's output (B, C, H, W) as sum of the images' losses, their number, and sums by quartile.

        Regularization images are summed apart, as "prior" and "prior_images".
        """
        per_sample = self.per_sample(output, noisy)
        prior: Sums = {}
        images = torch.ones_like(per_sample)
        if noisy.is_prior is not None:
            prior = {"prior": per_sample[noisy.is_prior].sum(), "prior_images": noisy.is_prior.to(images).sum()}
            per_sample, images = (torch.where(noisy.is_prior, 0, values) for values in (per_sample, images))
        quartiles = objectives.sums_by_quartile(per_sample.detach(), noisy.timesteps, self.forward_process)
        return {"loss": per_sample.sum(), "images": images.sum(), "quartiles": quartiles, **prior}

    def losses(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The mean loss of the images, in total and by quartile of the timestep.

        With regularization images, plus `prior_weight` times their mean loss (Ruiz et al. 2023, equation 2); quartiles
        are of the training images.
        """
        parts = objectives.loss_by_quartile(sums["quartiles"], sums["images"], self.forward_process)
        loss = sums["loss"] / sums["images"]
        if "prior" in sums:
            prior = sums["prior"] / sums["prior_images"]
            parts |= {"instance_loss": loss, "prior_loss": prior}
            loss = loss + self.config.prior_weight * prior
        return {"loss": loss, **parts}

    def reference(self, parts: Sequence[tuple[Batch, RowDraws]], layers: StepLayers) -> Sums:
        zeros = torch.zeros(8, device=self.unet.device)
        images = zeros[1] + sum(draws.count for _, draws in parts)
        sums = {"loss": zeros[0], "images": images, "quartiles": zeros[2:6]}
        if REGULARIZATION in parts[0][0]:
            sums |= {"images": images / 2, "prior": zeros[6], "prior_images": images / 2}
        return sums

    def per_sample(self, output: Tensor, noisy: NoisyBatch) -> Tensor:
        """The weighted loss of each image, (B,)."""
        weight = objectives.loss_weight(self.scheduler, noisy.timesteps, self.config.weighting, self.config.snr_gamma)
        return objectives.diffusion_loss(output, noisy.target, weight, noisy.loss_mask)

    def add_noise_at(
        self,
        x0: Tensor,
        noise: Tensor,
        timesteps: Tensor,
        conditions: Tensor | None,
        loss_mask: Tensor | None = None,
        channels: Tensor | None = None,
    ) -> NoisyBatch:
        """x0 (B, K, h, w) at timesteps (B,) with this noise and these conditions.

        Args:
            x0: clean images or latents.
            noise: as x0.
            timesteps: (B,).
            conditions: of the images; None: without a condition.
            loss_mask: pixels included in the loss, bool (B, 1, h, w); None: all.
            channels: of `masked`, in the place of those of the conditions; None: theirs.
        """
        sample = objectives.add_noise(self.scheduler, x0, noise, timesteps)
        if channels is None or self.conditioner is None:
            conditioning = self.conditioning(conditions, (x0.shape[-2], x0.shape[-1]))
        else:
            conditioning = replace(self.conditioner(conditions, (0, 0)), channels=channels)
        target = objectives.target(self.scheduler, x0, noise, timesteps)
        return NoisyBatch(conditioning.concat_channels(sample), timesteps, conditioning, target, loss_mask, x0)

    def evaluate(self, loader: Iterable[Batch], accelerator: Accelerator) -> dict[str, Any]:
        """The training loss on the validation images, in total and by quartile of the timestep.

        Noise, timestep and mask are functions of the image's name: metrics of different steps and runs are comparable.
        """
        sums = torch.zeros(5, 2, dtype=torch.float64, device=accelerator.device)  # all, q0..q3: loss, images
        for batch in loader:
            with accelerator.autocast():
                x0 = self.encode(batch)
            draws = [self._eval_noise(name, x0.shape[1:]) for name in batch["name"]]
            timesteps = torch.stack([timestep for timestep, _ in draws]).to(x0.device)
            noise = torch.stack([noise for _, noise in draws]).to(x0.device)
            conditions = self.conditions(batch, x0.device)
            with eval_mode(self, accelerator.device.type, None), accelerator.autocast():
                channels = None
                if self.is_inpainting:
                    channels = self.masked(
                        batch, eval_numbers(batch["name"]), self.config.inpainting.full_mask_fraction
                    )
                noisy = self.add_noise_at(x0, noise, timesteps, conditions, self.loss_mask(batch), channels)
                losses = self.per_sample(self.predict(noisy), noisy).double()
            quartiles = self.forward_process.quartile(timesteps)
            rows = torch.stack([torch.zeros_like(quartiles), 1 + quartiles])
            values = torch.stack([losses, torch.ones_like(losses)], dim=1)  # (B, 2)
            sums.index_add_(0, rows.flatten(), repeat(values, "b v -> (two b) v", two=2))
        sums = accelerator.reduce(sums)  # type: ignore[assignment]
        means = (sums[:, 0] / sums[:, 1]).tolist()
        metrics: dict[str, Any] = {"diffusion/loss": means[0], "diffusion/images": int(sums[0, 1])}
        return metrics | {f"diffusion/loss_q{q}": means[1 + q] for q in range(QUARTILES) if sums[1 + q, 1] > 0}

    def _eval_noise(self, name: str, shape: torch.Size) -> tuple[Tensor, Tensor]:
        generator = generator_of(zlib.crc32(name.encode()))
        timestep = self.forward_process.random_timestep(generator)
        return timestep, torch.randn(shape, generator=generator)

    def preview(self, accelerator: Accelerator) -> Previews:
        """Samples of the same noise and conditions every time, one row per condition, and their color statistics.

        A layout, a condition image or a masked image precedes its row, and the real image or mask follows it. The
        images are those that `unetdiff sample` draws with the same seed.
        """
        config, val = self.config, self.data.val
        across, rows, conditions = config.preview_per_class, None, None
        indices: Sequence[int] = range(across * across)
        shown = truth = start = None
        pipeline, (height, width) = self.pipeline(), self.image_size()
        if self.conditioner is not None:
            items = [val[i] for i in evenly_spaced_indices(len(val), PREVIEW_ROWS)]
            examples = self.conditioner.examples(items)
            rows, conditions = examples.rows, examples.conditions.repeat_interleave(across, dim=0)
            indices = list(chain(*image_indices(*self.conditioner.rows(examples.conditions), across)))
            shown = self.conditioner.visualize(examples.conditions)
            if shown is not None:
                truth, rows = self._ground_truth(collate(items)), None  # file names are no labels
            if self.is_inpainting:
                start, shown, truth = masked_start(items, len(examples.rows), across, (height, width))
        real = [val[i]["image"] for i in evenly_spaced_indices(len(val), COLOR_IMAGES)]
        pipeline.set_progress_bar_config(disable=True)
        with accelerator.autocast():
            output = pipeline(
                conditions=conditions,
                batch_size=len(indices),
                start=start,
                num_inference_steps=config.preview_steps,
                guidance_scale=config.guidance_scale if conditions is not None else 1.0,
                height=height,
                width=width,
                generator=generators_for(self.seed, indices),
                output_type="pt",
            )
        samples = cast(GenerationOutput, output).pixels()  # (N, 3, H, W)
        metrics = {}
        if not isinstance(self.codec, MaskCodec):
            colors = color_error(samples, torch.stack(real))
            metrics = {f"diffusion/{name}": value for name, value in colors.items()}
        if shown is None or truth is None:
            return {"samples": grid(samples, rows)}, metrics
        return {"samples": table(samples, shown, truth)}, metrics

    def _ground_truth(self, batch: Batch) -> Tensor:
        """The real images, or masks in their palette, (B, 3, H, W) in [0, 1]."""
        return self.codec.colours(batch["mask"]) if isinstance(self.codec, MaskCodec) else batch["image"].float() / 255

    def pipeline(self) -> GenerationPipeline:
        """A pipeline that shares this task's modules."""
        text: dict[str, Any] = {}
        if isinstance(self.conditioner, CaptionConditioner) and isinstance(self.conditioner.features, CachedFeatures):
            encoder = self.conditioner.features.encoder
            text = {"text_encoder": encoder.model, "tokenizer": encoder.tokenizer}
        vae = self.codec.vae if isinstance(self.codec, LatentCodec) else None
        masks = self.codec.settings if isinstance(self.codec, MaskCodec) else None
        return GenerationPipeline(self.unet, self.scheduler, self.conditioner, **text, vae=vae, masks=masks)

    def save(self, directory: Path) -> None:
        self.pipeline().save_pretrained(directory)
