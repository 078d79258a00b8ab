"""Losses against torch, torchvision's focal, a one-hot Dice and finite differences."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import sigmoid_focal_loss

from unetdiff.errors import UserError
from unetdiff.segmentation.config import LOSS_NAMES, OHEMConfig
from unetdiff.segmentation.losses import LOSSES, combined, cross_entropy, dice, focal
from unetdiff.segmentation.lovasz import lovasz

CLASSES = 5
# what holds for every loss is held for the options of cross_entropy and Lovász-softmax too
OHEM = OHEMConfig(threshold=0.3, min_fraction=0.4)
VARIANTS = LOSSES | {
    "smoothed": partial(cross_entropy, label_smoothing=0.2),
    "ohem": partial(cross_entropy, ohem=OHEM),
    "smoothed_ohem": partial(cross_entropy, label_smoothing=0.2, ohem=OHEM),
    "lovasz_per_image": partial(lovasz, per_image=True),
}
NAMES = sorted(VARIANTS)


def case(seed: int = 0, dtype: torch.dtype = torch.float32, ignored: float = 0.3, present: int = CLASSES):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(2, CLASSES, 7, 6, generator=generator, dtype=torch.float64)
    target = torch.randint(0, present, (2, 7, 6), generator=generator)
    target[torch.rand(2, 7, 6, generator=generator) < ignored] = 255
    return logits.to(dtype), target


def one_hot_dice(logits, target, smooth=1e-5):
    valid = (target != 255)[:, None]
    hot = F.one_hot(target.where(target != 255, 0), CLASSES).permute(0, 3, 1, 2) * valid
    probability = logits.softmax(1) * valid
    overlap = (probability * hot).sum((0, 2, 3))
    score = (2 * overlap + smooth) / (probability.sum((0, 2, 3)) + hot.sum((0, 2, 3)) + smooth)
    return 1 - score[hot.sum((0, 2, 3)) > 0].mean()


@pytest.mark.parametrize("weights", [None, [0.2, 1.0, 3.0, 0.5, 2.0]])
def test_cross_entropy_is_torchs(weights):
    logits, target = case()
    expected = F.cross_entropy(logits, target, weights and torch.tensor(weights), ignore_index=255)
    torch.testing.assert_close(cross_entropy(logits, target, class_weights=weights), expected)


@pytest.mark.parametrize("spread", [1e-3, 1.0, 30.0, 1e3])
def test_log_loss_is_torchs_whatever_the_logits(spread):
    # at 1e3 the probability of most pixels' own class is too small for float32, the loss and its gradient are not
    logits, target = case()
    logits = (logits * spread).requires_grad_()
    expected = F.cross_entropy(logits, target, ignore_index=255)
    actual = cross_entropy(logits, target)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(torch.autograd.grad(actual, logits)[0], torch.autograd.grad(expected, logits)[0])


@pytest.mark.parametrize("smoothing", [0.1, 0.9])
@pytest.mark.parametrize("weights", [None, [0.2, 1.0, 3.0, 0.5, 2.0]])
def test_label_smoothing_is_torchs(smoothing, weights):
    logits, target = case(dtype=torch.float64)
    logits.requires_grad_()
    weight = weights and torch.tensor(weights, dtype=torch.float64)
    expected = F.cross_entropy(logits, target, weight, ignore_index=255, label_smoothing=smoothing)
    actual = cross_entropy(logits, target, class_weights=weights, label_smoothing=smoothing)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(torch.autograd.grad(actual, logits)[0], torch.autograd.grad(expected, logits)[0])
    assert actual.item() != pytest.approx(cross_entropy(logits, target, class_weights=weights).item(), rel=1e-3)


def test_smoothed_pixels_that_all_weigh_nothing_cost_nothing():
    logits, target = case(present=1)
    logits.requires_grad_()
    loss = cross_entropy(logits, target, class_weights=[0.0, 1, 1, 1, 1], label_smoothing=0.1)  # torch: 0 / 0
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


def test_focal_of_two_classes_is_torchvisions():
    # softmax over (0, z) is the sigmoid of z, and alpha 0.5 weighs both classes alike
    _, target = case(ignored=0, present=2)
    z = torch.randn(2, 7, 6, generator=torch.Generator().manual_seed(1))
    logits = torch.stack([torch.zeros_like(z), z], dim=1)
    expected = sigmoid_focal_loss(z, target.float(), alpha=0.5, gamma=2, reduction="mean")
    torch.testing.assert_close(focal(logits, target), expected)


def test_focal_with_neither_alpha_nor_gamma_is_cross_entropy():
    logits, target = case()
    torch.testing.assert_close(focal(logits, target, alpha=1, gamma=0), cross_entropy(logits, target))


def test_focal_keeps_the_class_weight_out_of_p_and_divides_by_valid_pixels():
    logits = torch.tensor([[0.0, 0.0, 0.0], [0.0, math.log(3), 0.0]]).view(1, 2, 1, 3)
    target = torch.tensor([[[0, 1, 255]]])
    # p_t = 1/2 and 3/4, weights 2 and 10, two valid pixels
    expected = 0.5 * (2 * 0.25 * math.log(2) + 10 * 0.0625 * math.log(4 / 3)) / 2
    assert focal(logits, target, class_weights=[2.0, 10.0]).item() == pytest.approx(expected)


@pytest.mark.parametrize("present", [1, 3, CLASSES])
def test_dice_by_index_is_dice_by_one_hot(present):
    logits, target = case(present=present)
    logits.requires_grad_()
    actual, expected = dice(logits, target), one_hot_dice(logits, target)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(
        torch.autograd.grad(actual, logits)[0], torch.autograd.grad(expected, logits)[0], rtol=1e-5, atol=1e-8
    )


def test_dice_of_a_perfect_prediction_with_absent_classes_is_0():
    _, target = case(present=3)
    logits = 30.0 * F.one_hot(target.where(target != 255, 4), CLASSES).permute(0, 3, 1, 2)
    assert dice(logits, target).item() == pytest.approx(0, abs=1e-6)  # 1 - 3/5 if absent classes counted


def test_dice_weighs_its_average():
    logits, target = case()
    only = [dice(logits, target, class_weights=F.one_hot(torch.tensor(c), CLASSES).float()) for c in range(CLASSES)]
    torch.testing.assert_close(torch.stack(only).mean(), dice(logits, target))
    weights = torch.tensor([1.0, 0.0, 3.0, 0.0, 0.0])
    torch.testing.assert_close(dice(logits, target, class_weights=weights), (only[0] + 3 * only[2]) / 4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("weights", [None, [0.2, 1.0, 3.0, 0.5, 2.0]])
def test_gradients_are_finite_differences(name, weights):
    logits, target = case(dtype=torch.float64, present=4)
    logits = logits[:1, :, :3, :3].clone().requires_grad_()
    target = target[:1, :3, :3]
    assert VARIANTS[name](logits, target, 255, weights).dtype == torch.float64
    assert torch.autograd.gradcheck(lambda x: VARIANTS[name](x, target, 255, weights), logits)


@pytest.mark.parametrize("name", NAMES)
def test_second_derivatives_are_finite_differences(name):
    logits, target = case(dtype=torch.float64, present=4)
    logits = logits[:1, :, :2, :3].clone().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: VARIANTS[name](x, target[:1, :2, :3], 255, None), logits)


@pytest.mark.parametrize("name", NAMES)
def test_logits_at_ignored_pixels_change_nothing(name):
    logits, target = case()
    ignored = (target == 255)[:, None].expand_as(logits)
    other = logits.clone()
    other[ignored] = 100 * torch.randn(int(ignored.sum()), generator=torch.Generator().manual_seed(2))
    losses, grads = [], []
    for x in (logits, other):
        x = x.requires_grad_()
        loss = VARIANTS[name](x, target, 255, None)
        losses.append(loss.item())
        grads.append(torch.autograd.grad(loss, x)[0])
    assert losses[0] == losses[1]
    assert not grads[0][ignored].any() and not grads[1][ignored].any()
    assert torch.equal(grads[0], grads[1])


@pytest.mark.parametrize("name", NAMES)
def test_ignored_pixels_do_not_dilute_the_mean(name):
    logits, target = case(ignored=0)
    padded = F.pad(logits, (0, 6)), F.pad(target, (0, 6), value=255)
    torch.testing.assert_close(VARIANTS[name](*padded, 255, None), VARIANTS[name](logits, target, 255, None))


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_ignored_pixels_costs_0_with_a_gradient(name):
    logits = torch.randn(2, CLASSES, 4, 4, requires_grad=True)
    loss = VARIANTS[name](logits, torch.full((2, 4, 4), 255), 255, None)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("name", NAMES)
def test_ignore_index_may_be_a_class_and_masks_may_be_uint8(name):
    logits, target = case(ignored=0)
    expected = VARIANTS[name](logits, target.where(target != 2, 255), 255, None)
    torch.testing.assert_close(VARIANTS[name](logits, target.to(torch.uint8), 2, None), expected)
    torch.testing.assert_close(VARIANTS[name](logits, target.where(target != 2, -100), -100, None), expected)


@pytest.mark.parametrize("name", NAMES)
def test_autocast_computes_in_float32(name):
    logits, target = case()
    logits = logits.bfloat16().requires_grad_()
    full = logits.detach().float().requires_grad_()
    expected = VARIANTS[name](full, target, 255, [1.0, 2, 3, 4, 5])
    expected.backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = VARIANTS[name](logits, target, 255, [1.0, 2, 3, 4, 5])
        loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(logits.grad, full.grad.bfloat16(), rtol=1 / 64, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_channels_last_gives_the_same(name):
    logits, target = case()
    last = logits.contiguous(memory_format=torch.channels_last).requires_grad_()
    logits.requires_grad_()
    actual, expected = VARIANTS[name](last, target, 255, None), VARIANTS[name](logits, target, 255, None)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(torch.autograd.grad(actual, last)[0], torch.autograd.grad(expected, logits)[0])


@pytest.mark.parametrize("name", NAMES)
def test_confident_logits_stay_finite(name):
    _, target = case()
    logits = torch.full((2, CLASSES, 7, 6), -1e4)
    logits[:, 0] = 1e4
    logits.requires_grad_()
    VARIANTS[name](logits, target, 255, None).backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_focal_slope_is_finite_for_a_sure_pixel_at_small_gamma(gamma):
    logits = torch.tensor([200.0, -200.0]).view(1, 2, 1, 1).requires_grad_()
    focal(logits, torch.zeros(1, 1, 1, dtype=torch.long), gamma=gamma).backward()
    assert logits.grad.isfinite().all()


def test_combined_is_the_weighted_sum_and_weighs_classes_in_pixel_losses_only():
    logits, target = case()
    logits.requires_grad_()
    weights = [0.2, 1.0, 3.0, 0.5, 2.0]
    losses = {"cross_entropy": 0.5, "dice": 2.0, "focal": 1.0, "lovasz": 3.0}
    total, parts = combined(losses, class_weights=weights)(logits, target)
    expected = {
        "cross_entropy": cross_entropy(logits, target, class_weights=weights),
        "dice": dice(logits, target),
        "focal": focal(logits, target, class_weights=weights),
        "lovasz": lovasz(logits, target),
    }
    assert parts == expected
    both = torch.autograd.grad(total, logits)[0]
    apart = torch.autograd.grad(sum(weight * expected[name] for name, weight in losses.items()), logits)[0]
    torch.testing.assert_close(both, apart)
    torch.testing.assert_close(total, sum(weight * expected[name] for name, weight in losses.items()))


def test_annealed_class_weights_lie_between_theirs_and_one():
    logits, target = case()
    loss = combined({"cross_entropy": 1.0, "dice": 1.0}, class_weights=[0.2, 1.0, 3.0, 0.5, 2.0])
    halfway = [0.6, 1.0, 2.0, 0.75, 1.5]
    for strength, weights in ((1.0, [0.2, 1.0, 3.0, 0.5, 2.0]), (0.5, halfway), (0.0, None)):
        _, parts = loss.anneal_class_weights(strength)(logits, target)
        torch.testing.assert_close(parts["cross_entropy"], cross_entropy(logits, target, class_weights=weights))
    without = combined({"cross_entropy": 1.0})
    assert without.anneal_class_weights(0.5) is without


def test_combined_smooths_and_mines_cross_entropy_alone():
    logits, target = case()
    losses = {"cross_entropy": 1.0, "focal": 1.0, "lovasz": 1.0}
    _, parts = combined(losses, label_smoothing=0.2, ohem=OHEM)(logits, target)
    assert parts["cross_entropy"] == cross_entropy(logits, target, label_smoothing=0.2, ohem=OHEM)
    assert parts["cross_entropy"] != cross_entropy(logits, target)
    assert parts["focal"] == focal(logits, target) and parts["lovasz"] == lovasz(logits, target)


def test_a_config_may_name_every_loss():
    assert list(LOSSES) == list(LOSS_NAMES)


@pytest.mark.parametrize(
    ("losses", "weights", "says"),
    [
        ({"crossentropy": 1.0}, None, "losses.crossentropy: must be one of .* Did you mean cross_entropy"),
        ({}, None, "must name at least one loss"),
        ({"dice": -1.0}, None, "losses.dice=-1.0: must be finite"),
        ({"dice": float("nan")}, None, "losses.dice=nan: must be finite"),
        ({"focal": 1.0}, [1.0, -2.0], "class_weights"),
        ({"focal": 1.0}, "median_frequency", "class_weights=median_frequency: must be numbers here"),
    ],
)
def test_combined_refuses(losses, weights, says):
    with pytest.raises(UserError, match=says):
        combined(losses, class_weights=weights)


@pytest.mark.parametrize("name", NAMES)
def test_wrong_targets_are_refused_by_value_and_shape(name):
    logits, target = case(ignored=0)
    with pytest.raises(UserError, match=r"values must be in 0..4 or 255 \(ignore\) \(got 17\)"):
        VARIANTS[name](logits, target.where(target != 3, 17), 255, None)
    with pytest.raises(UserError, match="shape must match the logits"):
        VARIANTS[name](logits, target[:, 1:], 255, None)
    with pytest.raises(UserError, match="one value per class .got 2 for 5"):
        VARIANTS[name](logits, target, 255, [1.0, 1.0])
    with pytest.raises(UserError, match="must be an integer .got torch.float32"):
        VARIANTS[name](logits, target.float(), 255, None)
