"""The record of `unetdiff experiment noise`: chart, table, gallery and findings."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unetdiff.config.schema import RunConfig
from unetdiff.data.sampling import evenly_spaced_indices
from unetdiff.diffusion.objectives import Scheduler, alpha_sigma
from unetdiff.diffusion.processes.ddpm import DDPM
from unetdiff.diffusion.processes.load import process_of
from unetdiff.evaluation.robustness import CLEAN, NoisedImages, Segment
from unetdiff.experiments.gallery import ImageWriter, legend
from unetdiff.reports.record import Chart, Column, Gallery, Line, Record, Table, Value
from unetdiff.reports.record_text import as_text
from unetdiff.reports.runs import data_name
from unetdiff.segmentation.inference import argmax_at
from unetdiff.segmentation.palette import as_mask, colorize

SOURCE = "Ho et al. 2020, equation 4 (forward process); Brempong et al. 2022 (denoising pre-training of segmenters)"
NUM_COLUMNS = 5
"""Timesteps in the table and the gallery."""
CLEAN_TRAINED, NOISE_TRAINED = "trained on clean images", "trained on noisy images"
CONDITIONED, WRONG_TIMESTEP = "noisy images, conditioned on t", "noisy images, conditioned on t = 0"
JOINT = "joint run, conditioned on t"
MIN_EFFECT = 0.01
"""Smallest difference of the mean mIoU that is called an effect of the timestep."""


@dataclass(frozen=True)
class NoiseResults:
    """mIoU of segmenters on noised images."""

    timesteps: list[int]
    miou: dict[str, list[list[float]]]
    """By segmenter, then seed, then timestep."""
    scheduler: Scheduler
    """The forward process."""
    num_images: int

    @property
    def by_timestep(self) -> dict[str, list[Value]]:
        """mIoU over seeds, by segmenter, then timestep."""
        return {name: [Value.of(values) for values in zip(*seeds, strict=True)] for name, seeds in self.miou.items()}

    @property
    def mean(self) -> dict[str, Value]:
        """mIoU averaged over the timesteps, over seeds, by segmenter."""
        return {name: Value.of([float(np.mean(seed)) for seed in seeds]) for name, seeds in self.miou.items()}


def noise_record(
    results: NoiseResults,
    segmenters: Mapping[str, Segment],
    noises: NoisedImages,
    indices: Sequence[int],
    base: RunConfig,
    args: argparse.Namespace,
    output: Path,
    *,
    seeds: list[int],
    command: str,
    configs: dict[str, str],
    machine: dict[str, Any],
    start: float,
) -> Record:
    """The record; `indices` are the gallery's images, `start` is the experiment's `time.perf_counter()`."""
    by_timestep = results.by_timestep
    chart = Chart(
        "Segmentation under noise",
        "timestep of the noise in the image (0: clean)",
        "mIoU",
        [Line(name, [float(t) for t in results.timesteps], line) for name, line in by_timestep.items()],
        better="higher",
        note=f"On {results.num_images} validation images, with the same noise for every segmenter.",
    )
    gallery = _gallery(segmenters, noises, indices, _subset(results.timesteps), output)
    return Record(
        name="noise",
        title="Noise robustness of segmenters",
        question="How robust is a segmenter to noise, and does timestep conditioning help?",
        findings=findings(results),
        parts=[chart, _table(results), gallery],
        method=_method(results, base, args),
        source=SOURCE,
        command=command,
        seeds=seeds,
        dataset_name=data_name(asdict(base.data)),
        configs=configs,
        machine=machine,
        minutes=(time.perf_counter() - start) / 60,
    )


def _method(results: NoiseResults, base: RunConfig, args: argparse.Namespace) -> list[str]:
    training = base.training
    length = f"{training.steps} steps" if training.steps is not None else f"{training.epochs:g} epochs"
    lines = [
        f"Each segmenter was trained for {length} on the same images in the same order. The conditioned one has a time "
        "embedding, the other two do not.",
        f"For the segmenters trained on noisy images, a fraction of {args.noise_fraction:g} of the images was noised, "
        f"at random timesteps of {_process(results, base)} ({process_of(results.scheduler).num_timesteps} timesteps).",
        "The weights are those of the last step. Timestep 0 denotes images without noise.",
        "mIoU is computed from one confusion matrix over all images, at the masks' own size.",
    ]
    if args.joint_run is not None:
        lines.append(
            f"The joint run is {args.joint_run}. Its training budget differs, so it is not directly comparable."
        )
    return lines


def _process(results: NoiseResults, base: RunConfig) -> str:
    if isinstance(process_of(results.scheduler), DDPM):
        return f"the {base.diffusion.noise.beta_schedule} schedule"
    return f"the {base.diffusion.noise.process} process"


def _subset(timesteps: Sequence[int]) -> list[int]:
    return [timesteps[index] for index in evenly_spaced_indices(len(timesteps), NUM_COLUMNS)]


def _table(results: NoiseResults) -> Table:
    subset, mean = _subset(results.timesteps), results.mean
    columns = [Column("clean" if t == CLEAN else f"t = {t}", "higher", "fraction") for t in subset]
    columns.append(Column("mean", "higher", "fraction", f"over the {len(results.timesteps)} timesteps of the chart"))
    rows = [
        (name, [*(line[results.timesteps.index(t)] for t in subset), mean[name]])
        for name, line in results.by_timestep.items()
    ]
    return Table("mIoU by timestep", columns, rows)


def _gallery(
    segmenters: Mapping[str, Segment],
    noises: NoisedImages,
    indices: Sequence[int],
    timesteps: Sequence[int],
    output: Path,
) -> Gallery:
    """A row per image and timestep: the noisy image, the ground truth, and every segmenter's mask."""
    writer, images = ImageWriter(output, "noise"), noises.images
    rows, masks = [], []
    for index in indices:
        target = as_mask(images[index]["mask"])
        size = (target.shape[0], target.shape[1])
        for t in timesteps:
            noisy = noises.noised_image(index, t)  # (3, H, W)
            predictions = [argmax_at(segment(noisy[None], t)[0], size).numpy() for segment in segmenters.values()]
            masks += [target, *predictions]
            files = [writer.add((noisy / 2 + 0.5).clamp(0, 1))]
            files += [writer.add(colorize(mask, images.palette)) for mask in (target, *predictions)]
            rows.append((f"{images.sample_name(index)}, {'clean' if t == CLEAN else f't = {t}'}", files))
    return Gallery(
        "Masks at increasing noise",
        ["noisy image", "ground truth", *segmenters],
        rows,
        note="Each image has one noise sample, scaled to the timestep.",
        legend=legend(images.classes, images.palette, masks),
    )


