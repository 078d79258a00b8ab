"""BatchNorm put into the convolution before it: what is done to any network before it only predicts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

AGREEMENT = 1e-3  # largest difference that folding may make, as a share of the largest output


@torch.no_grad()
def fold_batch_norm(network: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Fold, in place and in eval mode, each BatchNorm2d that takes a convolution's output as it is.

    Args:
        network: in float32.
        forward: runs it on something; which norm follows which convolution is seen there.

    Returns:
        How many were folded.

    Raises:
        RuntimeError: the network puts out something else than before.
    """
    network.eval()
    forward = _exactly(forward)
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # by the tensor's id; the tensor is kept, so that no other has it
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def after(module: nn.Module, _: object, output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        made[id(output)] = module, output

    def before(module: nn.Module, inputs: tuple[Tensor]) -> None:
        assert isinstance(module, nn.BatchNorm2d)
        if id(inputs[0]) in made:
            pairs.append((made[id(inputs[0])][0], module))

    hooks = [m.register_forward_hook(after) for m in network.modules() if isinstance(m, nn.Conv2d)]
    hooks += [m.register_forward_pre_hook(before) for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    expected = forward()
    for hook in hooks:
        hook.remove()
    names = {module: name for name, module in network.named_modules()}
    for conv, norm in pairs:
        _fold(conv, norm)
        parent, _, child = names[norm].rpartition(".")
        setattr(network.get_submodule(parent), child, nn.Identity())
    found = forward()
    if not (found - expected).abs().max() <= AGREEMENT * expected.abs().max():
        raise RuntimeError(f"{type(network).__name__} puts out something else with its BatchNorm folded")
    return len(pairs)


def _exactly(forward: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The same in whole float32 on a GPU too, whose TF32 rounds to ten bits."""
    if not torch.cuda.is_available():
        return forward

    def exact() -> Tensor:
        with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False):
            return forward()

    return exact


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """The weights are changed where they are, as they can be large: weight (O, ...), bias (O,)."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = (norm.running_var + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -norm.running_mean * scale
    shift = shift if norm.bias is None else shift + norm.bias
    conv.weight.mul_(scale[:, None, None, None])
    conv.bias = nn.Parameter(shift if conv.bias is None else shift + conv.bias * scale, conv.weight.requires_grad)
