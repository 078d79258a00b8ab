"""From what the user gave to a complete model config: typed, defaults filled in, impossible combinations refused."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from unetdiff.errors import UserError, nearest
from unetdiff.models.config import (
    CLASSIC,
    ENCODERS,
    RESIDUAL,
    ConditioningConfig,
    DecoderConfig,
    EncoderConfig,
    HeadsConfig,
    ModelConfig,
    ResidualConfig,
)

Section = TypeVar("Section")

TRUNK_DECODER = [512, 256, 128, 64, 64]


def parse(
    in_channels: int,
    patch_size: int,
    sample_size: Any,
    encoder: Any,
    residual: Any,
    decoder: Any,
    conditioning: Any,
    heads: Any,
) -> ModelConfig:
    """The arguments of `UNet` (dicts, dataclasses or None) as a typed config."""
    return ModelConfig(
        in_channels,
        patch_size,
        list(sample_size) if isinstance(sample_size, tuple) else sample_size,
        section(EncoderConfig, encoder, "encoder"),
        section(ResidualConfig, residual, "residual"),
        section(DecoderConfig, decoder, "decoder"),
        section(ConditioningConfig, conditioning, "conditioning"),
        section(HeadsConfig, heads, "heads"),
    )


def section(cls: type[Section], given: Any, name: str) -> Section:
    """A dict as a dataclass; unknown keys and values that are not among the literal choices are refused by name."""
    if given is None:
        return cls()
    if isinstance(given, cls):
        return replace(given)  # type: ignore[type-var]
    if not isinstance(given, dict):
        raise UserError(f"{name}: {given!r} is not a dict of {cls.__name__}'s keys")
    hints = get_type_hints(cls)
    known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in given.items():
        if key not in known:
            raise UserError(f"{name}.{key}: unknown key; the nearest is {name}.{nearest(key, known)}")
        inner = [h for h in (hints[key], *get_args(hints[key])) if is_dataclass(h)]
        if inner and value is not None:
            value = section(inner[0], value, f"{name}.{key}")  # type: ignore[arg-type]
        choices = [c for h in (hints[key], *get_args(hints[key])) if get_origin(h) is not None for c in get_args(h)]
        choices = [c for c in choices if isinstance(c, str)]
        if choices and value is not None and value not in choices:
            raise UserError(f"{name}.{key}: '{value}' is not one of {', '.join(choices)}")
        values[key] = list(value) if isinstance(value, tuple) else value
    return cls(**values)


def resolve(given: ModelConfig) -> ModelConfig:
    """Fill in every default that depends on another key, and refuse what cannot be (UserError)."""
    encoder, heads = given.encoder, given.heads
    if encoder.name not in ENCODERS:
        near = nearest(str(encoder.name), ENCODERS)
        raise UserError(
            f"encoder.name: '{encoder.name}' is unknown; the nearest is {near} (all: {', '.join(ENCODERS)})"
        )
    trunk = encoder.name not in (CLASSIC, RESIDUAL)
    if heads.segmentation is None and heads.diffusion is None:
        raise UserError("heads: neither segmentation nor diffusion; give at least one")
    kernel = heads.segmentation.kernel_size if heads.segmentation is not None else 1
    if kernel < 1 or kernel % 2 == 0:
        raise UserError(f"heads.segmentation.kernel_size: {kernel} has no middle; use 1 or 3")
    if encoder.weights is not None and not trunk:
        raise UserError(f"encoder.weights: '{encoder.weights}' needs a torchvision trunk, not family {encoder.name}")
    if encoder.channels is not None and trunk:
        raise UserError(f"encoder.channels: {encoder.channels} is for classic and residual; {encoder.name} has its own")
    if encoder.padding == "valid" and encoder.name != CLASSIC:
        raise UserError(f"encoder.padding: 'valid' is the classic family's; {encoder.name} has 'same'")
    if encoder.padding == "valid" and heads.diffusion is not None:
        raise UserError("encoder.padding: 'valid' shrinks the image; a diffusion head needs 'same'")

    if given.patch_size < 1 or (given.patch_size > 1 and (trunk or encoder.padding == "valid")):
        raise UserError(f"patch_size: {given.patch_size} must be 1 for trunks and padding 'valid', else 1 or more")

    if isinstance(given.sample_size, list) and len(given.sample_size) != 2:
        raise UserError(f"sample_size: {given.sample_size} is not [height, width]; give two numbers, or one for both")

    conditioning = _conditioning(given, trunk)
    encoder, decoder = _norms(given, trunk)
    whole = heads.diffusion is not None or encoder.padding == "valid"
    if encoder.name == CLASSIC:
        encoder = replace(encoder, channels=list(encoder.channels or [64, 128, 256, 512, 1024]))
        channels = encoder.channels or []
        if len(channels) < 2:
            raise UserError(f"encoder.channels: {channels} must name two levels or more")
        decoder = _sized(decoder, list(reversed(channels[:-1])), "transposed", whole)
    elif encoder.name == RESIDUAL:
        encoder = replace(encoder, channels=list(encoder.channels or [64, 128, 256, 512]))
        if decoder.channels is not None or decoder.upsample is not None:
            raise UserError("decoder: channels and upsample are not for the residual family; it mirrors its encoder")
    else:
        decoder = _sized(decoder, TRUNK_DECODER, "bilinear" if decoder.align_corners else "nearest", whole)
    levels = 5 if trunk else len(encoder.channels or []) - 1
    wrong = [level for level in conditioning.attention_levels or [] if not 0 <= level <= levels]
    if wrong:
        raise UserError(f"conditioning.attention_levels: {wrong} is outside 0..{levels}")
    residual = _residual(given, encoder.channels or [], conditioning)
    return replace(given, encoder=encoder, residual=residual, decoder=decoder, conditioning=conditioning)


def _residual(given: ModelConfig, channels: list[int], told: ConditioningConfig) -> ResidualConfig:
    """The fine print of the residual family with its middle filled in."""
    options, levels = given.residual, told.attention_levels or []
    by_level = {
        "residual.attention_heads": options.attention_heads,
        "residual.transformer_depth": options.transformer_depth,
    }
    for key, value in by_level.items():
        if not isinstance(value, list):
            continue
        if given.encoder.name != RESIDUAL:
            raise UserError(f"{key}: {value} by level is for the residual family, not {given.encoder.name}")
        if len(value) != len(channels) or min(value) < 1:
            raise UserError(f"{key}: {value} must have {len(channels)} values of 1 or more, one for each level")
    if given.encoder.name != RESIDUAL:
        return options
    deepest = len(channels) - 1
    middle = options.middle or ("attention" if deepest in levels else "resnets")
    for level in {*levels, *([deepest] if middle == "attention" else [])}:
        if options.attention_heads is not None and channels[level] % options.attention_heads[level]:
            raise UserError(
                f"residual.attention_heads: {options.attention_heads[level]} does not divide the {channels[level]} "
                f"channels of level {level}"
            )
    groups = options.middle_attention_groups
    if groups is not None and (middle != "attention" or told.cross_attention_dim is not None):
        raise UserError(
            f"residual.middle_attention_groups: {groups} is for self-attention in the middle block; use null with "
            "conditioning.cross_attention_dim, or without residual.middle attention"
        )
    if groups and channels[-1] % groups:
        raise UserError(f"residual.middle_attention_groups: {groups} does not divide the {channels[-1]} channels there")
    return replace(options, middle=middle)  # type: ignore[arg-type]


def _sized(decoder: DecoderConfig, channels: list[int], upsample: Any, whole: bool) -> DecoderConfig:
    """The decoder's widths and upsampling filled in; `whole`: it must go up to full resolution."""
    count = len(channels) if decoder.channels is None else len(decoder.channels)
    if whole and count != len(channels):
        raise UserError(
            f"decoder.channels: {decoder.channels} must have {len(channels)} values, deepest first; "
            "only a segmenter with padding 'same' may stop early"
        )
    if not 1 <= count <= len(channels):
        raise UserError(f"decoder.channels: {decoder.channels} must have 1 to {len(channels)} values, deepest first")
    upsample = decoder.upsample or upsample
    if decoder.align_corners and upsample != "bilinear":
        raise UserError(f"decoder.align_corners: true needs decoder.upsample bilinear, not {upsample}")
    return replace(decoder, channels=list(decoder.channels or channels), upsample=upsample)


