"""Tensor names of a U-Net in diffusers and in unetdiff: a renaming of prefixes, as the blocks keep diffusers' names."""

from __future__ import annotations

import re

PREFIXES = {
    "conv_in": "encoder.conv_in",
    "down_blocks": "encoder.down_blocks",
    "up_blocks": "decoder.up_blocks",
    "conv_norm_out": "heads.diffusion.norm",
    "conv_out": "heads.diffusion.conv",
}
"""Prefix in diffusers -> prefix in unetdiff; all other names (mid_block, time_embedding, class_embedding) are equal."""

OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of self-attention layers in diffusers before 0.15 (google/ddpm-*) -> since then."""


def from_diffusers_name(name: str) -> str:
    """diffusers' name of a tensor, also of its first releases -> unetdiff's."""
    old = re.fullmatch(rf"(.+\.attentions\.\d+)\.({'|'.join(OLD_ATTENTION)})\.(weight|bias)", name)
    if old is not None:
        name = f"{old[1]}.{OLD_ATTENTION[old[2]]}.{old[3]}"
    first, dot, rest = name.partition(".")
    return f"{PREFIXES.get(first, first)}{dot}{rest}"


def to_diffusers_name(name: str) -> str:
    """unetdiff's name of a tensor -> diffusers'; names without equivalent (heads.segmentation) stay."""
    for prefix, unetdiff_prefix in PREFIXES.items():
        if name.startswith(f"{unetdiff_prefix}."):
            return prefix + name.removeprefix(unetdiff_prefix)
    return name
