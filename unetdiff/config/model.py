"""The `model:` section of a run: the network's own config, and the pretrained model that it is."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from unetdiff.models.config import ModelConfig


@dataclass
class RunModelConfig(ModelConfig):
    """The network of a run, new or pretrained."""

    pretrained: str | None = None
    """Train on from this model: a diffusers pipeline directory (Stable Diffusion, DDPM), a U-Net's directory, a run or
    model directory, or a name on the Hub. Network, noise schedule, autoencoder and text encoder follow from it."""
    revision: str | None = None
    """Branch, tag or commit of model.pretrained on the Hub."""

    def network(self) -> dict[str, Any]:
        """The arguments of `UNet`."""
        return {item.name: getattr(self, item.name) for item in fields(ModelConfig)}
