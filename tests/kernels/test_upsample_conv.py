"""Upsampling and its convolution in one, against what it stands for."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from unetdiff.kernels import upsample_conv as upsampling
from unetdiff.kernels.upsample_conv import upsample_conv


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upsampling, "MIN_PIXELS", 1)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("channels", [0, 4])
@pytest.mark.parametrize("size", [None, (10, 6), (9, 6)])
def test_values_and_gradients_are_those_of_the_grown_map(
    bias: bool, channels: int, size: tuple[int, int] | None
) -> None:
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(2, 3, 5, 3, generator=generator, requires_grad=True)
    height, width = size or (10, 6)
    skip = torch.randn(2, channels, height, width, generator=generator, requires_grad=True) if channels else None
    conv = nn.Conv2d(3 + channels, 6, 3, padding=1, bias=bias)
    grown = F.interpolate(h, size=(height, width), mode="nearest")
    expected = conv(grown if skip is None else torch.cat([skip, grown], dim=1))
    found = upsample_conv(conv, h, size, skip)
    torch.testing.assert_close(found, expected)
    towards = torch.randn(expected.shape, generator=generator)
    sought = [h, *([] if skip is None else [skip]), *conv.parameters()]
    for a, b in zip(
        torch.autograd.grad(found, sought, towards), torch.autograd.grad(expected, sought, towards), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("size", "ways"), [(None, 1), ((10, 6), 1), ((9, 6), 0)])
def test_where_it_doubles_the_large_map_is_not_made(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int] | None, ways: int
) -> None:
    taken: list[int] = []
    plainly = upsampling.transposed_kernel
    monkeypatch.setattr(upsampling, "transposed_kernel", lambda *given: (taken.append(1), plainly(*given))[1])
    conv, h = nn.Conv2d(3, 4, 3, padding=1), torch.randn(1, 3, 5, 3, generator=torch.Generator().manual_seed(0))
    upsample_conv(conv, h, size)
    assert len(taken) == ways
    hook = conv.register_forward_hook(lambda *_: None)
    upsample_conv(conv, h, size)
    hook.remove()
    strided = nn.Conv2d(3, 4, 3, padding=1, stride=2)
    torch.testing.assert_close(upsample_conv(strided, h), strided(F.interpolate(h, scale_factor=2.0)))
    assert len(taken) == ways


def test_few_pixels_are_grown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upsampling, "MIN_PIXELS", 16)
    assert not upsampling.transposed_pays(torch.zeros(1, 3, 5, 3)) and upsampling.transposed_pays(
        torch.zeros(1, 3, 4, 4)
    )


def test_under_autocast_it_computes_in_bf16() -> None:
    generator = torch.Generator().manual_seed(0)
    conv, h = nn.Conv2d(7, 6, 3, padding=1), torch.randn(2, 3, 5, 3, generator=generator)
    skip = torch.randn(2, 4, 10, 6, generator=generator)
    exact = upsample_conv(conv, h, None, skip)
    with torch.autocast("cpu", torch.bfloat16):
        found = upsample_conv(conv, h, None, skip)
    assert found.dtype == torch.bfloat16 and (found.float() - exact).norm() < 0.02 * exact.norm()
    found.float().sum().backward()
    assert conv.weight.grad is not None and conv.weight.grad.dtype == torch.float32
