"""The record of `unetdiff experiment agreement`: table, class confusion, gallery and findings."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from unetdiff.data.base import ImageDataset
from unetdiff.evaluation.layout_consistency import ClassConsistency, background_of
from unetdiff.experiments.filtering import Kept, filter_findings, filter_table
from unetdiff.experiments.gallery import ImageWriter, legend
from unetdiff.reports.consistency import wilson
from unetdiff.reports.record import Column, Gallery, Heatmap, Part, Record, Table, Value
from unetdiff.segmentation.palette import as_mask, colorize

SOURCE = (
    "After the segmentation accuracy of GauGAN samples (Park et al. 2019); the metrics are specific to this project"
)
MAX_HEATMAP_CLASSES = 30


@dataclass(frozen=True)
class SegmentedImages:
    """Images and their segmentation."""

    images: Tensor
    """uint8 (N, 3, H, W)."""
    masks: list[np.ndarray]
    """uint8 (H, W) each."""
    classes: ClassConsistency
    mean_iou: float | None
    """Between masks and layouts; None for a condition without layouts."""


@dataclass(frozen=True)
class AgreementResults:
    """Segmented samples at each guidance scale, and segmented real images."""

    real: SegmentedImages
    samples: dict[float, SegmentedImages]
    """By guidance scale."""
    classes: list[set[int]]
    """Foreground classes of each sample's condition."""
    has_layouts: bool
    """The condition is a layout."""
    has_classes: bool
    """Class accuracy is meaningful. In layouts without a background every class is foreground, and the largest one says
    nothing about the sample."""
    shared_backbone: bool
    """The segmenter is the denoiser's own segmentation head."""
    kept: list[Kept] = field(default_factory=list)
    """Samples filtered by the segmenter, if requested."""
    classifier_accuracy: float | None = None
    """Accuracy on real images of the classifier that evaluates those."""

    @property
    def best_scale(self) -> float:
        """Guidance scale with the highest class accuracy."""
        return max(self.samples, key=lambda scale: self.samples[scale].classes.num_correct)


def agreement_record(
    results: AgreementResults, images: ImageDataset, args: argparse.Namespace, output: Path, **fields: Any
) -> Record:
    """The record; `fields` are the remaining fields of `Record`."""
    parts: list[Part] = [table(results)]
    if results.kept:
        parts.append(filter_table(results.kept, results.classifier_accuracy or 0.0))
    if all(len(classes) == 1 for classes in results.classes) and len(images.classes) <= MAX_HEATMAP_CLASSES:
        parts.append(_heatmap(results, images.classes))
    parts.append(_gallery(results, images, args.num_rows, output))
    segmenter = args.segmenter or args.run
    return Record(
        name="agreement",
        title="Segmenter accuracy on conditional samples",
        question="Does a segmenter recognize the condition of a denoiser's samples?",
        findings=findings(results),
        parts=parts,
        method=[
            f"{args.num_images} samples per guidance scale, {args.num_inference_steps} DDIM steps, the same noise at "
            "every scale.",
            f"Segmenter: {segmenter}" + (", the denoiser's own segmentation head." if results.shared_backbone else "."),
            "A sample is correct if the class of its condition is the foreground class with the most pixels.",
            f"Real images: {len(results.real.masks)} of the validation split"
            + (", those of the layouts" if results.has_layouts else "")
            + ", evaluated in the same way against their own classes.",
            "These metrics are specific to this project and are not FID: a denoiser that repeats one good image per "
            "class would score perfectly.",
        ],
        source=SOURCE,
        seeds=[args.seed],
        **fields,
    )


def table(results: AgreementResults) -> Table:
    """Metrics of the samples at each guidance scale, and of real images."""
    columns = []
    if results.has_classes:
        columns += [
            Column("class accuracy", "higher", "percent", "the condition's class has the most foreground pixels"),
            Column("foreground", "neither", "percent", "mean fraction of non-background pixels"),
        ]
    if results.has_layouts:
        columns.append(Column("mIoU", "higher", "fraction", "between segmentation and layout"))

    def values(one: SegmentedImages) -> list[Value]:
        by_class = [Value(one.classes.accuracy), Value(one.classes.foreground_fraction)] if results.has_classes else []
        return [*by_class, Value(one.mean_iou)][: len(columns)]

    rows = [(f"guidance {scale:g}", values(one)) for scale, one in results.samples.items()]
    rows.append(("real images", values(results.real)))
    return Table("Segmenter accuracy", columns, rows, note="Project-specific metrics, not FID.")


