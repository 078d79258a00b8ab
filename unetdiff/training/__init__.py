"""Training: one loop for three tasks. `train(config)` is its entry point; see `unetdiff.training.trainer`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unetdiff.training.trainer import train

__all__ = ["train"]


def __getattr__(name: str) -> Any:
    if name == "train":  # imported on first use: `unetdiff.config.training` alone needs no torch
        from unetdiff.training.trainer import train

        return train
    raise AttributeError(f"module 'unetdiff.training' has no attribute '{name}'")
