"""Scenes labelled by digit and colour together: what a judge of text-conditional samples learns from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from unetdiff.data.base import ImageDataset, empty_palette
from unetdiff.data.config import ScenesConfig
from unetdiff.data.prompt import prompts
from unetdiff.data.sampling import SampleKey
from unetdiff.data.scenes import Scenes
from unetdiff.errors import UserError


class ScenePairs(ImageDataset):
    """Scenes with one digit, whose class is the pairing of digit and colour; every pairing is there.

    "label" is the place of the scene's prompt in `prompts(config)`, digit * config.colors + color, and `labels` are
    the prompts' captions. The training split has the held out pairings too, whatever `config.held_out_pairs`: a
    classifier that learns from it can tell whether a sample shows a pairing that the sampler itself never saw. It
    takes its digits from the same images as `Scenes` of that split.

    Args:
        split, config, size: as of `Scenes`.

    Raises:
        UserError: scenes of several digits, or as of `Scenes`.
    """

    def __init__(self, split: Literal["train", "val"], config: ScenesConfig, size: list[int] | None = None) -> None:
        if config.digits != 1:
            raise UserError(f"data.scenes.digits={config.digits}: a pairing of digit and colour is told of one; give 1")
        self.scenes = Scenes(split, replace(config, held_out_pairs=[]), size, segmentation=False)
        self.classes, self.palette = [], empty_palette()
        self.labels = [prompt.caption for prompt in prompts(config)]
        self.kinds = config.colors

    def __len__(self) -> int:
        return len(self.scenes)

    def sample_name(self, index: int) -> str:
        return self.scenes.sample_name(index)

    def caption(self, index: int) -> str:
        return self.scenes.caption(index)

    def __getitem__(self, key: int | SampleKey) -> dict[str, Any]:
        item = self.scenes[key]
        label = item["label"] * self.kinds + item["color"]
        return {**item, "label": label, "labels": (label,)}
