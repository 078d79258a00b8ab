"""A model config from the arguments of `UNet`: typed, defaults filled in, impossible combinations refused."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from unetdiff.errors import UserError, as_yaml, config_error, did_you_mean
from unetdiff.models.bounds import require_valid
from unetdiff.models.config import (
    CLASSIC,
    ENCODERS,
    RESIDUAL,
    TIMM_PREFIX,
    ConditioningConfig,
    DecoderConfig,
    EncoderConfig,
    HeadsConfig,
    ImportedConfig,
    ModelConfig,
    ResidualConfig,
    image_channels,
)

Section = TypeVar("Section")
Config = TypeVar("Config", bound=ModelConfig)

PRETRAINED_DECODER = [512, 256, 128, 64, 64]
"""Default widths of the decoder of pretrained encoders."""
PRETRAINED_LEVELS = 5
"""Level of a pretrained encoder's deepest map."""


def parse(
    in_channels: int = 3,
    patch_size: int = 1,
    sample_size: Any = None,
    encoder: Any = None,
    residual: Any = None,
    decoder: Any = None,
    conditioning: Any = None,
    heads: Any = None,
    imported: Any = None,
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
        section(ImportedConfig, imported, "imported"),
    )


def section(cls: type[Section], value: Any, name: str) -> Section:
    """A dict as a dataclass.

    Raises:
        UserError: an unknown key, or a value that is not among a key's choices.
    """
    if value is None:
        return cls()
    if isinstance(value, cls):
        return replace(value)  # type: ignore[type-var]
    if not isinstance(value, dict):
        raise config_error(name, value, f"a dict with the keys of {cls.__name__}")
    hints = get_type_hints(cls)
    known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, item in value.items():
        if key not in known:
            remedy = did_you_mean(key, known, name + ".{}", f"The keys are {', '.join(sorted(known))}.")
            raise UserError(f"{name}.{key}: unknown key. {remedy}")
        inner = [h for h in (hints[key], *get_args(hints[key])) if is_dataclass(h)]
        if inner and item is not None:
            item = section(inner[0], item, f"{name}.{key}")  # type: ignore[arg-type]
        choices = [c for h in (hints[key], *get_args(hints[key])) if get_origin(h) is not None for c in get_args(h)]
        choices = [c for c in choices if isinstance(c, str)]
        if choices and item is not None and item not in choices:
            raise config_error(f"{name}.{key}", item, f"one of {', '.join(choices)}")
        values[key] = list(item) if isinstance(item, tuple) else item
    return cls(**values)


