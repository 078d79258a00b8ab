"""A class-conditional denoiser against diffusers' `UNet2DConditionModel`: the same geometry and the same weights.

A training step, defaults: unetdiff as `unetdiff train` (bf16 where the machine has it, channels-last, fused AdamW,
clipped gradients, EMA); the peer as diffusers' training scripts (float32, torch's AdamW, gradients clipped to 1).
Best: bf16, channels-last and fused AdamW for both, without clipping or EMA. Both minimize the mean squared error of v
on class-conditional images, with a condition dropout of 10 %.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import ClassVar

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import nn

from suite.cases.case import NO_EMA_NO_CLIPPING, SETTINGS, Case, Side, fast_dtype, fast_precision, unetdiff_training
from suite.cases.images import RandomImages
from unetdiff.benchmark.timing import Workload
from unetdiff.config.reading import parse
from unetdiff.config.schema import RunConfig
from unetdiff.data.transforms import to_model_range
from unetdiff.diffusion.objectives import build_scheduler
from unetdiff.models.diffusers_names import from_diffusers_name
from unetdiff.training.tasks.build import build_task
from unetdiff.training.tasks.diffusion import DiffusionTask

PEER = f"diffusers {version('diffusers')}"
CLASSES = 10
TOKEN_DIM = 64  # width of a class token
HEAD_DIM = 32  # channels of an attention head
TINY = {"channels": (32, 64), "groups": 8}


@dataclass(frozen=True)
class DenoiserCase(Case):
    """The same network on both sides."""

    channels: tuple[int, ...] = (64, 128, 128)
    """Of each level, finest first; all but the finest have attention."""
    groups: int = 32
    """Groups of the GroupNorms."""

    @property
    def layout(self) -> torch.memory_format:
        """The peer's memory format."""
        return torch.channels_last if self.best else torch.contiguous_format

    @property
    def images(self) -> RandomImages:
        """One batch of images."""
        return RandomImages(self.batch, self.size, labels=CLASSES)

    @cached_property
    def config(self) -> RunConfig:
        """unetdiff's config, with defaults for other keys."""
        network = {
            "model.encoder.channels": list(self.channels),
            "model.residual.norm_num_groups": self.groups,
            "model.residual.layers_per_block": 1,
            "model.conditioning.cross_attention_dim": TOKEN_DIM,
            "model.conditioning.attention_levels": list(range(1, len(self.channels))),
            "model.conditioning.attention_head_dim": HEAD_DIM,
        }
        return parse(overrides=network | (NO_EMA_NO_CLIPPING if self.best else {}), task="diffusion")

    def unetdiff_task(self) -> DiffusionTask:
        """unetdiff's network with its conditioner and objective."""
        torch.manual_seed(0)
        task = build_task(self.config, self.images, self.images)
        assert isinstance(task, DiffusionTask)
        return task

    def peer_network(self) -> nn.ModuleDict:
        """diffusers' network, and an embedding of class tokens (the last one is the null class)."""
        torch.manual_seed(0)
        coarser = len(self.channels) - 1
        unet = UNet2DConditionModel(
            sample_size=self.size,
            in_channels=3,
            out_channels=3,
            block_out_channels=self.channels,
            layers_per_block=1,
            down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * coarser),
            up_block_types=(*["CrossAttnUpBlock2D"] * coarser, "UpBlock2D"),
            attention_head_dim=tuple(width // HEAD_DIM for width in self.channels),  # number of heads, here
            cross_attention_dim=TOKEN_DIM,
            norm_num_groups=self.groups,
        )
        return nn.ModuleDict({"unet": unet, "table": nn.Embedding(CLASSES + 1, TOKEN_DIM)})

    @torch.inference_mode()
    def match_weights(self, unetdiff: Side, peer: Side) -> dict[str, float]:
        """Copies the peer's weights; returns the largest difference of the outputs, relative to the largest output."""
        unet, table = peer.network["unet"], peer.network["table"]
        state = {from_diffusers_name(name): tensor for name, tensor in unet.state_dict().items()}
        unetdiff.network.unet.load_state_dict(state)
        unetdiff.network.conditioner.table.load_state_dict(table.state_dict())
        generator = torch.Generator().manual_seed(0)
        sample = torch.randn(2, 3, self.size, self.size, generator=generator).to(unet.device, unet.dtype)
        tokens = torch.randn(2, 1, TOKEN_DIM, generator=generator).to(unet.device, unet.dtype)
        output, expected = (network(sample, 500, tokens).sample for network in (unetdiff.network.unet, unet))
        return {"difference": float((output - expected).abs().max() / expected.abs().max())}


class DenoiserTraining(DenoiserCase):
    """A training step: images, noise and classes to loss, gradients, weights."""

    work: ClassVar[str] = "denoiser training step"
    min_speedups: ClassVar[dict[str, float]] = {"defaults": 1.5, "best": 1.25}

    def unetdiff(self, device: torch.device) -> Side:
        return unetdiff_training(self.unetdiff_task(), self.images.batch(), self.config.training, device)

    def peer(self, device: torch.device) -> Side:
        network = self.peer_network().to(device, memory_format=self.layout).train()
        unet, table = network["unet"], network["table"]
        dtype = fast_dtype(device) if self.best else None

        def start() -> Workload:
            optimizer = torch.optim.AdamW(network.parameters(), fused=self.best or None)
            scheduler, config = build_scheduler(self.config.diffusion), self.config.diffusion
            batch = self.images.batch()

            def step() -> None:
                pixels = to_model_range(batch["image"].to(device)).contiguous(memory_format=self.layout)
                noise = torch.randn_like(pixels)
                timesteps = torch.randint(config.noise.num_train_timesteps, (len(pixels),), device=device)
                dropped = torch.rand(len(pixels), device=device) < config.condition_dropout
                labels = batch["label"].to(device).masked_fill(dropped, CLASSES)
                noisy = scheduler.add_noise(pixels, noise, timesteps)
                target = scheduler.get_velocity(pixels, noise, timesteps)
                with torch.autocast(device.type, dtype, enabled=dtype is not None):
                    output = unet(noisy, timesteps, table(labels)[:, None]).sample
                loss = F.mse_loss(output.float(), target)
                optimizer.zero_grad()
                loss.backward()
                if not self.best:
                    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()

            return step

        return Side(PEER, network, fast_precision(device) if self.best else "float32", start)


def cases(quick: bool) -> list[Case]:
    """Batches of 32 images of 32 x 32, at both settings."""
    if quick:
        return [DenoiserTraining(setting, 2, 16, **TINY) for setting in SETTINGS]
    return [DenoiserTraining(setting, 32, 32) for setting in SETTINGS]
