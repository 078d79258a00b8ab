"""Constraints on the `data:` section."""

from __future__ import annotations

from typing import Any

from unetdiff.config.schema import RunConfig
from unetdiff.config.validation.masks import validate_masks
from unetdiff.data.bucket_sizes import bucket_sizes
from unetdiff.data.capabilities import (
    CUSTOM,
    DOWNLOADABLE,
    NATIVE_SIZE,
    VARYING_SIZES,
    WITH_BUCKETS,
    WITH_CAPTIONS,
    WITH_MASK_FILES,
    WITH_MASKS,
)
from unetdiff.data.config import DataConfig, validate_image_range
from unetdiff.data.prompt import held_out_pairs
from unetdiff.errors import as_yaml, config_error


def validate_data(config: RunConfig) -> None:
    """Check that the dataset can serve the task."""
    data, task = config.data, config.task
    if task != "diffusion" and data.name not in WITH_MASKS:
        raise config_error("data.name", data.name, f"a dataset with masks for task={task}: {', '.join(WITH_MASKS)}")
    if data.name not in ("scenes", CUSTOM) and data.root is None:
        raise config_error("data.root", None, f"set with data.name={data.name}", "Give the folder of the dataset.")
    if data.download and data.name not in DOWNLOADABLE:
        right = ", ".join(DOWNLOADABLE)
        raise config_error(
            "data.download", True, f"false with data.name={data.name}", f"Only {right} can be downloaded."
        )
    validate_masks(data)
    if data.caption_column is not None and (data.name not in WITH_CAPTIONS or data.name == "scenes"):
        remedy = "Only captioned_folder and parquet have caption columns."
        raise config_error("data.caption_column", data.caption_column, f"null with data.name={data.name}", remedy)
    _validate_size(config)
    validate_image_range(data.image_range)
    if data.channels not in (None, 3) and reads_rgb(config):
        constraint = "3 for a denoiser, latents, or a pretrained network"
        raise config_error("data.channels", data.channels, constraint, "Gray images are read as RGB.")
    if data.repeat_factor_threshold and data.name not in WITH_MASK_FILES:
        raise config_error(
            "data.repeat_factor_threshold",
            data.repeat_factor_threshold,
            f"0 with data.name={data.name}",
            f"Only {', '.join(WITH_MASK_FILES)} support it.",
        )
    scale = data.augment.scale
    if scale is not None and scale[0] > scale[1]:
        raise config_error("data.augment.scale", scale, "[smallest, largest]", f"Give [{scale[1]}, {scale[0]}].")
    _validate_crop(config)
    _validate_regularization(config)
    _validate_unlabelled(config)
    held_out_pairs(data.scenes)


def _validate_crop(config: RunConfig) -> None:
    """What gives a training image its aspect ratio: the center or a random part of `data.size`, or its bucket."""
    data, augment = config.data, config.data.augment
    step = data.bucket_step
    if step is None and not augment.random_crop:
        return
    key, value, off = ("data.bucket_step", step, "null") if step else ("data.augment.random_crop", True, "false")
    if config.task != "diffusion" or needs_layout(config):
        raise config_error(key, value, f"{off} for images with masks", "Use data.augment.scale and crop.")
    for name in ("crop", "scale"):
        if getattr(augment, name) is not None:
            constraint = f"null with {key}={as_yaml(value)}, which crops to data.size"
            raise config_error(f"data.augment.{name}", getattr(augment, name), constraint)
    if step is not None and data.name not in WITH_BUCKETS:
        remedy = f"Only {', '.join(WITH_BUCKETS)} support it."
        raise config_error(key, step, f"null with data.name={data.name}", remedy)
    if step is not None and data.size is not None:
        bucket_sizes(data.size, step)
    if step is None and data.name not in VARYING_SIZES:
        raise config_error(key, True, f"false with data.name={data.name}, whose images are of one size")


def _validate_regularization(config: RunConfig) -> None:
    """Images for prior preservation need captions."""
    data, weight = config.data, config.diffusion.prior_weight
    key, root = "data.regularization_root", data.regularization_root
    if root is None:
        if data.regularization_prompt is not None:
            raise config_error("data.regularization_prompt", data.regularization_prompt, f"null without {key}")
        if weight != 1:
            raise config_error("diffusion.prior_weight", weight, f"left out without {key}", "Set the folder.")
        return
    if config.task != "diffusion" or data.name != "captioned_folder" or config.diffusion.condition != "text":
        constraint = "null without task=diffusion, data.name=captioned_folder and diffusion.condition=text"
        raise config_error(key, root, constraint)


