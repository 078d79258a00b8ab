"""What every condition has in common: it becomes tokens or channels for the denoiser, and it can say nothing."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, Self

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from safetensors import SafetensorError
from torch import Tensor

from unetdiff.errors import UserError

Size = tuple[int, int]
"""Height and width in pixels."""


@dataclass(frozen=True)
class Conditioning:
    """What the denoiser is told of a batch of images."""

    tokens: Tensor | None = None
    """`encoder_hidden_states` for its cross-attention, (B, tokens, dim)."""
    channels: Tensor | None = None
    """Channels beside the noisy image, (B, C, H, W)."""

    def concat_channels(self, sample: Tensor) -> Tensor:
        """The network's input: noisy pixels or latents (B, K, H, W), and the channels beside them, (B, K + C, H, W)."""
        return sample if self.channels is None else torch.cat([sample, self.channels.to(sample)], dim=1)


def concat_conditioning(first: Conditioning, second: Conditioning) -> Conditioning:
    """Two contexts of one kind as one batch."""

    def both(a: Tensor | None, b: Tensor | None) -> Tensor | None:
        return None if a is None or b is None else torch.cat([a, b])

    return Conditioning(both(first.tokens, second.tokens), both(first.channels, second.channels))


@dataclass(frozen=True)
class Examples:
    """A few conditions to draw images of, one a row."""

    rows: list[str]
    """What each row is called."""
    conditions: Tensor
    """As `Conditioner.forward` takes them, first axis = row."""


class Conditioner(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Maps conditions to what the denoiser is told.

    A condition first becomes a tensor (`of` a training batch, or `encode` of what a person writes), part of which says
    nothing while training (`drop`, Ho & Salimans 2022), and then tokens and channels (`forward`). The context of
    `nothing` is what classifier-free guidance moves away from.
    """

    pipeline_arg: str
    """The argument of `GenerationPipeline` that its conditions are given by."""
    batch_key: str
    """The key of a data set's items that it makes conditions of."""
    channels: int = 0
    """Channels that it puts beside the noisy image (or latents)."""

    @abstractmethod
    def forward(self, conditions: Tensor, size: Size) -> Conditioning:
        """What the denoiser is told, beside noisy images (or latents) of `size`."""

    @abstractmethod
    def from_batch(self, batch: Mapping[str, Any]) -> Tensor:
        """The conditions of a batch of a data set, first axis = batch."""

    @abstractmethod
    def encode(self, conditions: Any, size: Size) -> Tensor:
        """What a person writes as the tensor that `forward` takes, first axis = batch."""

    @abstractmethod
    def null_condition(self, batch: int, size: Size) -> Tensor:
        """Conditions that say nothing, as `forward` takes them."""

    @abstractmethod
    def examples(self, items: Sequence[Mapping[str, Any]]) -> Examples:
        """Conditions to draw while training, made of items of the validation split where they are needed."""

    def visualize(self, conditions: Tensor) -> Tensor | None:
        """Conditions as images, floats in [0, 1], (B, 3, H, W); None where they have no shape to show."""
        return None

    def drop(self, conditions: Tensor, probability: float, generator: torch.Generator | None = None) -> Tensor:
        """The same conditions, each made to say nothing with `probability` (Ho & Salimans 2022, algorithm 1)."""
        where = conditions.device if generator is None else generator.device
        dropped = torch.rand(len(conditions), generator=generator, device=where).to(conditions.device) < probability
        nothing = self.null_condition(len(conditions), (conditions.shape[-2], conditions.shape[-1])).to(conditions)
        return torch.where(dropped.reshape(-1, *[1] * (conditions.ndim - 1)), nothing, conditions)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | PathLike[str], **kwargs: Any
    ) -> Self:
        """Load what `save_pretrained` wrote; every tensor must be there and nothing else.

        Raises:
            UserError: tensors are missing, unexpected or of another shape, or a file is missing or damaged.
        """
        # never a pickle; without low_cpu_mem_usage, which would leave a missing tensor on the meta device
        settings = {
            **kwargs,
            "low_cpu_mem_usage": False,
            "use_safetensors": True,
            "output_loading_info": True,
        }
        settings["device_map"] = None
        loaded: Any
        try:
            loaded = super().from_pretrained(pretrained_model_name_or_path, **settings)
        except (RuntimeError, OSError, ValueError, SafetensorError) as error:  # a size mismatch, a damaged file
            why = " ".join(str(error).split())
            raise UserError(f"{pretrained_model_name_or_path}: not a {cls.__name__}: {why}") from error
        model, info = loaded
        wrong = {key: info[key] for key in ("missing_keys", "unexpected_keys") if info[key]}
        if wrong:
            raise UserError(f"{pretrained_model_name_or_path}: not a {cls.__name__}: {wrong}")
        return model
