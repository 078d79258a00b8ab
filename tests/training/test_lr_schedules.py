"""Schedules: golden values of the reference, the formula, and edge cases."""

from __future__ import annotations

import math

import pytest

from unetdiff.errors import UserError
from unetdiff.training.lr_schedules import (
    SCHEDULES,
    constant,
    is_no_aug,
    phase_lengths,
    schedule,
    step_decay,
    warmup_cosine,
)

GOLDEN = {0: 1e-5, 1: 2.44e-5, 2: 6.76e-5, 3: 9.997e-5, 25: 5.05e-5, 48: 1e-6, 49: 1e-6}


@pytest.mark.parametrize(("epoch", "lr"), GOLDEN.items())
def test_golden_values(epoch, lr):
    assert warmup_cosine(epoch, 50, 1e-4, 1e-6) == pytest.approx(lr, rel=5e-4)


def test_phases_of_the_golden_run():
    assert phase_lengths(50) == (2.5, 2.5)
    assert warmup_cosine(2.5, 50, 1e-4, 1e-6) == pytest.approx(1e-4)
    assert warmup_cosine(47.4999, 50, 1e-4, 1e-6) == pytest.approx(1e-6, rel=1e-4)
    assert [is_no_aug(step, 50) for step in (0, 47.49, 47.5, 49.9, 50)] == [False, False, True, True, True]


@pytest.mark.parametrize(
    ("total", "expected"), [(2, (1, 1)), (20, (1, 1)), (50, (2.5, 2.5)), (100, (3, 5)), (1000, (3, 15))]
)
def test_clamps_are_in_epochs(total, expected):
    assert phase_lengths(total) == expected


def reference(i, total, lr, low, warmup_ratio=0.05, warmup_lr_ratio=0.1, no_aug_ratio=0.05):
    w = min(max(warmup_ratio * total, 1), 3)
    start = max(warmup_lr_ratio * lr, 1e-6)
    a = min(max(no_aug_ratio * total, 1), 15)
    if i <= w:
        return (lr - start) * pow(i / float(w), 2) + start
    if i >= total - a:
        return low
    return low + 0.5 * (lr - low) * (1.0 + math.cos(math.pi * (i - w) / (total - w - a)))


@pytest.mark.parametrize("total", [1, 2, 3, 7, 50, 300])
@pytest.mark.parametrize("options", [(), (0.1, 0.01, 0.2), (0.0, 0.5, 0.0)])
def test_is_the_reference_at_every_fraction_of_an_epoch(total, options):
    for k in range(8 * total + 1):
        expected = reference(k / 8, total, 1e-3, 1e-5, *options)
        assert warmup_cosine(k / 8, total, 1e-3, 1e-5, *options) == pytest.approx(expected, rel=1e-12)


def test_floor_of_the_first_rate():
    assert warmup_cosine(0, 50, 2e-6, 1e-8) == 1e-6
    assert warmup_cosine(0, 50, 1e-2, 1e-4) == pytest.approx(1e-3)


def test_wider_clamps_give_short_runs_a_cosine():
    wide = {"warmup_clamp": (0, 3), "no_aug_clamp": (0, 15)}
    assert phase_lengths(2, **wide) == (0.1, 0.1)
    assert warmup_cosine(1, 2, 1e-3, 1e-5) == 1e-3  # the reference: warm-up to 1, then min_lr
    assert warmup_cosine(1, 2, 1e-3, 1e-5, **wide) == pytest.approx(5.05e-4)
    assert not is_no_aug(1.8, 2, no_aug_clamp=(0, 15)) and is_no_aug(1.9, 2, no_aug_clamp=(0, 15))


def test_phases_of_no_length_and_overlapping_phases_never_divide_by_zero():
    off = {"warmup_clamp": (0, 0), "no_aug_clamp": (0, 0)}
    assert warmup_cosine(0, 10, 1e-3, 1e-5, **off) == 1e-3
    assert warmup_cosine(5, 10, 1e-3, 1e-5, **off) == pytest.approx(5.05e-4)
    assert warmup_cosine(10, 10, 1e-3, 1e-5, **off) == 1e-5
    assert not is_no_aug(10, 10, no_aug_clamp=(0, 0))
    for total in (0.1, 0.5, 1, 1.5, 2):
        for k in range(21):
            assert 1e-5 <= warmup_cosine(total * k / 20, total, 1e-3, 1e-5) <= 1e-3


def test_beyond_the_end_stays_at_the_last_rate():
    assert warmup_cosine(60, 50, 1e-4, 1e-6) == 1e-6
    assert step_decay(60, 50, 1e-4, 1e-6) == pytest.approx(1e-6)


def test_step_decay_goes_down_in_ten():
    values = [step_decay(epoch, 50, 1e-4, 1e-6) for epoch in range(50)]
    assert values[0] == values[4] == 1e-4
    assert values[5] == pytest.approx(1e-4 * 0.01 ** (1 / 9))
    assert values[44] == pytest.approx(1e-4 * 0.01 ** (8 / 9))
    assert values[45] == values[49] == pytest.approx(1e-6)
    assert len(set(values)) == 10


def test_schedules_by_name():
    options = {"warmup_ratio": 0.1, "no_aug_clamp": (0, 15)}  # any schedule takes any other's options
    for name in SCHEDULES:
        assert schedule(name)(0, 50, 1e-4, 1e-6, **options) <= 1e-4
    assert schedule("constant")(49, 50, 1e-4, 1e-6) == constant(0, 50, 1e-4, 1e-6) == 1e-4
    with pytest.raises(UserError, match="name=warmup_cosin: must be one of .* Did you mean warmup_cosine"):
        schedule("warmup_cosin")
    with pytest.raises(UserError, match="name=stp: must be one of .* Did you mean step"):
        schedule("stp")


@pytest.mark.parametrize("function", [warmup_cosine, step_decay])
def test_an_empty_run_is_refused(function):
    with pytest.raises(UserError, match="total_steps=0: must be above 0"):
        function(0, 0, 1e-3, 1e-5)
