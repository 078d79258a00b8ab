"""The fused softmax statistics against the plain ones, in values and gradients."""

from __future__ import annotations

import pytest
import torch

from unetdiff.kernels.losses import accelerate_loss
from unetdiff.segmentation.config import OHEMConfig
from unetdiff.segmentation.losses import WeightedLoss, combined

CASES = {
    "cross_entropy": combined({"cross_entropy": 1.0}),
    "dice": combined({"dice": 1.0}),
    "all": combined({"cross_entropy": 1.0, "dice": 2.0, "focal": 3.0, "lovasz": 0.5}, class_weights=[1, 2, 3, 4, 5]),
    "smoothed": combined({"cross_entropy": 1.0, "dice": 1.0}, label_smoothing=0.1),
    "ohem": combined({"cross_entropy": 1.0}, ohem=OHEMConfig(threshold=0.3, min_fraction=0.4)),
}


def inputs(dtype: torch.dtype, spread: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = (spread * torch.randn(3, 5, 7, 6, generator=generator)).to(dtype)
    target = torch.randint(0, 5, (3, 7, 6), generator=generator)
    target[torch.rand(3, 7, 6, generator=generator) < 0.3] = 255
    return logits, target


def loss_and_gradient(loss: WeightedLoss, logits: torch.Tensor, target: torch.Tensor):
    logits = logits.detach().requires_grad_()
    total, _ = loss(logits, target)
    return total, torch.autograd.grad(total, logits)[0]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_fused_is_plain(name: str, channels_last: bool, dtype: torch.dtype) -> None:
    logits, target = inputs(dtype)
    if channels_last:
        logits = logits.contiguous(memory_format=torch.channels_last)
    expected, expected_grad = loss_and_gradient(CASES[name], logits, target)
    total, grad = loss_and_gradient(accelerate_loss(CASES[name]), logits, target)
    torch.testing.assert_close(total, expected)
    if dtype == torch.bfloat16:
        torch.testing.assert_close(grad, expected_grad, rtol=1 / 64, atol=1e-6)
    else:
        torch.testing.assert_close(grad, expected_grad)
    assert grad.is_contiguous() or channels_last
    assert not grad[(target == 255)[:, None].expand_as(grad)].any()


@pytest.mark.parametrize("spread", [1e-3, 30.0, 1e3])
def test_whatever_the_scale_of_the_logits(spread: float) -> None:
    logits, target = inputs(torch.float32, spread)  # at 1e3 most p_t underflow
    for name in ("cross_entropy", "dice"):
        expected, expected_grad = loss_and_gradient(CASES[name], logits, target)
        total, grad = loss_and_gradient(accelerate_loss(CASES[name]), logits, target)
        torch.testing.assert_close(total, expected)
        torch.testing.assert_close(grad, expected_grad)


def test_gradients_are_finite_differences() -> None:
    logits, target = inputs(torch.float64)
    loss = accelerate_loss(combined({"cross_entropy": 0.5, "dice": 2.0, "focal": 1.0}))
    logits, target = logits[:1, :, :3, :3].clone().requires_grad_(), target[:1, :3, :3]
    assert torch.autograd.gradcheck(lambda x: loss(x, target)[0], logits)


def test_a_batch_of_ignored_pixels_costs_nothing() -> None:
    logits, target = inputs(torch.float32)
    total, grad = loss_and_gradient(accelerate_loss(CASES["all"]), logits, torch.full_like(target, 255))
    assert total.item() == 0 and not grad.any()
