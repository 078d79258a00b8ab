"""What the `segmentation:` section may not say, and how an image may not be seen."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING

from unetdiff.config.validation.config_error import at_least, config_error, pair, share
from unetdiff.config.validation.diffusion import validate_noise
from unetdiff.errors import nearest

if TYPE_CHECKING:
    from unetdiff.config.parsing import RunConfig
    from unetdiff.segmentation.config import InferenceConfig, SegmentationConfig


LOSSES = ("cross_entropy", "focal", "dice", "lovasz")


def validate_segmentation(config: RunConfig) -> None:
    given = config.segmentation
    if not given.losses or not any(given.losses.values()):
        raise config_error("segmentation.losses", given.losses, "weighs nothing", "e.g. {cross_entropy: 1.0}")
    for name, weight in given.losses.items():
        if name not in LOSSES:
            near = nearest(name, LOSSES)
            raise config_error(
                f"segmentation.losses.{name}",
                weight,
                "is an unknown loss",
                f"nearest: segmentation.losses.{near}",
            )
        if not (weight >= 0 and math.isfinite(weight)):
            raise config_error(f"segmentation.losses.{name}", weight, "is no weight", "give 0 or more")
    _validate_class_weights(config)
    _validate_cross_entropy(given)
    if not 0 <= given.ignore_index <= 255:
        raise config_error("segmentation.ignore_index", given.ignore_index, "is no pixel value", "use 255")
    at_least("segmentation.preview_images", given.preview_images, 0)
    _validate_noise(config)


def _validate_noise(config: RunConfig) -> None:
    noise = config.segmentation.noise
    share("segmentation.noise", noise)
    if not noise:
        return
    if config.task == "joint":
        why = "does not go with task joint, whose segmentation head is shown the clean images of the batch"
        raise config_error("segmentation.noise", noise, why, "use 0.0, or task segmentation")
    validate_noise(config)


def _validate_class_weights(config: RunConfig) -> None:
    key, given = "segmentation.class_weights", config.segmentation.class_weights
    until = config.segmentation.class_weights_anneal_until
    if until is not None and given is None:
        raise config_error(f"{key}_until", until, "eases weights that are not there", "use null, or give class_weights")
    if until is not None and not 0 < until <= 1:
        raise config_error(f"{key}_until", until, "is no share of a run", "use 0 to 1, e.g. 0.5")
    if given is None:
        return
    if not any(config.segmentation.losses.get(name) for name in ("cross_entropy", "focal")):
        raise config_error(
            key, given, "weighs nothing without cross_entropy or focal in segmentation.losses", "use null"
        )
    if isinstance(given, str):
        return
    classes = config.data.num_classes or (config.model.heads.segmentation or _NoHead).num_classes
    if classes is not None and len(given) != classes:
        raise config_error(key, given, f"has {len(given)} weights", f"give {classes}, one a class")
    if not all(0 <= weight < math.inf for weight in given) or not any(given):
        raise config_error(key, given, "cannot weigh", "give finite numbers of 0 or more, one of them positive")


def _validate_cross_entropy(given: SegmentationConfig) -> None:
    smoothing, ohem = given.label_smoothing, given.ohem
    if not 0 <= smoothing < 1:
        raise config_error("segmentation.label_smoothing", smoothing, "is no share", "use 0 to below 1, e.g. 0.1")
    if not given.losses.get("cross_entropy"):
        without = "does nothing without cross_entropy in segmentation.losses"
        if smoothing:
            raise config_error(
                "segmentation.label_smoothing", smoothing, without, "use 0, or give cross_entropy a weight"
            )
        if ohem is not None:
            raise config_error("segmentation.ohem", asdict(ohem), without, "use null, or give cross_entropy a weight")
    if ohem is not None:
        share("segmentation.ohem.threshold", ohem.threshold)
        share("segmentation.ohem.min_fraction", ohem.min_fraction)
        if ohem.threshold == 0 and ohem.min_fraction == 0:
            raise config_error(
                "segmentation.ohem.threshold", 0.0, "and min_fraction 0.0 keep no pixel", "e.g. 0.7 and 0.2"
            )


class _NoHead:
    num_classes: int | None = None


def validate_inference(config: InferenceConfig) -> None:
    """Refuse tiles, overlaps, scales and batches that cannot be (UserError)."""
    pair("tile", config.tile)
    if not 0 <= config.overlap <= 0.9:
        raise config_error("overlap", config.overlap, "is no share of a tile", "use 0 to 0.9, e.g. 0.25")
    if not config.scales or not all(0 < scale < math.inf for scale in config.scales):
        raise config_error("scales", config.scales, "are not positive factors", "give e.g. [0.75, 1.0, 1.25]")
    at_least("batch_size", config.batch_size, 1)
