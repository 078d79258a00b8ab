"""The record of `unetdiff experiment synthesis`: tables, chart, gallery and findings."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unetdiff.data.masks.voc import VOCFolder
from unetdiff.data.sampling import evenly_spaced_indices
from unetdiff.experiments.gallery import ImageWriter, legend
from unetdiff.experiments.runs import aggregate, last_metric
from unetdiff.experiments.synthetic_dataset import EXTENDED, LABELED, SYNTHETIC, Scores, SynthesisConfig
from unetdiff.reports.record import Chart, Column, Gallery, Line, Record, Table, Value
from unetdiff.reports.record_text import as_text
from unetdiff.reports.runs import Run
from unetdiff.segmentation.palette import as_mask, colorize
from unetdiff.segmentation.pipeline import SegmentationPipeline

METRICS = (("mIoU", "mean_iou"), ("pixel accuracy", "pixel_accuracy"), ("mean accuracy", "mean_accuracy"))
NUM_THRESHOLDS = 21
"""Points of the curve of kept images against the filter's threshold."""


@dataclass
class SynthesisResults:
    """The synthetic images, and the segmenters trained without and with them."""

    folder: Path
    """The extended dataset."""
    config: SynthesisConfig
    scores: Scores
    """Of every synthetic image."""
    real_miou: float
    """Mean of the same over real validation images."""
    before: list[Run]
    """Segmenters trained on the labeled images, one per seed."""
    after: list[Run]
    """Segmenters trained on labeled and synthetic images."""
    segmenter: SegmentationPipeline
    """The segmenter that filters."""

    @property
    def kept(self) -> list[str]:
        """Names of the images that pass the filter."""
        return self.scores.kept(self.config)

    @property
    def discarded(self) -> list[str]:
        """Names of the others."""
        kept = set(self.kept)
        return [name for name in self.scores.miou if name not in kept]


def synthesis_record(results: SynthesisResults, args: argparse.Namespace, output: Path, **fields: Any) -> Record:
    """The record; `fields` are the remaining fields of `Record`."""
    config = results.config
    augmentation = f"crops of layouts enlarged by up to {config.max_zoom}×" + (
        ", half of them flipped" if config.hflip else ""
    )
    return Record(
        name="synthesis",
        title="Synthetic training images for segmentation",
        question="Do a denoiser's samples for given layouts improve a segmenter trained with few labels?",
        findings=findings(results),
        parts=[
            segmenter_table(results),
            filter_table(results),
            threshold_chart(results),
            gallery(results, args.num_rows, output),
        ],
        method=[
            f"Labels: a fraction of {args.label_fraction} of the training images, which denoiser and all segmenters "
            "are trained on. Validation: the whole split, at the networks' input size.",
            f"Synthetic images: {config.num_samples} per labeled layout ({augmentation}), {config.num_inference_steps} "
            f"DDIM steps, guidance scale {config.guidance_scale}. An image is kept if the mIoU between the first "
            f"segmenter's mask and the layout is at least {config.min_miou}; its label is the layout."
            + _hardest(config),
            _budget(results),
            "± is over seeds of the segmenter; labeled images, denoiser and synthetic images are the same.",
        ],
        source="Yang et al. 2023, FreeMask: Synthetic Images with Dense Annotations",
        **fields,
    )


def _hardest(config: SynthesisConfig) -> str:
    if config.hard_fraction == 1:
        return ""
    return (
        f" Of these, the fraction of {config.hard_fraction} is kept on which the first segmenter is least certain: the "
        "highest mean entropy of the pixels' class probabilities."
    )


def _budget(results: SynthesisResults) -> str:
    before, after = (runs[0].summary["steps"] for runs in (results.before, results.after))
    if before == after:
        return (
            f"All segmenters are trained for the same number of steps ({before:,}) with the same batch size, so those "
            "on the extended dataset see each labeled image less often. Last weights, not the best."
        )
    return (
        f"All segmenters pass as often over the labeled images, with the same batch size: {before:,} steps on these "
        f"alone, {after:,} on the extended dataset. Last weights, not the best."
    )


def segmenter_table(results: SynthesisResults) -> Table:
    """The segmenters trained without and with synthetic images."""
    columns = [Column(title, "higher", "fraction") for title, _ in METRICS] + [
        Column("training images", "neither", "count")
    ]

    def row(runs: list[Run], split: str) -> list[Value]:
        metrics = [aggregate(runs, lambda run, key=key: last_metric(run, f"segmentation/{key}")) for _, key in METRICS]  # type: ignore[misc]
        return [*metrics, Value(float(len(VOCFolder(results.folder, split))))]

    rows = [
        ("labeled images", row(results.before, LABELED)),
        ("labeled and synthetic images", row(results.after, EXTENDED)),
    ]
    return Table("Segmenter without and with synthetic images", columns, rows)