def resolve(config: Config) -> Config:
    """Fill in every default that depends on another key.

    Raises:
        UserError: a value of another type or out of range, or keys that contradict each other.
    """
    require_valid(config)
    encoder, heads = config.encoder, config.heads
    if encoder.name not in ENCODERS and not encoder.name.startswith(TIMM_PREFIX):
        remedy = did_you_mean(str(encoder.name), ENCODERS)
        raise config_error("encoder.name", encoder.name, f"one of {', '.join(ENCODERS)}, {TIMM_PREFIX}NAME", remedy)
    pretrained = encoder.name not in (CLASSIC, RESIDUAL)
    if heads.segmentation is None and heads.diffusion is None:
        raise UserError("heads: must have segmentation, diffusion or both (got neither).")
    kernel_size = config.imported.segmentation_kernel_size
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise config_error("imported.segmentation_kernel_size", kernel_size, "odd", "Use 1 or 3.")
    _validate_encoder(config, pretrained)
    if config.patch_size < 1 or (config.patch_size > 1 and (pretrained or encoder.padding == "valid")):
        constraint = "at least 1, and 1 with a pretrained encoder or padding=valid"
        raise config_error("patch_size", config.patch_size, constraint)
    if isinstance(config.sample_size, list) and len(config.sample_size) != 2:
        raise config_error("sample_size", config.sample_size, "[height, width], or one number for both")

    conditioning = _conditioning(config, pretrained)
    encoder, decoder = _norms(config, pretrained)
    whole = heads.diffusion is not None or encoder.padding == "valid"
    if encoder.name == CLASSIC:
        channels = list(encoder.channels or [64, 128, 256, 512, 1024])
        if len(channels) < 2:
            raise config_error("encoder.channels", channels, "at least two levels")
        encoder = replace(encoder, channels=channels)
        decoder = _sized(decoder, list(reversed(channels[:-1])), "transposed", whole)
    elif encoder.name == RESIDUAL:
        encoder = replace(encoder, channels=list(encoder.channels or [64, 128, 256, 512]))
        for key, value in (("channels", decoder.channels), ("upsample", decoder.upsample)):
            if value is not None:
                constraint = "null with encoder.name=residual, whose decoder mirrors the encoder"
                raise config_error(f"decoder.{key}", value, constraint)
    else:
        decoder = _sized(decoder, PRETRAINED_DECODER, "bilinear" if decoder.align_corners else "nearest", whole)
    deepest = PRETRAINED_LEVELS if pretrained else len(encoder.channels or []) - 1
    _validate_segmentation_head(replace(config, conditioning=conditioning))
    _validate_sharing(config, deepest + 1 if encoder.name == RESIDUAL else deepest)
    levels = conditioning.attention_levels or []
    if any(not 0 <= level <= deepest for level in levels):
        raise config_error("conditioning.attention_levels", levels, f"levels in [0, {deepest}]")
    residual = _residual(config, encoder.channels or [], conditioning)
    return replace(config, encoder=encoder, residual=residual, decoder=decoder, conditioning=conditioning)


def _validate_segmentation_head(config: ModelConfig) -> None:
    head, conditioning = config.heads.segmentation, config.conditioning
    if head is None:
        return
    if head.pyramid is not None and config.encoder.padding == "valid":
        constraint = "null with encoder.padding=valid, whose levels cover different parts of the image"
        raise config_error("heads.segmentation.pyramid", head.pyramid, constraint)
    if head.pyramid is not None and config.imported.segmentation_kernel_size != 1:
        kernel_size = config.imported.segmentation_kernel_size
        raise config_error("imported.segmentation_kernel_size", kernel_size, "1 with heads.segmentation.pyramid")
    if not head.attention_maps:
        return
    if head.pyramid is None:
        constraint = "false without heads.segmentation.pyramid, whose levels take the maps in"
        raise config_error("heads.segmentation.attention_maps", True, constraint, "Give pyramid: 256.")
    if conditioning.cross_attention_dim is None or not conditioning.attention_levels:
        constraint = "false without conditioning.cross_attention_dim and conditioning.attention_levels"
        raise config_error("heads.segmentation.attention_maps", True, constraint)


def _validate_sharing(config: ModelConfig, levels: int) -> None:
    """Check what the segmentation head does not share with a diffusion head; `levels`: of the decoder."""
    head, diffusion = config.heads.segmentation, config.heads.diffusion is not None
    if head is None:
        return
    if head.own_decoder_levels and not diffusion:
        constraint = "0 without a diffusion head to share the others with"
        raise config_error("heads.segmentation.own_decoder_levels", head.own_decoder_levels, constraint)
    if head.own_decoder_levels > levels:
        constraint = f"at most {levels}, the levels of the decoder"
        raise config_error("heads.segmentation.own_decoder_levels", head.own_decoder_levels, constraint)
    if head.task_embedding and not diffusion:
        raise config_error("heads.segmentation.task_embedding", True, "false without a diffusion head")


