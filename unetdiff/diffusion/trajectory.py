"""The trajectory of sampling, recorded by a callback at evenly spaced steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unetdiff.diffusion.objectives import predicted_x0

if TYPE_CHECKING:
    from unetdiff.diffusion.pipeline import GenerationPipeline


@dataclass
class Trajectory:
    """x_t and the predicted x_0 at some steps of sampling; the last entry is the finished image.

    Images are float in [0, 1] on the CPU, (k, B, C, H, W); latents are decoded.
    """

    timesteps: list[float]
    """Timestep of each entry, noisiest first (0 for the finished image)."""
    noisy: Tensor
    """x_t, the network's input."""
    predicted: Tensor
    """The clean image x_0 that the network predicts from x_t."""


class TrajectoryRecorder:
    """A `callback_on_step_end` of `GenerationPipeline` that keeps the trajectory of its latest call.

    Args:
        num_entries: entries of the trajectory at most, the finished image included.
    """

    def __init__(self, num_entries: int) -> None:
        self.num_entries = num_entries
        self._entries: list[tuple[float, Tensor, Tensor]] = []

    def __call__(
        self, pipeline: GenerationPipeline, step: int, timestep: Tensor, state: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        if step == 0:
            self._entries = []
        if step in evenly_spaced(pipeline.num_timesteps, self.num_entries - 1):
            self._entries.append((_rounded(float(timestep)), *step_images(pipeline, timestep, state)))
        if step == pipeline.num_timesteps - 1:
            image = pipeline.decode(state["latents"])
            self._entries.append((0, image, image))
        return {}

    @property
    def trajectory(self) -> Trajectory:
        """Of the latest call of the pipeline."""
        timesteps, noisy, predicted = zip(*self._entries, strict=True)
        return Trajectory(list(timesteps), torch.stack(noisy), torch.stack(predicted))


def step_images(pipeline: GenerationPipeline, timestep: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """x_t of a step, and the x_0 predicted from it, as images in [0, 1], (B, C, H, W) each.

    Args:
        pipeline: that samples.
        timestep: of the step, ().
        state: of the step, as a `callback_on_step_end` gets it.
    """
    xt = state["model_input"]
    x0 = predicted_x0(pipeline.scheduler, state["model_output"], xt, timestep.expand(len(xt)))
    return pipeline.decode(xt), pipeline.decode(x0)


def _rounded(timestep: float) -> float:
    """A timestep to be shown: an integer, or two digits after the point where it is small."""
    return round(timestep, 2) if abs(timestep) < 10 and timestep % 1 else round(timestep)


def evenly_spaced(total: int, count: int) -> set[int]:
    """At most `count` evenly spaced indices below `total`, starting with 0."""
    count = min(count, total)
    return {round(i * total / count) for i in range(count)} if count > 0 else set()
