"""Sampling with classifier-free guidance against the usual loop with diffusers: the same network, weights, noise and
scheduler (DDIM), and so the same images.

Defaults: unetdiff as `unetdiff sample` (weights in bf16 where the machine has it, channels-last); the peer in float32.
Best: bf16 and channels-last for both. The agreement of the images is measured in float32, before timing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from suite.cases.case import SETTINGS, UNETDIFF, Case, Side, fast_dtype, fast_precision
from suite.cases.denoiser import CLASSES, PEER, TINY, DenoiserCase
from unetdiff.benchmark.workloads import sampling_workload
from unetdiff.diffusion.objectives import build_scheduler
from unetdiff.kernels.accelerate import accelerate_inference_
from unetdiff.training.tasks.diffusion import DiffusionTask

Sampler = Callable[[], Tensor]
"""-> images (B, 3, H, W), floats in [0, 1]."""


def psnr(images: Tensor, others: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of two tensors of images in [0, 1]; infinite if they are equal."""
    error = float((images.double().cpu() - others.double().cpu()).square().mean())
    return -10 * math.log10(error) if error else math.inf


@dataclass(frozen=True)
class Sampling(DenoiserCase):
    """Class-conditional images from fixed noise."""

    num_inference_steps: int = 50
    guidance_scale: float = 2.0
    work: ClassVar[str] = "sampling"
    min_speedups: ClassVar[dict[str, float]] = {"defaults": 1.5, "best": 1.2}

    @property
    def name(self) -> str:
        return f"{super().name}, {self.num_inference_steps} DDIM steps"

    @property
    def min_agreement(self) -> dict[str, float]:
        return {"psnr": 50.0}

    @property
    def noise(self) -> Tensor:
        """Initial noise of both sides."""
        return torch.randn(self.batch, 3, self.size, self.size, generator=torch.Generator().manual_seed(0))

    def unetdiff(self, device: torch.device) -> Side:
        task = self.unetdiff_task().to(device)

        def start() -> Sampler:
            accelerate_inference_(task.unet, fast_dtype(device))
            return self._unetdiff_sampler(task)

        return Side(UNETDIFF, task, fast_precision(device), start)

    def peer(self, device: torch.device) -> Side:
        network = self.peer_network().to(device, memory_format=self.layout).eval()

        def start() -> Sampler:
            if self.best:
                for part in network.values():
                    nn.Module.to(part, dtype=fast_dtype(device))
            return self._peer_sampler(network)

        return Side(PEER, network, fast_precision(device) if self.best else "float32", start)

    def _unetdiff_sampler(self, task: DiffusionTask) -> Sampler:
        conditions = task.conditions(self.images.batch(), task.unet.device)
        return sampling_workload(
            task.pipeline(), conditions, self.noise, self.num_inference_steps, self.guidance_scale, None
        )

    def _peer_sampler(self, network: nn.ModuleDict) -> Sampler:
        unet, table = network["unet"], network["table"]
        scheduler, noise = build_scheduler(self.config.diffusion), self.noise.to(unet.device)
        labels = self.images.batch()["label"].to(unet.device)

        @torch.inference_mode()
        def sample() -> Tensor:
            context = table(torch.cat([torch.full_like(labels, CLASSES), labels]))[:, None]  # (2 B, 1, TOKEN)
            scheduler.set_timesteps(self.num_inference_steps, device=unet.device)
            x = noise * scheduler.init_noise_sigma
            for t in scheduler.timesteps:
                x2 = scheduler.scale_model_input(torch.cat([x, x]), t).to(unet.dtype, memory_format=self.layout)
                unconditional, conditional = unet(x2, t, context).sample.float().chunk(2)
                output = unconditional + self.guidance_scale * (conditional - unconditional)
                x = scheduler.step(output, t, x, use_clipped_model_output=True).prev_sample
            return (x / 2 + 0.5).clamp(0, 1).cpu()

        return sample

    def match_weights(self, unetdiff: Side, peer: Side) -> dict[str, float]:
        """As for a training step, and the PSNR of the images of both in float32 (dB)."""
        agreement = super().match_weights(unetdiff, peer)
        return agreement | {
            "psnr": psnr(self._unetdiff_sampler(unetdiff.network)(), self._peer_sampler(peer.network)())
        }


def cases(quick: bool) -> list[Case]:
    """16 images of 32 x 32, at both settings."""
    if quick:
        return [Sampling(setting, 2, 16, **TINY, num_inference_steps=4) for setting in SETTINGS]
    return [Sampling(setting, 16, 32) for setting in SETTINGS]
