"""1x1 convolutions as products, against torch's convolution."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from unetdiff.models import pointwise
from unetdiff.models.pointwise import PointwiseConv, use_products
from unetdiff.models.shortcuts import as_written


@pytest.mark.parametrize("stride", [1, 2, (2, 1)])
@pytest.mark.parametrize("bias", [False, True])
def test_values_and_gradients_are_the_convolutions(stride: int | tuple[int, int], bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = PointwiseConv(6, 4, 1, stride, bias=bias)
    x = torch.randn(2, 6, 7, 5, generator=generator).contiguous(memory_format=torch.channels_last).requires_grad_()
    expected = F.conv2d(x, layer.weight, layer.bias, stride)
    with FlopCounterMode(display=False) as counter:
        found = layer(x)
    assert not any("conv" in str(operator) for operator in counter.get_flop_counts()["Global"])
    torch.testing.assert_close(found, expected)
    assert found.is_contiguous(memory_format=torch.channels_last)
    towards = torch.randn(expected.shape, generator=generator)
    sought = [x, *layer.parameters()]
    for a, b in zip(
        torch.autograd.grad(found, sought, towards), torch.autograd.grad(expected, sought, towards), strict=True
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("few", "around"), [(34, nullcontext), (35, as_written), (35, torch.no_grad)])
def test_many_pixels_predictions_and_what_is_counted_are_convolutions(
    monkeypatch: pytest.MonkeyPatch, few: int, around: Callable[[], AbstractContextManager[None]]
) -> None:
    monkeypatch.setattr(pointwise, "FEW", few)
    layer, x = PointwiseConv(6, 4, 1, bias=False), torch.randn(1, 6, 7, 5)
    with FlopCounterMode(display=False) as counter, around():
        layer(x)
    assert any("conv" in str(operator) for operator in counter.get_flop_counts()["Global"])


def test_a_trunk_keeps_its_parameters() -> None:
    torch.manual_seed(0)
    trunk = torchvision.models.resnet50().eval()
    x, before = torch.randn(1, 3, 64, 64), dict(trunk.named_parameters())
    expected = trunk(x)
    use_products(trunk)
    torch.testing.assert_close(trunk(x), expected, rtol=1e-4, atol=1e-5)
    assert {name: id(value) for name, value in trunk.named_parameters()} == {k: id(v) for k, v in before.items()}
    kinds = {type(m) for m in trunk.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)}
    assert kinds == {PointwiseConv}
