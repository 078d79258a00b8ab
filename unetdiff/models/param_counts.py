"""Number of parameters of each part of a U-Net."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import nn

TIME_PARAMS = (
    "time_embedding",
    "class_embedding",
    "context_embedding",
    "add_embedding",
    ".times.",
    ".time.",
    "time_emb_proj",
)
"""Parts of the names of time-embedding parameters: change 1 of 3."""
CONDITIONING_PARAMS = (*TIME_PARAMS, "attn2")
"""Parts of the names of conditioning parameters: changes 1 and 2."""


def is_conditioning(name: str) -> bool:
    """Whether a parameter of this name (as in `UNet.named_parameters`) belongs to changes 1 and 2.

    That is the time embedding and its projections in the blocks, and cross-attention. The rest of a transformer block
    (self-attention, feed-forward) is not counted as conditioning.
    """
    return any(part in name for part in CONDITIONING_PARAMS)


def param_counts_by_part(
    unet: nn.Module, heads: Sequence[str], unshared: Collection[nn.Parameter] = ()
) -> dict[str, int]:
    """Parameters of the encoder, mid block, decoder, conditioning, and of each head ("head.NAME").

    unshared: the decoder's parameters that count as the diffusion head's, as the other head has its own.
    """
    own = {id(parameter) for parameter in unshared}
    counts = dict.fromkeys(["encoder", "mid_block", "decoder", "conditioning", *(f"head.{name}" for name in heads)], 0)
    for name, parameter in unet.named_parameters():
        part = name.split(".")[0]
        if part == "heads":
            part = "head." + name.split(".")[1]
        elif id(parameter) in own:
            part = "head.diffusion"
        elif is_conditioning(name):
            part = "conditioning"
        counts[part] += parameter.numel()
    return counts
