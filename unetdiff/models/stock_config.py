"""The config of a U-Net, which also answers to diffusers' names of what its pipelines read."""

from __future__ import annotations

from typing import Any

from diffusers.configuration_utils import FrozenDict

SAME_MEANING: dict[str, tuple[str, ...]] = {
    "out_channels": ("heads", "diffusion", "out_channels"),
    "block_out_channels": ("encoder", "channels"),
    "layers_per_block": ("residual", "layers_per_block"),
    "cross_attention_dim": ("conditioning", "cross_attention_dim"),
    "num_class_embeds": ("imported", "num_class_embeds"),
    "class_embed_type": ("imported", "class_embed_type"),
    "time_cond_proj_dim": ("imported", "time_cond_proj_dim"),
    "addition_embed_type": ("imported", "addition_embed_type"),
    "addition_time_embed_dim": ("imported", "addition_time_embed_dim"),
    "projection_class_embeddings_input_dim": ("imported", "projection_class_embeddings_input_dim"),
}
"""diffusers' key -> where the config has it."""
ABSENT = ("encoder_hid_dim", "encoder_hid_dim_type")
"""diffusers' keys of what no network here has: None."""


class StockConfig(FrozenDict):  # type: ignore[misc]
    """`UNet.config`: its own keys, and as attributes those that stock pipelines read (`unet.config.sample_size`)."""

    def __getattr__(self, name: str) -> Any:
        if name in ABSENT:
            return None
        if name not in SAME_MEANING or not self:
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
        value: Any = self
        for key in SAME_MEANING[name]:
            value = value and value[key]
        return value
