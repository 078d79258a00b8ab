"""Both heads on one backbone in one forward pass: segmentation of clean images, denoising of noisy ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from unetdiff.config.training import JointConfig
from unetdiff.data.labelled import is_segmented
from unetdiff.data.transforms import IGNORE_INDEX
from unetdiff.segmentation.border_weights import KEY as BORDER_WEIGHT
from unetdiff.training.draws import RowDraws
from unetdiff.training.step_layers import StepLayers
from unetdiff.training.sums import Sums
from unetdiff.training.tasks.base import Batch, Previews, Task, network_input, require_one_size
from unetdiff.training.tasks.diffusion import DiffusionTask, NoisyBatch
from unetdiff.training.tasks.segmentation import SegmentationTask
from unetdiff.training.weighting import WEIGHTINGS


class JointTask(Task):
    """The weighted sum of a segmentation and a diffusion task that share one UNet."""

    best_metric = ("segmentation/mean_iou", "max")

    def __init__(self, segmentation: SegmentationTask, diffusion: DiffusionTask, config: JointConfig) -> None:
        super().__init__()
        if segmentation.unet is not diffusion.unet:
            raise ValueError("segmentation and diffusion must share one UNet")
        self.unet = segmentation.unet
        self.unet.heads.requires_grad_(True)  # each task froze the other's head
        self.segmentation, self.diffusion, self.config = segmentation, diffusion, config
        self.weighting = WEIGHTINGS[config.weighting](config)

    def trainable_modules(self) -> dict[str, nn.Module]:
        weighting = {"weighting": self.weighting} if self.weighting.state_dict() else {}
        return self.segmentation.trainable_modules() | self.diffusion.trainable_modules() | weighting

    def forward(self, batch: Batch, draws: RowDraws) -> Sums:
        noisy = self.diffusion.add_noise(batch, draws)
        rows = self.clean_rows(draws)
        if rows:
            logits, output = self._both(batch, noisy, rows, draws)
            border = batch.get(BORDER_WEIGHT)
            segmentation = self.segmentation.sums(logits, batch["mask"][rows], None if border is None else border[rows])
        else:
            output = self.diffusion.predict(noisy)
            segmentation = self._no_segmentation(output)
        return _prefixed("segmentation", segmentation) | _prefixed("diffusion", self.diffusion.sums(output, noisy))

    def _both(self, batch: Batch, noisy: NoisyBatch, rows: list[int], draws: RowDraws) -> tuple[Tensor, Tensor]:
        """Logits of the images in `rows` at their size, and the denoiser's output for all: in one pass of the backbone
        where both heads have the same context, or the segmentation head none."""
        assert noisy.x0 is not None
        segmenter = self.segmentation.segmenter
        x0, timesteps = self.segmentation.add_noise(noisy.x0, draws)
        x0, timesteps = x0[rows], None if timesteps is None else timesteps[rows]
        factor = self.diffusion.codec.factor
        size = x0.shape[-2] * factor, x0.shape[-1] * factor
        if segmenter.context is not None:
            tokens = self.segmentation.tokens(batch, draws)
            logits = segmenter.logits(x0, timesteps, size, None if tokens is None else tokens[rows])
            return logits, self.diffusion.predict(noisy)
        tokens = noisy.conditioning.tokens
        logits, output = self.unet.both(
            x0, noisy.sample, noisy.timesteps, tokens, timesteps, self.config.backbone_gradient
        )
        return segmenter.at_image_size(logits, size), output

    def _no_segmentation(self, output: Tensor) -> Sums:
        """Zero sums, with a zero gradient for the head: DDP expects one of every parameter."""
        nothing = torch.full((1, *output.shape[2:]), IGNORE_INDEX, device=output.device)
        logits = output.new_zeros(1, self.unet.num_classes or 0, *output.shape[2:])
        modules = [self.unet.heads["segmentation"], self.segmentation.context or nn.Identity()]
        zero = sum(parameter.sum() * 0 for module in modules for parameter in module.parameters())
        return self.segmentation.sums(logits + zero, nothing)

    def clean_rows(self, draws: RowDraws) -> list[int]:
        """The rows whose images are segmented: `segmentation_fraction` of the step's batch, evenly spaced in it."""
        count, places = math.ceil(self.config.segmentation_fraction * draws.images), range(draws.first, draws.images)
        return [row for row, place in enumerate(places[: draws.count]) if is_segmented(place, count, draws.images)]

    def losses(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        tasks = {"segmentation": self.segmentation, "diffusion": self.diffusion}
        parts = {name: task.losses(_of(name, sums)) for name, task in tasks.items()}
        total, weights = self.weighting({name: losses["loss"] for name, losses in parts.items()})
        logged = {key: value for name, losses in parts.items() for key, value in _prefixed(name, losses).items()}
        return {"loss": total, **logged, **_prefixed("weight", weights)}

    def reference(self, parts: Sequence[tuple[Batch, RowDraws]], layers: StepLayers) -> Sums:
        if not self.segmentation.is_linear:
            with self.segmentation.hard_pixels() as hard:
                sums = super().reference(parts, layers)
            return sums | _prefixed("segmentation", hard)
        clean = []
        for batch, draws in parts:
            require_one_size(network_input(batch))
            rows = self.clean_rows(draws)
            clean.append({**batch, **{key: batch[key][rows] for key in ("mask", BORDER_WEIGHT) if key in batch}})
        diffusion = self.diffusion.reference(parts, layers)
        return _prefixed("segmentation", self.segmentation.target_sums(clean)) | _prefixed("diffusion", diffusion)

    def observer(self) -> Callable[[dict[str, Tensor]], None] | None:
        return partial(self.weighting.observe, self.unet) if self.weighting.observes else None

    def end_step(self, finite: bool) -> None:
        self.segmentation.end_step(finite)
        self.weighting.end_step(finite, self.process[1])

    def evaluate(self, loader: Iterable[Batch], accelerator: Accelerator) -> dict[str, Any]:
        return self.segmentation.evaluate(loader, accelerator) | self.diffusion.evaluate(loader, accelerator)

    def preview(self, accelerator: Accelerator) -> Previews:
        images, metrics = self.segmentation.preview(accelerator)
        samples, sample_metrics = self.diffusion.preview(accelerator)
        return images | samples, metrics | sample_metrics

    def save(self, directory: Path) -> None:
        denoiser = self.diffusion.pipeline()
        denoiser.save_pretrained(directory)
        written = {name for name, part in denoiser.components.items() if part is not None}
        self.segmentation.pipeline().save_pretrained(directory, skip=written)


def _prefixed(prefix: str, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}/{name}": value for name, value in values.items()}


def _of(prefix: str, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}/"): value for name, value in values.items() if name.startswith(f"{prefix}/")}