def _validate_encoder(config: ModelConfig, pretrained: bool) -> None:
    encoder = config.encoder
    if encoder.weights is not None and not pretrained:
        raise config_error("encoder.weights", encoder.weights, f"null with encoder.name={encoder.name}")
    if encoder.channels is not None and pretrained:
        constraint = f"null with encoder.name={encoder.name}, whose widths are fixed"
        raise config_error("encoder.channels", encoder.channels, constraint)
    if encoder.dropout and encoder.name != CLASSIC:
        raise config_error("encoder.dropout", encoder.dropout, f"0 with encoder.name={encoder.name}")
    _validate_statistics(config)
    if encoder.padding == "valid" and encoder.name != CLASSIC:
        raise config_error("encoder.padding", "valid", f"same with encoder.name={encoder.name}")
    if encoder.padding == "valid" and config.heads.diffusion is not None:
        raise config_error("encoder.padding", "valid", "same with a diffusion head, which needs every pixel")


def _validate_statistics(config: ModelConfig) -> None:
    encoder = config.encoder
    if (encoder.mean is None) != (encoder.std is None):
        raise config_error("encoder.std", encoder.std, "set with encoder.mean, and null without it")
    if encoder.mean is None:
        return
    for key, values in (("encoder.mean", encoder.mean), ("encoder.std", encoder.std or [])):
        if encoder.name == RESIDUAL or config.patch_size > 1:
            constraint = "null with encoder.name=residual or patch_size, whose input is pixels in [-1, 1]"
            raise config_error(key, values, constraint)
        if len(values) not in (config.in_channels, image_channels(config)):
            raise config_error(key, values, f"{config.in_channels} values, one per channel of the input")


def _residual(config: ModelConfig, channels: list[int], conditioning: ConditioningConfig) -> ResidualConfig:
    """The options of the residual blocks, with `mid_block` filled in."""
    options, imported, levels = config.residual, config.imported, conditioning.attention_levels or []
    by_level = {
        "imported.attention_heads": imported.attention_heads,
        "imported.transformer_depth": imported.transformer_depth,
    }
    steps = {
        "imported.resnet_downsample_levels": (imported.resnet_downsample_levels, range(len(channels) - 1)),
        "imported.resnet_upsample_levels": (imported.resnet_upsample_levels, range(1, len(channels))),
    }
    for key, (chosen, possible) in steps.items():
        if chosen is not None and (config.encoder.name != RESIDUAL or not set(chosen) <= set(possible)):
            raise config_error(key, chosen, f"null, or of encoder.name=residual among levels {as_yaml(list(possible))}")
    for key, value in by_level.items():
        if not isinstance(value, list):
            continue
        if config.encoder.name != RESIDUAL:
            raise config_error(key, value, f"one number with encoder.name={config.encoder.name}")
        if len(value) != len(channels) or min(value) < 1:
            raise config_error(key, value, f"{len(channels)} numbers of at least 1, one per level")
    if config.encoder.name != RESIDUAL:
        return options
    deepest = len(channels) - 1
    mid_block = options.mid_block or ("attention" if deepest in levels else "resnets")
    heads = imported.attention_heads
    for level in {*levels, *([deepest] if mid_block == "attention" else [])}:
        if heads is not None and channels[level] % heads[level]:
            constraint = f"divisors of the levels' channels {as_yaml(channels)} (level {level}: {heads[level]})"
            raise config_error("imported.attention_heads", heads, constraint)
    key, groups = "imported.mid_block_attention_groups", imported.mid_block_attention_groups
    if groups is not None and (mid_block != "attention" or conditioning.cross_attention_dim is not None):
        constraint = "null without self-attention in the mid block"
        raise config_error(
            key, groups, constraint, "Set residual.mid_block=attention and conditioning.cross_attention_dim=null."
        )
    if groups and channels[-1] % groups:
        raise config_error(key, groups, f"a divisor of the mid block's {channels[-1]} channels")
    return replace(options, mid_block=mid_block)  # type: ignore[arg-type]


