"""GroupNorm, scale, shift and SiLU in one step, against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.nn import functional as F

from unetdiff.models.activation import NormSiLU, norm_silu


def group_norm(dtype: torch.dtype = torch.float32, channels: int = 12, groups: int = 3) -> nn.GroupNorm:
    torch.manual_seed(0)
    norm = nn.GroupNorm(groups, channels, eps=1e-3).to(dtype)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def inputs(dtype: torch.dtype, told: bool, spread: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = [(2, 12, 5, 4)] + ([(2, 12, 1, 1)] * 2 if told else [])
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


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradients_are_torchs(told: bool, layout: torch.memory_format) -> None:
    norm = group_norm()
    given = inputs(torch.float32, told)
    given[0] = given[0].detach().to(memory_format=layout).requires_grad_()
    sought = [*given, norm.weight, norm.bias]
    ours, theirs = norm_silu(norm, *given), plain(norm, *given)
    assert ours.grad_fn is not None and "NormSiLU" in ours.grad_fn.name()
    torch.testing.assert_close(ours, theirs)
    towards = torch.randn(ours.shape, generator=torch.Generator().manual_seed(3))
    for a, b in zip(
        torch.autograd.grad(ours, sought, towards), torch.autograd.grad(theirs, sought, towards), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        assert a.dtype == b.dtype


@pytest.mark.parametrize("told", [False, True])
def test_in_bf16_it_is_as_near_as_torch(told: bool) -> None:
    """Weights in float32 and maps in bf16, as autocast has them."""
    norm, exact = group_norm(), group_norm(torch.float64)
    given = inputs(torch.bfloat16, told, 2.0)
    doubles = [tensor.detach().double().requires_grad_() for tensor in given]
    truth = torch.autograd.grad(plain(exact, *doubles).square().sum(), [*doubles, exact.weight, exact.bias])
    with torch.autocast("cpu", torch.bfloat16):
        found = {}
        for name, work in (("ours", norm_silu), ("torch", plain)):
            out = work(norm, *given)
            assert out.dtype == (torch.bfloat16 if name == "ours" else out.dtype)
            found[name] = torch.autograd.grad(out.float().square().sum(), [*given, norm.weight, norm.bias])

    def error(name: str) -> list[float]:
        return [float((a.double() - b).norm() / b.norm()) for a, b in zip(found[name], truth, strict=True)]

    assert all(ours < max(2 * torch_, 0.01) for ours, torch_ in zip(error("ours"), error("torch"), strict=True))


def test_without_gradients_under_hooks_and_for_other_norms_the_module_is_called() -> None:
    norm, (x,) = group_norm(), inputs(torch.float32, False)
    with torch.no_grad():
        torch.testing.assert_close(norm_silu(norm, x), plain(norm, x), rtol=0, atol=0)
    heard = []
    norm.register_forward_hook(lambda *call: heard.append(call))
    assert "Silu" in norm_silu(norm, x).grad_fn.name() and len(heard) == 1
    torch.testing.assert_close(norm_silu(nn.Identity(), x), F.silu(x))
