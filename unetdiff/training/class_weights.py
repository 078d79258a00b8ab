"""`segmentation.class_weights: median_frequency`, made numbers when a run starts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from unetdiff.config.schema import RunConfig
from unetdiff.data.base import ImageDataset
from unetdiff.data.stats import class_weights, count
from unetdiff.errors import UserError


def with_numbers(config: RunConfig, train: ImageDataset, accelerator: Accelerator) -> RunConfig:
    """The config with the weights of the training split in place of the word that asks for them.

    So the run's config.yaml holds what the run was trained with. A resumed run counts again: where the split has
    changed since, the weights differ from those in config.yaml, and it is refused as any other change is. The main
    process counts, for all of them.

    Raises:
        UserError: a mask that cannot be read, a split without a pixel of any class, or weights that were given but are
            not one a class.
    """
    method = config.segmentation.class_weights
    if config.task == "diffusion" or method is None:
        return config
    if not isinstance(method, str):
        if len(method) != len(train.classes):
            raise UserError(
                f"segmentation.class_weights: {method!r} has {len(method)} weights; "
                f"give {len(train.classes)}, one a class ({', '.join(train.classes)})"
            )
        return config
    weights: list[Any] = [None]
    if accelerator.is_main_process:
        counts = count(train, config.segmentation.ignore_index, what="class weights")
        weights = [class_weights(method, counts)]
    broadcast_object_list(weights)
    return replace(config, segmentation=replace(config.segmentation, class_weights=weights[0]))


def provenance(asked: RunConfig, used: RunConfig, classes: list[str]) -> dict[str, Any] | None:
    """For summary.json: where the weights are from ("given", or the word that asked), and each class's; or None."""
    weights, word = used.segmentation.class_weights, asked.segmentation.class_weights
    if used.task == "diffusion" or weights is None or isinstance(weights, str):
        return None
    return {"from": word if isinstance(word, str) else "given", "by_class": dict(zip(classes, weights, strict=True))}


def sentence(weights: dict[str, Any]) -> str:
    """`provenance` as the line that a run starts with."""
    by_class = ", ".join(f"{name} {weight:g}" for name, weight in weights["by_class"].items())
    return f"class weights ({weights['from']}): {by_class}"