def _conditioning(given: ModelConfig, trunk: bool) -> ConditioningConfig:
    told, diffusion = given.conditioning, given.heads.diffusion is not None
    timestep = diffusion if told.timestep is None else told.timestep
    if diffusion and not timestep:
        raise UserError("conditioning.timestep: false, but a diffusion head must know the timestep")
    if told.num_class_embeds and not timestep:
        raise UserError("conditioning.num_class_embeds: is added to the time embedding; set conditioning.timestep true")
    if told.class_embed_type and (told.num_class_embeds or not timestep):
        raise UserError(
            f"conditioning.class_embed_type: '{told.class_embed_type}' is added to the time embedding in the place of "
            "a table of classes; set conditioning.timestep true and conditioning.num_class_embeds null"
        )
    if told.pooled_context and not (timestep and told.cross_attention_dim):
        raise UserError(
            "conditioning.pooled_context: is the mean of the tokens, added to the time embedding; "
            "set conditioning.cross_attention_dim and conditioning.timestep true"
        )
    levels = told.attention_levels
    if levels is None:
        residual = given.encoder.name == RESIDUAL
        deepest = 5 if trunk else len(given.encoder.channels or [0] * (4 if residual else 5)) - 1
        attends = residual or told.cross_attention_dim is not None
        levels = [level for level in (deepest - 1, deepest) if level >= 0] if attends else []
    return replace(told, timestep=timestep, attention_levels=list(levels))


def _norms(given: ModelConfig, trunk: bool) -> tuple[EncoderConfig, DecoderConfig]:
    encoder, decoder, diffusion = given.encoder, given.decoder, given.heads.diffusion is not None
    if encoder.name == RESIDUAL:
        for name, norm in (("encoder", encoder.norm), ("decoder", decoder.norm)):
            if norm not in (None, "group"):
                raise UserError(f"{name}.norm: '{norm}' is not for the residual family, which is built on group")
        return replace(encoder, norm="group"), replace(decoder, norm="group")
    for name, norm in (("encoder", encoder.norm), ("decoder", decoder.norm)):
        if diffusion and norm == "batch":
            raise UserError(
                f"{name}.norm: 'batch' with a diffusion head mixes noise levels in its statistics; use frozen or group"
            )
    if trunk and encoder.norm == "none":
        raise UserError("encoder.norm: 'none' is not for a torchvision trunk; use batch, frozen or group")
    automatic = "batch"
    if diffusion:
        automatic = "frozen" if trunk and encoder.weights is not None else "group"
    return (
        replace(encoder, norm=encoder.norm or automatic),  # type: ignore[arg-type]
        replace(decoder, norm=decoder.norm or ("group" if diffusion else "batch")),
    )
