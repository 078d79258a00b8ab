"""A class-conditional denoiser against diffusers' `UNet2DConditionModel`: the same geometry and the same weights.

A training step, defaults: ours as `unetdiff train` does it (bf16 where the machine has it, channels-last, fused AdamW,
gradients clipped, an average kept); theirs as diffusers' own training scripts do it (float32, torch's AdamW, gradients
clipped to 1). Best: bf16, channels-last and fused AdamW for both, neither clipping nor an average. Both learn v by its
mean squared error, from images with a class, one in ten of which is dropped.
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

from suite.cases.case import PLAIN, SETTINGS, Case, Side, fast_dtype, fast_precision, our_training
from suite.cases.images import RandomImages
from unetdiff.benchmark.timing import Round
from unetdiff.config.reading import parse
from unetdiff.config.schema import RunConfig
from unetdiff.data.transforms import to_model_range
from unetdiff.diffusion.objectives import build_scheduler
from unetdiff.export.convert.diffusers_names import to_ours
from unetdiff.training.tasks import DiffusionTask, build_task

PEER = f"diffusers {version('diffusers')}"
CLASSES = 10
TOKEN = 64  # width of a class token
HEAD = 32  # channels of an attention head
TINY = {"channels": (32, 64), "groups": 8}


@dataclass(frozen=True)
class DenoiserCase(Case):
    """One network at both."""

    channels: tuple[int, ...] = (64, 128, 128)
    """Of the levels, the finest first; all but it have attention."""
    groups: int = 32
    """Of the GroupNorms."""

    @property
    def layout(self) -> torch.memory_format:
        """The peer's memory format."""
        return torch.channels_last if self.best else torch.contiguous_format

    @property
    def images(self) -> RandomImages:
        """As many as the batch has."""
        return RandomImages(self.batch, self.size, labels=CLASSES)

    @cached_property
    def config(self) -> RunConfig:
        """Our run; what is not said is its default."""
        network = {
            "model.encoder.channels": list(self.channels),
            "model.residual.norm_num_groups": self.groups,
            "model.residual.layers_per_block": 1,
            "model.conditioning.cross_attention_dim": TOKEN,
            "model.conditioning.attention_levels": list(range(1, len(self.channels))),
            "model.conditioning.attention_head_dim": HEAD,
        }
        return parse(overrides=network | (PLAIN if self.best else {}), task="diffusion")

    def our_task(self) -> DiffusionTask:
        """Our network with its conditioner and objective, fresh."""
        torch.manual_seed(0)
        task = build_task(self.config, self.images, self.images)
        assert isinstance(task, DiffusionTask)
        return task

    def their_network(self) -> nn.ModuleDict:
        """diffusers' network, and the table of class tokens that its user writes (the last one is no class)."""
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
            attention_head_dim=tuple(width // HEAD for width in self.channels),  # the number of heads, in this class
            cross_attention_dim=TOKEN,
            norm_num_groups=self.groups,
        )
        return nn.ModuleDict({"unet": unet, "table": nn.Embedding(CLASSES + 1, TOKEN)})

    @torch.inference_mode()
    def match(self, ours: Side, theirs: Side) -> dict[str, float]:
        """The peer's weights in ours; how far the two networks' outputs are apart, as a share of the largest."""
        unet, table = theirs.network["unet"], theirs.network["table"]
        ours.network.unet.load_state_dict({to_ours(name): tensor for name, tensor in unet.state_dict().items()})
        ours.network.conditioner.table.load_state_dict(table.state_dict())
        generator = torch.Generator().manual_seed(0)
        sample = torch.randn(2, 3, self.size, self.size, generator=generator).to(unet.device, unet.dtype)
        told = torch.randn(2, 1, TOKEN, generator=generator).to(unet.device, unet.dtype)
        found, expected = (network(sample, 500, told).sample for network in (ours.network.unet, unet))
        return {"difference": float((found - expected).abs().max() / expected.abs().max())}


class DenoiserTraining(DenoiserCase):
    """An optimizer step: images, noise and classes to loss, gradients, weights."""

    work: ClassVar[str] = "denoiser training step"
    targets: ClassVar[dict[str, float]] = {"defaults": 1.5, "best": 1.1}

    def ours(self, device: torch.device) -> Side:
        return our_training(self.our_task(), self.images.batch(), self.config.training, device)

    def theirs(self, device: torch.device) -> Side:
        network = self.their_network().to(device, memory_format=self.layout).train()
        unet, table = network["unet"], network["table"]
        dtype = fast_dtype(device) if self.best else None

        def start() -> Round:
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
