"""The tokens that a segmenter's cross-attention reads: one per class, or those of a prompt or of an image's caption."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from einops import repeat
from torch import Tensor, nn

from unetdiff.errors import FileError, UserError
from unetdiff.models import loading

FOLDER = "segmentation_context"
"""Its folder in a model directory."""
INITIAL_GAMMA = 1e-4
"""Of the adapter: it starts close to the identity (Zhao et al. 2023)."""
MAX_TOKENS, MAX_DIM = 1024, 8192


class Features(Protocol):
    """A text encoder (`unetdiff.diffusion.conditioning.text_encoder`): captions to tokens."""

    encoder: Any

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """(B, tokens, dim) float32."""


class SegmentationContext(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Fixed text embeddings, with VPD's residual adapter for those of classes.

    text + gamma * adapter(text), with an adapter of two layers and a gamma per channel (Zhao et al. 2023, section 3.2).

    Args:
        tokens: number of tokens: the classes, or the length of a prompt.
        dim: their width, the network's `cross_attention_dim`.
        adapter: with an adapter, which is trained.
        captions: the network was trained with the captions of its images; the embeddings are those of the empty prompt.

    Attributes:
        features: the text encoder of captions, frozen and not part of it; None: it is not needed, or not loaded.
    """

    @register_to_config
    def __init__(self, tokens: int, dim: int, adapter: bool = True, captions: bool = False) -> None:
        super().__init__()
        self.features: Features | None = None
        self.register_buffer("text", torch.zeros(tokens, dim))
        self.text_adapter = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim)) if adapter else None
        self.gamma = nn.Parameter(torch.full((dim,), INITIAL_GAMMA)) if adapter else None

    def forward(self, batch: int) -> Tensor:
        """encoder_hidden_states (B, tokens, dim), the same for every image."""
        text: Tensor = self.text  # type: ignore[assignment]
        if self.text_adapter is not None:
            text = text + self.gamma * self.text_adapter(text)
        return repeat(text, "n d -> b n d", b=batch)

    @property
    def reads_captions(self) -> bool:
        """Whether images have tokens of their own."""
        return bool(self.config["captions"])

    def of_captions(self, captions: Sequence[str]) -> Tensor:
        """encoder_hidden_states (B, tokens, dim) of captions.

        Raises:
            UserError: the network was not trained with captions, or the text encoder is not loaded.
        """
        if not self.reads_captions:
            raise UserError(
                "prompt: must be None for a segmenter that was trained without segmentation.context=caption."
            )
        if self.features is None:
            raise UserError("prompt: must be None without the model's text_encoder/ and tokenizer/.")
        return self.features(list(captions)).to(self.text)  # type: ignore[call-overload]

    def of_prompt(self, prompt: str) -> SegmentationContext:
        """The context with the tokens of one prompt for every image. Errors as of `of_captions`."""
        text = self.of_captions([prompt])[0]
        fixed = SegmentationContext(*text.shape, adapter=False)
        fixed.text = text
        return fixed.eval()

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> Self:  # type: ignore[override]
        """Load what `save_pretrained` wrote, strictly.

        Raises:
            UserError: missing or damaged files, by name.
        """
        path = Path(directory) / loading.CONFIG
        config = {key: value for key, value in loading.read_json(path).items() if not key.startswith("_")}
        is_complete = set(config) == {"tokens", "dim", "adapter", "captions"}
        if not is_complete or not all(isinstance(config[key], bool) for key in ("adapter", "captions")):
            raise FileError.of(
                path, "keys must be tokens, dim, adapter, captions", "Write it again with save_pretrained."
            )
        for key, most in (("tokens", MAX_TOKENS), ("dim", MAX_DIM)):
            value = config[key]
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
                raise FileError.of(path, f"{key} must be an integer in [1, {most}] (got {value!r:.80})")
        loading.check_file(path.parent / loading.WEIGHTS, loading.outline(lambda: cls(**config), path).state_dict())
        context = cls(**config)
        loading.load_weights(context, path.parent / loading.WEIGHTS)
        return context.eval()
