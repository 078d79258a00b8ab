"""Both heads on one backbone in one forward pass: segmentation of clean images, denoising of noisy ones, and the
segmentation of those with little noise."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from unetdiff.config.training import JointConfig
from unetdiff.data.labelled import is_segmented, segmented_places
from unetdiff.data.transforms import IGNORE_INDEX
from unetdiff.training.draws import RowDraws
from unetdiff.training.step_layers import StepLayers
from unetdiff.training.sums import Sums
from unetdiff.training.tasks.base import Batch, Previews, Task
from unetdiff.training.tasks.diffusion import DiffusionTask, NoisyBatch
from unetdiff.training.tasks.pseudo_labels import sums_without_labels
from unetdiff.training.tasks.segmentation import SegmentationTask, of_rows
from unetdiff.training.weighting import WEIGHTINGS


class JointTask(Task):
    """The weighted sum of a segmentation and a diffusion task that share one UNet.

    Attributes:
        all_labelled: whether every training image has a mask that may be used; false: only those at `masked_rows`.
    """

    best_metric = ("segmentation/mean_iou", "max")
    all_labelled: bool = True

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
        both = self.noisy_rows(noisy.timesteps, draws)
        if self.clean_rows(draws) or both:
            segmentation, output = self._both(batch, noisy, both, draws)
        else:
            output = self.diffusion.predict(noisy)
            segmentation = self._no_segmentation(output)
        return _prefixed("segmentation", segmentation) | _prefixed("diffusion", self.diffusion.sums(output, noisy))

    def _both(self, batch: Batch, noisy: NoisyBatch, both: list[int], draws: RowDraws) -> tuple[Sums, Tensor]:
        """The segmentation's sums of `clean_rows` and of the noisy rows `both`, and the denoiser's output for all
        images: in one pass of the backbone where both heads have the same context, or the segmentation head none."""
        assert noisy.x0 is not None
        task, segmenter = self.segmentation, self.segmentation.segmenter
        masked, others = self.masked_rows(draws), self.pseudo_rows(draws)
        rows, factor = masked + others, self.diffusion.codec.factor
        size = noisy.x0.shape[-2] * factor, noisy.x0.shape[-1] * factor
        sample, timesteps = task.add_noise(noisy.x0, draws)
        labels, sample, timesteps = task.with_pseudo_labels(others, sample, timesteps, noisy.x0, size, draws)
        sample, timesteps = sample[rows], None if timesteps is None else timesteps[rows]
        if segmenter.context is not None:
            tokens = task.tokens(batch, draws)
            logits = segmenter.logits(sample, timesteps, size, None if tokens is None else tokens[rows])
            output = self.diffusion.predict(noisy)
        else:
            tokens, gradient = noisy.conditioning.tokens, self.config.backbone_gradient
            logits, output = self.unet.both(sample, noisy.sample, noisy.timesteps, tokens, timesteps, gradient, both)
            logits = segmenter.at_image_size(logits, size)
        of_masked, of_others, of_noisy = logits.split([len(masked), len(others), len(both)])
        of_masked = torch.cat([of_masked, of_noisy])
        return task.sums_of_rows(of_masked, of_rows(batch, masked + both), of_others, labels), output

    def _no_segmentation(self, output: Tensor) -> Sums:
        """Zero sums, with a zero gradient for the head: DDP expects one of every parameter."""
        nothing = torch.full((1, *output.shape[2:]), IGNORE_INDEX, device=output.device)
        logits = output.new_zeros(1, self.unet.num_classes or 0, *output.shape[2:])
        modules = [self.unet.heads["segmentation"], self.segmentation.context or nn.Identity()]
        zero = sum(parameter.sum() * 0 for module in modules for parameter in module.parameters())
        sums = self.segmentation.sums(logits + zero, nothing)
        return sums if self.segmentation.config.pseudo_labels is None else sums | sums_without_labels(0, output.device)

    def clean_rows(self, draws: RowDraws) -> list[int]:
        """The rows whose images are segmented: with masks, then with pseudo-labels."""
        return self.masked_rows(draws) + self.pseudo_rows(draws)

    def masked_rows(self, draws: RowDraws) -> list[int]:
        """The rows whose masks are used: `segmentation_fraction` of the step's batch, evenly spaced in it."""
        return draws.rows_at(segmented_places(self.config.segmentation_fraction, draws.images))

    def noisy_rows(self, timesteps: Tensor, draws: RowDraws) -> list[int]:
        """The rows that are denoised and segmented: those with little noise, of images whose masks are used
        (`joint.segment_noise_below`)."""
        bound = self.config.segment_noise_below
        if not bound:
            return []
        noise = self.diffusion.forward_process.fraction(timesteps)  # (B,)
        allowed = range(draws.count) if self.all_labelled else self.masked_rows(draws)
        return [row for row in (noise < bound).nonzero().flatten().tolist() if row in allowed]

    def pseudo_rows(self, draws: RowDraws) -> list[int]:
        """As many of the other rows, or all of them, evenly spaced; none without `segmentation.pseudo_labels`."""
        if self.segmentation.config.pseudo_labels is None:
            return []
        masked = segmented_places(self.config.segmentation_fraction, draws.images)
        others = [place for place in range(draws.images) if place not in masked]
        count = min(len(masked), len(others))
        return draws.rows_at({place for k, place in enumerate(others) if is_segmented(k, count, len(others))})

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
        rows = []
        for batch, draws in parts:
            noisy = self.noisy_rows(self.diffusion.timesteps(batch, draws.again()), draws)
            rows.append((batch, self.masked_rows(draws) + noisy, self.pseudo_rows(draws)))
        diffusion = self.diffusion.reference(parts, layers)
        return _prefixed("segmentation", self.segmentation.target_sums(rows)) | _prefixed("diffusion", diffusion)

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