def _validate_unlabelled(config: RunConfig) -> None:
    """Images without masks are the denoiser's and the pseudo-labels', and nothing of them may come from a mask."""
    data, diffusion, pseudo_labels = config.data, config.diffusion, config.segmentation.pseudo_labels
    key = "data.label_fraction" if data.unlabelled_root is None else "data.unlabelled_root"
    value: float | str | None = data.label_fraction if data.unlabelled_root is None else data.unlabelled_root
    default = "1" if data.unlabelled_root is None else "null"
    if data.label_fraction == 1 and data.unlabelled_root is None:
        return
    if config.task == "diffusion" or (config.task == "segmentation" and pseudo_labels is None):
        remedy = "Use data.train_fraction, or segmentation.pseudo_labels." if config.task == "segmentation" else ""
        constraint = f"{default} with task={config.task}: a joint run's diffusion head learns without masks"
        raise config_error(key, value, constraint, remedy)
    if data.unlabelled_root is not None and data.name not in WITH_MASK_FILES:
        remedy = f"Only {', '.join(WITH_MASK_FILES)} support it."
        raise config_error(key, value, f"null with data.name={data.name}", remedy)
    if config.task == "joint" and config.joint.segmentation_fraction == 1:
        constraint = f"less than 1 with {key}={value}: the other images of a batch may have no mask"
        raise config_error("joint.segmentation_fraction", 1.0, constraint, "Give e.g. 0.25.")
    from_masks = diffusion.condition == "class" and (data.name in WITH_MASK_FILES or diffusion.max_classes > 1)
    conditional = from_masks or (data.unlabelled_root is not None and diffusion.condition != "none")
    if config.task == "joint" and conditional:
        constraint = f"none with {key}={value}, whose images have neither masks nor the condition"
        raise config_error("diffusion.condition", diffusion.condition, constraint)
    if data.repeat_factor_threshold:
        constraint = f"0 with {key}={value}: it needs the mask of every image"
        raise config_error("data.repeat_factor_threshold", data.repeat_factor_threshold, constraint)


def _validate_size(config: RunConfig) -> None:
    data, task = config.data, config.task
    if data.longest_side is not None:
        if data.name not in WITH_MASK_FILES:
            remedy = f"Only {', '.join(WITH_MASK_FILES)} support it."
            raise config_error("data.longest_side", data.longest_side, f"null with data.name={data.name}", remedy)
        if data.size is not None:
            raise config_error(
                "data.longest_side",
                data.longest_side,
                f"null with data.size={data.size}",
                "Set one of the two to null.",
            )
    if task == "segmentation" and data.name == "voc" and data.size is None and data.augment.crop is None:
        raise config_error(
            "data.size", None, "set with data.name=voc", "Give [height, width], or set data.augment.crop."
        )
    if task != "segmentation" and data.name in VARYING_SIZES and data.size is None:
        raise config_error(
            "data.size",
            None,
            f"set with data.name={data.name} and task={task}, as a denoiser samples images of one size",
            "Give [height, width]; data.augment.crop may cut smaller crops from them.",
        )


def require_captions(key: str, value: Any, data: DataConfig) -> None:
    """Check that a dataset has the captions that `key=value` needs."""
    if data.name not in WITH_CAPTIONS:
        right = ", ".join(WITH_CAPTIONS)
        raise config_error("data.name", data.name, f"a dataset with captions for {key}={value}: {right}")
    if data.name == "parquet" and data.caption_column is None:
        raise config_error(
            "data.caption_column", None, f"set with {key}={value}", "Name the parquet file's caption column."
        )


def needs_layout(config: RunConfig) -> bool:
    """Whether a denoiser needs each image's mask: as its target, as its layout, or for the classes in it."""
    diffusion = config.diffusion
    several_classes = diffusion.condition == "class" and diffusion.max_classes > 1
    return config.task == "diffusion" and (
        diffusion.target == "mask" or diffusion.condition == "layout" or several_classes
    )


def segmented_fraction(config: RunConfig) -> float:
    """Fraction of each batch whose masks are used, where some images have none."""
    pseudo_labels = config.segmentation.pseudo_labels
    if config.task == "segmentation" and pseudo_labels is not None:
        return pseudo_labels.labelled_fraction
    return config.joint.segmentation_fraction


def reads_rgb(config: RunConfig) -> bool:
    """Whether the network reads RGB whatever the images are: a denoiser, a network of latents, a pretrained one."""
    return config.task != "segmentation" or config.latent.vae is not None or config.model.pretrained is not None


def image_size(config: RunConfig) -> list[int] | None:
    """Height and width of the training images; None: unknown before the dataset is opened."""
    if config.data.augment.crop is not None:
        return config.data.augment.crop
    if config.data.size is not None:
        return config.data.size
    native = NATIVE_SIZE.get(config.data.name)
    return None if native is None else [native, native]