def findings(results: NoiseResults) -> list[str]:
    """Robustness of each segmenter, and the effect of timestep conditioning."""
    by_timestep, mean, timesteps = results.by_timestep, results.mean, results.timesteps

    def miou(name: str, index: int) -> str:
        return as_text(by_timestep[name][index], "fraction")

    lines = []
    if timesteps[0] == CLEAN:
        lines.append(
            f"mIoU on clean images: {miou(CLEAN_TRAINED, 0)} ({CLEAN_TRAINED}), {miou(NOISE_TRAINED, 0)} "
            f"({NOISE_TRAINED}), {miou(CONDITIONED, 0)} (with timestep conditioning as well)."
        )
    num_timesteps = process_of(results.scheduler).num_timesteps
    middle = int(np.argmin([abs(t - num_timesteps / 2) for t in timesteps]))
    t = timesteps[middle]
    alpha, sigma = (float(level) for level in alpha_sigma(results.scheduler, torch.tensor([t])))
    lines.append(
        f"mIoU at t = {t} (α = {alpha:.2f}, σ = {sigma:.2f}): {miou(CLEAN_TRAINED, middle)}, "
        f"{miou(NOISE_TRAINED, middle)} and {miou(CONDITIONED, middle)}."
    )
    gain = _difference(mean[CONDITIONED], mean[NOISE_TRAINED])
    lines.append(
        f"Timestep conditioning {'improves' if gain > 0 else 'does not improve'} mIoU averaged over {len(timesteps)} "
        f"timesteps: {as_text(mean[CONDITIONED], 'fraction')} against {as_text(mean[NOISE_TRAINED], 'fraction')} "
        f"without ({gain:+.3f})."
    )
    loss = _difference(mean[CONDITIONED], mean[WRONG_TIMESTEP])
    lines.append(
        f"With the wrong timestep t = 0, the conditioned network reaches {as_text(mean[WRONG_TIMESTEP], 'fraction')} "
        f"({-loss:+.3f}): it {'depends' if loss > MIN_EFFECT else 'hardly depends'} on the timestep."
    )
    if JOINT in by_timestep:
        lines.append(
            "The joint run's segmentation head, trained on clean images only, reaches "
            f"{as_text(mean[JOINT], 'fraction')} averaged over the timesteps when conditioned on them, and "
            f"{miou(JOINT, middle)} at t = {t}."
        )
    if mean[CONDITIONED].n == 1:
        lines.append("1 seed: differences of 0.01 to 0.02 may be due to chance.")
    return lines


def _difference(first: Value, second: Value) -> float:
    return (first.mean or 0.0) - (second.mean or 0.0)
