"""Conditioning on the class of a picture: a learned table of tokens, whose last row is the null class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  (DiffusionPipeline looks for it in this module)
from einops import rearrange
from torch import nn

from unetdiff.conditioning.base import Conditioner
from unetdiff.errors import UserError, nearest


class ClassConditioner(Conditioner):
    """Class labels to context tokens.

    The null index is `num_classes`, one past the last class.

    Args:
        num_classes: number of classes.
        dim: width of a token, the U-Net's `cross_attention_dim`.
        tokens: tokens that a class is told with.
        labels: names of the classes, in the order of their indices; without them "0", "1", …

    Raises:
        UserError: as many labels as classes are needed, all of them different.
    """

    @register_to_config
    def __init__(self, num_classes: int, dim: int, tokens: int = 1, labels: list[str] | None = None) -> None:
        super().__init__()
        self.labels: list[str] = [str(i) for i in range(num_classes)] if labels is None else list(labels)
        if len(self.labels) != num_classes or len(set(self.labels)) != num_classes:
            raise UserError(f"labels: {num_classes} different names are needed, got {self.labels}.")
        self.num_classes = num_classes
        self.tokens = tokens
        self.table = nn.Embedding(num_classes + 1, tokens * dim)

    @property
    def null_index(self) -> int:
        """The label that says nothing."""
        return self.num_classes

    def forward(self, labels: torch.Tensor) -> torch.Tensor:
        """Labels (B,) int in 0..num_classes (the last one is null) to context tokens (B, tokens, dim)."""
        return rearrange(self.table(labels.to(self.table.weight.device)), "b (t d) -> b t d", t=self.tokens)

    def null(self, batch: int) -> torch.Tensor:
        """Context of the null class, (batch, tokens, dim)."""
        return self.forward(torch.full((batch,), self.null_index))

    def drop(
        self, conditions: torch.Tensor, probability: float, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Labels (B,), each made the null index with `probability` (Ho & Salimans 2022, algorithm 1)."""
        where = conditions.device if generator is None else generator.device
        dropped = torch.rand(conditions.shape, generator=generator, device=where) < probability
        return conditions.masked_fill(dropped.to(conditions.device), self.null_index)

    def encode(self, conditions: int | str | Sequence[int | str] | torch.Tensor) -> torch.Tensor:
        """Class names or indices (one or a sequence) as labels (B,).

        Raises:
            UserError: a name or an index that is not one of the classes.
        """
        if isinstance(conditions, torch.Tensor):
            conditions = conditions.reshape(-1).tolist()
        if isinstance(conditions, int | str):
            conditions = [conditions]
        return torch.tensor([self._index(condition) for condition in conditions])

    def _index(self, condition: int | str) -> int:
        if isinstance(condition, str):
            if condition in self.labels:
                return self.labels.index(condition)
            if not condition.isdecimal():
                lowered = {label.lower(): label for label in self.labels}
                near = lowered[nearest(condition.lower(), lowered)]
                known = ", ".join(self.labels[:20]) + (", …" if len(self.labels) > 20 else "")
                raise UserError(f"unknown class '{condition}'; did you mean '{near}'? The classes: {known}.")
        index = int(condition)
        if not 0 <= index < self.num_classes:
            raise UserError(f"class {index} does not exist: the classes are 0 to {self.num_classes - 1}.")
        return index
