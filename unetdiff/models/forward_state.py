"""The state of one forward pass: what every block reads, and the feature maps it records."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unetdiff.models.attention import CrossAttentionCache
from unetdiff.models.stock_inputs import StockInputs


@dataclass
class ForwardState:
    """The conditioning of one forward pass.

    Attributes:
        temb: (B, time_dim) time embedding, (1, time_dim) if all samples share it, None in a model without one.
        context: (B, tokens, dim) encoder_hidden_states, None in a model without cross-attention.
        mask: (B, 1, 1, tokens) added to the scores of cross-attention, or None.
        recompute: gradient checkpointing: recompute activations in the backward pass.
        maps: the maps of `UNet.features` by name, or None to record none.
        inputs: a ControlNet's residuals, among others.
        names: the maps to record; None: all.
    """

    temb: Tensor | None
    context: Tensor | CrossAttentionCache | None
    mask: Tensor | None = None
    recompute: bool = False
    maps: dict[str, Tensor] | None = None
    inputs: StockInputs = field(default_factory=StockInputs)
    names: tuple[str, ...] | None = None

    def split(self, count: int) -> tuple[ForwardState, ForwardState]:
        """The states of the first `count` images, with the recorded maps, and of the others, which record none."""
        states = []
        for rows in (slice(count), slice(count, None)):
            temb, context = (None if one is None else one[rows] for one in (self.temb, self.context))  # type: ignore[index]
            states.append(ForwardState(temb, context, recompute=self.recompute))
        if self.maps is not None:
            states[0].maps, states[0].names = {name: one[:count] for name, one in self.maps.items()}, self.names
        return states[0], states[1]

    def record(self, name: str, h: Tensor) -> Tensor:
        """Record a map for `UNet.features`; returns it."""
        if self.maps is not None and (self.names is None or name in self.names):
            self.maps[name] = h
        return h

    def attend(self, attention: nn.Module, h: Tensor) -> Tensor:
        """Call an `AttentionBlock` or a `TransformerBlock` with the context and its mask."""
        return self.run(attention, h, self.context, self.mask)

    def run(self, block: Callable[..., Tensor], *inputs: Any, owner: nn.Module | None = None) -> Tensor:
        """Call a block, under gradient checkpointing if enabled.

        Args:
            block: a module, or a function.
            inputs: its arguments.
            owner: for a function, the module whose BatchNorms it runs.
        """
        if not (self.recompute and torch.is_grad_enabled()):
            return block(*inputs)
        module = block if isinstance(block, nn.Module) else owner

        def contexts() -> tuple[nullcontext[None], AbstractContextManager[None]]:
            return nullcontext(), _PausedBatchNorm(module)

        return checkpoint(block, *inputs, use_reentrant=False, context_fn=contexts)


def scale_gradient(h: Tensor, factor: float) -> Tensor:
    """The same numbers; the gradient is multiplied by `factor`, and stopped by 0."""
    if factor == 1:
        return h
    return torch.lerp(h.detach(), h, factor) if factor else h.detach()


class _PausedBatchNorm(AbstractContextManager[None]):
    """While activations are recomputed, BatchNorm must not update its statistics a second time."""

    def __init__(self, owner: nn.Module | None) -> None:
        modules = () if owner is None else owner.modules()
        self.norms = [m for m in modules if isinstance(m, nn.BatchNorm2d) and m.training]

    def __enter__(self) -> None:
        self.before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in self.norms]  # type: ignore[union-attr]
        for norm in self.norms:
            norm.momentum = 0.0  # new statistics = 1 * old + 0 * batch

    def __exit__(self, *error: object) -> None:
        for norm, (momentum, count) in zip(self.norms, self.before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)  # type: ignore[union-attr]
