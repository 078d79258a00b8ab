"""When a faster form may replace a module's own forward pass."""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling, is_exporting
from torch.nn.modules import module as torch_module

MAX_CACHED_ELEMENTS = 1 << 21
"""Elements of the intermediate maps processed at a time without gradients, so that they stay in a CPU's cache."""


def is_eager_cpu(x: Tensor) -> bool:
    """On a CPU, in eager mode: no compiler, no export, no function transform of torch.func, no global module hook.

    Global hooks are those of torch's FlopCounterMode, which then counts the multiply-adds of the plain network.
    """
    if x.device.type != "cpu" or is_compiling() or is_exporting():
        return False
    return not (_in_function_transform() or _has_global_hook())


def is_unhooked(module: nn.Module, kind: type[nn.Module]) -> TypeGuard[Any]:
    """Of exactly this class, without hooks and with its class's forward: its forward pass may be computed otherwise."""
    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    return type(module) is kind and not any(hooks) and "forward" not in vars(module)


def compute_dtype(weight: Tensor) -> torch.dtype:
    """The dtype of a CPU convolution with this weight: autocast's, or its own."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else weight.dtype


def images_at_a_time(elements: int) -> int:
    """Images whose intermediate maps of so many elements each fit the cache, at least one."""
    return max(1, MAX_CACHED_ELEMENTS // max(1, elements))


def _in_function_transform() -> bool:
    return torch._C._functorch.peek_interpreter_stack() is not None


def _has_global_hook() -> bool:
    return bool(torch_module._has_any_global_hook())  # type: ignore[no-untyped-call]
