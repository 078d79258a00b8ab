"""Segmentation with a denoiser of masks: class probabilities as the mean of several samples, and their entropy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from einops import rearrange, reduce, repeat
from torch import Tensor

from unetdiff.data.hashing import generator_of
from unetdiff.diffusion.conditioning.images import ImageConditioner
from unetdiff.diffusion.mask_codec import MaskCodec
from unetdiff.diffusion.pipeline import GenerationOutput, GenerationPipeline
from unetdiff.diffusion.schedulers import make_scheduler
from unetdiff.errors import UserError

MIN_PROBABILITY = 1e-6
"""Probabilities are clamped to this before the logarithm."""


@dataclass(frozen=True)
class MaskSamplingConfig:
    """How masks are sampled."""

    num_samples: int = 1
    """Masks per image."""
    num_inference_steps: int = 10
    """Denoising steps of each."""
    scheduler: str = "ddim"
    """Sampler, of `unetdiff.diffusion.scheduler_names.SCHEDULERS`."""
    seed: int = 0
    """Seed of the noise."""


class MaskSampler:
    """A denoiser of masks as a segmenter (Amit et al. 2021, section 3.3): the mean of several masks of an image.

    The noise of a mask is a function of the seed, the image's index and the mask's, whatever the batch.

    Args:
        pipeline: of a model trained with diffusion.target=mask and diffusion.condition=image; its sampler is replaced.
        config: number of masks, steps, sampler and seed.
        autocast: precision of the network, e.g. torch.bfloat16; None: the weights'.

    Raises:
        UserError: a model of another kind, or an unknown sampler.
    """

    def __init__(
        self, pipeline: GenerationPipeline, config: MaskSamplingConfig, autocast: torch.dtype | None = None
    ) -> None:
        if not is_mask_denoiser(pipeline):
            raise UserError(
                "pipeline: must sample the mask of an image. Train a model with diffusion.target=mask and "
                "diffusion.condition=image."
            )
        if config.num_samples < 1:
            raise UserError(f"num_samples={config.num_samples}: must be at least 1.")
        self.pipeline, self.config = pipeline, config
        self.codec, self.conditioner = cast(MaskCodec, pipeline.codec), cast(ImageConditioner, pipeline.conditioner)
        pipeline.scheduler = make_scheduler(pipeline.scheduler, config.scheduler)
        pipeline.autocast_dtype = autocast
        pipeline.set_progress_bar_config(disable=True)

    def sample(self, images: Tensor, first: int = 0) -> Tensor:
        """Class probabilities of each sampled mask, (num_samples, B, C, H, W), float32 on the model's device.

        Args:
            images: uint8 (B, 3, H, W).
            first: index of the first image.
        """
        count = self.config.num_samples
        conditions = self.conditioner.from_batch({"image": images.to(self.pipeline.device)})
        pairs = [(first + image, number) for number in range(count) for image in range(len(images))]
        output = self.pipeline(
            conditions=repeat(conditions, "b ... -> (k b) ...", k=count),
            num_inference_steps=self.config.num_inference_steps,
            guidance_scale=1.0,
            height=images.shape[-2],
            width=images.shape[-1],
            generator=[generator_of(self.config.seed, *pair) for pair in pairs],
            output_type="latent",
        )
        probabilities = self.codec.probabilities(cast(GenerationOutput, output).pixels())
        return rearrange(probabilities, "(k b) c h w -> k b c h w", k=count)

    def logits(self) -> Callable[[Sequence[Tensor]], Iterable[Tensor]]:
        """A function for `evaluate_segmenter`: images uint8 (3, H, W), in the order of the dataset, -> the logarithm of
        the masks' mean probabilities (C, H, W)."""
        index = 0

        def logits_of(images: Sequence[Tensor]) -> Iterable[Tensor]:
            nonlocal index
            one_size = len({image.shape for image in images}) == 1
            batches = [torch.stack(list(images))] if one_size else [image[None] for image in images]
            for batch in batches:
                yield from log_probabilities(self.sample(batch, index).mean(dim=0))  # (C, H, W) each
                index += len(batch)

        return logits_of


def is_mask_denoiser(pipeline: Any) -> bool:
    """Whether a pipeline samples the mask of its condition image."""
    return isinstance(pipeline.codec, MaskCodec) and isinstance(pipeline.conditioner, ImageConditioner)


def log_probabilities(probabilities: Tensor) -> Tensor:
    """Logits whose softmax gives the probabilities; these are clamped to `MIN_PROBABILITY`."""
    return probabilities.clamp(min=MIN_PROBABILITY).log()


def running_means(probabilities: Tensor) -> Tensor:
    """Means over the first 1, 2, ... K samples: (K, ...) -> (K, ...)."""
    counts = torch.arange(1, len(probabilities) + 1, device=probabilities.device)
    return probabilities.cumsum(dim=0) / counts.reshape(-1, *[1] * (probabilities.ndim - 1))


def uncertainty(probabilities: Tensor) -> Tensor:
    """Entropy of class probabilities divided by its maximum, log C: (..., C, H, W) -> (..., H, W) in [0, 1].

    0: one class is certain; 1: uniform. For the mean of samples it includes both their disagreement and the uncertainty
    of each.
    """
    entropy = reduce(torch.special.entr(probabilities.float()), "... c h w -> ... h w", "sum")
    return entropy / math.log(probabilities.shape[-3])