def _sized(decoder: DecoderConfig, channels: list[int], upsample: Any, whole: bool) -> DecoderConfig:
    """The decoder with widths and upsampling filled in; `whole`: it must reach full resolution."""
    count = len(channels) if decoder.channels is None else len(decoder.channels)
    if whole and count != len(channels):
        remedy = "Only a segmenter with encoder.padding=same may stop early."
        raise config_error("decoder.channels", decoder.channels, f"{len(channels)} values, deepest first", remedy)
    if not 1 <= count <= len(channels):
        raise config_error("decoder.channels", decoder.channels, f"1 to {len(channels)} values, deepest first")
    upsample = decoder.upsample or upsample
    if decoder.align_corners and upsample != "bilinear":
        raise config_error("decoder.align_corners", True, "false unless decoder.upsample=bilinear")
    return replace(decoder, channels=list(decoder.channels or channels), upsample=upsample)


def _conditioning(config: ModelConfig, pretrained: bool) -> ConditioningConfig:
    conditioning, imported, diffusion = config.conditioning, config.imported, config.heads.diffusion is not None
    timestep = diffusion if conditioning.timestep is None else conditioning.timestep
    if diffusion and not timestep:
        raise config_error("conditioning.timestep", False, "true with a diffusion head")
    embeds, kind = imported.num_class_embeds, imported.class_embed_type
    if embeds and not timestep:
        raise config_error("imported.num_class_embeds", embeds, "null without conditioning.timestep")
    if kind and (embeds or not timestep):
        constraint = "null without conditioning.timestep, or with imported.num_class_embeds"
        raise config_error("imported.class_embed_type", kind, constraint)
    if conditioning.pooled_context and not (timestep and conditioning.cross_attention_dim):
        constraint = "false without conditioning.timestep and conditioning.cross_attention_dim"
        raise config_error("conditioning.pooled_context", True, constraint)
    _validate_added_condition(config, timestep)
    levels = conditioning.attention_levels
    if levels is None:
        residual = config.encoder.name == RESIDUAL
        deepest = PRETRAINED_LEVELS
        if not pretrained:
            deepest = len(config.encoder.channels or [0] * (4 if residual else 5)) - 1
        attends = residual or conditioning.cross_attention_dim is not None
        levels = [level for level in (deepest - 1, deepest) if level >= 0] if attends else []
    return replace(conditioning, timestep=timestep, attention_levels=list(levels))


def _validate_added_condition(config: ModelConfig, timestep: bool) -> None:
    imported = config.imported
    dims = {
        "imported.addition_time_embed_dim": imported.addition_time_embed_dim,
        "imported.projection_class_embeddings_input_dim": imported.projection_class_embeddings_input_dim,
    }
    for key, value in dims.items():
        if (value is None) != (imported.addition_embed_type is None):
            raise config_error(key, value, "set with imported.addition_embed_type, and null without it")
    for key, added in (
        ("imported.time_cond_proj_dim", imported.time_cond_proj_dim),
        ("imported.addition_embed_type", imported.addition_embed_type),
    ):
        if added is not None and not timestep:
            raise config_error(key, added, "null without conditioning.timestep")


def _norms(config: ModelConfig, pretrained: bool) -> tuple[EncoderConfig, DecoderConfig]:
    encoder, decoder, diffusion = config.encoder, config.decoder, config.heads.diffusion is not None
    for key, norm in (("encoder.norm", encoder.norm), ("decoder.norm", decoder.norm)):
        if encoder.name == RESIDUAL and norm not in (None, "group"):
            raise config_error(key, norm, "group or null with encoder.name=residual")
        if diffusion and norm == "batch":
            constraint = "frozen or group with a diffusion head"
            raise config_error(key, norm, constraint, "Batch statistics would mix noise levels.")
    if encoder.name == RESIDUAL:
        return replace(encoder, norm="group"), replace(decoder, norm="group")
    if pretrained and encoder.norm == "none":
        raise config_error("encoder.norm", "none", "batch, frozen or group with a pretrained encoder")
    default = "batch"
    if diffusion:
        default = "frozen" if pretrained and encoder.weights is not None else "group"
    return (
        replace(encoder, norm=encoder.norm or default),  # type: ignore[arg-type]
        replace(decoder, norm=decoder.norm or ("group" if diffusion else "batch")),
    )
