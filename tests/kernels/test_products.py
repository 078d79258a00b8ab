"""Convolutions of few pixels as products, against torch's convolution."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from unetdiff.kernels.conditions import is_plain, reference_kernels
from unetdiff.models import products
from unetdiff.models.products import ProductConv, use_products

Stride = int | tuple[int, int]


def compared(layer: ProductConv, x: Tensor, **tolerance: float) -> Tensor:
    """What the layer gives, once it and its gradients were found to be the convolution's, without one on the way."""
    layer = layer.to(memory_format=torch.channels_last)
    expected = F.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding)
    with FlopCounterMode(display=False) as counter:
        found = layer(x)
    assert not any("conv" in str(operator) for operator in counter.get_flop_counts()["Global"])
    torch.testing.assert_close(found, expected, **tolerance)
    assert found.is_contiguous(memory_format=torch.channels_last)
    towards = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    sought = [x, *layer.parameters()]
    gradients = torch.autograd.grad(found, sought, towards)
    for a, b in zip(gradients, torch.autograd.grad(expected, sought, towards), strict=True):
        torch.testing.assert_close(a, b, **tolerance)
    return gradients[0]


def channels_last(*shape: int) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    return x.contiguous(memory_format=torch.channels_last).requires_grad_()


@pytest.mark.parametrize("stride", [1, 2, (2, 1)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kernel", [1, 3])
def test_values_and_gradients_are_the_convolutions(stride: Stride, bias: bool, kernel: int) -> None:
    layer = ProductConv(6, 4, kernel, stride, padding=kernel // 2, bias=bias)
    compared(layer, channels_last(2, 6, 7, 5))


@pytest.mark.parametrize("kernel", [1, 3])
def test_the_maps_gradient_lies_as_the_map(kernel: int) -> None:
    # autograd's sum of two gradients that lie differently was found to take seven times as long
    layer = ProductConv(6, 4, kernel, 2, padding=kernel // 2, bias=False)
    gradient = compared(layer, channels_last(2, 6, 8, 8))
    assert gradient.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kernel", [1, 3])
def test_autocast_chooses_the_precision(kernel: int) -> None:
    layer, x = ProductConv(6, 4, kernel, padding=kernel // 2), channels_last(2, 6, 7, 5)
    layer = layer.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = layer(x), F.conv2d(x, layer.weight, layer.bias, padding=kernel // 2)
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=1 / 64, atol=1 / 64)
    sought = [x, layer.weight]
    ours, theirs = (torch.autograd.grad(out.float().square().sum(), sought) for out in (found, expected))
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=1 / 16, atol=1 / 8)


@pytest.mark.parametrize(("few", "around"), [(34, nullcontext), (35, reference_kernels), (35, torch.no_grad)])
@pytest.mark.parametrize("kernel", [1, 3])
def test_many_pixels_predictions_and_what_is_counted_are_convolutions(
    monkeypatch: pytest.MonkeyPatch, kernel: int, few: int, around: Callable[[], AbstractContextManager[None]]
) -> None:
    monkeypatch.setitem(products.FEW, (kernel, kernel), few)
    layer, x = ProductConv(6, 4, kernel, padding=kernel // 2, bias=False), torch.randn(1, 6, 7, 5)
    with FlopCounterMode(display=False) as counter, around():
        layer(x)
    assert any("conv" in str(operator) for operator in counter.get_flop_counts()["Global"])


def test_a_trunk_keeps_its_parameters() -> None:
    torch.manual_seed(0)
    trunk = torchvision.models.resnet50().eval().double()
    x, before = torch.randn(1, 3, 64, 64, dtype=torch.float64), dict(trunk.named_parameters())
    expected = trunk(x)
    use_products(trunk)
    torch.testing.assert_close(trunk(x), expected)
    assert {name: id(value) for name, value in trunk.named_parameters()} == {k: id(v) for k, v in before.items()}
    kinds = {(m.kernel_size, m.stride): type(m) for m in trunk.modules() if isinstance(m, nn.Conv2d)}
    assert kinds == {
        ((7, 7), (2, 2)): nn.Conv2d,
        ((3, 3), (1, 1)): nn.Conv2d,
        ((3, 3), (2, 2)): ProductConv,
        ((1, 1), (1, 1)): ProductConv,
        ((1, 1), (2, 2)): ProductConv,
    }


def test_what_is_not_such_a_convolution_stays() -> None:
    others = nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1),
        nn.Conv2d(4, 4, 3, 2, padding=2, dilation=2),
        nn.Conv2d(4, 4, 3, 2, padding=1, groups=4),
        nn.Conv2d(4, 4, 3, 2, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 4, 3, 2),
        nn.Conv2d(4, 4, 5, 2, padding=2),
    )
    use_products(others)
    assert {type(module) for module in others} == {nn.Conv2d}


def test_a_forward_pass_of_ones_own_is_no_plain_module() -> None:
    # diffusers' and accelerate's hooks put one on the instance
    layer = nn.Conv2d(4, 4, 3)
    assert is_plain(layer, nn.Conv2d)
    layer.forward = lambda x: x  # type: ignore[method-assign]
    assert not is_plain(layer, nn.Conv2d)
