"""The schema of a run: `RunConfig`, its dotted keys, and how a key's type reads in a message."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal, Union

from unetdiff.config.model import RunModelConfig
from unetdiff.config.training import JointConfig, TrainingConfig
from unetdiff.data.config import DataConfig
from unetdiff.diffusion.config import DiffusionConfig, LatentConfig
from unetdiff.errors import MAX_VALUE_CHARS, MIN_SIMILARITY, UserError, as_yaml, nearest, similarity
from unetdiff.segmentation.config import SegmentationConfig

Task = Literal["segmentation", "diffusion", "joint"]


@dataclass
class RunConfig:
    """One training run: task, network, data, losses and optimization."""

    task: Task = "segmentation"
    """Which head is trained, or both jointly."""
    model: RunModelConfig = field(default_factory=RunModelConfig)
    """The network."""
    data: DataConfig = field(default_factory=DataConfig)
    """The dataset and its augmentation."""
    latent: LatentConfig = field(default_factory=LatentConfig)
    """Pixels or latents."""
    segmentation: SegmentationConfig = field(default_factory=SegmentationConfig)
    """Losses and evaluation of the segmentation head."""
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    """Objective, conditioning and evaluation of the diffusion head."""
    joint: JointConfig = field(default_factory=JointConfig)
    """Weights of the two losses in a joint run."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Length, optimizer, checkpoints."""

    def __post_init__(self) -> None:
        """A network's own config is that of a run without a pretrained model."""
        if not isinstance(self.model, RunModelConfig):
            self.model = RunModelConfig(**vars(self.model))


SECTIONS: dict[str, type] = {
    "model": RunModelConfig,
    "data": DataConfig,
    "latent": LatentConfig,
    "segmentation": SegmentationConfig,
    "diffusion": DiffusionConfig,
    "joint": JointConfig,
    "training": TrainingConfig,
}


def dotted_keys(cls: type = RunConfig, prefix: str = "") -> dict[str, Any]:
    """Every dotted key of a config class, sections included, with its type hint, in the order of the classes."""
    hints = typing.get_type_hints(cls)
    keys: dict[str, Any] = {}
    for item in fields(cls):
        keys[prefix + item.name] = hints[item.name]
        if (section := section_class(hints[item.name])) is not None:
            keys |= dotted_keys(section, f"{prefix}{item.name}.")
    return keys


def section_class(hint: Any) -> type | None:
    """The dataclass of a section's type hint (`X` or `X | None`); None for the hint of a value."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)
    return next((option for option in options if isinstance(option, type) and is_dataclass(option)), None)


KEYS = dotted_keys()
"""Dotted key -> type hint."""
LEAVES = [key for key, hint in KEYS.items() if section_class(hint) is None]
"""The keys that hold values."""


def is_section(key: str) -> bool:
    return section_class(KEYS[key]) is not None


def is_known(key: str) -> bool:
    """Whether a dotted key exists; a dict's entries (segmentation.losses.focal) are validated later."""
    parent = key.rpartition(".")[0]
    return key in KEYS or (parent in KEYS and typing.get_origin(KEYS[parent]) is dict)


def is_optional(key: str) -> bool:
    """Whether a key accepts null."""
    return type(None) in typing.get_args(KEYS[key])


def first_key(section: str) -> str:
    """The first key of a section, as an example."""
    return next(leaf for leaf in LEAVES if leaf.startswith(f"{section}."))


def mean_key(key: str, before: str = "") -> str:
    """ "Did you mean KEY?" for an unknown key, or where to find all keys; `before`: of the key, e.g. "--"."""
    near = nearest_key(key)
    return "`unetdiff train --help` lists the keys." if near is None else f"Did you mean {before}{near}?"


def nearest_key(key: str) -> str | None:
    """The known key most similar to an unknown one: the same last word (or its initials), else the closest; None where
    neither the last word nor the whole key is alike."""
    key = key[:MAX_VALUE_CHARS]
    leaf = key.rsplit(".", 1)[-1]
    initials = "".join(word[:1] for word in leaf.split("_"))  # learning_rate -> lr
    same_leaf = [known for known in LEAVES if known.rsplit(".", 1)[-1] in (leaf, initials)]
    if same_leaf:
        return max(same_leaf, key=lambda known: similarity(key, known))
    scores = {known: (similarity(key, known), similarity(leaf, known.rsplit(".", 1)[-1])) for known in LEAVES}
    alike = [known for known, both in scores.items() if max(both) >= MIN_SIMILARITY]
    return max(alike, key=lambda known: sum(scores[known]), default=None) or nearest(key, LEAVES)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}, as deep as the schema has sections.

    Raises:
        UserError: a key that is given both in its section and by its dotted name.
    """
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        key = f"{prefix}{name}"
        nested = isinstance(value, Mapping) and (key not in KEYS or is_section(key))
        for leaf, item in ((flatten(value, f"{key}.") or {key: value}) if nested else {key: value}).items():
            if leaf in flat:
                raise UserError(f"{leaf}={as_yaml(item)}: must be given once (got {as_yaml(flat[leaf])} as well).")
            flat[leaf] = item
    return flat


_MANY: dict[Any, str] = {
    int: "integers",
    float: "numbers",
    str: "strings",
    list[int]: "lists of integers",
    int | str: "integers or strings",
    bool | float | list[float]: "numbers, lists of numbers, or true and false",
}


def describe(hint: Any) -> str:
    """A type hint in words: "one of a, b", "an integer or null"."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(arg) for arg in args)
    if origin is Literal:
        return "one of " + ", ".join(str(arg) for arg in args)
    if origin is list:
        return "a list of " + (_MANY[args[0]] if args[0] in _MANY else describe(args[0]).removeprefix("one of "))
    if origin is dict:
        names = "names" if args[0] is str else _MANY[args[0]]
        return f"a mapping of {names} to {_MANY[args[1]]}"
    if isinstance(hint, type) and is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        return "a section with " + ", ".join(f"{item.name} ({describe(hints[item.name])})" for item in fields(hint))
    return {int: "an integer", float: "a number", bool: "true or false", str: "a string", type(None): "null"}[hint]


def choices_of(key: str) -> list[str]:
    """The literal values that a key accepts; empty where it accepts others."""
    hint = KEYS[key]
    return [str(c) for arg in (hint, *typing.get_args(hint)) for c in typing.get_args(arg) if isinstance(c, str)]
