"""Scenes labeled by the pair of digit and color, to train classifiers of text-conditional samples on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from unetdiff.data.base import ImageDataset, empty_palette
from unetdiff.data.config import ScenesConfig
from unetdiff.data.prompt import prompts
from unetdiff.data.sampling import SampleKey
from unetdiff.data.scenes import Scenes
from unetdiff.errors import config_error


class ScenePairs(ImageDataset):
    """Scenes with one digit, whose class is the pair of digit and color.

    "label" is digit * config.colors + color, the index of the scene's prompt in `prompts(config)`; `labels` are the
    prompts' captions. The training split ignores `config.held_out_pairs`, so that a classifier trained on it recognizes
    pairs that the generative model was never trained on. Digits are from the same images as in `Scenes` of that split.

    Args:
        split, config, size: as of `Scenes`.

    Raises:
        UserError: scenes of several digits, or as of `Scenes`.
    """

    def __init__(self, split: Literal["train", "val"], config: ScenesConfig, size: list[int] | None = None) -> None:
        if config.digits != 1:
            raise config_error("data.scenes.digits", config.digits, "1 for pairs of digit and color")
        self.scenes = Scenes(split, replace(config, held_out_pairs=[]), size, segmentation=False)
        self.classes, self.palette = [], empty_palette()
        self.labels = [prompt.caption for prompt in prompts(config)]
        self.num_colors = config.colors

    def __len__(self) -> int:
        return len(self.scenes)

    def sample_name(self, index: int) -> str:
        return self.scenes.sample_name(index)

    def caption(self, index: int) -> str:
        return self.scenes.caption(index)

    def __getitem__(self, key: int | SampleKey) -> dict[str, Any]:
        item = self.scenes[key]
        label = item["label"] * self.num_colors + item["color"]
        return {**item, "label": label, "labels": (label,)}
