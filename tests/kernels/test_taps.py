"""A doubled map's convolution by products with its taps, against what it stands for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unetdiff.kernels import taps
from unetdiff.kernels import upsample_conv as upsampling
from unetdiff.kernels.taps import gather_taps, scatter_taps, tapped_conv, taps_pay
from unetdiff.kernels.upsample_conv import upsample_conv


def _written(h: Tensor, skip: Tensor | None, conv: nn.Conv2d) -> Tensor:
    grown = F.interpolate(h, scale_factor=2.0, mode="nearest")
    return conv(grown if skip is None else torch.cat([skip, grown], dim=1))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("skipped", [0, 4])
@pytest.mark.parametrize("size", [(1, 1), (1, 3), (5, 3)])
def test_values_and_gradients_are_those_of_the_grown_map(bias: bool, skipped: int, size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(2, 3, *size, generator=generator, requires_grad=True)
    double = 2 * size[0], 2 * size[1]
    skip = torch.randn(2, skipped, *double, generator=generator, requires_grad=True) if skipped else None
    conv = nn.Conv2d(skipped + 3, 6, 3, padding=1, bias=bias)
    expected = _written(h, skip, conv)
    found = tapped_conv(h, skip, conv.weight, conv.bias, torch.float32)
    torch.testing.assert_close(found, expected)
    assert found.is_contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        torch.testing.assert_close(tapped_conv(h, skip, conv.weight, conv.bias, torch.float32), expected)
    towards = torch.randn(expected.shape, generator=generator)
    sought = [h, *([] if skip is None else [skip]), *conv.parameters()]
    for a, b in zip(
        torch.autograd.grad(found, sought, towards), torch.autograd.grad(expected, sought, towards), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_gather_is_the_transpose_of_spread() -> None:
    generator = torch.Generator().manual_seed(0)
    products = torch.randn(2, 4, 3, 3, 3, 5, generator=generator, dtype=torch.float64)
    towards = torch.randn(2, 5, 8, 6, generator=generator, dtype=torch.float64)
    torch.testing.assert_close((scatter_taps(products) * towards).sum(), (products * gather_taps(towards)).sum())


@pytest.mark.parametrize("frozen", ["h", "weight", "skip"])
def test_what_needs_no_gradient_gets_none(frozen: str) -> None:
    given = {"h": torch.randn(1, 3, 2, 2), "skip": torch.randn(1, 2, 4, 4), "weight": torch.randn(4, 5, 3, 3)}
    for name, tensor in given.items():
        tensor.requires_grad_(name != frozen)
    tapped_conv(given["h"], given["skip"], given["weight"], None, torch.float32).sum().backward()
    assert [name for name, tensor in given.items() if tensor.grad is None] == [frozen]


def test_bf16_is_as_near_as_the_convolution_and_gradients_keep_their_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    conv, h = nn.Conv2d(160, 8, 3, padding=1), torch.randn(2, 128, 5, 3, generator=generator).requires_grad_()
    skip = torch.randn(2, 32, 10, 6, generator=generator)
    exact = _written(h, skip, conv)
    with torch.autocast("cpu", torch.bfloat16):
        found = upsample_conv(conv, h, None, skip)
        written = _written(h, skip, conv)
    assert found.dtype == torch.bfloat16
    assert (found - exact).norm() < 2 * (written - exact).norm()
    found.float().sum().backward()
    assert conv.weight.grad is not None and conv.weight.grad.dtype == torch.float32
    assert h.grad is not None and h.grad.dtype == torch.float32


def test_it_is_taken_for_few_pixels_of_many_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    assert taps_pay(torch.zeros(1, taps.MIN_CHANNELS, 2, 2), 8) and not taps_pay(
        torch.zeros(1, taps.MIN_CHANNELS - 1, 2, 2), 8
    )
    assert taps_pay(torch.zeros(1, 128, 64, 64), 128) and not taps_pay(torch.zeros(1, 128, 64, 64), 129)
    taken: list[int] = []
    monkeypatch.setattr(upsampling, "tapped_conv", lambda *given: (taken.append(1), tapped_conv(*given))[1])
    conv, h = nn.Conv2d(128, 4, 3, padding=1), torch.randn(1, 128, 5, 3)
    upsample_conv(conv, h, (10, 6))
    assert len(taken) == 1
    upsample_conv(conv, h, (9, 6))
    upsample_conv(nn.Conv2d(128, 4, 3, padding=1, stride=2), h)
    conv.register_forward_hook(lambda *_: None)
    upsample_conv(conv, h)
    assert len(taken) == 1
