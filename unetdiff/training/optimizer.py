"""A torch.optim class over parameter groups: encoder and rest, each with and without weight decay, and by level."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from unetdiff.config.training import WITH_BETAS, WITHOUT_WEIGHT_DECAY, OptimizerConfig, ScheduleConfig
from unetdiff.errors import config_error, did_you_mean
from unetdiff.models.param_groups import CONDITIONING, MID_BLOCK, parameters_by_level
from unetdiff.training import lora
from unetdiff.training.lr_schedules import is_no_aug, phase_lengths, schedule
from unetdiff.training.tasks.base import Task

KEY = "training.optimizer"
DECOUPLED_WEIGHT_DECAY = 0.01  # of AdamW, if `weight_decay` is null
FUSED = ("AdamW", "Adam")
PRETRAINED_LR_RATIO = 0.1  # of a pretrained encoder's learning rate to `lr`, if `encoder_lr` is null
MIN_CLAMPED_EPOCHS = 20  # in shorter runs, the reference's minimum of one epoch per phase is dropped


def build_optimizer(task: Task, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer of a task; each group has its "peak_lr" and the "names" of its parameters.

    Norms, biases and other vectors have no weight decay. The weights that an adapter leaves as they are have no group.

    Raises:
        UserError: arguments that the class does not have or accept.
    """
    encoder = {id(p) for p in task.unet.encoder_parameters()}
    pretrained = task.unet.config["encoder"]["weights"] is not None
    encoder_lr = config.encoder_lr
    if encoder_lr is None:
        encoder_lr = config.lr * (PRETRAINED_LR_RATIO if pretrained else 1.0)
    factors = _factors_by_level(task, config.layer_decay)
    decoupled = DECOUPLED_WEIGHT_DECAY if config.name == "AdamW" else 0.0
    weight_decay = decoupled if config.weight_decay is None else config.weight_decay
    groups: dict[tuple[bool, bool, float], dict] = {}
    frozen = lora.frozen_parameters(task)
    for name, parameter in task.named_parameters():
        if id(parameter) in frozen:
            continue
        factor = factors.get(id(parameter), 1.0)
        key = (id(parameter) in encoder, parameter.ndim > 1, factor)
        group = groups.setdefault(
            key, {"params": [], "names": [], "peak_lr": (encoder_lr if key[0] else config.lr) * factor}
        )
        if config.name not in WITHOUT_WEIGHT_DECAY:
            group["weight_decay"] = weight_decay if key[1] else 0.0
        group["params"].append(parameter)
        group["names"].append(name)
    optimizer = make_optimizer(list(groups.values()), config)
    optimizer.register_step_pre_hook(match_memory_formats)
    return optimizer


def make_optimizer(groups: list[dict[str, Any]], config: OptimizerConfig, fused: bool = True) -> torch.optim.Optimizer:
    """The class of torch.optim that a config names, with its arguments. Errors as of `build_optimizer`."""
    cls: Any = getattr(torch.optim, config.name)
    args: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in config.args.items()
    }
    known = [name for name in inspect.signature(cls).parameters if name not in ("params", "lr", "betas")]
    for name in args:
        if name not in known:
            constraint = f"an argument of torch.optim.{config.name}: {', '.join(known)}"
            raise config_error(f"{KEY}.args.{name}", config.args[name], constraint, did_you_mean(name, known))
    if config.name in WITH_BETAS:
        args["betas"] = (config.betas[0], config.betas[1])
    if config.name in FUSED:  # the others' fused kernels take no new parameters in the middle of a run
        args.setdefault("fused", fused)
    try:
        return cls(groups, lr=config.lr, **args)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise config_error(f"{KEY}.args", config.args, f"accepted by torch.optim.{config.name} ({reason})") from None


def _factors_by_level(task: Task, decay: float) -> dict[int, float]:
    """Factor of the learning rate of each parameter of the backbone, by its id: `decay` once for each level up to the
    heads."""
    if decay == 1:
        return {}
    groups = parameters_by_level(task.unet)
    levels = [name for name in groups if name != CONDITIONING]
    depth = {name: len(levels) - index for index, name in enumerate(levels)}
    depth[CONDITIONING] = depth.get(MID_BLOCK, len(levels) // 2)
    return {id(p): decay ** depth[name] for name, members in groups.items() for p in members.values()}


def match_memory_formats(optimizer: torch.optim.Optimizer, *args: object) -> None:
    """Lay out gradients as their weights.

    The fused kernel on a CPU reads weights, gradients and moments in memory order (torch 2.15). Autograd lays out
    gradients as their weights, but gradients from elsewhere need not be. Moments are as their weights from the start,
    and when they are loaded (`checkpoints.load_optimizer`).
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            gradient = parameter.grad
            if gradient is None or gradient.stride() == parameter.stride():
                continue
            if _layout(gradient) != _layout(parameter):
                parameter.grad = torch.empty_like(parameter).copy_(gradient)


def _layout(tensor: torch.Tensor) -> list[int]:
    """Strides, without those of dimensions of size 1, which do not matter."""
    return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]


@dataclass(frozen=True)
class LearningRate:
    """The learning-rate schedule of a run, a pure function of the optimizer step.

    Attributes:
        steps: optimizer steps of the whole run.
        epochs: epochs of the whole run.
    """

    config: ScheduleConfig
    steps: int
    epochs: float

    @property
    def _clamps(self) -> dict[str, tuple[float, float]]:
        lowest = 1.0 if self.epochs >= MIN_CLAMPED_EPOCHS else 0.0
        return {"warmup_clamp": (lowest, 3.0), "no_aug_clamp": (lowest, 15.0)}

    def at(self, step: int, peak: float) -> float:
        """Learning rate at a step (from 0) of a group with this peak."""
        rate: Callable[..., float] = schedule(self.config.name)
        return rate(
            step * self.epochs / self.steps,
            self.epochs,
            peak,
            peak * self.config.min_lr_ratio,
            warmup_ratio=self.config.warmup_ratio,
            warmup_lr_ratio=self.config.warmup_lr_ratio,
            no_aug_ratio=self.config.no_aug_ratio,
            **self._clamps,
        )

    def set(self, optimizer: torch.optim.Optimizer, step: int) -> float:
        """Set the learning rate of every group; returns the highest."""
        for group in optimizer.param_groups:
            group["lr"] = self.at(step, group["peak_lr"])
        return max(group["lr"] for group in optimizer.param_groups)

    @property
    def strong_until(self) -> int:
        """First step of the last phase, without strong augmentation."""
        clamp = self._clamps["no_aug_clamp"]
        off = partial(is_no_aug, total_steps=self.epochs, no_aug_ratio=self.config.no_aug_ratio, no_aug_clamp=clamp)
        _, length = phase_lengths(self.epochs, no_aug_ratio=self.config.no_aug_ratio, no_aug_clamp=clamp)
        step = max(0, int((self.epochs - length) / self.epochs * self.steps) - 1)
        while step < self.steps and not off(step * self.epochs / self.steps):
            step += 1
        return step
