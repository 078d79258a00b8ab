"""Segmentation against segmentation_models_pytorch's U-Net: the same pretrained encoder, decoder widths and classes.

Training, defaults: unetdiff as `unetdiff train` (bf16 where the machine has it, channels-last, fused AdamW, clipped
gradients, EMA; cross-entropy and Dice); the peer as in its examples (float32, cross-entropy and its DiceLoss, torch's
AdamW). Best: bf16, channels-last and fused AdamW for both, without clipping or EMA.

Inference is from images to masks. Defaults: unetdiff as `unetdiff predict` (folded BatchNorm, weights in bf16 where the
machine has it, channels-last); the peer in float32. Best: the same for both. Compiled: best with torch.compile, for
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

from suite.cases.case import (
    NO_EMA_NO_CLIPPING,
    SETTINGS,
    UNETDIFF,
    Case,
    Side,
    fast_dtype,
    fast_precision,
    unetdiff_training,
)
from suite.cases.images import RandomImages, normalize_imagenet
from unetdiff.benchmark.timing import Workload
from unetdiff.benchmark.workloads import prediction_workload
from unetdiff.config.reading import parse
from unetdiff.config.schema import RunConfig
from unetdiff.kernels.accelerate import accelerate_inference_
from unetdiff.kernels.fold_batch_norm import fold_batch_norm
from unetdiff.training.tasks.base import Task
from unetdiff.training.tasks.build import build_task

PEER = f"segmentation_models_pytorch {version('segmentation_models_pytorch')}"
IGNORE_INDEX = 255
Network = TypeVar("Network", bound=nn.Module)
TINY = {"encoder": "resnet18", "channels": (16, 8, 8, 8, 8), "classes": 5}


@dataclass(frozen=True)
class SegmentationCase(Case):
    """The same network on both sides."""

    encoder: str = "resnet50"
    channels: tuple[int, ...] = (256, 128, 64, 32, 16)
    """Of the decoder; the default of the peer."""
    classes: int = 21

    @property
    def layout(self) -> torch.memory_format:
        """The peer's memory format."""
        return torch.channels_last if self.best else torch.contiguous_format

    @property
    def images(self) -> RandomImages:
        """One batch of images."""
        return RandomImages(self.batch, self.size, self.classes)

    @cached_property
    def config(self) -> RunConfig:
        """unetdiff's config, with defaults for other keys."""
        network = {"model.encoder.name": self.encoder, "model.decoder.channels": list(self.channels)}
        return parse(overrides=network | (NO_EMA_NO_CLIPPING if self.best else {}), task="segmentation")

    def unetdiff_task(self) -> Task:
        """unetdiff's network with its loss."""
        torch.manual_seed(0)
        return build_task(self.config, self.images, self.images)

    def peer_network(self) -> nn.Module:
        """The peer's network."""
        torch.manual_seed(0)
        return smp.Unet(self.encoder, encoder_weights=None, decoder_channels=self.channels, classes=self.classes)


class SegmentationTraining(SegmentationCase):
    """A training step: images to loss, gradients, weights."""

    work: ClassVar[str] = "segmentation training step"
    min_speedups: ClassVar[dict[str, float]] = {"defaults": 2.2, "best": 1.1}

    def unetdiff(self, device: torch.device) -> Side:
        return unetdiff_training(self.unetdiff_task(), self.images.batch(), self.config.training, device)

    def peer(self, device: torch.device) -> Side:
        network = self.peer_network().to(device, memory_format=self.layout).train()
        dtype = fast_dtype(device) if self.best else None

        def start() -> Workload:
            optimizer = torch.optim.AdamW(network.parameters(), fused=self.best or None)
            dice, entropy = (
                smp.losses.DiceLoss("multiclass", ignore_index=IGNORE_INDEX),
                nn.CrossEntropyLoss(ignore_index=IGNORE_INDEX),
            )
            batch = self.images.batch()

            def step() -> None:
                pixels = normalize_imagenet(batch["image"].to(device), self.layout)
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
    min_speedups: ClassVar[dict[str, float]] = {"defaults": 1.8, "best": 1.15, "compiled": 1.1}

    def unetdiff(self, device: torch.device) -> Side:
        unet = self.unetdiff_task().unet.to(device)
        images = self.images.batch()["image"]

        def start(compiled: bool) -> Workload:
            network = accelerate_inference_(self._copy(unet), fast_dtype(device), compile=compiled)
            return prediction_workload(network, images)

        return self._side(UNETDIFF, unet, fast_precision(device), start)

    def peer(self, device: torch.device) -> Side:
        smp_unet = self.peer_network().to(device).eval()
        images = self.images.batch()["image"].to(device)
        dtype = (fast_dtype(device) if self.best else None) or torch.float32

        def start(compiled: bool) -> Workload:
            network = self._copy(smp_unet)
            if self.best:
                example = torch.zeros(1, 3, 64, 64, device=device)
                fold_batch_norm(network, lambda: network(example))
            network.to(dtype=dtype, memory_format=self.layout)
            if compiled:
                network.compile(options={"freezing": True})

            def predict() -> torch.Tensor:
                with torch.inference_mode():
                    pixels = normalize_imagenet(images, self.layout).to(dtype)
                    return network(pixels).argmax(dim=1).to(torch.uint8).cpu()

            return predict

        return self._side(PEER, smp_unet, fast_precision(device) if self.best else "float32", start)

    def _copy(self, network: Network) -> Network:
        """A network that may be changed: a copy if a second workload is made from it."""
        return copy.deepcopy(network) if self.setting == "compiled" else network

    def _side(self, name: str, network: nn.Module, precision: str, start: Callable[[bool], Workload]) -> Side:
        """`start(compiled)` returns a workload."""
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
    combinations = [
        (setting, batch, size) for setting in (*SETTINGS, "compiled") for size in (256, 512) for batch in (1, 8)
    ]
    return [SegmentationInference(setting, batch, size) for setting, batch, size in combinations]
