"""What of a U-Net learns, and what its backward pass keeps: frozen levels, gradient checkpointing."""

from __future__ import annotations

from typing import Any, Self

from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from unetdiff.models.param_counts import is_conditioning


class FreezingMixin(ModelMixin):  # type: ignore[misc]
    """The methods of `UNet` for training."""

    encoder: Any
    gradient_checkpointing = False
    _encoder_frozen, _frozen_levels, _backbone_frozen = False, 0, False

    def enable_gradient_checkpointing(self, gradient_checkpointing_func: Any = None) -> None:
        """Recompute activations in the backward pass: less memory, about a third more time.

        `gradient_checkpointing_func` is of diffusers' signature and ignored.
        """
        self.gradient_checkpointing = True

    def disable_gradient_checkpointing(self) -> None:
        """Keep activations."""
        self.gradient_checkpointing = False

    def encoder_parameters(self) -> list[nn.Parameter]:
        """The encoder's parameters without those of conditioning (`param_counts.is_conditioning`).

        `freeze_encoder` freezes them, and the optimizer gives them a learning rate of their own.
        """
        return self._without_conditioning(self.encoder.freezable_modules())

    def _without_conditioning(self, modules: list[nn.Module]) -> list[nn.Parameter]:
        conditioning = {id(p) for name, p in self.named_parameters() if is_conditioning(name)}
        return [p for module in modules for p in module.parameters() if id(p) not in conditioning]

    def freeze_encoder(self, frozen: bool = True, levels: int = 0) -> None:
        """Freeze the encoder's parameters and BatchNorm statistics; survives `.train()`.

        Time embedding and cross-attention stay trainable: an added head starts with them at zero.

        Args:
            frozen: freeze the whole encoder; False: only `levels`.
            levels: number of finest levels to freeze, whose maps are the largest and cost the most to train.
        """
        self._encoder_frozen, self._frozen_levels = frozen, levels
        for parameter in self.encoder_parameters():
            parameter.requires_grad_(True)
        frozen_modules = self._frozen_modules()
        backbone = [p for module in frozen_modules for p in module.parameters()]
        for parameter in backbone if self._backbone_frozen else self._without_conditioning(frozen_modules):
            parameter.requires_grad_(False)
        self.train(self.training)

    def freeze_backbone(self) -> None:
        """Freeze everything but the heads, and BatchNorm statistics with it; survives `.train()`."""
        self._backbone_frozen = True
        self.freeze_encoder(self._encoder_frozen, self._frozen_levels)

    def _frozen_modules(self) -> list[nn.Module]:
        if self._backbone_frozen:
            return [module for name, module in self.named_children() if name != "heads"]
        if self._encoder_frozen:
            return self.encoder.freezable_modules()
        return self.encoder.level_modules(self._frozen_levels)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for module in self._frozen_modules():
            for norm in module.modules():
                if isinstance(norm, nn.BatchNorm2d):
                    norm.eval()
        return self
