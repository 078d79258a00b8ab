"""Image-to-image (SDEdit, Meng et al. 2022) and inpainting (RePaint, Lugmayr et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from unetdiff.diffusion import schedulers
from unetdiff.diffusion.codecs import Codec, PixelCodec
from unetdiff.diffusion.conditioning.images import ImageInput, fitted, unit, unit_image
from unetdiff.errors import UserError

Mask = Tensor | np.ndarray | Image.Image


@dataclass(frozen=True)
class ImageStart:
    """Sampling that starts from an image instead of pure noise."""

    image: ImageInput
    """One for all samples, or one for each; resized to the result."""
    mask_image: Mask | None = None
    """Repainted where bright, kept where dark; of any size. None: all of it is repainted."""
    strength: float = 0.8
    """Fraction of the denoising steps that are run, in (0, 1]; 1 keeps nothing of what is repainted."""


@dataclass(frozen=True)
class KnownImage:
    """The image that sampling starts from, and where it is kept."""

    pixels: Tensor
    """In [-1, 1], (B, 3, H, W)."""
    mask: Tensor | None
    """1 where the image is repainted, 0 where it is kept, (B, 1, H, W); None: repainted everywhere."""
    clean: Tensor
    """x_0: the pixels, or their latents, (B, C, h, w)."""
    noise: Tensor
    """ε, of unit variance, (B, C, h, w)."""
    latent_mask: Tensor | None
    """The mask at the size of the noise: 1 in every cell with a repainted pixel, (B, 1, h, w)."""

    def noised(self, scheduler: Any, timestep: Tensor) -> Tensor:
        """The image noised to a timestep, (): where SDEdit starts (Meng et al. 2022, algorithm 1)."""
        return schedulers.add_noise(scheduler, self.clean, self.noise, timestep)

    def keep(self, scheduler: Any, xt: Tensor, timestep: Tensor | None) -> Tensor:
        """x_t with the known image, noised to the timestep, where it is kept (Lugmayr et al. 2022, equation 8).

        timestep: of x_t, (); None: x_t is the finished image.
        """
        if self.latent_mask is None:
            return xt
        known = self.clean if timestep is None else self.noised(scheduler, timestep)
        return self.latent_mask * xt + (1 - self.latent_mask) * known

    def paste(self, pixels: Tensor) -> Tensor:
        """Sampled pixels (B, 3, H, W) with the image's own where it is kept, which an autoencoder would change."""
        return pixels if self.mask is None else self.mask * pixels + (1 - self.mask) * self.pixels


class Inpainting:
    """A callback of `denoise` that puts the known image back after every step."""

    def __init__(self, known: KnownImage, scheduler: Any, timesteps: Tensor) -> None:
        self.known, self.scheduler, self.timesteps = known, scheduler, timesteps

    def __call__(self, step: int, timestep: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
        following = self.timesteps[step + 1] if step + 1 < len(self.timesteps) else None
        return {"latents": self.known.keep(self.scheduler, state["latents"], following)}


def start_sampling(
    start: ImageStart | None, scheduler: Any, latents: Tensor, num_inference_steps: int, codec: Codec
) -> tuple[Tensor, Tensor, KnownImage | None]:
    """x_t at the first timestep (B, C, h, w), the timesteps that are run, and the image that is kept, if any.

    Args:
        start: an image; None: noise.
        scheduler: after `schedulers.set_steps`.
        latents: noise of unit variance, (B, C, h, w).
        num_inference_steps: of the whole schedule.
        codec: of the denoiser.
    """
    noise, timesteps = latents * schedulers.init_noise_sigma(scheduler), scheduler.timesteps
    if start is None:
        return noise, timesteps, None
    known = known_image(start.image, start.mask_image, latents, codec)
    remaining = img2img_timesteps(scheduler, num_inference_steps, start.strength)
    if len(remaining) == len(timesteps):
        return noise, timesteps, known
    return known.noised(scheduler, remaining[0]), remaining, known


def known_image(image: ImageInput, mask_image: Mask | None, noise: Tensor, codec: Codec | None = None) -> KnownImage:
    """An image, and where to repaint it, at the size and on the device of the noise (B, C, h, w).

    Args:
        image: as `unit_image` takes it; one for all, or one for each.
        mask_image: (H, W) or (B, H, W), uint8 or in [0, 1], or a PIL image; repainted above 0.5; None: everywhere.
        noise: of unit variance.
        codec: of the denoiser; None: pixels.

    Raises:
        UserError: shapes that do not fit.
    """
    codec = codec or PixelCodec()
    grid = (noise.shape[-2], noise.shape[-1])
    size = (grid[0] * codec.factor, grid[1] * codec.factor)
    pixels = (fitted(unit_image(image), size) * 2 - 1).to(noise)
    if len(pixels) not in (1, len(noise)):
        raise UserError(f"image: must be 1 or {len(noise)} images, one per sample (got {len(pixels)}).")
    mask = latent_mask = None
    if mask_image is not None:
        gray = _unit_mask(mask_image)
        if len(gray) not in (1, len(noise)):
            raise UserError(f"mask_image: must be 1 or {len(noise)} masks, one per sample (got {len(gray)}).")
        mask = (fitted(gray, size) > 0.5).to(noise).expand(len(noise), 1, *size)
        latent_mask = F.adaptive_max_pool2d(mask, grid)
    clean = codec.encode(pixels).expand_as(noise)
    return KnownImage(pixels.expand(len(noise), *pixels.shape[1:]), mask, clean, noise, latent_mask)


def img2img_timesteps(scheduler: Any, num_inference_steps: int, strength: float) -> Tensor:
    """The last timesteps of a schedule, those that image-to-image runs; sets the scheduler's begin index.

    strength: fraction of the steps that are run, in (0, 1].

    Raises:
        UserError: a strength outside (0, 1], or one that leaves no step.
    """
    if not 0 < strength <= 1:
        raise UserError(f"strength={strength}: must be in (0, 1].")
    left = round(num_inference_steps * strength)
    if left < 1:
        raise UserError(
            f"strength={strength}: must leave at least one of num_inference_steps={num_inference_steps}. "
            "Increase either of them."
        )
    first = (num_inference_steps - left) * scheduler.order
    if hasattr(scheduler, "set_begin_index"):  # schedulers that count their own steps
        scheduler.set_begin_index(first)
    return scheduler.timesteps[first:]


def _unit_mask(mask: Mask) -> Tensor:
    """(B, 1, H, W) in [0, 1]."""
    if isinstance(mask, Image.Image):
        mask = np.array(mask.convert("L"))
    gray = mask if isinstance(mask, Tensor) else torch.from_numpy(mask)
    gray = gray[None] if gray.ndim == 2 else gray
    if gray.ndim != 3:
        raise UserError(f"mask_image: must have shape (H, W) or (B, H, W) (got {tuple(gray.shape)}).")
    if gray.dtype == torch.uint8 and gray.max() == 1:
        raise UserError("mask_image: must be in 0..255 for uint8 (got a maximum of 1). Give bool, or 0 and 255.")
    return unit(gray, "mask_image")[:, None]
