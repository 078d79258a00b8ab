"""Steering: a denoiser is led to what a loss of clean images wants, by the loss's gradient at the predicted x_0.

Classifier guidance (Dhariwal & Nichol 2021, algorithm 2) adds the gradient of a classifier of noisy images to the
predicted noise. Here the classifier sees the clean image that the denoiser predicts, so that any network of clean
images steers (universal guidance, Bansal et al. 2023, equation 6; diffusion posterior sampling, Chung et al. 2023).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import Literal

import torch
from einops import rearrange, reduce
from torch import Tensor
from torch.nn import functional as F

from unetdiff.data.transforms import ignore_mask
from unetdiff.diffusion.guidance import in_guidance_interval
from unetdiff.diffusion.objectives import Scheduler, alpha_sigma, predicted_x0, target
from unetdiff.errors import UserError
from unetdiff.segmentation.tiles import resize_logits

Through = Literal["network", "image"]
ImageLoss = Callable[[Tensor], Tensor]
"""Clean images in [-1, 1], (B, 3, H, W), to the loss of each, (B,)."""
Predict = Callable[[Tensor], Tensor]
"""x_t (B, C, H, W) to the network's output (B, C, H, W), at one timestep."""


@dataclass(frozen=True)
class LossGuidance:
    """Where to, how hard, and when."""

    loss: ImageLoss
    """What is to become small."""
    scale: float = 0.1
    """Length of what is added to an image's predicted noise, as a share of that noise's own length; 0: nothing."""
    interval: tuple[float, float] = (0.0, 1.0)
    """Steered only here, shares of the timesteps from 0 (clean) to 1 (noise)."""
    through: Through = "image"
    """network: the gradient goes back through the denoiser to x_t, which costs about two more passes. image: it ends
    at the predicted x_0, as if the predicted noise did not depend on x_t."""

    def __post_init__(self) -> None:
        low, high = self.interval
        if not self.scale >= 0:
            raise UserError(f"scale: {self.scale} steers away; use 0 or more")
        if not 0 <= low <= high <= 1:
            raise UserError(f"interval: {list(self.interval)} is no interval of shares; use e.g. 0,1")
        if self.through not in ("network", "image"):
            raise UserError(f"through: {self.through!r} is unknown; use network or image")


def steered(steering: LossGuidance, scheduler: Scheduler, predict: Predict, xt: Tensor, timestep: Tensor) -> Tensor:
    """The network's output at x_t, its noise moved up the gradient of the loss: (B, C, H, W).

    ε becomes ε + scale · |ε| · g / |g|, where g is the gradient of the loss with respect to x_t and the lengths are
    those of each image. So the scale means the same at every timestep, and whatever the loss is measured in. Where
    the loss has no gradient, outside the interval, at a scale of 0 and where α_t is 0 the output is the network's own.

    Args:
        steering: see there.
        scheduler: says the forward process, the prediction type, and whether x_0 is clipped.
        predict: the denoiser, guidance included.
        xt: noisy images of unit-variance noise, (B, C, H, W).
        timestep: of all of them, ().
    """
    timesteps = timestep.to(xt.device).round().long().expand(len(xt))
    alpha, sigma = (rearrange(level, "b -> b 1 1 1") for level in alpha_sigma(scheduler, timesteps))
    on = steering.scale and in_guidance_interval(timestep, len(scheduler.alphas_cumprod), steering.interval)
    if not on or not float(alpha[0]):
        return predict(xt)
    output, gradient = loss_gradient(steering, scheduler, predict, xt, timesteps)
    x0 = predicted_x0(scheduler, output, xt, timesteps)
    noise = (xt - alpha * x0) / sigma
    length = _length(gradient)
    share = torch.where(length > 0, _length(noise) / length, 0)
    moved = noise + steering.scale * share * gradient
    x0 = (xt - sigma * moved) / alpha
    if _left_unclipped(scheduler):  # next to pure noise a small change of ε is a large one of x_0
        most = scheduler.config.get("clip_sample_range", 1.0)
        x0 = x0.clamp(-most, most)
        moved = (xt - alpha * x0) / sigma
    return target(scheduler, x0, moved, timesteps)


def _left_unclipped(scheduler: Scheduler) -> bool:
    """Whether x_0 is to be clipped, as the config says, and the sampler does not do it, as the fast ones do not."""
    return bool(scheduler.config.get("clip_sample")) and "clip_sample" not in signature(type(scheduler)).parameters


def loss_gradient(
    steering: LossGuidance, scheduler: Scheduler, predict: Predict, xt: Tensor, timesteps: Tensor
) -> tuple[Tensor, Tensor]:
    """The network's output at x_t and the gradient of each image's loss with respect to x_t, (B, C, H, W) each.

    The loss sees x_0 clipped to the range that the sampler clips it to, if it does.
    """
    with torch.enable_grad():
        x = xt.detach().requires_grad_()
        if steering.through == "network":
            output = predict(x)
            x0 = predicted_x0(scheduler, output, x, timesteps)
        else:
            with torch.no_grad():
                output = predict(xt)
            alpha = rearrange(alpha_sigma(scheduler, timesteps)[0], "b -> b 1 1 1")
            x0 = predicted_x0(scheduler, output, xt, timesteps) + (x - xt) / alpha  # the noise stays, not v or x_0
        if scheduler.config.get("clip_sample", False):
            most = scheduler.config.clip_sample_range
            x0 = x0.clamp(-most, most)
        (gradient,) = torch.autograd.grad(steering.loss(x0).sum(), x)
    return output.detach(), gradient.detach()


def layout_loss(segment: Callable[[Tensor], Tensor], layouts: Tensor, ignore_index: int = 255) -> ImageLoss:
    """The cross-entropy of what a segmenter sees in images against wished layouts.

    Args:
        segment: images in [-1, 1] (B, 3, H, W) to logits (B, classes, h, w); its weights need no gradient.
        layouts: class indices and void, (B, H', W'); the logits are resized to them.
        ignore_index: void: there any class is right.

    Returns:
        Images to the mean over each one's pixels that are not void, (B,); 0 where all are.
    """

    def loss(images: Tensor) -> Tensor:
        wished = layouts.to(images.device).long()
        wished = wished.masked_fill(ignore_mask(wished, ignore_index), ignore_index)
        logits = resize_logits(segment(images), (wished.shape[-2], wished.shape[-1]))
        each = F.cross_entropy(logits, wished, ignore_index=ignore_index, reduction="none")  # (B, H', W')
        counted = reduce((wished != ignore_index).float(), "b h w -> b", "sum").clamp(min=1)
        return reduce(each, "b h w -> b", "sum") / counted

    return loss


def _length(tensor: Tensor) -> Tensor:
    """The length of each image of (B, C, H, W), (B, 1, 1, 1)."""
    return torch.linalg.vector_norm(tensor.flatten(1).float(), dim=1)[:, None, None, None]
