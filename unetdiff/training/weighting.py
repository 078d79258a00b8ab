"""Weighting of the two losses of a joint run: fixed, by learned uncertainties, or by the norms of their gradients.

Each weighting is a module: its parameters are in the optimizer, its parameters and buffers in the checkpoints.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from unetdiff.config.training import JointConfig
from unetdiff.models.param_groups import CONDITIONING, parameters_by_level
from unetdiff.models.unet import UNet

HEADS = ("segmentation", "diffusion")
NORM_DECAY = 0.99  # decay of the moving average of a gradient's norm: about the last 100 steps
MIN_NORM = 1e-12  # lower bound of a gradient's norm


class Weighting(nn.Module, ABC):
    """A weighted sum of both losses.

    Args:
        config: `segmentation_weight` and `diffusion_weight`, the base weights.
    """

    observes: bool = False
    """Whether `observe` needs the losses of each micro-batch."""

    def __init__(self, config: JointConfig) -> None:
        super().__init__()
        self.base_weights = {"segmentation": config.segmentation_weight, "diffusion": config.diffusion_weight}

    @abstractmethod
    def forward(self, losses: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The total loss, and the weight of each loss for the log.

        losses: of each head over a whole step, scalars in float32.
        """

    def observe(self, unet: UNet, losses: Mapping[str, Tensor]) -> None:
        """Called before the backward pass of each micro-batch (see `optimizer_step`), if `observes`."""

    def end_step(self, finite: bool, processes: int) -> None:
        """Called after each step. Collective.

        Args:
            finite: whether the weights were updated.
            processes: number of processes of the run.
        """

    def _sum(self, losses: Mapping[str, Tensor], weights: Mapping[str, float | Tensor]) -> Tensor:
        return weights["segmentation"] * losses["segmentation"] + weights["diffusion"] * losses["diffusion"]


class Fixed(Weighting):
    """The base weights; no state, nothing logged."""

    def forward(self, losses: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return self._sum(losses, self.base_weights), {}


class Uncertainty(Weighting):
    """Each loss as a likelihood with its own learned noise (Kendall et al. 2018, equation 10).

    L_diffusion / (2 σ_d²) + L_segmentation / σ_s² + log σ_d + log σ_s: the squared error of a regression, and the cross
    entropy of a classification. The parameters are log σ² (section 3.3), initialized to 0; the losses are first
    multiplied by the base weights.
    """

    def __init__(self, config: JointConfig) -> None:
        super().__init__(config)
        self.log_variances = nn.Parameter(torch.zeros(2))  # log σ², in the order of HEADS

    def forward(self, losses: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        precision = dict(zip(HEADS, torch.exp(-self.log_variances), strict=True))
        halves = {"segmentation": 1.0, "diffusion": 0.5}
        weights = {head: halves[head] * self.base_weights[head] * precision[head] for head in HEADS}
        return self._sum(losses, weights) + 0.5 * self.log_variances.sum(), weights


class GradientNorm(Weighting):
    """The norms of the losses' gradients at the last shared layer are kept in the ratio of the base weights.

    GradNorm (Chen et al. 2018) without its training rates (α = 0). Its goal, equal norms w_i G_i under a fixed sum of
    weights, then has a closed form: w_i = p_i / G_i, rescaled to sum to Σ p_i, where p_i are the base weights and G_i
    is the moving average of the norm of loss i's gradient in the steps before. The first step has the base weights.
    """

    observes = True

    def __init__(self, config: JointConfig) -> None:
        super().__init__(config)
        self.norms: Tensor
        self.register_buffer("norms", torch.zeros(2))  # moving averages, in the order of HEADS, biased to 0 ...
        self.debias: Tensor
        self.register_buffer("debias", torch.zeros(()))  # ... by this factor (as Adam's moments, corrected likewise)
        self._gradients: Tensor | None = None  # of this step's micro-batches, (2, size of the layer)

    def forward(self, losses: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        base = torch.tensor([self.base_weights[head] for head in HEADS], device=self.norms.device)
        norms = torch.where(self.debias > 0, self.norms / self.debias.clamp(min=MIN_NORM), 1.0)
        inverse = base / norms.clamp(min=MIN_NORM)
        weights = dict(zip(HEADS, inverse * base.sum() / inverse.sum(), strict=True))
        return self._sum(losses, weights), weights

    def observe(self, unet: UNet, losses: Mapping[str, Tensor]) -> None:
        layer = last_shared_weight(unet)
        dtype = torch.promote_types(layer.dtype, torch.float32)
        gradients = torch.stack(
            [
                torch.autograd.grad(losses[head], layer, retain_graph=True, materialize_grads=True)[0].flatten()
                for head in HEADS
            ]
        ).to(dtype)
        self._gradients = gradients if self._gradients is None else self._gradients + gradients

    def end_step(self, finite: bool, processes: int) -> None:
        """Update the averages with the norms of the step's gradients, unless one is not finite."""
        gradients, self._gradients = self._gradients, None
        if gradients is None or not finite:
            return
        if processes > 1:
            torch.distributed.all_reduce(gradients)
        norms = gradients.norm(dim=1) / processes  # (2,)
        is_finite = norms.isfinite().all()
        self.norms.copy_(torch.where(is_finite, torch.lerp(norms, self.norms, NORM_DECAY), self.norms))
        self.debias.copy_(torch.where(is_finite, NORM_DECAY * self.debias + (1 - NORM_DECAY), self.debias))


def last_shared_weight(unet: UNet) -> nn.Parameter:
    """The weight of the last layer shared by both heads: the end of the decoder, or where their own levels begin."""
    groups = parameters_by_level(unet)
    groups.pop(CONDITIONING, None)
    return [weight for members in groups.values() for weight in members.values() if weight.ndim > 1][-1]


WEIGHTINGS: dict[str, type[Weighting]] = {"fixed": Fixed, "uncertainty": Uncertainty, "gradient_norm": GradientNorm}
