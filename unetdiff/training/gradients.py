"""Whether the two losses of a joint run pull the shared weights the same way: the cosine of their gradients by level.

A cosine below zero is what Yu et al. 2020 ("Gradient surgery for multi-task learning", definition 1) call conflicting.
"""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from unetdiff.models.param_groups import parameters_by_level
from unetdiff.models.unet import UNet
from unetdiff.training.weighting import HEADS


class GradientComparison:
    """The gradients of one optimizer step's losses, each by itself and unweighed, over its parts and processes.

    To be called with the losses of each part before their own backward pass, which it leaves as it is: the gradients go
    beside the parameters' own, and no random number is drawn. It costs a backward pass a head.

    Args:
        unet: the network under both heads.
        accelerator: of the run.
    """

    def __init__(self, unet: UNet, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        levels = parameters_by_level(unet)
        self.parameters: list[nn.Parameter] = []
        self.groups: dict[str, slice] = {}  # of the flat gradient
        size = 0
        for group, members in levels.items():
            trained = [parameter for parameter in members.values() if parameter.requires_grad]
            start, size = size, size + sum(parameter.numel() for parameter in trained)
            self.parameters += trained
            if trained:
                self.groups[group] = slice(start, size)
        self.groups["all"] = slice(0, size)
        self.sums: dict[str, Tensor | float] = dict.fromkeys(HEADS, 0.0)

    def __call__(self, losses: dict[str, Tensor]) -> None:
        """Add the gradients of a part; "segmentation/loss" and "diffusion/loss" have their graph."""
        scaler = self.accelerator.scaler
        scale = 1.0 if scaler is None else scaler.get_scale()  # float16 would underflow
        for head in HEADS:
            gradients = torch.autograd.grad(
                losses[f"{head}/loss"] * scale, self.parameters, retain_graph=True, materialize_grads=True
            )
            flat = torch.cat([gradient.flatten().float() for gradient in gradients]) / scale
            self.sums[head] = self.sums[head] + flat

    def figures(self) -> dict[str, float]:
        """GROUP/cosine (nan where a gradient is zero) and GROUP/HEAD_norm of each group and of "all". Collective.

        Norms are those of the gradient of the mean loss over the step's images.
        """
        parts = self.accelerator.gradient_accumulation_steps
        means: list[Tensor] = [
            self.accelerator.reduce(self.sums[head], reduction="mean") / parts  # type: ignore[operator]
            for head in HEADS
        ]
        figures: dict[str, float] = {}
        for group, where in self.groups.items():
            segmentation, diffusion = (mean[where].double() for mean in means)
            norms = segmentation.norm(), diffusion.norm()
            figures[f"{group}/cosine"] = float(segmentation @ diffusion / (norms[0] * norms[1]))
            figures |= {f"{group}/{head}_norm": float(norm) for head, norm in zip(HEADS, norms, strict=True)}
        return figures
