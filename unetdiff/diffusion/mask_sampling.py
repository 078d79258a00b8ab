"""Segmenting with a denoiser of masks: the mean of several drawn masks, and what they do not agree on."""

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

LEAST = 1e-6
"""A class that no sample has is taken to have this probability, so that its logarithm is a number."""


@dataclass(frozen=True)
class MaskSamplingConfig:
    """How masks are drawn."""

    samples: int = 1
    """Masks of each image."""
    steps: int = 10
    """Denoising steps of each."""
    scheduler: str = "ddim"
    """Sampler, of `unetdiff.diffusion.schedulers.SCHEDULERS`."""
    seed: int = 0
    """Seed of the noise."""


class MaskSampler:
    """A denoiser of masks as a segmenter (Amit et al. 2021, section 3.3): draws masks of an image and averages them.

    A sample's noise is a function of the seed, the image's number and the sample's, so it is the same however many
    images and samples are drawn with it.

    Args:
        pipeline: of a model that was trained with diffusion.target mask and diffusion.condition image; its sampler is
            changed to the one that is asked for.
        asked: how masks are drawn.
        autocast: precision of the network, e.g. torch.bfloat16; None: the weights'.

    Raises:
        UserError: a model of another kind, or an unknown sampler.
    """

    def __init__(
        self, pipeline: GenerationPipeline, asked: MaskSamplingConfig, autocast: torch.dtype | None = None
    ) -> None:
        if not is_mask_denoiser(pipeline):
            raise UserError(
                "this model does not draw the mask of an image; train one with diffusion.target mask and "
                "diffusion.condition image"
            )
        if asked.samples < 1:
            raise UserError(f"samples: {asked.samples} masks of an image are none; use 1 or more")
        self.pipeline, self.asked, self.autocast = pipeline, asked, autocast
        self.codec, self.conditioner = cast(MaskCodec, pipeline.codec), cast(ImageConditioner, pipeline.conditioner)
        pipeline.scheduler = make_scheduler(pipeline.scheduler, asked.scheduler)
        pipeline.set_progress_bar_config(disable=True)

    def draw(self, images: Tensor, first: int = 0) -> Tensor:
        """The class probabilities that each sample stands for, (samples, B, C, H, W), float32 on the model's device.

        Args:
            images: uint8 (B, 3, H, W).
            first: number of the first image.
        """
        asked, count = self.asked, self.asked.samples
        conditions = self.conditioner.from_batch({"image": images.to(self.pipeline.device)})
        pairs = [(first + image, sample) for sample in range(count) for image in range(len(images))]
        output = self.pipeline(
            conditions=repeat(conditions, "b ... -> (k b) ...", k=count),
            num_inference_steps=asked.steps,
            guidance_scale=1.0,
            height=images.shape[-2],
            width=images.shape[-1],
            generator=[generator_of(asked.seed, *pair) for pair in pairs],
            output_type="latent",
            autocast_dtype=self.autocast,
        )
        drawn = self.codec.probabilities(cast(GenerationOutput, output).pixels())
        return rearrange(drawn, "(k b) c h w -> k b c h w", k=count)

    def logits(self) -> Callable[[Sequence[Tensor]], Iterable[Tensor]]:
        """What `evaluate_segmenter` asks: images uint8 (3, H, W), in the order of the set, -> the logarithm of the
        samples' mean probabilities (C, H, W)."""
        done = 0

        def of(images: Sequence[Tensor]) -> Iterable[Tensor]:
            nonlocal done
            alike = len({image.shape for image in images}) == 1
            batches = [torch.stack(list(images))] if alike else [image[None] for image in images]
            for batch in batches:
                yield from log_probabilities(self.draw(batch, done).mean(dim=0))  # (C, H, W) each
                done += len(batch)

        return of


def is_mask_denoiser(pipeline: Any) -> bool:
    """Whether a pipeline draws the mask of an image that it is told."""
    return isinstance(pipeline.codec, MaskCodec) and isinstance(pipeline.conditioner, ImageConditioner)


def log_probabilities(probabilities: Tensor) -> Tensor:
    """Logarithms, whose softmax are the probabilities again; none of these is taken to be below `LEAST`."""
    return probabilities.clamp(min=LEAST).log()


def running_means(probabilities: Tensor) -> Tensor:
    """Means over the first 1, 2, ... K samples: (K, ...) -> (K, ...)."""
    counts = torch.arange(1, len(probabilities) + 1, device=probabilities.device)
    return probabilities.cumsum(dim=0) / counts.reshape(-1, *[1] * (probabilities.ndim - 1))


def uncertainty(probabilities: Tensor) -> Tensor:
    """Entropy of class probabilities as a share of the largest there is: (..., C, H, W) -> (..., H, W) in [0, 1].

    0: one class is certain; 1: all classes are alike. Of the mean of samples it is what they do not agree on, and what
    each of them leaves open.
    """
    entropy = reduce(torch.special.entr(probabilities.float()), "... c h w -> ... h w", "sum")
    return entropy / math.log(probabilities.shape[-3])
