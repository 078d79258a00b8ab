"""The diffusion head: what a batch of noised images costs, its loss by noise level, and samples to look at."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from einops import repeat
from torch import Tensor, nn

from unetdiff.data.base import ImageDataset, collate
from unetdiff.data.hashing import generator_of
from unetdiff.data.sampling import evenly_spaced_indices
from unetdiff.diffusion import objectives
from unetdiff.diffusion.codecs import Codec, LatentCodec, PixelCodec
from unetdiff.diffusion.conditioning.base import Conditioner, Conditioning, Size
from unetdiff.diffusion.conditioning.text import TextConditioner
from unetdiff.diffusion.conditioning.text_encoder import CachedFeatures
from unetdiff.diffusion.config import DiffusionConfig
from unetdiff.diffusion.images import color_error, grid, table
from unetdiff.diffusion.mask_codec import MaskCodec, loss_mask
from unetdiff.diffusion.noise import generators_for, image_indices
from unetdiff.diffusion.pipeline import GenerationOutput, GenerationPipeline
from unetdiff.models.unet import UNet
from unetdiff.segmentation.inference import eval_mode
from unetdiff.training.tasks.base import Batch, DataFacts, Previews, Task, freeze_unused_heads

PREVIEW_ROWS = 8
"""Captions, masks or images of the validation split that previews are sampled for."""
COLOR_IMAGES = 200  # real images whose colours the samples' are held against


@dataclass(frozen=True)
class Noised:
    """Noised images and the network's targets."""

    sample: Tensor
    """x_t and the channels of the condition, (B, K + C, H, W)."""
    timesteps: Tensor
    """(B,)."""
    conditioning: Conditioning
    """Tokens and channels of the conditions."""
    target: Tensor
    """The noise (or x0, or v), (B, K, H, W)."""
    loss_mask: Tensor | None = None
    """The pixels that the loss is of, bool (B, 1, H, W); None: all."""


class DiffusionTask(Task):
    """Predict the noise (or x0, or v) in an image (or in its mask), given the timestep and a condition.

    Args:
        unet: a UNet with a diffusion head.
        conditioner: what the network is told of an image; None: unconditional.
        config: objective and judgement.
        val: the validation split.
        seed: of the previews' noise.
        space: what is noised; None: pixels.
        size: (height, width) of the set's images, in pixels; None: that of the network's `sample_size`.
    """

    best = ("diffusion/loss", "min")

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
        self.facts = DataFacts(val, size)
        self.codec = codec or PixelCodec()
        self.scheduler = objectives.build_scheduler(config, self.codec.bound)
        freeze_unused_heads(unet, "diffusion")

    def trainable_modules(self) -> dict[str, nn.Module]:
        return {"unet": self.unet} | ({} if self.conditioner is None else {"conditioner": self.conditioner})

    def image_size(self) -> Size:
        """Height and width of samples in pixels: `data.size`, else the size that the network was trained at, else the
        first validation image's."""
        if isinstance(self.facts.size, list):
            height, width = self.facts.size
            return height, width
        if self.unet.config["sample_size"] is not None:
            return self.pipeline().size()
        height, width = self.facts.val[0]["image"].shape[-2:]
        return height, width

    @property
    def timesteps(self) -> int:
        """Number of timesteps of the forward process."""
        return self.config.noise.num_train_timesteps

    def forward(self, batch: Batch, seed: int) -> dict[str, Tensor]:
        noised = self.noised(batch, seed)
        return self.compute_loss(self._predict(noised), noised)

    def noised(self, batch: Batch, seed: int) -> Noised:
        """A training batch at random timesteps, its conditions partly dropped."""
        generator = torch.Generator(self.unet.device).manual_seed(seed)
        x0 = self.clean(batch, generator)
        timesteps = objectives.sample_timesteps(len(x0), self.timesteps, generator, True, *self.process)
        noise = objectives.draw_noise(x0, generator, self.config.offset_noise)
        conditions = self.conditions(batch, x0.device)
        if self.conditioner is not None and conditions is not None:
            conditions = self.conditioner.drop(conditions, self.config.condition_dropout, generator)
        return self.noised_with(x0, noise, timesteps, conditions, self.loss_mask(batch))

    def clean(self, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
        """What is noised of a batch: pixels in [-1, 1], latents of them, or masks, (B, K, h, w).

        generator: latents are drawn from the posterior; None: they are its mean.
        """
        if isinstance(self.codec, MaskCodec):
            coded = self.codec.encode_masks(self._masks(batch))
            return coded.contiguous(memory_format=torch.channels_last) if self.channels_last else coded
        return self.codec.encode(self.pixels(batch["image"]), generator)

    def loss_mask(self, batch: Batch) -> Tensor | None:
        """The pixels that the loss is of, bool (B, 1, H, W): not the void of masks that are drawn; None: all."""
        return loss_mask(self._masks(batch)) if isinstance(self.codec, MaskCodec) else None

    def _masks(self, batch: Batch) -> Tensor:
        return batch["mask"].to(self.unet.device, non_blocking=True)  # (B, H, W)

    def conditions(self, batch: Batch, device: torch.device) -> Tensor | None:
        """The conditions of a batch, none of them dropped; None for a denoiser without."""
        return None if self.conditioner is None else self.conditioner.from_batch(batch).to(device)

    def conditioning(self, conditions: Tensor | None, size: Size) -> Conditioning:
        """Conditions (B, ...) as tokens and channels, the latter at the `size` of the noisy images (or latents)."""
        return Conditioning() if self.conditioner is None else self.conditioner(conditions, size)

    def _predict(self, noised: Noised) -> Tensor:
        tokens = noised.conditioning.tokens
        return self.unet(noised.sample, noised.timesteps, tokens, return_dict=False)[0]  # (B, C, H, W)

    def compute_loss(self, output: Tensor, noised: Noised) -> dict[str, Tensor]:
        """The mean loss of the network's output (B, C, H, W), in all and by quartile of the timestep."""
        per_sample = self.per_sample(output, noised)
        parts = objectives.loss_by_quartile(per_sample.detach(), noised.timesteps, self.timesteps)
        return {"loss": per_sample.mean(), **parts}

    def per_sample(self, output: Tensor, noised: Noised) -> Tensor:
        """The weighted loss of each image, (B,)."""
        weight = objectives.loss_weight(self.scheduler, noised.timesteps, self.config.weighting, self.config.snr_gamma)
        return objectives.diffusion_loss(output, noised.target, weight, noised.loss_mask)

    def noised_with(
        self, x0: Tensor, noise: Tensor, timesteps: Tensor, conditions: Tensor | None, counted: Tensor | None = None
    ) -> Noised:
        """Clean images, latents or masks (B, K, h, w) at timesteps (B,) by the given noise, and what is told of them.

        counted: the pixels that the loss is of, bool (B, 1, h, w); None: all.
        """
        sample = objectives.noised(self.scheduler, x0, noise, timesteps)
        conditioning = self.conditioning(conditions, (x0.shape[-2], x0.shape[-1]))
        target = objectives.target(self.scheduler, x0, noise, timesteps)
        return Noised(conditioning.concat_channels(sample), timesteps, conditioning, target, counted)

    def evaluate(self, loader: Iterable[Batch], accelerator: Accelerator) -> dict[str, Any]:
        """The training loss of the validation images, in all and by quartile of the timestep.

        An image's noise and timestep are a function of its name, so figures of different steps and runs compare.
        """
        sums = torch.zeros(5, 2, dtype=torch.float64, device=accelerator.device)  # all, q0..q3: loss, images
        for batch in loader:
            with accelerator.autocast():
                x0 = self.clean(batch)
            draws = [self._draw(name, x0.shape[1:]) for name in batch["name"]]
            timesteps = torch.tensor([t for t, _ in draws], device=x0.device)
            noise = torch.stack([noise for _, noise in draws]).to(x0.device)
            conditions = self.conditions(batch, x0.device)
            with eval_mode(self, accelerator.device.type, None), accelerator.autocast():
                noised = self.noised_with(x0, noise, timesteps, conditions, self.loss_mask(batch))
                losses = self.per_sample(self._predict(noised), noised).double()
            rows = torch.stack([torch.full_like(timesteps, 0), 1 + timesteps * 4 // self.timesteps])
            values = torch.stack([losses, torch.ones_like(losses)], dim=1)  # (B, 2)
            sums.index_add_(0, rows.flatten(), repeat(values, "b v -> (two b) v", two=2))
        sums = accelerator.reduce(sums)  # type: ignore[assignment]
        means = (sums[:, 0] / sums[:, 1]).tolist()
        figures: dict[str, Any] = {"diffusion/loss": means[0], "diffusion/images": int(sums[0, 1])}
        return figures | {f"diffusion/loss_q{q}": means[1 + q] for q in range(4) if sums[1 + q, 1] > 0}

    def _draw(self, name: str, shape: torch.Size) -> tuple[int, Tensor]:
        generator = generator_of(zlib.crc32(name.encode()))
        timestep = int(torch.randint(self.timesteps, (), generator=generator))
        return timestep, torch.randn(shape, generator=generator)

    def preview(self, accelerator: Accelerator) -> Previews:
        """Samples of the same noise and conditions every time, one row per condition, and their color statistics.

        A layout or condition image precedes its row, and the real image or mask follows it. The images are those that
        `unetdiff sample` draws with the same seed.
        """
        config, val = self.config, self.facts.val
        across, rows, conditions = config.preview_per_class, None, None
        indices: Sequence[int] = range(across * across)
        shown = truth = None
        if self.conditioner is not None:
            items = [val[i] for i in evenly_spaced_indices(len(val), PREVIEW_ROWS)]
            examples = self.conditioner.examples(items)
            rows, conditions = examples.rows, examples.conditions.repeat_interleave(across, dim=0)
            indices = list(chain(*image_indices(*self.conditioner.rows(examples.conditions), across)))
            shown = self.conditioner.visualize(examples.conditions)
            if shown is not None:
                truth, rows = self._shown(collate(items)), None  # the names of files say little
        real = [val[i]["image"] for i in evenly_spaced_indices(len(val), COLOR_IMAGES)]
        pipeline, (height, width) = self.pipeline(), self.image_size()
        pipeline.set_progress_bar_config(disable=True)
        with accelerator.autocast():
            output = pipeline(
                conditions=conditions,
                batch_size=len(indices),
                num_inference_steps=config.preview_steps,
                guidance_scale=config.guidance_scale if conditions is not None else 1.0,
                height=height,
                width=width,
                generator=generators_for(self.seed, indices),
                output_type="pt",
            )
        samples = cast(GenerationOutput, output).pixels()  # (N, 3, H, W)
        figures = {}
        if not isinstance(self.codec, MaskCodec):
            colors = color_error(samples, torch.stack(real))
            figures = {f"diffusion/{name}": value for name, value in colors.items()}
        if shown is None or truth is None:
            return {"samples": grid(samples, rows)}, figures
        return {"samples": table(samples, shown, truth)}, figures

    def _shown(self, batch: Batch) -> Tensor:
        """What the samples should look like, (B, 3, H, W) in [0, 1]: the images, or the masks in their colours."""
        return self.codec.colours(batch["mask"]) if isinstance(self.codec, MaskCodec) else batch["image"].float() / 255

    def pipeline(self) -> GenerationPipeline:
        """The pipeline that samples with these very weights."""
        text: dict[str, Any] = {}
        if isinstance(self.conditioner, TextConditioner) and isinstance(self.conditioner.features, CachedFeatures):
            encoder = self.conditioner.features.encoder
            text = {"text_encoder": encoder.model, "tokenizer": encoder.tokenizer}
        vae = self.codec.vae if isinstance(self.codec, LatentCodec) else None
        masks = self.codec.settings if isinstance(self.codec, MaskCodec) else None
        return GenerationPipeline(self.unet, self.scheduler, self.conditioner, **text, vae=vae, masks=masks)

    def save(self, directory: Path) -> None:
        self.pipeline().save_pretrained(directory)
