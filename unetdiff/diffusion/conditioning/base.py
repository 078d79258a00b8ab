"""The interface of all conditioners: a condition becomes tokens or channels for the denoiser, and can be null."""

from __future__ import annotations

import inspect
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, Self, get_type_hints

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from unetdiff.errors import FileError, did_you_mean
from unetdiff.files.tensors import Entry
from unetdiff.models import loading
from unetdiff.models.attention import CrossAttentionCache
from unetdiff.models.bounds import fits, in_words

Size = tuple[int, int]
"""Height and width in pixels."""


@dataclass(frozen=True)
class Conditioning:
    """The network's inputs for the conditions of a batch of images."""

    tokens: Tensor | None = None
    """`encoder_hidden_states` of its cross-attention, (B, tokens, dim)."""
    channels: Tensor | None = None
    """Concatenated to the noisy image, (B, C, H, W)."""

    @cached_property
    def cache(self) -> CrossAttentionCache | None:
        """The tokens, with the keys and values that a network makes of them: for many passes, as when sampling."""
        return None if self.tokens is None else CrossAttentionCache(self.tokens)

    def concat_channels(self, sample: Tensor) -> Tensor:
        """The network's input: noisy pixels or latents (B, K, H, W) and the channels, (B, K + C, H, W)."""
        return sample if self.channels is None else torch.cat([sample, self.channels.to(sample)], dim=1)


def concat_conditioning(first: Conditioning, second: Conditioning) -> Conditioning:
    """Two conditionings of one kind as one batch."""

    def both(a: Tensor | None, b: Tensor | None) -> Tensor | None:
        return None if a is None or b is None else torch.cat([a, b])

    return Conditioning(both(first.tokens, second.tokens), both(first.channels, second.channels))


@dataclass(frozen=True)
class Examples:
    """A few conditions to sample images of, one per row."""

    rows: list[str]
    """Label of each row."""
    conditions: Tensor
    """As `Conditioner.forward` takes them, first axis = row."""


class Conditioner(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Maps conditions to the network's inputs.

    The user's input (`encode`) or a training batch (`from_batch`) becomes `conditions`, a tensor. In training a part of
    them is replaced by the null condition (`drop`, Ho & Salimans 2022). `forward` maps them to a `Conditioning`:
    tokens and channels. That of `null_condition` is the unconditional input of classifier-free guidance.
    """

    pipeline_arg: str
    """The argument of `GenerationPipeline` for its conditions."""
    batch_key: str
    """The key of a dataset's items that holds its conditions."""
    channels: int = 0
    """Channels that it concatenates to the noisy image (or latents)."""

    @abstractmethod
    def forward(self, conditions: Tensor, size: Size) -> Conditioning:
        """Conditions (B, ...) as tokens and channels, the latter at the `size` of the noisy images (or latents)."""

    @abstractmethod
    def from_batch(self, batch: Mapping[str, Any]) -> Tensor:
        """The conditions of a batch of a dataset, (B, ...)."""

    @abstractmethod
    def encode(self, conditions: Any, size: Size) -> Tensor:
        """The user's input as the tensor that `forward` takes, (B, ...)."""

    @abstractmethod
    def null_condition(self, batch: int, size: Size) -> Tensor:
        """Null conditions, as `forward` takes them, (B, ...)."""

    @abstractmethod
    def examples(self, items: Sequence[Mapping[str, Any]]) -> Examples:
        """Conditions of the previews in training, from items of the validation split where they are needed."""

    def visualize(self, conditions: Tensor) -> Tensor | None:
        """Conditions as images, floats in [0, 1], (B, 3, H, W); None where they are not spatial."""
        return None

    def drop(self, conditions: Tensor, probability: float, generator: torch.Generator | None = None) -> Tensor:
        """The same conditions, each replaced by the null one with `probability` (Ho & Salimans 2022, algorithm 1)."""
        where = conditions.device if generator is None else generator.device
        return self.drop_where(conditions, torch.rand(len(conditions), generator=generator, device=where) < probability)

    def drop_where(self, conditions: Tensor, dropped: Tensor) -> Tensor:
        """The same conditions, with the null one where `dropped`, bool (B,)."""
        null = self.null_condition(len(conditions), (conditions.shape[-2], conditions.shape[-1])).to(conditions)
        chosen = dropped.to(conditions.device).reshape(-1, *[1] * (conditions.ndim - 1))
        return torch.where(chosen, null, conditions)

    def rows(self, conditions: Tensor) -> tuple[list[int], int]:
        """The row of each condition (B, ...) in a grid of samples, and its number of rows (`noise.image_indices`)."""
        return list(range(len(conditions))), len(conditions)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | PathLike[str], **kwargs: Any
    ) -> Self:
        """Load what `save_pretrained` wrote, config.json and the weights, which must agree.

        Raises:
            UserError: a file is missing or damaged; a key or tensor is missing, unexpected, of another type or shape.
        """
        directory, path = Path(pretrained_model_name_or_path), Path(pretrained_model_name_or_path) / loading.CONFIG
        arguments = _read_arguments(cls, path)
        file = directory / loading.WEIGHTS
        _require_sizes(path, arguments, loading.read_header(file))
        loading.check_file(file, loading.outline(lambda: cls(**arguments), path).state_dict())
        model = cls(**arguments)
        loading.load_weights(model, file)
        dtype = kwargs.get("dtype") or kwargs.get("torch_dtype")
        return (model if dtype is None else model.to(dtype)).eval()


def _read_arguments(cls: type[Conditioner], path: Path) -> dict[str, Any]:
    """A conditioner's arguments from its config.json, by name and type."""
    config = loading.read_json(path)
    if config.get("_class_name") != cls.__name__:
        raise FileError.of(path, f"_class_name={config.get('_class_name')}: must be {cls.__name__}")
    function = inspect.unwrap(cls.__init__)
    hints = get_type_hints(function)
    known = [name for name in inspect.signature(function).parameters if name != "self"]
    arguments = {key: value for key, value in config.items() if not key.startswith("_")}
    for key, value in arguments.items():
        if key not in known:
            reason = f"'{key}' is not a key of {cls.__name__}"
            raise FileError.of(path, reason, did_you_mean(key, known))
        if not fits(value, hints[key]):
            raise FileError.of(path, f"{key}={value!r:.80}: must be {in_words(hints[key])}")
    missing = [key for key in known if key not in arguments]
    if missing:
        raise FileError.of(path, f"must have the key '{missing[0]}'", "Write it again with save_pretrained.")
    return arguments


def _require_sizes(path: Path, arguments: dict[str, Any], header: Mapping[str, Entry]) -> None:
    """FileError for a number that is negative or larger than the number of weights, before anything is built."""
    most = sum(math.prod(entry.shape) for entry in header.values())
    for key, value in arguments.items():
        if isinstance(value, int) and not 0 <= value <= most:
            raise FileError.of(path, f"{key}={value}: must be in [0, {most}], as of the weights")
