"""What `mask_diffusion` found, as a record: tables, curves, images and sentences."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import torch
from torch import Tensor

from unetdiff.data.base import ImageDataset
from unetdiff.diffusion.mask_sampling import uncertainty
from unetdiff.experiments.images import Album, legend
from unetdiff.experiments.mask_metrics import MaskFigures
from unetdiff.reports.record import Chart, Column, Gallery, Line, Record, Table, Value
from unetdiff.reports.runs import Run
from unetdiff.segmentation.palette import as_mask, colorize

COLOURS = "viridis"
"""Of the uncertainty: even steps of it are even steps to the eye, in grey too."""
GEOMETRY = (
    "The head learned from images stretched to data.size, the denoiser from their middle, cut out with its aspect, "
    "as both are judged: where the images have another aspect than data.size, that favours the denoiser."
)
"""Of a set that is resized: a segmenter's images are, as everywhere, not those of a layout."""
LABELS = ("labelling head", "one drawn mask", "mean of {} drawn masks")


@dataclass
class Measured:
    """What was counted and drawn."""

    data: ImageDataset
    head: MaskFigures
    single: list[MaskFigures]
    """Of each sample by itself."""
    means: list[MaskFigures]
    """Of the mean of the first 1, 2, ... K samples."""
    seconds: dict[str, float]
    """An image: "head", "one", "all"."""
    parameters: dict[str, int]
    """By run, "discriminative" first."""
    minutes: dict[str, float]
    """Of training, by run."""
    images: int
    """That were judged."""
    shown: list[dict[str, Any]]
    """Items of the set."""
    shown_head: Tensor
    """The head's probabilities of these, (B, C, H, W)."""
    shown_drawn: Tensor
    """The samples', (K, B, C, H, W)."""


def record_of(
    given: argparse.Namespace,
    measured: Measured,
    run: Run,
    shown: Gallery,
    command: str,
    configs: dict[str, str],
    machine: dict[str, Any],
    minutes: float,
) -> Record:
    """The record; `run` is one of the two, for the name of the set."""
    return Record(
        name="mask_diffusion",
        title="Two ways to segment",
        question="Is a mask better labelled by a head, or drawn by a denoiser that is told the image?",
        findings=findings(measured, given.steps),
        parts=[table(measured), *charts(measured), shown],
        method=[
            f"One backbone, the same steps, batches and images for both; judged on {measured.images} validation "
            "images, at the size that the networks see, with the last weights of each run: choosing would flatter.",
            *([GEOMETRY] if run.config["data"]["size"] is not None else []),
            f"Masks are drawn from noise in {given.steps} steps of {given.scheduler}, as a channel a class in [-1, 1], "
            f"each timestep's signal-to-noise ratio {given.input_scale}² of the schedule's; void has no part in the "
            "loss. A sample's probabilities are its channels, clipped and made to add up to 1; the mean is of these.",
            "ECE: expected calibration error over 15 bins of confidence. Uncertainty: entropy of the class "
            "probabilities as a share of the largest there is.",
            "Time an image: median wall time of a few images together on this machine, in turns, with sampling in "
            "this package's pipeline. Others' machines and batch sizes give other ratios.",
            "One seed of training: differences of a size that another seed would change are not told apart from it.",
        ],
        source="Amit et al. 2021, SegDiff; Chen et al. 2023, A Generalist Framework for Panoptic Segmentation",
        command=command,
        seeds=[int(run.config["training"]["seed"])],
        dataset_name=run.data_name,
        configs=configs,
        machine=machine,
        minutes=minutes,
    )


def table(measured: Measured) -> Table:
    """All three ways beside each other."""
    columns = [
        Column("mIoU", "higher", "fraction"),
        Column("pixel accuracy", "higher", "fraction"),
        Column("ECE", "lower", "fraction", "expected calibration error"),
        Column("-log p", "lower", "number", "mean negative log-likelihood of the truth, nats"),
        Column("uncertainty where right", "neither", "fraction"),
        Column("uncertainty where wrong", "neither", "fraction"),
        Column("ms an image", "lower", "number"),
        Column("parameters", "neither", "count"),
        Column("training", "neither", "minutes"),
    ]
    head, denoiser = measured.parameters
    names = (
        "mean_iou",
        "pixel_accuracy",
        "ece",
        "nll",
        "unsure_right",
        "unsure_wrong",
    )

    def row(figures: list[MaskFigures], seconds: float, run: str) -> list[Value]:
        counted = [Value.of([getattr(one, name) for one in figures]) for name in names]
        facts = (1000 * seconds, measured.parameters[run], measured.minutes[run])
        return [*counted, *(Value(float(fact)) for fact in facts)]

    rows = [
        (LABELS[0], row([measured.head], measured.seconds["head"], head)),
        (LABELS[1], row(measured.single, measured.seconds["one"], denoiser)),
        (LABELS[2].format(len(measured.means)), row(measured.means[-1:], measured.seconds["all"], denoiser)),
    ]
    return Table("Labelling and drawing", columns, rows, spread_over="samples of one training")


