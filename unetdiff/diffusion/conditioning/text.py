"""Text conditioning: features of a frozen text encoder, projected to tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  (DiffusionPipeline looks for it in this module)
from einops import repeat
from torch import Tensor, nn
from torch.nn import functional as F

from unetdiff.diffusion.conditioning.base import Conditioning, Size
from unetdiff.diffusion.conditioning.captions import CaptionConditioner


class TextConditioner(CaptionConditioner):
    """Features of captions to tokens: normalized, then projected without a bias, so that padding stays zero.

    Args:
        dim: width of a token, the U-Net's `cross_attention_dim`.
        width: width of the text encoder's features.
        max_tokens: tokens of a caption, shorter ones filled up with zeros.
    """

    padded = False

    @register_to_config
    def __init__(self, dim: int, width: int, max_tokens: int) -> None:
        super().__init__()
        self.width, self.max_tokens = width, max_tokens
        self.projection = nn.Linear(width, dim, bias=False)
        self.null_token = nn.Parameter(0.02 * torch.randn(dim))
        self.features = None

    def forward(self, conditions: Tensor, size: Size = (0, 0)) -> Conditioning:
        """Features (B, max_tokens, width), all zeros for the null condition, as tokens (B, max_tokens, dim)."""
        features = conditions.to(self.null_token)
        is_set = features.abs().amax(dim=(1, 2)) > 0  # (B,)
        tokens = self.projection(F.layer_norm(features, (self.width,)))  # zeros stay zeros: (B, max_tokens, dim)
        null = F.pad(self.null_token[None], (0, 0, 0, self.max_tokens - 1))  # (max_tokens, dim)
        return Conditioning(
            tokens=torch.where(is_set[:, None, None], tokens, repeat(null, "n d -> b n d", b=len(tokens)))
        )

    def null_condition(self, batch: int, size: Size = (0, 0)) -> Tensor:
        return torch.zeros(batch, self.max_tokens, self.width)

    def encode(self, conditions: str | Sequence[str], size: Size = (0, 0)) -> Tensor:
        """Prompts as features (B, max_tokens, width); an empty prompt is the null condition.

        Raises:
            UserError: `features` is not set.
        """
        prompts = [conditions] if isinstance(conditions, str) else list(conditions)
        is_set = torch.tensor([bool(prompt.strip()) for prompt in prompts])
        return super().encode(prompts) * is_set[:, None, None]