def _heatmap(results: AgreementResults, classes: Sequence[str]) -> Heatmap:
    """Fraction of the samples of each class (rows) segmented as each class (columns)."""
    scale = results.best_scale
    conditions = [next(iter(one)) for one in results.classes]
    predictions = results.samples[scale].classes.predictions
    foreground = [index for index in range(len(classes)) if index != background_of(classes)]
    rows = [index for index in foreground if index in conditions]
    columns: list[int | None] = [*foreground, None]
    values: list[list[float | None]] = []
    for row in rows:
        predicted = [p for p, condition in zip(predictions, conditions, strict=True) if condition == row]
        values.append([predicted.count(column) / len(predicted) for column in columns])
    return Heatmap(
        f"Condition and segmentation, guidance {scale:g}",
        "class of the condition",
        "largest segmented class",
        [classes[row] for row in rows],
        [*(classes[index] for index in foreground), "none"],
        values,
        note="Fractions of the samples of a row.",
    )


def _gallery(results: AgreementResults, images: ImageDataset, num_rows: int, output: Path) -> Gallery:
    writer = ImageWriter(output, "agreement")
    columns = ["layout"] if results.has_layouts else []
    for scale in results.samples:
        columns += [f"guidance {scale:g}", "segmentation"]
    rows, masks = [], []
    for number, classes in enumerate(results.classes[:num_rows]):
        files = []
        if results.has_layouts:
            masks.append(as_mask(images[number % len(images)]["mask"]))
            files.append(writer.add(colorize(masks[-1], images.palette)))
        for one in results.samples.values():
            masks.append(one.masks[number])
            files += [writer.add(one.images[number]), writer.add(colorize(masks[-1], images.palette))]
        rows.append((", ".join(images.classes[index] for index in sorted(classes)) or "none", files))
    note = "The samples of a row start from the same noise."
    return Gallery("Samples and their segmentation", columns, rows, note, legend(images.classes, images.palette, masks))


def findings(results: AgreementResults) -> list[str]:
    """The main results as sentences."""
    lines = []
    if results.real.mean_iou is not None:
        miou = {scale: one.mean_iou or 0.0 for scale, one in results.samples.items()}
        best = max(miou, key=lambda scale: miou[scale])
        lines.append(
            f"mIoU between segmentation and layout: {miou[best]:.3f} on samples (guidance {best:g}), "
            f"{results.real.mean_iou:.3f} on real images."
        )
    if results.has_classes:
        lines += _class_findings(results)
    lines += filter_findings(results.kept)
    if results.shared_backbone:
        lines.append("The segmenter shares its backbone with the denoiser, so its accuracy may be overestimated.")
    return lines


def _class_findings(results: AgreementResults) -> list[str]:
    real, best = results.real.classes, results.best_scale
    one, n = results.samples[best].classes, len(results.samples[best].classes.predictions)
    low, high = wilson(one.num_correct, n)
    lines = [
        f"Class accuracy of the segmenter on {n} samples (guidance {best:g}): {one.accuracy:.1%} (95 % interval "
        f"{low:.1%} to {high:.1%}); on {len(real.predictions)} real images: {real.accuracy:.1%}."
    ]
    lowest, highest = min(results.samples), max(results.samples)
    if lowest != highest:
        before, after = results.samples[lowest].classes.accuracy, results.samples[highest].classes.accuracy
        lines.append(
            f"Class accuracy changes from {before:.1%} at guidance {lowest:g} to {after:.1%} at guidance {highest:g} "
            f"({100 * (after - before):+.1f} points)."
        )
    lines.append(
        f"Foreground fraction: {one.foreground_fraction:.1%} of the samples' pixels (guidance {best:g}), "
        f"{real.foreground_fraction:.1%} of the real images'."
    )
    return lines
