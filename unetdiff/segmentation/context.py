"""The tokens that a segmenter's cross-attention reads: one per class, or those of one prompt for every image."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from einops import repeat
from torch import Tensor, nn

from unetdiff.errors import FileError
from unetdiff.models import loading

FOLDER = "segmentation_context"
"""Its folder in a model directory."""
INITIAL_GAMMA = 1e-4
"""Of the adapter: it starts close to the identity (Zhao et al. 2023)."""
MAX_TOKENS, MAX_DIM = 1024, 8192


class SegmentationContext(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Fixed text embeddings, with VPD's residual adapter for those of classes.

    text + gamma * adapter(text), with an adapter of two layers and a gamma per channel (Zhao et al. 2023, section 3.2).

    Args:
        tokens: number of tokens: the classes, or the length of a prompt.
        dim: their width, the network's `cross_attention_dim`.
        adapter: with an adapter, which is trained.
    """

    @register_to_config
    def __init__(self, tokens: int, dim: int, adapter: bool = True) -> None:
        super().__init__()
        self.register_buffer("text", torch.zeros(tokens, dim))
        self.text_adapter = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim)) if adapter else None
        self.gamma = nn.Parameter(torch.full((dim,), INITIAL_GAMMA)) if adapter else None

    def forward(self, batch: int) -> Tensor:
        """encoder_hidden_states (B, tokens, dim), the same for every image."""
        text: Tensor = self.text  # type: ignore[assignment]
        if self.text_adapter is not None:
            text = text + self.gamma * self.text_adapter(text)
        return repeat(text, "n d -> b n d", b=batch)

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> Self:  # type: ignore[override]
        """Load what `save_pretrained` wrote, strictly.

        Raises:
            UserError: missing or damaged files, by name.
        """
        path = Path(directory) / loading.CONFIG
        config = {key: value for key, value in loading.read_json(path).items() if not key.startswith("_")}
        if set(config) != {"tokens", "dim", "adapter"} or not isinstance(config["adapter"], bool):
            raise FileError.of(path, "keys must be tokens, dim, adapter", "Write it again with save_pretrained.")
        for key, most in (("tokens", MAX_TOKENS), ("dim", MAX_DIM)):
            value = config[key]
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
                raise FileError.of(path, f"{key} must be an integer in [1, {most}] (got {value!r:.80})")
        loading.check_file(path.parent / loading.WEIGHTS, loading.outline(lambda: cls(**config), path).state_dict())
        context = cls(**config)
        loading.load_weights(context, path.parent / loading.WEIGHTS)
        return context.eval()
