"""The timestep at which a denoiser's maps of clean images say most about their classes, by linear probes.

A segmenter that starts from the denoiser receives that timestep (`segmentation.timestep`): the best one is rarely 0,
where the denoiser only removes the last noise. The probes use the labeled images alone, half of them to train and half
to choose, so that no validation image decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from unetdiff.config.schema import RunConfig
from unetdiff.config.training import TrainingConfig
from unetdiff.data.build import build_dataset
from unetdiff.data.sampling import evenly_spaced_indices
from unetdiff.errors import config_error
from unetdiff.experiments.features import NoiseLevel, UNetFeatures, open_features
from unetdiff.experiments.linear_probes import (
    ProbeInput,
    ProbeTraining,
    evaluate_probes,
    feature_stats,
    train_probes,
)
from unetdiff.experiments.result_cache import cached_result
from unetdiff.models.weights_files import fingerprint
from unetdiff.reports.runs import Run
from unetdiff.training.runtime import build_accelerator

MAX_IMAGES = 200
"""Labeled images of the probes."""


class CleanFeatures(UNetFeatures):
    """A denoiser's maps of clean images, with a timestep as its input."""

    def _maps(self, images: Tensor, names: Sequence[str], level: NoiseLevel) -> dict[str, Tensor]:
        assert self.diffusion is not None
        return self.unet.features(self.diffusion.encode({"image": images}), level or 0)


def probe_timesteps(
    denoiser: Run, timesteps: Sequence[int], segmenter: RunConfig, training: ProbeTraining, file: Path
) -> dict[int, float]:
    """mIoU of the best block's probe at each timestep.

    Args:
        denoiser: a finished run of an unconditional or class-conditional denoiser.
        timesteps: 0 is a clean image's.
        segmenter: its labeled images are used.
        training: of the probes.
        file: that keeps the result.

    Raises:
        UserError: fewer than two labeled images, or a timestep that the denoiser does not have.
    """
    assert denoiser.model is not None
    settings = {"network": fingerprint(denoiser.model / "unet"), "timesteps": list(timesteps), "steps": training.steps}
    data = segmenter.data
    settings |= {"fraction": data.train_fraction, "seed": data.train_fraction_seed, "data": denoiser.config["data"]}

    def measure() -> dict[str, Any]:
        return {str(t): miou for t, miou in _measure(denoiser, timesteps, segmenter, training).items()}

    return {int(t): float(miou) for t, miou in cached_result(file, settings, measure).items()}


def _measure(
    denoiser: Run, timesteps: Sequence[int], segmenter: RunConfig, training: ProbeTraining
) -> dict[int, float]:
    device = build_accelerator(TrainingConfig(mixed_precision="no")).device
    images = build_dataset(segmenter.data, "train", segmentation=True)
    if len(images) < 2:
        constraint = "one number with a single labeled image, which cannot train and choose the probes"
        raise config_error("--timesteps", list(timesteps), constraint, "Or give a larger --label_fractions.")
    chosen = evenly_spaced_indices(len(images), MAX_IMAGES)
    halves, ignore_index = (chosen[::2], chosen[1::2]), segmenter.segmentation.ignore_index
    opened = open_features(denoiser, images, list(timesteps), training.seed, device)
    features = CleanFeatures(denoiser.name, opened.unet, opened.diffusion, None, list(timesteps), training.seed)
    stats = feature_stats(features, images, halves[0], training.batch_size)
    inputs = [ProbeInput(level, (block,)) for level, block in stats.channels]
    classes = len(images.classes)
    probes = train_probes(features, images, halves[0], inputs, stats, classes, training, ignore_index)
    matrices = evaluate_probes(features, images, halves[1], probes, classes, training.batch_size, ignore_index)
    best: dict[int, float] = {}
    for probe, (even, odd) in matrices.items():
        even.matrix += odd.matrix
        level = probe.level or 0
        best[level] = max(best.get(level, 0.0), even.compute()["mean_iou"])
    return best
