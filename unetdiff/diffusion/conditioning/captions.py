"""What conditioners of captions have in common: texts become features by a frozen text encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from unetdiff.diffusion.conditioning.base import Conditioner, Examples, Size
from unetdiff.errors import UserError

MAX_ROWS = 8
"""Captions of the previews in training."""


class Features(Protocol):
    """A function from captions to features: a text encoder, or its cache."""

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """(B, max_tokens, width) float32."""


class CaptionConditioner(Conditioner):
    """A conditioner of captions.

    The text encoder itself is frozen and not part of it: a `unetdiff.diffusion.conditioning.text_encoder.TextEncoder`
    (with its cache while training), handed in as `features`.
    """

    pipeline_arg = "prompt"
    batch_key = "caption"
    padded: bool
    """Whether its text encoder encodes the padding, too (`TextEncoder`)."""
    max_tokens: int
    features: Features | None

    def from_batch(self, batch: Mapping[str, Any]) -> Tensor:
        """The features of a batch's "caption" (a list of texts), (B, max_tokens, width)."""
        return self.encode(batch["caption"])

    def examples(self, items: Sequence[Mapping[str, Any]]) -> Examples:
        """Captions of the validation split, each once."""
        captions = list(dict.fromkeys(item["caption"] for item in items))[:MAX_ROWS]
        return Examples(captions, self.encode(captions))

    def encode(self, conditions: str | Sequence[str], size: Size = (0, 0)) -> Tensor:
        """Prompts as features (B, max_tokens, width).

        Raises:
            UserError: `features` is not set.
        """
        if self.features is None:
            raise UserError(
                "prompt: must be set with the model's text encoder loaded. Load the model with "
                "GenerationPipeline.from_pretrained."
            )
        return self.features([conditions] if isinstance(conditions, str) else list(conditions))