def filter_table(results: SynthesisResults) -> Table:
    """Number and mIoU of the sampled and the kept images."""
    columns = [
        Column("sampled", "neither", "count"),
        Column("kept", "neither", "count"),
        Column("kept fraction", "neither", "fraction"),
        Column("mIoU, all", "neither", "fraction"),
        Column("mIoU, kept", "neither", "fraction"),
        Column("mIoU, real images", "neither", "fraction", "validation images, by the same segmenter"),
    ]
    kept, scores = results.kept, results.scores.miou
    values = (
        len(scores),
        len(kept),
        len(kept) / len(scores),
        mean([*scores.values()]),
        mean([scores[name] for name in kept]),
        results.real_miou,
    )
    note = "mIoU between the segmentation of an image and its layout, averaged over images."
    return Table("Filtering of the synthetic images", columns, [("synthetic", [Value(float(v)) for v in values])], note)


def threshold_chart(results: SynthesisResults) -> Chart:
    """The fraction of kept images at every threshold."""
    thresholds = torch.linspace(0, 1, NUM_THRESHOLDS).tolist()
    scores = [score for score in results.scores.miou.values() if math.isfinite(score)]
    fractions = [sum(score >= threshold for score in scores) / len(scores) for threshold in thresholds]
    line = Line("synthetic images", [round(x, 3) for x in thresholds], [Value(fraction) for fraction in fractions])
    return Chart(
        "Kept fraction against the filter's threshold", "minimum mIoU", "fraction of the synthetic images", [line]
    )


def gallery(results: SynthesisResults, num_rows: int, output: Path) -> Gallery:
    """Layouts, their synthetic images and the segmentation of these; kept ones first."""
    data, writer = VOCFolder(results.folder, SYNTHETIC), ImageWriter(output, "synthetic")
    index_of = {pair.name: index for index, pair in enumerate(data.pairs)}
    rows, all_masks = [], []
    for title, names in (("kept", results.kept), ("discarded", results.discarded)):
        for name in (names[i] for i in evenly_spaced_indices(len(names), num_rows)):
            item = data[index_of[name]]
            masks = [as_mask(item["mask"]), results.segmenter(item["image"]).mask]
            all_masks += masks
            layout, segmentation = (colorize(mask, data.palette) for mask in masks)
            files = [writer.add(image) for image in (layout, item["image"], segmentation)]
            rows.append((f"{title}, mIoU {results.scores.miou[name]:.2f}", files))
    columns = ["layout", "synthetic image", "segmentation"]
    note = f"The images that are kept {_rule(results.config)}."
    entries = legend(data.classes, np.asarray(data.palette), all_masks)
    return Gallery("Synthetic images and their segmentation", columns, rows, note, entries)


def findings(results: SynthesisResults) -> list[str]:
    """The main results as sentences."""
    before, after = (
        aggregate(runs, lambda run: last_metric(run, "segmentation/mean_iou"))
        for runs in (results.before, results.after)
    )
    assert before.mean is not None and after.mean is not None
    change, std = after.mean - before.mean, max(before.spread or 0.0, after.spread or 0.0)
    verdict = "improve mIoU" if change > 0 else "reduce mIoU"
    if before.n == 1:
        details = f"{change:+.3f}, 1 seed: may be due to chance"
    else:
        details = f"{change:+.3f}, standard deviation {std:.3f} over {before.n} seeds"
        verdict = verdict if abs(change) > std else "change mIoU by less than one std"
    kept, scores = results.kept, results.scores.miou
    num_labeled = len(VOCFolder(results.folder, LABELED))
    return [
        f"Synthetic images {verdict} with {num_labeled} labeled images: {as_text(before, 'fraction')} without, "
        f"{as_text(after, 'fraction')} with synthetic images ({details}).",
        f"{len(kept)} of {len(scores)} synthetic images ({100 * len(kept) / len(scores):.0f} %) "
        f"{_rule(results.config)}. Mean over all synthetic images: {mean([*scores.values()]):.3f}; "
        f"over real validation images: {results.real_miou:.3f}.",
    ]


def _rule(config: SynthesisConfig) -> str:
    """What the kept images have in common."""
    match = f"have an mIoU with their layout of at least {config.min_miou}"
    return (
        match if config.hard_fraction == 1 else f"{match} and are the hardest {100 * config.hard_fraction:g} % of those"
    )


def mean(values: list[float]) -> float:
    """Mean of the finite values; NaN if there are none."""
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan
