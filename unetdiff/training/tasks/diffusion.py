"""The diffusion head: what a batch of noised pictures costs, its loss by noise level, and samples to look at."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from einops import repeat
from torch import Tensor, nn

from unetdiff.data import PictureDataset, collate, evenly
from unetdiff.data.hashing import generator_of
from unetdiff.diffusion import objectives
from unetdiff.diffusion.codecs import Latents, Pixels, Space
from unetdiff.diffusion.conditioning import Conditioner, Context, TextConditioner
from unetdiff.diffusion.conditioning.base import Size
from unetdiff.diffusion.conditioning.text_encoder import CachedFeatures
from unetdiff.diffusion.config import DiffusionConfig
from unetdiff.diffusion.images import color_error, grid, table
from unetdiff.diffusion.mask_codec import Masks, counted
from unetdiff.diffusion.pipeline import GenerationOutput, GenerationPipeline
from unetdiff.models import UNet
from unetdiff.segmentation.inference import inference
from unetdiff.training.tasks.base import Batch, DataFacts, Previews, Task, rest_heads

COLOR_PICTURES = 200  # real pictures whose colours the samples' are held against


@dataclass(frozen=True)
class Noised:
    """Noised pictures and what the network should say of them."""

    sample: Tensor
    """x_t, and the channels beside it, (B, K + C, H, W)."""
    timesteps: Tensor
    """(B,)."""
    context: Context
    """What the network is told of the pictures."""
    target: Tensor
    """The noise (or x0, or v), (B, K, H, W)."""
    counted: Tensor | None = None
    """The pixels that the loss is of, bool (B, 1, H, W); None: all."""


class DiffusionTask(Task):
    """Predict the noise (or x0, or v) in a picture (or in its mask), given the timestep and a condition.

    Args:
        unet: a UNet with a diffusion head.
        conditioner: what the network is told of a picture; None: unconditional.
        config: objective and judgement.
        val: the validation split.
        seed: of the previews' noise.
        space: what is noised; None: pixels.
        size: (height, width) of the set's pictures, in pixels; None: that of the network's `sample_size`.
    """

    best = ("diffusion/loss", "min")

    def __init__(
        self,
        unet: UNet,
        conditioner: Conditioner | None,
        config: DiffusionConfig,
        val: PictureDataset,
        seed: int,
        space: Space | None = None,
        size: list[int] | None = None,
    ) -> None:
        super().__init__()
        self.unet, self.conditioner, self.config, self.seed = unet, conditioner, config, seed
        self.facts = DataFacts(val, size)
        self.space = space or Pixels()
        self.scheduler = objectives.build_scheduler(config, self.space.bound)
        rest_heads(unet, "diffusion")

    def components(self) -> dict[str, nn.Module]:
        return {"unet": self.unet} | ({} if self.conditioner is None else {"conditioner": self.conditioner})

    def drawn_size(self) -> Size:
        """Height and width of what is drawn, pixels: the set's `data.size`, else what the network was trained at, else
        the first validation picture's."""
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
        return self.judge(self._predict(noised), noised)

    def noised(self, batch: Batch, seed: int) -> Noised:
        """A training batch at random timesteps, its conditions partly dropped."""
        generator = torch.Generator(self.unet.device).manual_seed(seed)
        x0 = self.clean(batch, generator)
        timesteps = objectives.sample_timesteps(len(x0), self.timesteps, generator, True, *self.process)
        noise = objectives.draw_noise(x0, generator, self.config.offset_noise)
        conditions = self.conditions(batch, x0.device)
        if self.conditioner is not None and conditions is not None:
            conditions = self.conditioner.drop(conditions, self.config.condition_dropout, generator)
        return self.noised_with(x0, noise, timesteps, conditions, self.counted(batch))

    def clean(self, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
        """What is noised of a batch: pixels in [-1, 1], latents of them, or masks, (B, K, h, w).

        generator: latents are drawn from the posterior; None: they are its mean.
        """
        if isinstance(self.space, Masks):
            coded = self.space.encode_masks(self._masks(batch))
            return coded.contiguous(memory_format=torch.channels_last) if self.channels_last else coded
        return self.space.encode(self.pixels(batch["image"]), generator)

    def counted(self, batch: Batch) -> Tensor | None:
        """The pixels that the loss is of, bool (B, 1, H, W): not the void of masks that are drawn; None: all."""
        return counted(self._masks(batch)) if isinstance(self.space, Masks) else None

    def _masks(self, batch: Batch) -> Tensor:
        return batch["mask"].to(self.unet.device, non_blocking=True)  # (B, H, W)

    def conditions(self, batch: Batch, device: torch.device) -> Tensor | None:
        """The conditions of a batch, none of them dropped; None for a denoiser without."""
        return None if self.conditioner is None else self.conditioner.of(batch).to(device)

    def context(self, conditions: Tensor | None, size: Size) -> Context:
        """What the network is told of them, beside noisy pictures (or latents) of `size`."""
        return Context() if self.conditioner is None else self.conditioner(conditions, size)

    def _predict(self, noised: Noised) -> Tensor:
        told = noised.context.tokens
        return self.unet(noised.sample, noised.timesteps, told, return_dict=False)[0]  # (B, C, H, W)

    def judge(self, output: Tensor, noised: Noised) -> dict[str, Tensor]:
        """The mean loss of the network's output (B, C, H, W), in all and by quartile of the timestep."""
        per_sample = self.per_sample(output, noised)
        parts = objectives.loss_by_quartile(per_sample.detach(), noised.timesteps, self.timesteps)
        return {"loss": per_sample.mean(), **parts}

    def per_sample(self, output: Tensor, noised: Noised) -> Tensor:
        """The weighted loss of each picture, (B,)."""
        weight = objectives.loss_weight(self.scheduler, noised.timesteps, self.config.weighting, self.config.snr_gamma)
        return objectives.diffusion_loss(output, noised.target, weight, noised.counted)

    def noised_with(
        self, x0: Tensor, noise: Tensor, timesteps: Tensor, conditions: Tensor | None, counted: Tensor | None = None
    ) -> Noised:
        """Clean pictures, latents or masks (B, K, h, w) at timesteps (B,) by the given noise, and what is told of them.

        counted: the pixels that the loss is of, bool (B, 1, h, w); None: all.
        """
        sample = objectives.noised(self.scheduler, x0, noise, timesteps)
        context = self.context(conditions, (x0.shape[-2], x0.shape[-1]))
        target = objectives.target(self.scheduler, x0, noise, timesteps)
        return Noised(context.beside(sample), timesteps, context, target, counted)

    def evaluate(self, loader: Iterable[Batch], accelerator: Accelerator) -> dict[str, Any]:
        """The training loss of the validation pictures, in all and by quartile of the timestep.

        A picture's noise and timestep are a function of its name, so figures of different steps and runs compare.
        """
        sums = torch.zeros(5, 2, dtype=torch.float64, device=accelerator.device)  # all, q0..q3: loss, pictures
        for batch in loader:
            with accelerator.autocast():
                x0 = self.clean(batch)
            draws = [self._draw(name, x0.shape[1:]) for name in batch["name"]]
            timesteps = torch.tensor([t for t, _ in draws], device=x0.device)
            noise = torch.stack([noise for _, noise in draws]).to(x0.device)
            conditions = self.conditions(batch, x0.device)
            with inference(self, accelerator.device.type, None), accelerator.autocast():
                noised = self.noised_with(x0, noise, timesteps, conditions, self.counted(batch))
                losses = self.per_sample(self._predict(noised), noised).double()
            rows = torch.stack([torch.full_like(timesteps, 0), 1 + timesteps * 4 // self.timesteps])
            values = torch.stack([losses, torch.ones_like(losses)], dim=1)  # (B, 2)
            sums.index_add_(0, rows.flatten(), repeat(values, "b v -> (two b) v", two=2))
        sums = accelerator.reduce(sums)  # type: ignore[assignment]
        means = (sums[:, 0] / sums[:, 1]).tolist()
        figures: dict[str, Any] = {"diffusion/loss": means[0], "diffusion/pictures": int(sums[0, 1])}
        return figures | {f"diffusion/loss_q{q}": means[1 + q] for q in range(4) if sums[1 + q, 1] > 0}

    def _draw(self, name: str, shape: torch.Size) -> tuple[int, Tensor]:
        generator = generator_of(zlib.crc32(name.encode()))
        timestep = int(torch.randint(self.timesteps, (), generator=generator))
        return timestep, torch.randn(shape, generator=generator)

    def preview(self, accelerator: Accelerator) -> Previews:
        """Samples from the same noise and conditions every time, a row each, and pictures' colours against the data's.

        A layout or a picture that was told stands before its row, and the real picture or mask after it.
        """
        config, val = self.config, self.facts.val
        across, rows, conditions = config.preview_per_class, None, None
        count = across * across
        shown = truth = None
        if self.conditioner is not None:
            items = [val[i] for i in evenly(len(val), config.preview_rows)]
            examples = self.conditioner.examples(items)
            rows, conditions = examples.rows, examples.conditions.repeat_interleave(across, dim=0)
            count = len(conditions)
            shown = self.conditioner.shown(examples.conditions)
            if shown is not None:
                truth, rows = self._shown(collate(items)), None  # the names of files say little
        real = [val[i]["image"] for i in evenly(len(val), COLOR_PICTURES)]
        generator = torch.Generator().manual_seed(self.seed)
        pipeline = self.pipeline()
        shape = pipeline.noise_shape(*self.drawn_size())
        latents = torch.randn(count, *shape, generator=generator)
        pipeline.set_progress_bar_config(disable=True)
        with accelerator.autocast():
            drawn = pipeline(
                conditions=conditions,
                latents=latents,
                num_inference_steps=config.preview_steps,
                guidance_scale=config.guidance_scale if conditions is not None else 1.0,
                generator=generator,
                output_type="pt",
            )
        samples = cast(GenerationOutput, drawn).pixels()  # (N, 3, H, W)
        figures = {}
        if not isinstance(self.space, Masks):
            colors = color_error(samples, torch.stack(real))
            figures = {f"diffusion/{name}": value for name, value in colors.items()}
        if shown is None or truth is None:
            return {"samples": grid(samples, rows)}, figures
        return {"samples": table(samples, shown, truth)}, figures

    def _shown(self, batch: Batch) -> Tensor:
        """What the samples should look like, (B, 3, H, W) in [0, 1]: the pictures, or the masks in their colours."""
        return self.space.colours(batch["mask"]) if isinstance(self.space, Masks) else batch["image"].float() / 255

    def pipeline(self) -> GenerationPipeline:
        """The pipeline that samples with these very weights."""
        text: dict[str, Any] = {}
        if isinstance(self.conditioner, TextConditioner) and isinstance(self.conditioner.features, CachedFeatures):
            encoder = self.conditioner.features.encoder
            text = {"text_encoder": encoder.model, "tokenizer": encoder.tokenizer}
        vae = self.space.vae if isinstance(self.space, Latents) else None
        masks = self.space.settings if isinstance(self.space, Masks) else None
        return GenerationPipeline(self.unet, self.scheduler, self.conditioner, **text, vae=vae, masks=masks)

    def save(self, directory: Path) -> None:
        self.pipeline().save_pretrained(directory)
