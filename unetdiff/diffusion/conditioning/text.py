"""Text conditioning: features of a frozen text encoder, projected to tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  (DiffusionPipeline looks for it in this module)
from einops import repeat
from torch import Tensor, nn
from torch.nn import functional as F

from unetdiff.diffusion.conditioning.base import Conditioner, Conditioning, Examples, Size
from unetdiff.errors import UserError

MAX_ROWS = 8
"""Captions of the previews in training."""


class Features(Protocol):
    """A function from captions to features: a text encoder, or its cache."""

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """(B, max_tokens, width) float32; zeros after a caption's last token."""


class TextConditioner(Conditioner):
    """Features of captions to tokens: normalized, then projected without a bias, so that padding stays zero.

    The text encoder itself is frozen and not part of it: a `unetdiff.diffusion.conditioning.text_encoder.TextEncoder`
    (with its cache while training), handed in as `features`.

    Args:
        dim: width of a token, the U-Net's `cross_attention_dim`.
        width: width of the text encoder's features.
        max_tokens: tokens of a caption, shorter ones filled up with zeros.
    """

    pipeline_arg = "prompt"
    batch_key = "caption"

    @register_to_config
    def __init__(self, dim: int, width: int, max_tokens: int) -> None:
        super().__init__()
        self.width, self.max_tokens = width, max_tokens
        self.projection = nn.Linear(width, dim, bias=False)
        self.null_token = nn.Parameter(0.02 * torch.randn(dim))
        self.features: Features | None = None

    def forward(self, conditions: Tensor, size: Size = (0, 0)) -> Conditioning:
        """Features (B, max_tokens, width), all zeros for the null condition, as tokens (B, max_tokens, dim)."""
        features = conditions.to(self.null_token)
        is_set = features.abs().amax(dim=(1, 2)) > 0  # (B,)
        tokens = self.projection(F.layer_norm(features, (self.width,)))  # zeros stay zeros: (B, max_tokens, dim)
        null = F.pad(self.null_token[None], (0, 0, 0, self.max_tokens - 1))  # (max_tokens, dim)
        return Conditioning(
            tokens=torch.where(is_set[:, None, None], tokens, repeat(null, "n d -> b n d", b=len(tokens)))
        )

    def from_batch(self, batch: Mapping[str, Any]) -> Tensor:
        """The features of a batch's "caption" (a list of texts), (B, max_tokens, width)."""
        return self.encode(batch["caption"])

    def null_condition(self, batch: int, size: Size = (0, 0)) -> Tensor:
        return torch.zeros(batch, self.max_tokens, self.width)

    def examples(self, items: Sequence[Mapping[str, Any]]) -> Examples:
        """Captions of the validation split, each once."""
        captions = list(dict.fromkeys(item["caption"] for item in items))[:MAX_ROWS]
        return Examples(captions, self.encode(captions))

    def encode(self, conditions: str | Sequence[str], size: Size = (0, 0)) -> Tensor:
        """Prompts as features (B, max_tokens, width); an empty prompt is the null condition.

        Raises:
            UserError: `features` is not set.
        """
        if self.features is None:
            raise UserError(
                "prompt: must be set with the model's text encoder loaded. Load the model with "
                "GenerationPipeline.from_pretrained."
            )
        prompts = [conditions] if isinstance(conditions, str) else list(conditions)
        is_set = torch.tensor([bool(prompt.strip()) for prompt in prompts])
        return self.features(prompts) * is_set[:, None, None]
