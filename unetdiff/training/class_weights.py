"""`segmentation.class_weights: median_frequency | inverse_log`, computed from the training split when a run starts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from unetdiff.config.schema import RunConfig
from unetdiff.data.base import ImageDataset
from unetdiff.data.labelled import labelled_part
from unetdiff.data.stats import class_weights, count
from unetdiff.errors import UserError


def resolve_class_weights(config: RunConfig, train: ImageDataset, accelerator: Accelerator) -> RunConfig:
    """The config with computed class weights in place of the name of their method.

    So the run's config.yaml holds the weights used. A resumed run computes them again: if the split has changed since,
    they differ from those in config.yaml, and resuming is refused like any other change. Computed by the main process
    and broadcast.

    Raises:
        UserError: an unreadable mask, a split without labeled pixels, or a number of weights that differs from the
            number of classes.
    """
    method = config.segmentation.class_weights
    if config.task == "diffusion" or method is None:
        return config
    if not isinstance(method, str):
        if len(method) != len(train.classes):
            raise UserError(
                f"segmentation.class_weights={method!r}: must have {len(train.classes)} weights (got {len(method)}). "
                f"Give one per class ({', '.join(train.classes)})."
            )
        return config
    weights: list[Any] = [None]
    if accelerator.is_main_process:
        counts = count(labelled_part(train), config.segmentation.ignore_index, description="class weights")
        weights = [class_weights(method, counts)]
    broadcast_object_list(weights)
    return replace(config, segmentation=replace(config.segmentation, class_weights=weights[0]))


def class_weights_source(config: RunConfig, resolved: RunConfig, classes: list[str]) -> dict[str, Any] | None:
    """For summary.json: the origin of the weights ("config", or the method), and the weight of each class; or None."""
    weights, method = resolved.segmentation.class_weights, config.segmentation.class_weights
    if resolved.task == "diffusion" or weights is None or isinstance(weights, str):
        return None
    return {
        "from": method if isinstance(method, str) else "config",
        "by_class": dict(zip(classes, weights, strict=True)),
    }


def describe(weights: dict[str, Any]) -> str:
    """The log line of `class_weights_source`."""
    by_class = ", ".join(f"{name} {weight:g}" for name, weight in weights["by_class"].items())
    return f"class weights ({weights['from']}): {by_class}"
