"""GroupNorm, scale, shift, SiLU and a convolution in one step, and the gated GELU, against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.nn import functional as F

from unetdiff.kernels import conditions
from unetdiff.kernels import norm_silu_conv as activation
from unetdiff.kernels.norm_silu_conv import (
    FastGroupNorm,
    GroupNormFunction,
    NormSiLU,
    NormSiLUConv,
    norm_silu,
    norm_silu_conv,
)


def group_norm_module(dtype: torch.dtype = torch.float32, channels: int = 12, groups: int = 3) -> nn.GroupNorm:
    torch.manual_seed(0)
    norm = nn.GroupNorm(groups, channels, eps=1e-3).to(dtype)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def inputs(dtype: torch.dtype, conditioned: bool, spread: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = [(2, 12, 5, 4)] + ([(2, 12, 1, 1)] * 2 if conditioned else [])
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) * spread + 0.5 for shape in shapes]
    return [tensor.to(dtype).requires_grad_() for tensor in drawn]


def plain(norm: nn.GroupNorm, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
    h = F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
    return F.silu(h if scale is None else h * (1 + scale) + shift)


@pytest.mark.parametrize("shape", [(12,), (2, 12)])
def test_the_gradient_is_that_of_finite_differences(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, 12, 3, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    weight, bias = (torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for _ in "wb")
    assert gradcheck(lambda *given: NormSiLU.apply(*given, 3, 1e-3), (x, weight, bias))


@pytest.mark.parametrize("conditioned", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradients_are_torchs(conditioned: bool, layout: torch.memory_format) -> None:
    norm = group_norm_module()
    given = inputs(torch.float32, conditioned)
    given[0] = given[0].detach().to(memory_format=layout).requires_grad_()
    sought = [*given, norm.weight, norm.bias]
    actual, reference = norm_silu(norm, *given), plain(norm, *given)
    assert actual.grad_fn is not None and "NormSiLU" in actual.grad_fn.name()
    torch.testing.assert_close(actual, reference)
    towards = torch.randn(actual.shape, generator=torch.Generator().manual_seed(3))
    for a, b in zip(
        torch.autograd.grad(actual, sought, towards), torch.autograd.grad(reference, sought, towards), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        assert a.dtype == b.dtype


@pytest.mark.parametrize("conditioned", [False, True])
def test_in_bf16_it_is_as_near_as_torch(conditioned: bool) -> None:
    """Weights in float32 and maps in bf16, as autocast has them."""
    norm, exact = group_norm_module(), group_norm_module(torch.float64)
    given = inputs(torch.bfloat16, conditioned, 2.0)
    doubles = [tensor.detach().double().requires_grad_() for tensor in given]
    truth = torch.autograd.grad(plain(exact, *doubles).square().sum(), [*doubles, exact.weight, exact.bias])
    with torch.autocast("cpu", torch.bfloat16):
        found = {}
        for name, work in (("actual", norm_silu), ("torch", plain)):
            out = work(norm, *given)
            assert out.dtype == (torch.bfloat16 if name == "actual" else out.dtype)
            found[name] = torch.autograd.grad(out.float().square().sum(), [*given, norm.weight, norm.bias])

    def error(name: str) -> list[float]:
        return [float((a.double() - b).norm() / b.norm()) for a, b in zip(found[name], truth, strict=True)]

    assert all(actual < max(2 * torch_, 0.01) for actual, torch_ in zip(error("actual"), error("torch"), strict=True))


def test_without_gradients_under_hooks_and_for_other_norms_the_module_is_called() -> None:
    norm, (x,) = group_norm_module(), inputs(torch.float32, False)
    with torch.no_grad():
        torch.testing.assert_close(norm_silu(norm, x), plain(norm, x), rtol=0, atol=0)
    heard = []
    norm.register_forward_hook(lambda *call: heard.append(call))
    assert "Silu" in norm_silu(norm, x).grad_fn.name() and len(heard) == 1
    torch.testing.assert_close(norm_silu(nn.Identity(), x), F.silu(x))


def test_the_gradients_of_the_other_steps_are_those_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(2)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)

    x, weight, bias = drawn(2, 12, 4, 3), drawn(12), drawn(2, 12)
    assert gradcheck(lambda *given: GroupNormFunction.apply(*given, 3, 1e-3), (x, weight, drawn(12)))
    geometry = (1, 1), (1, 1), (1, 1), 1
    kernel = (drawn(5, 12, 3, 3), drawn(5))
    assert gradcheck(lambda *g: NormSiLUConv.apply(*g[:3], 3, 1e-3, *g[3:], geometry), (x, drawn(2, 12), bias, *kernel))


@pytest.mark.parametrize("small", [0, 1024])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_small_maps_have_torchs_moments(monkeypatch: pytest.MonkeyPatch, small: int, precision: torch.dtype) -> None:
    monkeypatch.setattr(activation, "MIN_NATIVE_PIXELS", small)
    norm = group_norm_module(precision)
    x = inputs(precision, False, 2.0)[0].detach().to(memory_format=torch.channels_last)
    exact = F.group_norm(x.double(), norm.num_groups, norm.weight.double(), norm.bias.double(), norm.eps)
    norm.__class__ = FastGroupNorm
    for found in (norm(x), torch.no_grad()(norm)(x)):
        assert found.dtype == precision
        torch.testing.assert_close(found.double(), exact, rtol=2e-2, atol=5e-2 if precision == torch.bfloat16 else 1e-5)


@pytest.mark.parametrize("conditioned", [False, True])
@pytest.mark.parametrize("cached", [1, 1 << 20])
def test_with_its_convolution_it_is_torchs(monkeypatch: pytest.MonkeyPatch, conditioned: bool, cached: int) -> None:
    monkeypatch.setattr(conditions, "MAX_CACHED_ELEMENTS", cached)
    norm, conv, given = group_norm_module(), nn.Conv2d(12, 5, 3, padding=1), inputs(torch.float32, conditioned)
    sought = [*given, norm.weight, norm.bias, conv.weight, conv.bias]
    actual, reference = norm_silu_conv(norm, conv, *given), conv(plain(norm, *given))
    assert "NormSiLUConv" in actual.grad_fn.name()
    torch.testing.assert_close(actual, reference)
    towards = torch.randn(actual.shape, generator=torch.Generator().manual_seed(3))
    pairs = zip(
        torch.autograd.grad(actual, sought, towards), torch.autograd.grad(reference, sought, towards), strict=True
    )
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(norm_silu_conv(norm, conv, *given), reference)
    with torch.autocast("cpu", torch.bfloat16):
        lower = norm_silu_conv(norm, conv, *given)
        assert lower.dtype == torch.bfloat16
        grads = torch.autograd.grad(lower.float(), sought, towards)
    for a, b in zip(grads, torch.autograd.grad(conv(plain(norm, *given)), sought, towards), strict=True):
        assert a.dtype == torch.float32 and (a - b).norm() < 0.03 * b.norm()


def test_of_a_convolution_nothing_is_kept_but_its_input() -> None:
    kept: list[int] = []
    norm, conv, (x,) = group_norm_module(), nn.Conv2d(12, 12, 3, padding=1), inputs(torch.float32, False)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.data_ptr()), t)[1], lambda t: t):
        norm_silu_conv(norm, conv, x)
    maps = [pointer for pointer in kept if pointer == x.data_ptr()]
    assert len(maps) == 1 and len(kept) == 6  # x, the norm's weight and bias, mean, deviation, kernel


def test_no_images_at_all() -> None:
    norm, conv = nn.GroupNorm(2, 4), nn.Conv2d(4, 6, 3, padding=1)
    with torch.no_grad():
        assert norm_silu_conv(norm, conv, torch.zeros(0, 4, 8, 8)).shape == (0, 6, 8, 8)
