"""Which level of the U-Net each of its parameters belongs to."""

from __future__ import annotations

from torch import nn

from unetdiff.models.decoders import PyramidDecoder, ResidualDecoder
from unetdiff.models.encoders import ClassicEncoder, ResidualEncoder, TrunkEncoder
from unetdiff.models.param_counts import CONDITIONING_PARAMS
from unetdiff.models.unet import UNet

MIDDLE, CONDITIONING = "middle", "conditioning"


def parameters_by_level(unet: UNet) -> dict[str, dict[str, nn.Parameter]]:
    """The parameters that both heads share, by name, in groups on the way from the image to the heads.

    Groups are "encoder.0" (full resolution) and on, "middle", "decoder.K" down to "decoder.0", as the maps of
    `UNet.features` are called, and "conditioning": the embeddings of timestep and condition, and what carries them into
    the blocks (as in `UNet.parameter_counts`). A group without parameters is left out.
    """
    starts = {**_encoder(unet.encoder), "middle.": MIDDLE, **_decoder(unet.decoder)}
    groups: dict[str, dict[str, nn.Parameter]] = {group: {} for group in [*starts.values(), CONDITIONING]}
    for name, parameter in unet.named_parameters():
        if name.startswith("heads."):
            continue
        told = any(mark in name for mark in CONDITIONING_PARAMS)
        group = CONDITIONING if told else next(starts[start] for start in starts if name.startswith(start))
        groups[group][name] = parameter
    return {group: members for group, members in groups.items() if members}


def _encoder(encoder: nn.Module) -> dict[str, str]:
    """How the names of each level's tensors start, finest first."""
    if isinstance(encoder, ResidualEncoder):
        blocks = {f"encoder.down_blocks.{level}.": f"encoder.{level}" for level in range(len(encoder.down_blocks))}
        return {"encoder.conv_in.": "encoder.0", **blocks}
    if isinstance(encoder, ClassicEncoder):
        kinds = ("levels", "attentions")
        return {f"encoder.{kind}.{level}.": f"encoder.{level}" for level in range(encoder.out_level) for kind in kinds}
    assert isinstance(encoder, TrunkEncoder)
    starts: dict[str, str] = {}
    for level, names in zip([*[level for level, _ in encoder.skips], encoder.out_level], encoder.plan, strict=True):
        starts |= {f"encoder.trunk.{name}.": f"encoder.{level}" for name in names}
        starts[f"encoder.attentions.{level}."] = f"encoder.{level}"
    return starts


def _decoder(decoder: nn.Module) -> dict[str, str]:
    """How the names of each level's tensors start, coarsest first."""
    if isinstance(decoder, ResidualDecoder):
        last = len(decoder.up_blocks) - 1
        return {f"decoder.up_blocks.{index}.": f"decoder.{last - index}" for index in range(last + 1)}
    assert isinstance(decoder, PyramidDecoder)
    starts: dict[str, str] = {}
    for index, level in enumerate(decoder.levels):
        paths = (f"grows.{index}", f"blocks.{index}", f"attentions.{level}")
        starts |= {f"decoder.{path}.": f"decoder.{level}" for path in paths}
    return starts
