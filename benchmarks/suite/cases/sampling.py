"""Sampling with classifier-free guidance against the loop that a diffusers user writes: the same network, weights,
noise and scheduler (DDIM), so the same images.

Defaults: ours as `unetdiff sample` draws (weights in bf16 where the machine has it, channels-last); theirs in float32.
Best: that for both. How close the images are is told in float32, before anything is timed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from suite.cases.case import OURS, SETTINGS, Case, Side, fast_dtype, fast_precision
from suite.cases.denoiser import CLASSES, PEER, TINY, DenoiserCase
from unetdiff.benchmark.rounds import sampling_workload
from unetdiff.diffusion.objectives import build_scheduler
from unetdiff.training.tasks import DiffusionTask

Draw = Callable[[], Tensor]
"""-> images (B, 3, H, W), floats in [0, 1]."""


def psnr(images: Tensor, others: Tensor) -> float:
    """Peak signal-to-noise ratio of two tensors of images in [0, 1], in dB; infinite where they are the same."""
    error = float((images.double().cpu() - others.double().cpu()).square().mean())
    return -10 * math.log10(error) if error else math.inf


@dataclass(frozen=True)
class Sampling(DenoiserCase):
    """Images of given classes, from given noise."""

    steps: int = 50
    guidance: float = 2.0
    work: ClassVar[str] = "sampling"
    targets: ClassVar[dict[str, float]] = {"defaults": 1.5, "best": 1.25}

    @property
    def name(self) -> str:
        return f"{super().name}, {self.steps} DDIM steps"

    @property
    def figure_targets(self) -> dict[str, float]:
        return {"psnr": 50.0}

    @property
    def noise(self) -> Tensor:
        """Where both start."""
        return torch.randn(self.batch, 3, self.size, self.size, generator=torch.Generator().manual_seed(0))

    def ours(self, device: torch.device) -> Side:
        task = self.our_task().to(device)

        def start() -> Draw:
            task.unet.optimize_for_inference(fast_dtype(device))
            return self._our_draw(task)

        return Side(OURS, task, fast_precision(device), start)

    def theirs(self, device: torch.device) -> Side:
        network = self.their_network().to(device, memory_format=self.layout).eval()

        def start() -> Draw:
            if self.best:
                for part in network.values():
                    nn.Module.to(part, dtype=fast_dtype(device))
            return self._their_draw(network)

        return Side(PEER, network, fast_precision(device) if self.best else "float32", start)

    def _our_draw(self, task: DiffusionTask) -> Draw:
        labels = task.conditions(self.images.batch(), task.unet.device)
        return sampling_workload(task.pipeline(), labels, self.noise, self.steps, self.guidance, None)

    def _their_draw(self, network: nn.ModuleDict) -> Draw:
        unet, table = network["unet"], network["table"]
        scheduler, noise = build_scheduler(self.config.diffusion), self.noise.to(unet.device)
        labels = self.images.batch()["label"].to(unet.device)

        @torch.inference_mode()
        def draw() -> Tensor:
            context = table(torch.cat([torch.full_like(labels, CLASSES), labels]))[:, None]  # (2 B, 1, TOKEN)
            scheduler.set_timesteps(self.steps, device=unet.device)
            x = noise * scheduler.init_noise_sigma
            for t in scheduler.timesteps:
                both = scheduler.scale_model_input(torch.cat([x, x]), t).to(unet.dtype, memory_format=self.layout)
                without, given = unet(both, t, context).sample.float().chunk(2)
                output = without + self.guidance * (given - without)
                x = scheduler.step(output, t, x, use_clipped_model_output=True).prev_sample
            return (x / 2 + 0.5).clamp(0, 1).cpu()

        return draw

    def match(self, ours: Side, theirs: Side) -> dict[str, float]:
        """As of a training step, and how close the images of both are in float32 (dB)."""
        figures = super().match(ours, theirs)
        return figures | {"psnr": psnr(self._our_draw(ours.network)(), self._their_draw(theirs.network)())}


def cases(quick: bool) -> list[Case]:
    """16 images of 32 x 32, at both settings."""
    if quick:
        return [Sampling(setting, 2, 16, **TINY, steps=4) for setting in SETTINGS]
    return [Sampling(setting, 16, 32) for setting in SETTINGS]
