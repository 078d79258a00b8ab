"""Between diffusers' names of a U-Net's tensors and ours: a pure renaming, because the blocks keep diffusers' names."""

from __future__ import annotations

import re

PREFIXES = {
    "conv_in": "encoder.conv_in",
    "down_blocks": "encoder.down_blocks",
    "mid_block": "middle",
    "up_blocks": "decoder.up_blocks",
    "conv_norm_out": "heads.diffusion.norm",
    "conv_out": "heads.diffusion.conv",
}
"""How a name starts in diffusers, and here; every other name (time_embedding, class_embedding) is the same."""

OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Self-attention in diffusers before 0.15 (google/ddpm-*), and since then."""


def to_ours(name: str) -> str:
    """diffusers' name of a tensor -> ours; names of the first releases are understood."""
    old = re.fullmatch(rf"(.+\.attentions\.\d+)\.({'|'.join(OLD_ATTENTION)})\.(weight|bias)", name)
    if old is not None:
        name = f"{old[1]}.{OLD_ATTENTION[old[2]]}.{old[3]}"
    first, dot, rest = name.partition(".")
    return f"{PREFIXES.get(first, first)}{dot}{rest}"


def to_theirs(name: str) -> str:
    """Our name of a tensor -> diffusers'; what is ours alone (heads.segmentation) stays."""
    for theirs, ours in PREFIXES.items():
        if name.startswith(f"{ours}."):
            return theirs + name.removeprefix(ours)
    return name
