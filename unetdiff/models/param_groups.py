"""The parameters of a U-Net by level."""

from __future__ import annotations

from torch import nn

from unetdiff.models.decoders import PyramidDecoder, ResidualDecoder
from unetdiff.models.encoders import ClassicEncoder, PretrainedEncoder, ResidualEncoder
from unetdiff.models.param_counts import is_conditioning
from unetdiff.models.timm_encoder import TimmEncoder
from unetdiff.models.unet import UNet

MID_BLOCK, CONDITIONING = "mid_block", "conditioning"


def parameters_by_level(unet: UNet) -> dict[str, dict[str, nn.Parameter]]:
    """The parameters that both heads share, {group: {name: parameter}}, in the order of the forward pass.

    The groups are "encoder.0" (full resolution) and deeper, "mid_block", "decoder.K" down to "decoder.0", and
    "conditioning" (as in `UNet.parameter_counts`): the embeddings of timestep and condition and their projections in
    the blocks. An encoder of timm is one block, and counted at its deepest level. Maps of `UNet.features` have the same
    names, in residual networks followed by the number of the block ("encoder.0.1"). Groups without parameters are left
    out, and so are levels of which each head has its own.
    """
    own = {id(parameter) for parameter in unet.unshared_parameters()}
    starts = {**_encoder(unet.encoder), "mid_block.": MID_BLOCK, **_decoder(unet.decoder)}
    groups: dict[str, dict[str, nn.Parameter]] = {group: {} for group in [*starts.values(), CONDITIONING]}
    for name, parameter in unet.named_parameters():
        if name.startswith("heads.") or id(parameter) in own:
            continue
        group = (
            CONDITIONING if is_conditioning(name) else next(starts[start] for start in starts if name.startswith(start))
        )
        groups[group][name] = parameter
    return {group: members for group, members in groups.items() if members}


def _encoder(encoder: nn.Module) -> dict[str, str]:
    """{prefix of parameter names: level}, finest first."""
    if isinstance(encoder, ResidualEncoder):
        blocks = {f"encoder.down_blocks.{level}.": f"encoder.{level}" for level in range(len(encoder.down_blocks))}
        return {"encoder.conv_in.": "encoder.0", **blocks}
    if isinstance(encoder, ClassicEncoder):
        kinds = ("levels", "attentions")
        return {f"encoder.{kind}.{level}.": f"encoder.{level}" for level in range(encoder.out_level) for kind in kinds}
    if isinstance(encoder, TimmEncoder):
        levels = [*[level for level, _ in encoder.skips], encoder.out_level]
        attentions = {f"encoder.attentions.{level}.": f"encoder.{level}" for level in levels}
        return {"encoder.model.": f"encoder.{encoder.out_level}", **attentions}
    assert isinstance(encoder, PretrainedEncoder)
    starts: dict[str, str] = {}
    for level, names in zip(
        [*[level for level, _ in encoder.skips], encoder.out_level], encoder.block_names, strict=True
    ):
        starts |= {f"encoder.model.{name}.": f"encoder.{level}" for name in names}
        starts[f"encoder.attentions.{level}."] = f"encoder.{level}"
    return starts


def _decoder(decoder: nn.Module) -> dict[str, str]:
    """{prefix of parameter names: level}, coarsest first."""
    if isinstance(decoder, ResidualDecoder):
        last = len(decoder.up_blocks) - 1
        return {f"decoder.up_blocks.{index}.": f"decoder.{last - index}" for index in range(last + 1)}
    assert isinstance(decoder, PyramidDecoder)
    starts: dict[str, str] = {}
    for index, level in enumerate(decoder.levels):
        paths = (f"up_blocks.{index}", f"attentions.{level}")
        starts |= {f"decoder.{path}.": f"decoder.{level}" for path in paths}
    return starts
