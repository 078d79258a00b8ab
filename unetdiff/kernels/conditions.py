"""Where a CPU may compute something in another way than the network is written, for the same result sooner."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling, is_exporting

HELD = 1 << 21
"""Numbers that are between two operations at a time where no gradient needs them: what a CPU's cache holds."""
_as_written = False


@contextmanager
def reference_kernels() -> Iterator[None]:
    """Every convolution is computed as it is written, e.g. to count its multiply-adds."""
    global _as_written
    before, _as_written = _as_written, True
    try:
        yield
    finally:
        _as_written = before


def is_as_written() -> bool:
    """Inside of `as_written`."""
    return _as_written


def by_hand(x: Tensor) -> bool:
    """On a CPU, and torch itself runs what is called: no compiler, no export."""
    return x.device.type == "cpu" and not is_compiling() and not is_exporting()


def is_plain(module: nn.Module, kind: type[nn.Module]) -> TypeGuard[Any]:
    """It is of this very class, nobody listens to it, and its forward pass is its class's."""
    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    return type(module) is kind and not any(hooks) and "forward" not in vars(module)


def computed_in(weight: Tensor) -> torch.dtype:
    """The precision of a CPU's convolution with these weights: autocast's, or their own."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else weight.dtype


def is_channels_last(x: Tensor) -> bool:
    """It lies in memory one pixel after another, and not one channel after another too."""
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
