"""The record of `unetdiff experiment mask_diffusion`: table, charts, gallery and findings."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import torch
from torch import Tensor

from unetdiff.data.base import ImageDataset
from unetdiff.diffusion.mask_sampling import uncertainty
from unetdiff.experiments.gallery import ImageWriter, legend
from unetdiff.experiments.mask_metrics import MaskMetrics
from unetdiff.experiments.runs import machine_info, yaml_configs
from unetdiff.reports.record import Chart, Column, Gallery, Line, Record, Table, Value
from unetdiff.reports.runs import Run
from unetdiff.segmentation.palette import as_mask, colorize

COLORMAP = "viridis"
"""Colormap of the uncertainty, perceptually uniform."""
ASPECT_NOTE = (
    "The head was trained on images resized to data.size, the denoiser on center crops of that aspect ratio, on which "
    "both are evaluated: for images of another aspect ratio, this favors the denoiser."
)
"""Applies to datasets that are resized: a segmenter's images are resized, those of a layout are cropped."""
ROWS = ("segmentation head", "single sampled mask", "mean of {} sampled masks")
METRICS = {
    "mean_iou": Column("mIoU", "higher", "fraction"),
    "pixel_accuracy": Column("pixel accuracy", "higher", "fraction"),
    "ece": Column("ECE", "lower", "fraction", "expected calibration error"),
    "nll": Column("NLL", "lower", "number", "mean negative log-likelihood of the ground truth, nats"),
    "uncertainty_correct": Column("uncertainty, correct pixels", "neither", "fraction"),
    "uncertainty_wrong": Column("uncertainty, wrong pixels", "neither", "fraction"),
}


@dataclass
class MaskDiffusionResults:
    """Metrics of both models, and their outputs for the gallery."""

    data: ImageDataset
    head: MaskMetrics
    single: list[MaskMetrics]
    """Of each sample."""
    means: list[MaskMetrics]
    """Of the mean of the first 1, 2, ... K samples."""
    seconds: dict[str, float]
    """Inference time per image: "head", "one", "all"."""
    parameters: dict[str, int]
    """By run, the discriminative one first."""
    minutes: dict[str, float]
    """Training time, by run."""
    num_images: int
    items: list[dict[str, Any]]
    """Dataset items of the gallery."""
    head_probabilities: Tensor
    """The head's probabilities of these, (B, C, H, W)."""
    sample_probabilities: Tensor
    """The samples', (K, B, C, H, W)."""


def mask_diffusion_record(
    results: MaskDiffusionResults,
    runs: Mapping[str, Run],
    args: argparse.Namespace,
    output: Path,
    command: str,
    start: float,
) -> Record:
    """The record; `start` is the experiment's `time.perf_counter()`."""
    gallery = _gallery(results, output)
    first = next(iter(runs.values()))
    return Record(
        name="mask_diffusion",
        title="Discriminative and generative segmentation",
        question="Does a segmentation head or an image-conditional denoiser of masks segment better?",
        findings=findings(results, args.num_inference_steps),
        parts=[table(results), *charts(results), gallery],
        method=[
            f"One backbone, the same optimizer steps, batches and images for both; evaluated on {results.num_images} "
            "validation images at the network's input size, with the last weights of each run, not the best ones.",
            *([ASPECT_NOTE] if first.config["data"]["size"] is not None else []),
            f"Masks are sampled from noise in {args.num_inference_steps} {args.scheduler} steps, with one channel per "
            f"class in [-1, 1] and an input scale of {args.input_scale}, which multiplies the signal-to-noise ratio by "
            "its square; pixels with the ignore index are excluded from the loss. The probabilities of a sample are "
            "its channels, clipped and normalized; the mean is taken over these.",
            "ECE: expected calibration error over 15 confidence bins. Uncertainty: entropy of the class probabilities, "
            "normalized to [0, 1].",
            "Time per image: median wall time over a small batch on this machine, alternating between the models, with "
            "this package's pipeline. Ratios differ on other machines and at other batch sizes.",
            "One training seed: differences within the variance over seeds cannot be detected.",
        ],
        source="Amit et al. 2021, SegDiff; Chen et al. 2023, A Generalist Framework for Panoptic Segmentation",
        command=command,
        seeds=[int(first.config["training"]["seed"])],
        dataset_name=first.data_name,
        configs=yaml_configs(runs),
        machine=machine_info([*runs.values()]),
        minutes=(time.perf_counter() - start) / 60,
    )


