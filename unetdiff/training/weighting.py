"""How the two losses of a joint run are weighed: as given, by learned uncertainties, or by the size of their gradients.

Each weighting is a module, so that what it learns or remembers is in the optimizer and in the checkpoints.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from unetdiff.models.unet import UNet
from unetdiff.training.config import JointConfig

HEADS = ("segmentation", "diffusion")
MEMORY = 0.99  # share of the moving average of a gradient's norm that a step keeps: about the last hundred steps
SMALLEST = 1e-12  # norm that a gradient is taken to have at least


class Weighting(nn.Module, ABC):
    """The sum of both losses, weighed.

    Args:
        config: the weights that are given.
    """

    def __init__(self, config: JointConfig) -> None:
        super().__init__()
        self.given = {"segmentation": config.segmentation_weight, "diffusion": config.diffusion_weight}

    @abstractmethod
    def forward(self, losses: Mapping[str, Tensor], unet: UNet, processes: int) -> tuple[Tensor, dict[str, Tensor]]:
        """What is differentiated, and the weight of each loss for the log.

        Args:
            losses: of each head, scalars in float32.
            unet: the network under both.
            processes: that share the batch.
        """

    def _sum(self, losses: Mapping[str, Tensor], weights: Mapping[str, float | Tensor]) -> Tensor:
        return weights["segmentation"] * losses["segmentation"] + weights["diffusion"] * losses["diffusion"]


class Fixed(Weighting):
    """As given. Nothing is learned, remembered or logged."""

    def forward(self, losses: Mapping[str, Tensor], unet: UNet, processes: int) -> tuple[Tensor, dict[str, Tensor]]:
        return self._sum(losses, self.given), {}


class Uncertainty(Weighting):
    """Each loss as a likelihood with a noise of its own, which is learned (Kendall et al. 2018, equation 10).

    L_diffusion / (2 σ_d²) + L_segmentation / σ_s² + log σ_d + log σ_s: the squared error of a regression, and the cross
    entropy of a classification. Learned is log σ² of each (section 3.3), which starts at 0; the losses are first
    multiplied by the weights that are given.
    """

    def __init__(self, config: JointConfig) -> None:
        super().__init__(config)
        self.log_variances = nn.Parameter(torch.zeros(2))  # log σ², in the order of HEADS

    def forward(self, losses: Mapping[str, Tensor], unet: UNet, processes: int) -> tuple[Tensor, dict[str, Tensor]]:
        precision = dict(zip(HEADS, torch.exp(-self.log_variances), strict=True))
        halves = {"segmentation": 1.0, "diffusion": 0.5}
        weights = {head: halves[head] * self.given[head] * precision[head] for head in HEADS}
        return self._sum(losses, weights) + 0.5 * self.log_variances.sum(), weights


class GradientNorm(Weighting):
    """The losses' gradients at the last shared layer have norms in the proportion of the weights that are given.

    GradNorm (Chen et al. 2018) with no regard to the training rates (α = 0), whose goal, equal norms w_i G_i under a
    fixed sum of weights, is then solved at once instead of by gradient steps: w_i = p_i / G_i, times what makes them
    add up to the sum of the p_i that are given. G_i is the moving average of the norm of loss i's gradient.
    """

    def __init__(self, config: JointConfig) -> None:
        super().__init__(config)
        self.norms: Tensor
        self.register_buffer("norms", torch.zeros(2))  # moving averages in the order of HEADS, less than they are ...
        self.known: Tensor
        self.register_buffer("known", torch.zeros(()))  # ... by this share (Adam's correction of the start)

    def forward(self, losses: Mapping[str, Tensor], unet: UNet, processes: int) -> tuple[Tensor, dict[str, Tensor]]:
        if self.training and torch.is_grad_enabled():
            self._measure([losses[head] for head in HEADS], last_shared(unet), processes)
        given = torch.tensor([self.given[head] for head in HEADS], device=self.norms.device)
        norms = torch.where(self.known > 0, self.norms / self.known.clamp(min=SMALLEST), 1.0)
        inverse = given / norms.clamp(min=SMALLEST)
        weights = dict(zip(HEADS, inverse * given.sum() / inverse.sum(), strict=True))
        return self._sum(losses, weights), weights

    def _measure(self, losses: list[Tensor], layer: nn.Parameter, processes: int) -> None:
        """Move the averages to the norms of this batch's gradients, over all processes; norms that are not finite do
        not count."""
        gradients = torch.stack([torch.autograd.grad(loss, layer, retain_graph=True)[0].float() for loss in losses])
        if processes > 1:
            torch.distributed.all_reduce(gradients)
        norms = gradients.flatten(1).norm(dim=1) / processes  # (2,)
        finite = norms.isfinite().all()
        self.norms.copy_(torch.where(finite, torch.lerp(norms, self.norms, MEMORY), self.norms))
        self.known.copy_(torch.where(finite, MEMORY * self.known + (1 - MEMORY), self.known))


def last_shared(unet: UNet) -> nn.Parameter:
    """The weight of the last layer that both heads read from: the end of the decoder."""
    return [parameter for parameter in unet.decoder.parameters() if parameter.ndim > 1][-1]


WEIGHTINGS: dict[str, type[Weighting]] = {"fixed": Fixed, "uncertainty": Uncertainty, "gradient_norm": GradientNorm}