def charts(measured: Measured) -> list[Chart]:
    """mIoU and calibration over the number of samples; none for one sample."""
    count = len(measured.means)
    if count == 1:
        return []
    across = [float(k) for k in range(1, count + 1)]
    kinds = (
        ("mIoU over the number of drawn masks", "mIoU", "mean_iou", "higher"),
        ("Calibration over the number of drawn masks", "expected calibration error", "ece", "lower"),
    )
    found = []
    for title, up, name, better in kinds:
        drawn = [Value(getattr(figures, name)) for figures in measured.means]
        level = [Value(getattr(measured.head, name))] * count
        lines = [Line("mean of drawn masks", across, drawn), Line(LABELS[0], across, level)]
        found.append(Chart(title, "masks drawn of each image", up, lines, better))  # type: ignore[arg-type]
    return found


def gallery(measured: Measured, output: Path) -> Gallery:
    """Image, truth, the head's mask, one sample, the mean of all, and what these do not agree on."""
    data, album = measured.data, Album(output, "masks")
    mean = measured.shown_drawn.mean(dim=0)  # (B, C, H, W)
    unsure = uncertainty(mean)  # (B, H, W)
    largest = float(unsure.max()) or 1.0
    rows, seen = [], []
    for i, item in enumerate(measured.shown):
        answers = (measured.shown_head[i], measured.shown_drawn[0, i], mean[i])
        masks = [as_mask(item["mask"]), *(as_mask(answer.argmax(dim=0)) for answer in answers)]
        seen += masks
        coloured = [colorize(mask, data.palette) for mask in masks]
        rows.append((str(item["name"]), [album.add(p) for p in (item["image"], *coloured, heat(unsure[i] / largest))]))
    columns = ["image", "truth", *LABELS[:2], LABELS[2].format(len(measured.shown_drawn)), "uncertainty"]
    note = (
        f"Uncertainty: entropy of the mean, in {COLOURS}'s colours from 0 (dark) to {largest:.2f} (bright) of "
        "the largest there is."
    )
    return Gallery("The same images, labelled and drawn", columns, rows, note, legend(data.classes, data.palette, seen))


def heat(values: Tensor) -> Any:
    """Values (H, W) in [0, 1] as an even scale of colours, uint8 (H, W, 3)."""
    return matplotlib.colormaps[COLOURS](values.numpy(), bytes=True)[..., :3]


def findings(measured: Measured, steps: int) -> list[str]:
    """What came out, in sentences."""
    head, mean, count = measured.head, measured.means[-1], len(measured.means)
    one = float(torch.tensor([figures.mean_iou for figures in measured.single]).mean())
    drawn = f"the mean of {count} drawn masks" if count > 1 else "a drawn mask"
    times = measured.seconds["all"] / measured.seconds["head"]
    better = "labelling" if head.mean_iou > mean.mean_iou else "drawing"
    told = [
        f"The {LABELS[0]} reaches an mIoU of {head.mean_iou:.3f}, {drawn} {mean.mean_iou:.3f}: "
        f"{better} is better by {abs(head.mean_iou - mean.mean_iou):.3f}. Drawing takes {times:,.0f} times as long "
        f"({count} x {steps} steps)."
    ]
    if count > 1:
        way = "more" if mean.mean_iou >= one else "less"
        told.append(
            f"Averaging {count} drawn masks gives an mIoU {abs(mean.mean_iou - one):.3f} {way} than one of them "
            f"({one:.3f}), and a calibration error of {mean.ece:.3f} where one has {measured.means[0].ece:.3f}."
        )
    told.append(
        f"Calibration error: {head.ece:.3f} of the {LABELS[0]}, {mean.ece:.3f} of {drawn}; "
        f"the {'head' if head.ece < mean.ece else 'denoiser'} knows better how sure it may be."
    )
    told.append(
        f"Where {drawn} is wrong its uncertainty is {mean.unsure_wrong:.3f} on average, where it is right "
        f"{mean.unsure_right:.3f}; of the {LABELS[0]} these are {head.unsure_wrong:.3f} and {head.unsure_right:.3f}."
    )
    return told
