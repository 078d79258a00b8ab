"""Learning rates as pure functions of the step.

`step` and `total_steps` are in **epochs**, because the clamps of the reference are: called per iteration,
`step` is a fraction of an epoch (iteration / iterations per epoch). They are stateless, so a resumed run
needs no state.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from unetdiff.errors import UserError, config_error, did_you_mean

__all__ = ["SCHEDULES", "constant", "is_no_aug", "phase_lengths", "schedule", "step_decay", "warmup_cosine"]

LOWEST_START = 1e-6  # the reference's lower bound of the initial learning rate


def phase_lengths(
    total_steps: float,
    warmup_ratio: float = 0.05,
    no_aug_ratio: float = 0.05,
    warmup_clamp: tuple[float, float] = (1, 3),
    no_aug_clamp: tuple[float, float] = (1, 15),
) -> tuple[float, float]:
    """Epochs of warm-up W and of the last phase A: each ratio x total, clamped to (lowest, highest) epochs.

    The clamps hold for a ratio of 0 as well; a phase is turned off by the clamp (0, 0).
    """
    if not total_steps > 0:
        raise UserError(f"total_steps={total_steps}: must be above 0.")
    warmup = min(max(warmup_ratio * total_steps, warmup_clamp[0]), warmup_clamp[1])
    no_aug = min(max(no_aug_ratio * total_steps, no_aug_clamp[0]), no_aug_clamp[1])
    return warmup, no_aug


def warmup_cosine(
    step: float,
    total_steps: float,
    lr: float,
    min_lr: float,
    warmup_ratio: float = 0.05,
    warmup_lr_ratio: float = 0.1,
    no_aug_ratio: float = 0.05,
    *,
    warmup_clamp: tuple[float, float] = (1, 3),
    no_aug_clamp: tuple[float, float] = (1, 15),
) -> float:
    """Quadratic warm-up, cosine, constant last phase (YOLOX's schedule as bubbliiiing/unet-pytorch has it).

    With W, A = `phase_lengths`, T = total_steps, i = step (epochs) and L0 = max(warmup_lr_ratio lr, 1e-6):

        i <= W      (lr - L0) (i / W)^2 + L0
        i >= T - A  min_lr
        else        min_lr + (lr - min_lr) (1 + cos(pi (i - W) / (T - W - A))) / 2

    The clamps are made for runs of 20 epochs and more. In a run of 2 they leave one epoch of warm-up, one at
    min_lr and no cosine: pass wider ones, e.g. `warmup_clamp=(0, 3), no_aug_clamp=(0, 15)`, so that the
    ratios decide. Where the phases overlap, warm-up goes first. Raises UserError for total_steps <= 0.
    """
    warmup, no_aug = phase_lengths(total_steps, warmup_ratio, no_aug_ratio, warmup_clamp, no_aug_clamp)
    if warmup > 0 and step <= warmup:
        start = max(warmup_lr_ratio * lr, LOWEST_START)
        return (lr - start) * (step / warmup) ** 2 + start
    if step >= total_steps - no_aug:
        return min_lr
    progress = (step - warmup) / (total_steps - warmup - no_aug)  # W <= i < T - A here: never 0 / 0
    return min_lr + 0.5 * (lr - min_lr) * (1 + math.cos(math.pi * progress))


def step_decay(
    step: float, total_steps: float, lr: float, min_lr: float, *, num_steps: int = 10, **unused: object
) -> float:
    """lr (min_lr / lr)^(k / (n - 1)), k = floor(step / (total / n)): n = 10 equal steps, the last at min_lr.

    Options of other schedules are accepted and unused, so that a config can change the name alone.
    """
    if not total_steps > 0:
        raise UserError(f"total_steps={total_steps}: must be above 0.")
    if num_steps < 2:
        raise UserError(f"num_steps={num_steps}: must be at least 2.")
    k = min(int(step // (total_steps / num_steps)), num_steps - 1)
    return lr * (min_lr / lr) ** (k / (num_steps - 1))


def constant(step: float, total_steps: float, lr: float, min_lr: float, **unused: object) -> float:
    """lr at every step; the other arguments are accepted and unused."""
    return lr


def is_no_aug(
    step: float,
    total_steps: float,
    no_aug_ratio: float = 0.05,
    *,
    no_aug_clamp: tuple[float, float] = (1, 15),
) -> bool:
    """Whether `step` (epochs) is in the last phase, where the strong augmentation is off: step >= T - A."""
    _, no_aug = phase_lengths(total_steps, no_aug_ratio=no_aug_ratio, no_aug_clamp=no_aug_clamp)
    return no_aug > 0 and step >= total_steps - no_aug


Schedule = Callable[..., float]
SCHEDULES: dict[str, Schedule] = {"warmup_cosine": warmup_cosine, "step": step_decay, "constant": constant}


def schedule(name: str) -> Schedule:
    """The schedule of that name: `schedule("warmup_cosine")(step, total_steps, lr, min_lr, **options)`.

    Raises UserError naming the nearest right name.
    """
    if name not in SCHEDULES:
        remedy = did_you_mean(name, SCHEDULES)
        raise config_error("training.schedule.name", name, f"one of {', '.join(SCHEDULES)}", remedy)
    return SCHEDULES[name]
