"""Segmentation against segmentation_models_pytorch's U-Net: the same trunk, decoder widths and classes.

Training, defaults: ours as `unetdiff train` does it (bf16 where the machine has it, channels-last, fused AdamW,
gradients clipped, an average kept; cross-entropy and Dice); theirs as its users write it (float32, cross-entropy and
its DiceLoss, torch's AdamW). Best: bf16, channels-last and fused AdamW for both, neither clipping nor an average.

Inference is from images to masks. Defaults: ours as `unetdiff predict` does it (BatchNorm folded, weights in bf16
where the machine has it, channels-last); theirs in float32. Best: that for both. Compiled: that and torch.compile, for
both.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import ClassVar, TypeVar

import segmentation_models_pytorch as smp
import torch
from torch import nn

from suite.cases.case import OURS, PLAIN, SETTINGS, Case, Side, fast_dtype, fast_precision, our_training
from suite.cases.images import RandomImages, normalised
from unetdiff.benchmark.rounds import prediction_workload
from unetdiff.benchmark.timing import Round
from unetdiff.config.parsing import RunConfig, parse
from unetdiff.kernels.fold_batch_norm import fold_batch_norm
from unetdiff.training.tasks import Task, build_task

PEER = f"segmentation_models_pytorch {version('segmentation_models_pytorch')}"
IGNORE_INDEX = 255
Network = TypeVar("Network", bound=nn.Module)
TINY = {"encoder": "resnet18", "channels": (16, 8, 8, 8, 8), "classes": 5}


@dataclass(frozen=True)
class SegmentationCase(Case):
    """One network at both."""

    encoder: str = "resnet50"
    channels: tuple[int, ...] = (256, 128, 64, 32, 16)
    """Of the decoder; these are the peer's default."""
    classes: int = 21

    @property
    def layout(self) -> torch.memory_format:
        """The peer's memory format."""
        return torch.channels_last if self.best else torch.contiguous_format

    @property
    def images(self) -> RandomImages:
        """As many as the batch has."""
        return RandomImages(self.batch, self.size, self.classes)

    @cached_property
    def config(self) -> RunConfig:
        """Our run; what is not said is its default."""
        network = {"model.encoder.name": self.encoder, "model.decoder.channels": list(self.channels)}
        return parse(overrides=network | (PLAIN if self.best else {}), task="segmentation")

    def our_task(self) -> Task:
        """Our network with its loss, fresh."""
        torch.manual_seed(0)
        return build_task(self.config, self.images, self.images)

    def their_network(self) -> nn.Module:
        """The peer's network, fresh."""
        torch.manual_seed(0)
        return smp.Unet(self.encoder, encoder_weights=None, decoder_channels=self.channels, classes=self.classes)


class SegmentationTraining(SegmentationCase):
    """An optimizer step: image to loss, gradients, weights."""

    work: ClassVar[str] = "segmentation training step"
    targets: ClassVar[dict[str, float]] = {"defaults": 2.3, "best": 1.1}

    def ours(self, device: torch.device) -> Side:
        return our_training(self.our_task(), self.images.batch(), self.config.training, device)

    def theirs(self, device: torch.device) -> Side:
        network = self.their_network().to(device, memory_format=self.layout).train()
        dtype = fast_dtype(device) if self.best else None

        def start() -> Round:
            optimizer = torch.optim.AdamW(network.parameters(), fused=self.best or None)
            dice, entropy = (
                smp.losses.DiceLoss("multiclass", ignore_index=IGNORE_INDEX),
                nn.CrossEntropyLoss(ignore_index=IGNORE_INDEX),
            )
            batch = self.images.batch()

            def step() -> None:
                pixels = normalised(batch["image"].to(device), self.layout)
                target = batch["mask"].to(device).long()
                with torch.autocast(device.type, dtype, enabled=dtype is not None):
                    logits = network(pixels)
                loss = dice(logits.float(), target) + entropy(logits.float(), target)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

            return step

        return Side(PEER, network, fast_precision(device) if self.best else "float32", start)


class SegmentationInference(SegmentationCase):
    """Masks of images, from uint8 to uint8."""

    work: ClassVar[str] = "segmentation inference"
    targets: ClassVar[dict[str, float]] = {"defaults": 1.8, "best": 1.1, "compiled": 1.1}

    def ours(self, device: torch.device) -> Side:
        unet = self.our_task().unet.to(device)
        images = self.images.batch()["image"]

        def start(compiled: bool) -> Round:
            network = self._mine(unet).optimize_for_inference(fast_dtype(device), compile=compiled)
            return prediction_workload(network, images)

        return self._side(OURS, unet, fast_precision(device), start)

    def theirs(self, device: torch.device) -> Side:
        smp_unet = self.their_network().to(device).eval()
        images = self.images.batch()["image"].to(device)
        dtype = (fast_dtype(device) if self.best else None) or torch.float32

        def start(compiled: bool) -> Round:
            network = self._mine(smp_unet)
            if self.best:
                example = torch.zeros(1, 3, 64, 64, device=device)
                fold_batch_norm(network, lambda: network(example))
            network.to(dtype=dtype, memory_format=self.layout)
            if compiled:
                network.compile(options={"freezing": True})

            def predict() -> torch.Tensor:
                with torch.inference_mode():
                    pixels = normalised(images, self.layout).to(dtype)
                    return network(pixels).argmax(dim=1).to(torch.uint8).cpu()

            return predict

        return self._side(PEER, smp_unet, fast_precision(device) if self.best else "float32", start)

    def _mine(self, network: Network) -> Network:
        """What a round may change: a copy where a second round is made of the same."""
        return copy.deepcopy(network) if self.setting == "compiled" else network

    def _side(self, name: str, network: nn.Module, precision: str, start: Callable[[bool], Round]) -> Side:
        """start(compiled) makes a round."""
        compiled = self.setting == "compiled"
        return Side(name, network, precision, lambda: start(compiled), (lambda: start(False)) if compiled else None)


def training_cases(quick: bool) -> list[Case]:
    """Batches of 4 and 8 at 256 x 256, at both settings."""
    if quick:
        return [SegmentationTraining(setting, 2, 64, **TINY) for setting in SETTINGS]
    return [SegmentationTraining(setting, batch, 256) for setting in SETTINGS for batch in (4, 8)]


def inference_cases(quick: bool) -> list[Case]:
    """One image and eight, at 256 x 256 and 512 x 512, at both settings."""
    if quick:
        return [SegmentationInference(setting, 2, 64, **TINY) for setting in SETTINGS]
    every = [(setting, batch, size) for setting in (*SETTINGS, "compiled") for size in (256, 512) for batch in (1, 8)]
    return [SegmentationInference(setting, batch, size) for setting, batch, size in every]
