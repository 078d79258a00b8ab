"""What every condition has in common: it becomes context tokens, and it has a null token."""

from __future__ import annotations

from abc import abstractmethod
from os import PathLike
from typing import Any, Self

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin

from unetdiff.errors import UserError


class Conditioner(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Maps conditions to the denoiser's `encoder_hidden_states`, (B, tokens, dim).

    A condition first becomes a tensor of indices or features (`encode`), part of which is replaced by the
    null condition while training (`drop`, Ho & Salimans 2022), and then context tokens (`forward`). `null`
    is the context of no condition at all, which classifier-free guidance moves away from.
    """

    @abstractmethod
    def encode(self, conditions: Any) -> torch.Tensor:
        """What a person writes (names, indices) as the tensor that `forward` takes, first axis = batch."""

    @abstractmethod
    def null(self, batch: int) -> torch.Tensor:
        """Context of "nothing was said", (batch, tokens, dim)."""

    @abstractmethod
    def drop(
        self, conditions: torch.Tensor, probability: float, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """The same conditions, each replaced by the null condition with `probability`."""

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | PathLike[str], **kwargs: Any
    ) -> Self:
        """Load what `save_pretrained` wrote; every tensor must be there and nothing else.

        Raises:
            UserError: tensors are missing, unexpected or of another shape.
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
        except RuntimeError as error:  # diffusers' word for a size mismatch
            raise UserError(f"{pretrained_model_name_or_path}: not a {cls.__name__}: {error}") from error
        model, info = loaded
        wrong = {key: info[key] for key in ("missing_keys", "unexpected_keys") if info[key]}
        if wrong:
            raise UserError(f"{pretrained_model_name_or_path}: not a {cls.__name__}: {wrong}")
        return model
