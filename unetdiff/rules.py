"""What a config may not say: each impossible combination is refused with key, value and what is right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unetdiff.data.prompt import trained_pairs
from unetdiff.errors import UserError, nearest
from unetdiff.models.config import DiffusionHeadConfig, HeadsConfig, SegmentationHeadConfig
from unetdiff.models.resolve import resolve

if TYPE_CHECKING:
    from unetdiff.config import RunConfig
    from unetdiff.data.config import DataConfig
    from unetdiff.segmentation.config import InferenceConfig, SegmentationConfig

LOSSES = ("cross_entropy", "focal", "dice", "lovasz")
IN_VOC_LAYOUT = ("voc", "voc_folder")
# What the pictures of each data.name come with.
WITH_MASKS = ("scenes", *IN_VOC_LAYOUT)
WITH_LABELS = ("scenes", "image_folder", "parquet", "fashion_mnist", "cifar10")  # one class a picture: "label"
WITH_CLASSES = (*WITH_LABELS, *IN_VOC_LAYOUT)  # "labels": that class, or those in the mask
WITH_CAPTIONS = ("scenes", "captioned_folder", "parquet")  # parquet: where data.caption_column is given
DOWNLOADABLE = ("voc", "fashion_mnist", "cifar10")
OWN_SIZE = {
    "scenes": 32,
    "fashion_mnist": 28,
    "cifar10": 32,
}  # height and width of the set's pictures, pixels


def refuse(key: str, value: Any, why: str, right: str) -> UserError:
    """One line: the key, its value, why not, and what would be right."""
    return UserError(f"{key}: {value!r} {why}; {right}")


def validate(config: RunConfig) -> None:
    """Refuse a config that cannot be trained (UserError); looks at nothing but the config."""
    _validate_network(config)
    _validate_heads(config)
    validate_data(config)
    if config.task != "diffusion":
        _validate_segmentation(config)
    if config.task != "segmentation":
        _validate_diffusion(config)
    if config.task == "joint":
        _validate_joint(config)
    _validate_length(config)
    _validate_training(config)


def check_files(config: RunConfig) -> None:
    """Refuse files that are named and not there, and half precision that the machine has not."""
    weights, root = config.model.encoder.weights, config.data.root
    if weights is not None and weights != "imagenet" and not Path(weights).is_file():
        raise refuse("model.encoder.weights", weights, "does not exist", 'give a safetensors file, "imagenet", or null')
    if root is not None and config.data.name != "scenes" and not config.data.download and not Path(root).exists():
        hint = ", or set data.download to true" if config.data.name in DOWNLOADABLE else ""
        raise refuse("data.root", root, "does not exist", f"give the place of the set{hint}")
    if config.training.mixed_precision == "fp16":
        import torch

        if not torch.cuda.is_available():
            raise refuse("training.mixed_precision", "fp16", "needs a GPU", "use auto, bf16 or no")


# ------------------------------------------------------------------------------------------- the network


def _validate_network(config: RunConfig) -> None:
    model, noisy = config.model, config.task != "segmentation"
    for key, channels in (
        ("model.encoder.channels", model.encoder.channels),
        ("model.decoder.channels", model.decoder.channels),
    ):
        if channels is not None and (not channels or min(channels) < 1):
            raise refuse(key, channels, "has no width at some level", "give positive integers, e.g. [32, 64]")
    if model.in_channels != 3:
        raise refuse("model.in_channels", model.in_channels, "does not fit RGB pictures", "use 3")
    dim = model.conditioning.cross_attention_dim
    if dim is not None and dim < 1:
        raise refuse("model.conditioning.cross_attention_dim", dim, "is no width", "use a positive integer or null")
    if model.conditioning.num_class_embeds is not None:
        raise refuse(
            "model.conditioning.num_class_embeds",
            model.conditioning.num_class_embeds,
            "is for imported networks and is not trained here",
            "use null; classes are told by diffusion.condition class",
        )
    _at_least("model.conditioning.attention_head_dim", model.conditioning.attention_head_dim, 1)
    heads = HeadsConfig(
        SegmentationHeadConfig() if config.task != "diffusion" else None, DiffusionHeadConfig() if noisy else None
    )
    try:
        resolve(replace(model, heads=heads))  # what the network itself refuses: family, norms, padding, levels
    except UserError as error:
        raise UserError(f"model.{error} (task {config.task})") from None


def _validate_heads(config: RunConfig) -> None:
    heads = config.model.heads
    if heads.diffusion is not None and heads.diffusion.out_channels != config.model.in_channels:
        raise refuse(
            "model.heads.diffusion.out_channels",
            heads.diffusion.out_channels,
            "differs from the picture's channels",
            f"use {config.model.in_channels}, or leave the heads out: they follow from the task",
        )
    classes = config.data.num_classes
    if heads.segmentation is not None and classes not in (None, heads.segmentation.num_classes):
        raise refuse(
            "model.heads.segmentation.num_classes",
            heads.segmentation.num_classes,
            f"differs from data.num_classes ({classes})",
            "leave the heads out: they follow from the data set",
        )


# ------------------------------------------------------------------------------------------- the pictures


def validate_data(config: RunConfig) -> None:
    """Refuse a `data:` section that cannot serve the task."""
    data, task = config.data, config.task
    if task != "diffusion" and data.name not in WITH_MASKS:
        raise refuse("data.name", data.name, f"has no masks (task {task})", f"use one of {', '.join(WITH_MASKS)}")
    if data.name != "scenes" and data.root is None:
        raise refuse("data.root", None, f"is missing for data.name {data.name}", "give the folder of the set")
    if data.download and data.name not in DOWNLOADABLE:
        raise refuse(
            "data.download",
            True,
            f"is not for {data.name}",
            f"only {', '.join(DOWNLOADABLE)} can be downloaded",
        )
    if data.num_classes is not None and data.name != "voc_folder":
        raise refuse("data.num_classes", data.num_classes, f"is known for {data.name}", "only voc_folder takes it")
    _pair("data.size", data.size)
    if data.longest_side is not None:
        _at_least("data.longest_side", data.longest_side, 32)
    _share("data.balance", data.balance)
    for key, value in (("longest_side", data.longest_side), ("balance", data.balance)):
        if value and data.name not in IN_VOC_LAYOUT:
            raise refuse(f"data.{key}", value, f"is not for {data.name}", "leave it out (voc and voc_folder have it)")
    if data.longest_side is not None and data.size is not None:
        raise refuse("data.longest_side", data.longest_side, f"and data.size {data.size} contradict", "set one to null")
    _pair("data.augment.crop", data.augment.crop)
    if data.caption_column is not None and (data.name not in WITH_CAPTIONS or data.name == "scenes"):
        right = "leave it out (captioned_folder and parquet have it)"
        raise refuse("data.caption_column", data.caption_column, f"is not for {data.name}", right)
    uneven = ("voc", "image_folder", "captioned_folder", "parquet")
    if data.name in uneven and data.size is None and data.augment.crop is None:
        raise refuse("data.size", None, f"is missing for {data.name}", "give [height, width], or data.augment.crop")
    if task == "diffusion" and data.name in IN_VOC_LAYOUT and data.size is None:
        raise refuse("data.size", None, f"is missing for {data.name} without masks", "give [height, width]")
    scale = data.augment.scale
    if scale is not None and (len(scale) != 2 or not 0 < scale[0] <= scale[1]):
        raise refuse("data.augment.scale", scale, "is no range", "give [smallest, largest], e.g. [0.5, 2.0]")
    _share("data.augment.color", data.augment.color)
    _share("data.scenes.clutter", data.scenes.clutter)
    _share("data.scenes.spread", data.scenes.spread)
    for name in ("train_pictures", "val_pictures", "digits", "colors"):
        _at_least(f"data.scenes.{name}", getattr(data.scenes, name), 1)
    trained_pairs(data.scenes)


def require_captions(key: str, value: Any, data: DataConfig) -> None:
    """Refuse `key: value`, which needs captions, for a set that has none."""
    if data.name not in WITH_CAPTIONS:
        right = f"use one of {', '.join(WITH_CAPTIONS)}"
        raise refuse(key, value, f"needs captions, which {data.name} has not", right)
    if data.name == "parquet" and data.caption_column is None:
        raise refuse("data.caption_column", None, f"leaves {key} {value} without captions", "name the parquet's column")


def picture_size(config: RunConfig) -> list[int] | None:
    """Height and width of the pictures that the network trains on, where the config alone tells."""
    if config.data.augment.crop is not None:
        return config.data.augment.crop
    if config.data.size is not None:
        return config.data.size
    own = OWN_SIZE.get(config.data.name)
    return None if own is None else [own, own]


# --------------------------------------------------------------------------------------------- the heads


def _validate_segmentation(config: RunConfig) -> None:
    given = config.segmentation
    if not given.losses or not any(given.losses.values()):
        raise refuse("segmentation.losses", given.losses, "weighs nothing", "e.g. {cross_entropy: 1.0}")
    for name, weight in given.losses.items():
        if name not in LOSSES:
            near = nearest(name, LOSSES)
            raise refuse(
                f"segmentation.losses.{name}",
                weight,
                "is an unknown loss",
                f"nearest: segmentation.losses.{near}",
            )
        if not (weight >= 0 and math.isfinite(weight)):
            raise refuse(f"segmentation.losses.{name}", weight, "is no weight", "give 0 or more")
    _validate_class_weights(config)
    _validate_cross_entropy(given)
    if not 0 <= given.ignore_index <= 255:
        raise refuse("segmentation.ignore_index", given.ignore_index, "is no pixel value", "use 255")
    _at_least("segmentation.preview_pictures", given.preview_pictures, 0)


def _validate_class_weights(config: RunConfig) -> None:
    key, given = "segmentation.class_weights", config.segmentation.class_weights
    if given is None:
        return
    if not any(config.segmentation.losses.get(name) for name in ("cross_entropy", "focal")):
        raise refuse(key, given, "weighs nothing without cross_entropy or focal in segmentation.losses", "use null")
    if isinstance(given, str):
        return
    classes = config.data.num_classes or (config.model.heads.segmentation or _NoHead).num_classes
    if classes is not None and len(given) != classes:
        raise refuse(key, given, f"has {len(given)} weights", f"give {classes}, one a class")
    if not all(0 <= weight < math.inf for weight in given) or not any(given):
        raise refuse(key, given, "cannot weigh", "give finite numbers of 0 or more, one of them positive")


def _validate_cross_entropy(given: SegmentationConfig) -> None:
    smoothing, ohem = given.label_smoothing, given.ohem
    if not 0 <= smoothing < 1:
        raise refuse("segmentation.label_smoothing", smoothing, "is no share", "use 0 to below 1, e.g. 0.1")
    if not given.losses.get("cross_entropy"):
        without = "does nothing without cross_entropy in segmentation.losses"
        if smoothing:
            raise refuse("segmentation.label_smoothing", smoothing, without, "use 0, or give cross_entropy a weight")
        if ohem is not None:
            raise refuse("segmentation.ohem", asdict(ohem), without, "use null, or give cross_entropy a weight")
    if ohem is not None:
        _share("segmentation.ohem.threshold", ohem.threshold)
        _share("segmentation.ohem.min_share", ohem.min_share)
        if ohem.threshold == 0 and ohem.min_share == 0:
            raise refuse("segmentation.ohem.threshold", 0.0, "and min_share 0.0 keep no pixel", "e.g. 0.7 and 0.2")


class _NoHead:
    num_classes: int | None = None


def _validate_condition(config: RunConfig) -> None:
    """What the denoiser is told must be in the data set, and must reach the network."""
    given, dim = config.diffusion, config.model.conditioning.cross_attention_dim
    several = given.condition == "class" and given.classes_at_once > 1
    needs = {
        "class": ("picture classes", WITH_LABELS),
        "layout": ("masks", WITH_MASKS),
    }
    if several:
        needs["class"] = ("masks that show the classes", WITH_MASKS)
    if given.condition in needs:
        what, sets = needs[given.condition]
        if config.data.name not in sets:
            raise refuse(
                "diffusion.condition",
                given.condition,
                f"needs {what}, which {config.data.name} has not",
                f"use none, or data.name {', '.join(sets)}",
            )
    if config.task == "joint" and (several or given.condition in ("layout", "picture")):
        name, value = ("classes_at_once", given.classes_at_once) if several else ("condition", given.condition)
        raise refuse(
            f"diffusion.{name}",
            value,
            "does not go with task joint: one head would be told what the other is to find, or see more channels",
            "use class with classes_at_once 1, text or none",
        )
    if given.condition == "text":
        require_captions("diffusion.condition", "text", config.data)
        if given.text.max_tokens is not None:
            _at_least("diffusion.text.max_tokens", given.text.max_tokens, 1)
    if given.condition in ("class", "text") and dim is None:
        raise refuse(
            "model.conditioning.cross_attention_dim",
            None,
            f"leaves diffusion.condition {given.condition} without tokens",
            "give a width such as 64, or set diffusion.condition to none",
        )
    if given.condition == "layout":
        _at_least("diffusion.layout.grid", given.layout.grid, 0)
        _at_least("diffusion.layout.channels", given.layout.channels, 0)
        if not given.layout.channels and (not given.layout.grid or dim is None):
            raise refuse(
                "diffusion.layout.channels",
                0,
                "leaves the layout without channels, and without a grid or cross_attention_dim there are no tokens",
                "give channels such as 8, or diffusion.layout.grid and model.conditioning.cross_attention_dim",
            )
    if given.condition == "picture":
        least = 1 if given.picture.degradation == "downscale" else 0
        if not least < given.picture.strength < math.inf:
            raise refuse(
                "diffusion.picture.strength",
                given.picture.strength,
                f"degrades nothing by {given.picture.degradation}",
                f"use more than {least}",
            )


def _validate_diffusion(config: RunConfig) -> None:
    given = config.diffusion
    if given.noise.zero_terminal_snr and given.prediction_type == "epsilon":
        raise refuse(
            "diffusion.prediction_type",
            "epsilon",
            "learns nothing where the last timestep is pure noise (diffusion.noise.zero_terminal_snr true)",
            "use v_prediction or sample",
        )
    if given.weighting == "clamped_snr" and given.prediction_type == "epsilon":
        raise refuse("diffusion.weighting", "clamped_snr", "goes to infinity for epsilon", "use min_snr")
    _validate_condition(config)
    _at_least("diffusion.noise.num_train_timesteps", given.noise.num_train_timesteps, 2)
    for name in ("class_tokens", "classes_at_once", "preview_per_class", "preview_rows"):
        _at_least(f"diffusion.{name}", getattr(given, name), 1)
    if not 1 <= given.preview_steps <= given.noise.num_train_timesteps:
        raise refuse(
            "diffusion.preview_steps",
            given.preview_steps,
            "is out of range",
            f"use 1 to {given.noise.num_train_timesteps} (diffusion.noise.num_train_timesteps)",
        )
    if not 0 < given.snr_gamma < math.inf:
        raise refuse("diffusion.snr_gamma", given.snr_gamma, "is no positive number", "the paper uses 5.0")
    if given.weighting == "clamped_snr" and given.snr_gamma < 1:
        raise refuse("diffusion.snr_gamma", given.snr_gamma, "is below clamped_snr's least weight of 1", "use 5.0")
    if not 0 <= given.offset_noise < math.inf:
        raise refuse("diffusion.offset_noise", given.offset_noise, "is no strength", "use 0 (off) or more, e.g. 0.1")
    _share("diffusion.condition_dropout", given.condition_dropout)
    size, trained = config.model.sample_size, picture_size(config)
    if size is not None and trained is not None and trained != [size, size]:
        raise refuse(
            "model.sample_size",
            size,
            f"is not the size that the pictures have ({trained})",
            f"use {trained[0]}" if trained[0] == trained[1] else "use null",
        )


def _validate_joint(config: RunConfig) -> None:
    given = config.joint
    for name, weight in (
        ("segmentation_weight", given.segmentation_weight),
        ("diffusion_weight", given.diffusion_weight),
    ):
        if not 0 < weight < math.inf:
            raise refuse(f"joint.{name}", weight, "leaves a head untrained", "use a positive number, e.g. 1.0")
    if not 0 < given.segmentation_share <= 1:
        raise refuse(
            "joint.segmentation_share", given.segmentation_share, "is no share of a batch", "use 1 or less, above 0"
        )


# ------------------------------------------------------------------------------------------- inference


def validate_inference(config: InferenceConfig) -> None:
    """Refuse tiles, overlaps, scales and batches that cannot be (UserError)."""
    _pair("tile", config.tile)
    if not 0 <= config.overlap <= 0.9:
        raise refuse("overlap", config.overlap, "is no share of a tile", "use 0 to 0.9, e.g. 0.25")
    if not config.scales or not all(0 < scale < math.inf for scale in config.scales):
        raise refuse("scales", config.scales, "are not positive factors", "give e.g. [0.75, 1.0, 1.25]")
    _at_least("batch_size", config.batch_size, 1)


# ---------------------------------------------------------------------------------------------- the loop


def _validate_length(config: RunConfig) -> None:
    given = config.training
    if given.steps is None and given.epochs is None:
        raise refuse("training.steps", None, "and training.epochs null give no length", "set one of the two")
    if given.steps is not None and given.epochs is not None:
        raise refuse(
            "training.steps",
            given.steps,
            f"and training.epochs {given.epochs!r} both give the length",
            "set one of the two to null",
        )
    if given.steps is not None:
        _at_least("training.steps", given.steps, 1)
    if given.epochs is not None and not 0 < given.epochs < math.inf:
        raise refuse("training.epochs", given.epochs, "is no length", "give a positive number")


def _validate_training(config: RunConfig) -> None:
    given = config.training
    if given.resume and given.overwrite:
        raise refuse("training.resume", True, "and training.overwrite true contradict each other", "set one of the two")
    for name in ("batch_size", "accumulation", "eval_batch_size", "log_every", "validate_every"):
        _at_least(f"training.{name}", getattr(given, name), 1)
    for name in ("checkpoint_every", "keep_checkpoints", "max_nonfinite"):
        _at_least(f"training.{name}", getattr(given, name), 1)
    _at_least("training.num_workers", given.num_workers, 0)
    if given.batch_size % given.accumulation:
        divisors = [n for n in range(1, given.batch_size + 1) if given.batch_size % n == 0]
        near = min(divisors, key=lambda n: abs(n - given.accumulation))
        raise refuse(
            "training.accumulation",
            given.accumulation,
            f"does not divide training.batch_size {given.batch_size}",
            f"nearest that does: {near}",
        )
    _share("training.freeze_encoder", given.freeze_encoder)
    _at_least("training.frozen_levels", given.frozen_levels, 0)
    for name in ("min_lr_ratio", "warmup_ratio", "warmup_lr_ratio", "no_aug_ratio"):
        _share(f"training.schedule.{name}", getattr(given.schedule, name))
    _share("training.ema.warmup_ratio", given.ema.warmup_ratio)
    _at_least("training.ema.half_life_images", given.ema.half_life_images, 1)
    optimizer = given.optimizer
    for name, lr in (("lr", optimizer.lr), ("trunk_lr", optimizer.trunk_lr)):
        if lr is not None and not 0 < lr < math.inf:
            raise refuse(f"training.optimizer.{name}", lr, "is no learning rate", "give a positive number, e.g. 1e-3")
    if len(optimizer.betas) != 2 or not all(0 <= beta < 1 for beta in optimizer.betas):
        raise refuse("training.optimizer.betas", optimizer.betas, "are not two decays", "e.g. [0.9, 0.999]")
    _at_least("training.optimizer.weight_decay", optimizer.weight_decay, 0)
    _at_least("training.optimizer.max_grad_norm", optimizer.max_grad_norm, 0)


def _at_least(key: str, value: float, least: int) -> None:
    if not value >= least:
        raise refuse(key, value, "is too small", f"use {least} or more")


def _share(key: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise refuse(key, value, "is no share", "use 0 to 1")


def _pair(key: str, value: Sequence[int] | None) -> None:
    if value is not None and (len(value) != 2 or min(value) < 1):
        raise refuse(key, value, "is not [height, width]", "give two positive integers, e.g. [256, 256]")
