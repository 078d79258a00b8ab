"""Loss guidance: samples are guided by the gradient of a loss of the predicted clean image x_0, or of x_t.

Classifier guidance (Dhariwal & Nichol 2021, algorithm 2) adds the gradient of a classifier of noisy images x_t to the
predicted noise: that of a network trained on noisy images, such as a denoiser's own segmentation head. Where the loss
sees the clean image that the denoiser predicts, any network trained on clean images can be used (universal guidance,
Bansal et al. 2023, equation 6; diffusion posterior sampling, Chung et al. 2023).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import Any, Literal

import torch
from einops import reduce
from torch import Tensor
from torch.nn import functional as F

from unetdiff.data.transforms import ignore_mask
from unetdiff.diffusion.denoising import PredictOutput
from unetdiff.diffusion.guidance import in_guidance_interval
from unetdiff.diffusion.objectives import Scheduler
from unetdiff.diffusion.processes.ddpm import DDPM
from unetdiff.diffusion.processes.load import process_of
from unetdiff.errors import UserError
from unetdiff.segmentation.tiles import resize_logits

Target = Literal["network", "image"]
Seen = Literal["x0", "xt"]
ImageLoss = Callable[[Tensor], Tensor]
"""Clean images in [-1, 1], (B, 3, H, W), to the loss of each, (B,)."""
NoisyLoss = Callable[[Tensor, Tensor], Tensor]
"""x_t (B, C, H, W) and its timesteps (B,), as the denoiser sees them, to the loss of each, (B,)."""


@dataclass(frozen=True)
class LossGuidance:
    """A loss, and how strongly, when and how far back its gradient is followed.

    Raises:
        UserError: a negative scale, or an interval outside [0, 1].
    """

    loss: ImageLoss | NoisyLoss
    """To be minimized: an `ImageLoss`, or, where it sees x_t, a `NoisyLoss`."""
    scale: float = 0.1
    """Norm of what is added to an image's predicted noise, as a fraction of that noise's own norm; 0: nothing."""
    interval: tuple[float, float] = (0.0, 1.0)
    """Fractions of the timesteps, 0 clean to 1 noise, between which the samples are guided."""
    backprop_through: Target = "image"
    """network: the gradient passes through the denoiser to x_t, at the cost of about two more passes. image: it ends at
    the predicted x_0, as if the predicted noise did not depend on x_t. Without effect where the loss sees x_t."""
    sees: Seen = "x0"
    """x0: the predicted clean image, of pixels only. xt: the noisy image or latents, with the timestep; the gradient
    does not pass through the denoiser."""

    def __post_init__(self) -> None:
        low, high = self.interval
        if not self.scale >= 0:
            raise UserError(f"scale={self.scale}: must be at least 0.")
        if not 0 <= low <= high <= 1:
            raise UserError(f"interval={list(self.interval)}: must be two increasing fractions in [0, 1], e.g. 0,1.")
        if self.backprop_through not in ("network", "image"):
            raise UserError(f"backprop_through={self.backprop_through!r}: must be network or image.")
        if self.sees not in ("x0", "xt"):
            raise UserError(f"sees={self.sees!r}: must be x0 or xt.")


def apply_loss_guidance(
    guidance: LossGuidance, scheduler: Scheduler, predict: PredictOutput, xt: Tensor, timestep: Tensor
) -> Tensor:
    """The network's output at x_t with its noise moved up the gradient of the loss, (B, C, H, W).

    ε becomes ε + scale · |ε| · g / |g|, with g the gradient of the loss with respect to x_t and the norms those of each
    image, so that the scale has the same meaning at every timestep and for every loss. Where the gradient is 0, outside
    the interval, at a scale of 0 and where α_t is 0 the output is the network's own.

    Args:
        guidance: see there.
        scheduler: forward process, prediction type, and whether x_0 is clipped.
        predict: the denoiser, classifier-free guidance included.
        xt: noisy images of unit-variance noise, (B, C, H, W).
        timestep: of all of them, ().
    """
    process, timesteps = process_of(scheduler), timestep.to(xt.device).expand(len(xt))
    alpha, sigma = process.levels(timesteps)
    is_on = guidance.scale and in_guidance_interval(timestep, process, guidance.interval)
    if not is_on or not float(alpha[0]):
        return predict(xt, timestep)
    output, gradient = loss_gradient(guidance, scheduler, lambda x: predict(x, timestep), xt, timesteps)
    x0 = process.predicted_x0(output, xt, timesteps)
    noise = (xt - alpha * x0) / sigma
    norm = _norm(gradient)
    ratio = torch.where(norm > 0, _norm(noise) / norm, 0)
    guided = noise + guidance.scale * ratio * gradient
    x0 = (xt - sigma * guided) / alpha
    bound = _bound(scheduler)
    if bound is not None and not _clips(scheduler):  # next to pure noise a small change of ε is a large one of x_0
        x0 = x0.clamp(-bound, bound)
        guided = (xt - alpha * x0) / sigma
    return process.target(x0, guided, timesteps)


def _bound(scheduler: Scheduler) -> float | None:
    """x_0 is clipped to [-bound, bound], that of pixels where no config says otherwise; None: it is not clipped."""
    if not isinstance(process_of(scheduler), DDPM):
        return 1.0
    return scheduler.config.get("clip_sample_range", 1.0) if scheduler.config.get("clip_sample") else None


def _clips(scheduler: Scheduler) -> bool:
    """Whether the sampler clips x_0 itself; the fast solvers do not."""
    return "clip_sample" in signature(type(scheduler)).parameters


def loss_gradient(
    guidance: LossGuidance, scheduler: Scheduler, predict: Callable[[Tensor], Tensor], xt: Tensor, timesteps: Tensor
) -> tuple[Tensor, Tensor]:
    """The network's output at x_t and the gradient of each image's loss with respect to x_t, (B, C, H, W) each.

    A loss of x_0 sees it clipped to its range, if it has one.
    """
    process = process_of(scheduler)
    loss: Any = guidance.loss
    with torch.enable_grad():
        x = xt.detach().requires_grad_()
        if guidance.sees == "xt":
            (gradient,) = torch.autograd.grad(loss(x, timesteps).sum(), x)
            with torch.no_grad():
                return predict(xt).detach(), gradient.detach()
        if guidance.backprop_through == "network":
            output = predict(x)
            x0 = process.predicted_x0(output, x, timesteps)
        else:
            with torch.no_grad():
                output = predict(xt)
            alpha = process.levels(timesteps)[0]
            x0 = process.predicted_x0(output, xt, timesteps) + (x - xt) / alpha  # the noise stays, not v or x_0
        bound = _bound(scheduler)
        if bound is not None:
            x0 = x0.clamp(-bound, bound)
        (gradient,) = torch.autograd.grad(loss(x0).sum(), x)
    return output.detach(), gradient.detach()


def layout_loss(segment: Callable[..., Tensor], layouts: Tensor, ignore_index: int = 255) -> Callable[..., Tensor]:
    """The cross-entropy of a segmenter's logits against the layouts that the samples should have.

    Args:
        segment: images in [-1, 1] (B, 3, H, W), or x_t and its timesteps, to logits (B, classes, h, w); its weights
            need no gradient.
        layouts: class indices and `ignore_index`, (B, H', W'); the logits are resized to them.
        ignore_index: pixels without a required class.

    Returns:
        What `segment` takes to the mean over each image's pixels that are not ignored, (B,); 0 where all are.
    """

    def loss(images: Tensor, *timesteps: Tensor) -> Tensor:
        targets = layouts.to(images.device).long()
        targets = targets.masked_fill(ignore_mask(targets, ignore_index), ignore_index)
        logits = resize_logits(segment(images, *timesteps), (targets.shape[-2], targets.shape[-1]))
        losses = F.cross_entropy(logits, targets, ignore_index=ignore_index, reduction="none")  # (B, H', W')
        pixels = reduce((targets != ignore_index).float(), "b h w -> b", "sum").clamp(min=1)
        return reduce(losses, "b h w -> b", "sum") / pixels

    return loss


def _norm(tensor: Tensor) -> Tensor:
    """The L2 norm of each image of (B, C, H, W), (B, 1, 1, 1)."""
    return torch.linalg.vector_norm(tensor.flatten(1).float(), dim=1)[:, None, None, None]
