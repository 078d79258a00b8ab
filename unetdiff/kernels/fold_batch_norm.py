"""Fold BatchNorm into the convolution before it, for inference."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

TOLERANCE = 1e-3
"""Largest difference that folding may make, relative to the largest output."""


@torch.no_grad()
def fold_batch_norm(network: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Fold every BatchNorm2d that directly follows a convolution, in place; sets eval mode.

    Args:
        network: in float32.
        forward: runs all of it on an example; hooks record which norm follows which convolution.

    Returns:
        Number of folded norms.

    Raises:
        RuntimeError: the output changed.
    """
    network.eval()
    forward = _without_tf32(forward)
    outputs: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # by the tensor's id, which stays unique as the tensor is kept
    pairs: dict[nn.BatchNorm2d, nn.Conv2d] = {}  # each once, however often it runs

    def after(module: nn.Module, _: object, output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        outputs[id(output)] = module, output

    def before(module: nn.Module, inputs: tuple[Tensor]) -> None:
        assert isinstance(module, nn.BatchNorm2d)
        if id(inputs[0]) in outputs:
            pairs[module] = outputs[id(inputs[0])][0]

    hooks = [m.register_forward_hook(after) for m in network.modules() if isinstance(m, nn.Conv2d)]
    hooks += [m.register_forward_pre_hook(before) for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    expected = forward()
    for hook in hooks:
        hook.remove()
    names = {module: name for name, module in network.named_modules()}
    for norm, conv in pairs.items():
        _fold(conv, norm)
        parent, _, child = names[norm].rpartition(".")
        setattr(network.get_submodule(parent), child, nn.Identity())
    result = forward()
    if not (result - expected).abs().max() <= TOLERANCE * expected.abs().max():
        raise RuntimeError(f"{type(network).__name__} changed its output when BatchNorm was folded.")
    return len(pairs)


def _without_tf32(forward: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The forward pass in float32 on a GPU, whose TF32 rounds to ten bits."""
    if not torch.cuda.is_available():
        return forward

    def exact() -> Tensor:
        with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False):
            return forward()

    return exact


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """In place: weight (O, ...), bias (O,)."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = (norm.running_var + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -norm.running_mean * scale
    shift = shift if norm.bias is None else shift + norm.bias
    conv.weight.mul_(scale[:, None, None, None])
    conv.bias = nn.Parameter(shift if conv.bias is None else shift + conv.bias * scale, conv.weight.requires_grad)
