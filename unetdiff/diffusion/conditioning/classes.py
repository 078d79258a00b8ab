"""Class conditioning: a learned embedding of tokens per class, whose last row is the null class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  (DiffusionPipeline looks for it in this module)
from einops import rearrange
from torch import Tensor, nn

from unetdiff.diffusion.conditioning.base import Conditioner, Conditioning, Examples, Size
from unetdiff.errors import UserError, did_you_mean

EMPTY = -1
"""An unused slot: its tokens are zeros."""
SEPARATOR = "+"
"""Between the names of several classes in one image."""
MAX_ROWS = 12
"""Rows of the previews in training."""

Classes = int | str | Sequence[int | str]
"""One image's class, or several at once: an index, a name, "cat+dog", or a sequence of such."""


class ClassConditioner(Conditioner):
    """Class labels to tokens.

    The null index is `num_classes`, one past the last class.

    Args:
        num_classes: number of classes.
        dim: width of a token, the U-Net's `cross_attention_dim`.
        tokens: tokens per class.
        labels: names of the classes, in the order of their indices; without them "0", "1", …
        max_classes: classes per image at most. Their order does not matter: the tokens have no positions.

    Raises:
        UserError: another number of labels than of classes, or duplicates.
    """

    pipeline_arg = "class_labels"

    @register_to_config
    def __init__(
        self, num_classes: int, dim: int, tokens: int = 1, labels: list[str] | None = None, max_classes: int = 1
    ) -> None:
        super().__init__()
        self.labels: list[str] = [str(i) for i in range(num_classes)] if labels is None else list(labels)
        if len(self.labels) != num_classes or len(set(self.labels)) != num_classes:
            raise UserError(f"labels: must be {num_classes} different names (got {self.labels}).")
        self.num_classes, self.tokens, self.max_classes = num_classes, tokens, max_classes
        self.batch_key = "label" if max_classes == 1 else "labels"
        self.table = nn.Embedding(num_classes + 1, tokens * dim)

    @property
    def null_index(self) -> int:
        """The null class."""
        return self.num_classes

    def forward(self, conditions: Tensor, size: Size = (0, 0)) -> Conditioning:
        """Labels (B, max_classes), int in 0..num_classes or empty, as tokens (B, max_classes * tokens, dim)."""
        labels = conditions.to(self.table.weight.device)
        rows = self.table(labels.clamp(min=0)) * (labels != EMPTY)[..., None]  # (B, max_classes, tokens * dim)
        return Conditioning(tokens=rearrange(rows, "b k (t d) -> b (k t) d", t=self.tokens))

    def from_batch(self, batch: Mapping[str, Any]) -> Tensor:
        """A batch's "label" (B,), or for several classes per image the first `max_classes` of its "labels" (B, K)."""
        if self.max_classes == 1:
            return rearrange(batch["label"], "b -> b 1")
        labels: Tensor = batch["labels"][:, : self.max_classes]
        return nn.functional.pad(labels, (0, self.max_classes - labels.shape[1]), value=EMPTY)

    def null_condition(self, batch: int, size: Size = (0, 0)) -> Tensor:
        labels = torch.full((batch, self.max_classes), EMPTY)
        labels[:, 0] = self.null_index
        return labels

    def examples(self, items: Sequence[Mapping[str, Any]]) -> Examples:
        """Each class; for several classes per image, the combinations in images of the validation split."""
        rows = [[label] for label in self.labels[:MAX_ROWS]]
        if self.max_classes > 1:
            combinations = [tuple(self.labels[i] for i in item["labels"][: self.max_classes]) for item in items]
            rows = [list(names) for names in dict.fromkeys(names for names in combinations if names)][:MAX_ROWS]
        conditions = self.encode(rows)
        return Examples(self.names(conditions), conditions)

    def rows(self, conditions: Tensor) -> tuple[list[int], int]:
        """Of single classes the class itself, so that its images do not depend on the other classes sampled."""
        return (conditions[:, 0].tolist(), self.num_classes) if self.max_classes == 1 else super().rows(conditions)

    def names(self, conditions: Tensor) -> list[str]:
        """Names of each image's labels (B, max_classes): "cat", "cat+dog"."""
        return [SEPARATOR.join(self.labels[i] for i in row if i != EMPTY) for row in conditions.tolist()]

    def encode(self, conditions: Classes | Sequence[Classes] | Tensor, size: Size = (0, 0)) -> Tensor:
        """Class names or indices, one image's or a sequence of images', as labels (B, max_classes).

        Raises:
            UserError: an unknown name or index, or more than `max_classes` in one image.
        """
        if isinstance(conditions, Tensor):
            conditions = conditions.reshape(1).tolist() if conditions.ndim == 0 else conditions.tolist()
        if isinstance(conditions, int | str):
            conditions = [conditions]
        return torch.tensor([self._image(image) for image in conditions])

    def _image(self, classes: Classes) -> list[int]:
        """The slots of one image."""
        if isinstance(classes, str) and classes not in self.labels and self.max_classes > 1:
            classes = classes.split(SEPARATOR)
        if isinstance(classes, int | str):
            classes = [classes]
        indices = [self._index(one) for one in classes if one != EMPTY]
        if not 1 <= len(indices) <= self.max_classes:
            raise UserError(f"classes={list(classes)}: must be 1 to {self.max_classes} per image.")
        return indices + [EMPTY] * (self.max_classes - len(indices))

    def _index(self, condition: int | str) -> int:
        if isinstance(condition, str):
            if condition in self.labels:
                return self.labels.index(condition)
            if not condition.isdecimal():
                known = ", ".join(self.labels[:20]) + (", …" if len(self.labels) > 20 else "")
                near = did_you_mean(condition, self.labels, "'{}'")
                raise UserError(
                    " ".join(filter(None, (f"unknown class '{condition}'.", near, f"The classes are {known}.")))
                )
        index = int(condition)
        if not 0 <= index < self.num_classes:
            raise UserError(f"class {index}: must be in 0..{self.num_classes - 1}.")
        return index
