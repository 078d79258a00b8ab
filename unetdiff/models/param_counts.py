"""How many parameters each part of a U-Net has."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

TIME_PARAMS = ("time_embedding", "class_embedding", "context_embedding", ".times.", ".time.", "time_emb_proj")
"""Marks in a tensor's name of what tells the network the time, and what is added to it: change 1 of the three."""
CONDITIONING_PARAMS = (*TIME_PARAMS, "attn2")
"""Marks of what tells it time and condition: changes 1 and 2."""


def param_counts_by_part(unet: nn.Module, heads: Sequence[str]) -> dict[str, int]:
    """Parameters of encoder, middle, decoder, of what tells them time and condition ("conditioning"), of each head."""
    counts = dict.fromkeys(["encoder", "middle", "decoder", "conditioning", *(f"head.{name}" for name in heads)], 0)
    for name, parameter in unet.named_parameters():
        part = name.split(".")[0]
        if part == "heads":
            part = "head." + name.split(".")[1]
        elif any(mark in name for mark in CONDITIONING_PARAMS):
            part = "conditioning"
        counts[part] += parameter.numel()
    return counts
