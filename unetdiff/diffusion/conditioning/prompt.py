"""Stable Diffusion's own conditioning: the text encoder's last hidden states are the tokens (Rombach et al. 2022)."""

from __future__ import annotations

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  (DiffusionPipeline looks for it in this module)
from einops import repeat
from torch import Tensor

from unetdiff.diffusion.conditioning.base import Conditioning, Size
from unetdiff.diffusion.conditioning.captions import CaptionConditioner, Features


class PromptConditioner(CaptionConditioner):
    """Prompts to tokens as in `StableDiffusionPipeline.encode_prompt`, without weights of its own.

    A prompt is padded to `max_tokens` (77 for CLIP) and all of its hidden states are tokens, those of the padding
    included. The null condition is the empty prompt.

    Args:
        dim: width of the text encoder, and the U-Net's `cross_attention_dim`.
        max_tokens: tokens of a prompt.
        channels: 5 for an inpainting network, whose input is the noisy latents, a mask and the masked image's latents.
    """

    padded = True

    @register_to_config
    def __init__(self, dim: int, max_tokens: int, channels: int = 0) -> None:
        super().__init__()
        self.max_tokens, self.channels = max_tokens, channels
        self.register_buffer("null", torch.zeros(max_tokens, dim), persistent=False)  # (max_tokens, dim)
        self._features: Features | None = None

    @property
    def features(self) -> Features | None:
        """The text encoder; setting it encodes the empty prompt."""
        return self._features

    @features.setter
    def features(self, features: Features | None) -> None:
        self._features = features
        if features is not None:
            self.null.copy_(features([""])[0])  # type: ignore[operator]

    def forward(self, conditions: Tensor, size: Size = (0, 0)) -> Conditioning:
        """Hidden states (B, max_tokens, dim) as tokens."""
        return Conditioning(tokens=conditions.to(self.null))  # type: ignore[call-overload]

    def null_condition(self, batch: int, size: Size = (0, 0)) -> Tensor:
        return repeat(self.null, "n d -> b n d", b=batch)  # type: ignore[arg-type]
