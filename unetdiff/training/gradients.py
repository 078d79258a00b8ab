"""Cosine similarity of the gradients of the two losses of a joint run, by level of the shared network.

Gradients with a negative cosine are conflicting (Yu et al. 2020, "Gradient surgery for multi-task learning",
definition 1).
"""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from unetdiff.models.param_groups import parameters_by_level
from unetdiff.models.unet import UNet
from unetdiff.training.weighting import HEADS


class GradientComparison:
    """Separate, unweighted gradients of the two losses, over all parts and processes of an optimizer step.

    Call it with both heads' losses of each part before the backward pass, which it does not affect: `.grad` is not
    touched and no random number is drawn. Their gradients add up over the parts, and average over the processes, to
    those of the step's losses. Costs one backward pass per head.

    Args:
        unet: the shared network.
        accelerator: of the run.
    """

    def __init__(self, unet: UNet, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        levels = parameters_by_level(unet)
        self.parameters: list[nn.Parameter] = []
        self.groups: dict[str, slice] = {}  # of the flat gradient
        size = 0
        for group, members in levels.items():
            trainable = [parameter for parameter in members.values() if parameter.requires_grad]
            start, size = size, size + sum(parameter.numel() for parameter in trainable)
            self.parameters += trainable
            if trainable:
                self.groups[group] = slice(start, size)
        self.groups["all"] = slice(0, size)
        self.sums: dict[str, Tensor | float] = dict.fromkeys(HEADS, 0.0)

    def __call__(self, losses: dict[str, Tensor]) -> None:
        """Add the gradients of a part's losses, by head."""
        scaler = self.accelerator.scaler
        scale = 1.0 if scaler is None else scaler.get_scale()  # float16 would underflow
        for head in HEADS:
            gradients = torch.autograd.grad(
                losses[head] * scale, self.parameters, retain_graph=True, materialize_grads=True
            )
            flat = torch.cat([gradient.flatten().float() for gradient in gradients]) / scale
            self.sums[head] = self.sums[head] + flat

    def metrics(self) -> dict[str, float]:
        """GROUP/cosine (nan where a gradient is zero) and GROUP/HEAD_norm of each group and of "all". Collective.

        Norms are of the gradient of the mean loss over the images of the step.
        """
        means: list[Tensor] = [
            self.accelerator.reduce(self.sums[head], reduction="mean")  # type: ignore[arg-type, misc]
            for head in HEADS
        ]
        metrics: dict[str, float] = {}
        for group, where in self.groups.items():
            segmentation, diffusion = (mean[where].double() for mean in means)
            norms = segmentation.norm(), diffusion.norm()
            metrics[f"{group}/cosine"] = float(segmentation @ diffusion / (norms[0] * norms[1]))
            metrics |= {f"{group}/{head}_norm": float(norm) for head, norm in zip(HEADS, norms, strict=True)}
        return metrics