def table(results: MaskDiffusionResults) -> Table:
    """The head, a single sample and the mean of all samples."""
    columns = [
        *METRICS.values(),
        Column("ms per image", "lower", "number"),
        Column("parameters", "neither", "count"),
        Column("training", "neither", "minutes"),
    ]
    head, denoiser = results.parameters

    def row(metrics: list[MaskMetrics], seconds: float, run: str) -> list[Value]:
        values = [Value.of([getattr(one, name) for one in metrics]) for name in METRICS]
        costs = (1000 * seconds, results.parameters[run], results.minutes[run])
        return [*values, *(Value(float(cost)) for cost in costs)]

    rows = [
        (ROWS[0], row([results.head], results.seconds["head"], head)),
        (ROWS[1], row(results.single, results.seconds["one"], denoiser)),
        (ROWS[2].format(len(results.means)), row(results.means[-1:], results.seconds["all"], denoiser)),
    ]
    return Table("Segmentation metrics and cost", columns, rows, spread_over="samples of one training")


def charts(results: MaskDiffusionResults) -> list[Chart]:
    """mIoU and calibration against the number of samples; [] for one sample."""
    count = len(results.means)
    if count == 1:
        return []
    x = [float(k) for k in range(1, count + 1)]
    metrics = (
        ("mIoU against the number of sampled masks", "mIoU", "mean_iou", "higher"),
        ("Calibration against the number of sampled masks", "expected calibration error", "ece", "lower"),
    )
    charts = []
    for title, label, name, better in metrics:
        means = [Value(getattr(one, name)) for one in results.means]
        constant = [Value(getattr(results.head, name))] * count
        lines = [Line("mean of sampled masks", x, means), Line(ROWS[0], x, constant)]
        charts.append(Chart(title, "sampled masks per image", label, lines, better))  # type: ignore[arg-type]
    return charts


def _gallery(results: MaskDiffusionResults, output: Path) -> Gallery:
    """Image, ground truth, the head's mask, one sample, the mean of all samples, and its uncertainty."""
    data, writer = results.data, ImageWriter(output, "masks")
    mean = results.sample_probabilities.mean(dim=0)  # (B, C, H, W)
    entropy = uncertainty(mean)  # (B, H, W)
    largest = float(entropy.max()) or 1.0
    rows, all_masks = [], []
    for i, item in enumerate(results.items):
        probabilities = (results.head_probabilities[i], results.sample_probabilities[0, i], mean[i])
        masks = [as_mask(item["mask"]), *(as_mask(one.argmax(dim=0)) for one in probabilities)]
        all_masks += masks
        images = [item["image"], *(colorize(mask, data.palette) for mask in masks), heatmap(entropy[i] / largest)]
        rows.append((str(item["name"]), [writer.add(image) for image in images]))
    columns = ["image", "ground truth", *ROWS[:2], ROWS[2].format(len(results.means)), "uncertainty"]
    note = f"Uncertainty: normalized entropy of the mean, from 0 (dark) to {largest:.2f} (bright)."
    entries = legend(data.classes, data.palette, all_masks)
    return Gallery("Masks of the segmentation head and the denoiser", columns, rows, note, entries)


def heatmap(values: Tensor) -> Any:
    """Values (H, W) in [0, 1] as colors, uint8 (H, W, 3)."""
    return matplotlib.colormaps[COLORMAP](values.numpy(), bytes=True)[..., :3]


def findings(results: MaskDiffusionResults, num_inference_steps: int) -> list[str]:
    """The main results as sentences."""
    head, mean, count = results.head, results.means[-1], len(results.means)
    single = float(torch.tensor([one.mean_iou for one in results.single]).mean())
    sampled = f"mean of {count} sampled masks" if count > 1 else "sampled mask"
    slowdown = results.seconds["all"] / results.seconds["head"]
    lines = [
        f"mIoU {head.mean_iou:.3f} ({ROWS[0]}), {mean.mean_iou:.3f} ({sampled}, {mean.mean_iou - head.mean_iou:+.3f}). "
        f"Sampling takes {slowdown:,.0f}× the time ({count} sample{'s' * (count != 1)} of "
        f"{num_inference_steps} steps)."
    ]
    if count > 1:
        lines.append(
            f"Averaging {count} sampled masks changes mIoU from {single:.3f} to {mean.mean_iou:.3f} "
            f"({mean.mean_iou - single:+.3f}), and the calibration error (ECE) from {results.means[0].ece:.3f} to "
            f"{mean.ece:.3f}."
        )
    better = "segmentation head" if head.ece < mean.ece else "denoiser"
    lines.append(f"ECE {head.ece:.3f} ({ROWS[0]}), {mean.ece:.3f} ({sampled}): the {better} is better calibrated.")
    lines.append(
        f"Mean uncertainty of wrong and correct pixels: {mean.uncertainty_wrong:.3f} and "
        f"{mean.uncertainty_correct:.3f} ({sampled}), {head.uncertainty_wrong:.3f} and "
        f"{head.uncertainty_correct:.3f} ({ROWS[0]})."
    )
    return lines
