"""Drawing that starts from an image: image-to-image, inpainting, and the way between two noises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from unetdiff.diffusion.codecs import Codec, PixelCodec
from unetdiff.diffusion.conditioning.images import ImageInput, fitted, unit, unit_image
from unetdiff.errors import UserError

STRENGTH, STRENGTH_WITH_MASK = 0.8, 1.0

Mask = Tensor | np.ndarray | Image.Image


@dataclass(frozen=True)
class Known:
    """The image that drawing starts from, and where it stays."""

    pixels: Tensor
    """In [-1, 1], (B, 3, H, W)."""
    hole: Tensor | None
    """1 where the image is drawn anew, 0 where it stays, (B, 1, H, W); None: everywhere."""
    clean: Tensor
    """What is noised: the pixels, or their latents, (B, C, h, w)."""
    noise: Tensor
    """Of unit variance, (B, C, h, w)."""
    repaint: Tensor | None
    """The hole at the size of the noise: every cell that has a part of it, (B, 1, h, w)."""

    def at(self, scheduler: Any, timestep: Tensor) -> Tensor:
        """The image noised to a timestep, (): what drawing starts from (SDEdit, Meng et al. 2022, algorithm 1)."""
        return scheduler.add_noise(self.clean, self.noise, timestep.expand(1))

    def kept(self, scheduler: Any, xt: Tensor, timestep: Tensor | None) -> Tensor:
        """x_t with the known image, noised to the timestep, where it stays (Lugmayr et al. 2022, equation 8).

        timestep: of x_t, (); None: x_t is the finished image.
        """
        if self.repaint is None:
            return xt
        known = self.clean if timestep is None else self.at(scheduler, timestep)
        return self.repaint * xt + (1 - self.repaint) * known

    def pasted(self, pixels: Tensor) -> Tensor:
        """Drawn pixels (B, 3, H, W) with the image's own where it stays, which no autoencoder gives back the same."""
        return pixels if self.hole is None else self.hole * pixels + (1 - self.hole) * self.pixels


def known_image(image: ImageInput, mask: Mask | None, noise: Tensor, codec: Codec | None = None) -> Known:
    """An image, and where to repaint it, at the size and on the device of the noise (B, C, h, w).

    Args:
        image: as `unit_image` takes it; one for all, or one for each.
        mask: (H, W) or (B, H, W), uint8 or in [0, 1], or a PIL image; what is brighter than half is drawn anew; None:
            all of it.
        noise: of unit variance.
        space: what is noised; None: pixels.

    Raises:
        UserError: shapes that do not fit.
    """
    codec = codec or PixelCodec()
    grid = (noise.shape[-2], noise.shape[-1])
    size = (grid[0] * codec.factor, grid[1] * codec.factor)
    pixels = (fitted(unit_image(image), size) * 2 - 1).to(noise)
    if len(pixels) not in (1, len(noise)):
        raise UserError(f"image: {len(pixels)} images are given for {len(noise)} to draw.")
    hole = repaint = None
    if mask is not None:
        grey = _unit_mask(mask)
        if len(grey) not in (1, len(noise)):
            raise UserError(f"mask_image: {len(grey)} masks are given for {len(noise)} images.")
        hole = (fitted(grey, size) > 0.5).to(noise).expand(len(noise), 1, *size)
        repaint = F.adaptive_max_pool2d(hole, grid)
    clean = codec.encode(pixels).expand_as(noise)
    return Known(pixels.expand(len(noise), *pixels.shape[1:]), hole, clean, noise, repaint)


def img2img_timesteps(scheduler: Any, num_inference_steps: int, strength: float) -> Tensor:
    """The timesteps that are left of a schedule when drawing starts from an image, and the scheduler told so.

    strength: share of the steps that are done, above 0; 1: all of them.

    Raises:
        UserError: a share that is none, or leaves no step.
    """
    if not 0 < strength <= 1:
        raise UserError(f"strength: {strength} is no share of the steps; use above 0 to 1.")
    left = round(num_inference_steps * strength)
    if left < 1:
        raise UserError(
            f"strength: {strength} of {num_inference_steps} steps is none; use a larger one, or more steps."
        )
    first = (num_inference_steps - left) * scheduler.order
    if hasattr(scheduler, "set_begin_index"):  # schedulers that count their own steps
        scheduler.set_begin_index(first)
    return scheduler.timesteps[first:]


def slerp(first: Tensor, last: Tensor, frames: int) -> Tensor:
    """Noises on the great circle from one to another, both ends included: (C, H, W) twice to (frames, C, H, W).

    A straight line would pass through noise of less variance, which draws grey (Shoemake 1985; Ho et al. 2020, section
    4.4 interpolate images).

    Raises:
        UserError: fewer than two frames.
    """
    if frames < 2:
        raise UserError(f"frames: {frames} have no ends; use 2 or more.")
    cosine = F.cosine_similarity(first.flatten(), last.flatten(), dim=0).clamp(-1, 1)
    angle = torch.arccos(cosine)
    share = torch.linspace(0, 1, frames, device=first.device)[:, None, None, None]
    if angle.sin() < 1e-4:  # one and the same noise
        return (1 - share) * first + share * last
    return (torch.sin((1 - share) * angle) * first + torch.sin(share * angle) * last) / torch.sin(angle)


def _unit_mask(mask: Mask) -> Tensor:
    """(B, 1, H, W) in [0, 1]."""
    if isinstance(mask, Image.Image):
        mask = np.array(mask.convert("L"))
    grey = mask if isinstance(mask, Tensor) else torch.from_numpy(mask)
    grey = grey[None] if grey.ndim == 2 else grey
    if grey.ndim != 3:
        raise UserError(
            f"mask_image: a mask is (H, W), or (B, H, W) for several; this has the shape {tuple(grey.shape)}."
        )
    if grey.dtype == torch.uint8 and grey.max() == 1:
        raise UserError("mask_image: of uint8, white is 255, and this goes up to 1; give bool, or 0 and 255.")
    return unit(grey, "mask_image")[:, None]
