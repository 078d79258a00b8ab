"""What `synthesis` found, as a record: tables, curves, images and sentences."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unetdiff.data.sampling import evenly_spaced_indices
from unetdiff.data.voc import VOCFolder
from unetdiff.experiments.images import Album, legend
from unetdiff.experiments.runs import last, over_runs
from unetdiff.experiments.synthetic_dataset import ADDED, DRAWN, LABELLED, Synthesis
from unetdiff.reports.record import Chart, Column, Gallery, Line, Record, Table, Value
from unetdiff.reports.runs import Run
from unetdiff.segmentation.palette import as_mask, colorize
from unetdiff.segmentation.pipeline import SegmentationPipeline

FIGURES = (("mIoU", "mean_iou"), ("pixel accuracy", "pixel_accuracy"), ("mean accuracy", "mean_accuracy"))
THRESHOLDS = 21
"""Agreements of the curve of what would be kept."""


@dataclass
class Added:
    """What was drawn, kept, and trained on."""

    folder: Path
    """Of the enlarged set."""
    asked: Synthesis
    scores: dict[str, float]
    """Agreement of every drawn image."""
    real: float
    """Mean agreement of real validation images."""
    before: list[Run]
    """Segmenters of the labelled images, a seed each."""
    after: list[Run]
    """Those of the labelled and the synthetic ones."""
    judge: SegmentationPipeline

    @property
    def kept(self) -> list[str]:
        """Names of the images that agree enough."""
        return [name for name, score in self.scores.items() if score >= self.asked.agreement]

    @property
    def dropped(self) -> list[str]:
        """Names of the others."""
        kept = set(self.kept)
        return [name for name in self.scores if name not in kept]


def record_of(given: argparse.Namespace, added: Added, output: Path, **facts: Any) -> Record:
    """The record; `facts` are its fields of how it came to be."""
    asked = added.asked
    varied = f"windows of layouts enlarged by up to {asked.zoom}" + (", half of them mirrored" if asked.mirror else "")
    return Record(
        name="synthesis",
        title="Synthesised images for a segmenter",
        question="Do images that a denoiser draws for layouts help a segmenter that has few labels?",
        findings=findings(added),
        parts=[outcome(added), drawn(added), kept_over(added), gallery(added, given.rows, output)],
        method=[
            f"Labelled: a share of {given.labelled} of the training images, and nothing else for denoiser, judge and "
            "segmenters alike. Validation: the whole split, at the size that the networks see.",
            f"Drawn: {asked.copies} for each labelled layout ({varied}), {asked.steps} steps of DDIM, guidance "
            f"{asked.guidance}. Kept: where the mIoU of the first segmenter's mask with the layout is at least "
            f"{asked.agreement}.",
            "All segmenters are trained for the same number of steps and batches, so one of the enlarged set sees each "
            "labelled image less often. Last weights, not the best. The layout is the label of a kept image.",
            "The spread is over seeds of the segmenter; labelled images, denoiser and drawn images are the same.",
        ],
        source="Yang et al. 2023, FreeMask: Synthetic Images with Dense Annotations",
        **facts,
    )


def outcome(added: Added) -> Table:
    """The segmenters before and after."""
    columns = [Column(title, "higher", "fraction") for title, _ in FIGURES] + [
        Column("training images", "neither", "count")
    ]

    def row(runs: list[Run], split: str) -> list[Value]:
        figures = [over_runs(runs, lambda run, name=name: last(run, f"segmentation/{name}")) for _, name in FIGURES]  # type: ignore[misc]
        return [*figures, Value(float(len(VOCFolder(added.folder, split))))]

    rows = [("labelled alone", row(added.before, LABELLED)), ("labelled and synthetic", row(added.after, ADDED))]
    return Table("The segmenter without and with synthetic images", columns, rows)


def drawn(added: Added) -> Table:
    """What was drawn and kept."""
    columns = [
        Column("drawn", "neither", "count"),
        Column("kept", "neither", "count"),
        Column("kept share", "neither", "fraction"),
        Column("agreement of all", "neither", "fraction"),
        Column("of the kept", "neither", "fraction"),
        Column("of real images", "neither", "fraction", "validation images, by the same segmenter"),
    ]
    kept, every = added.kept, added.scores
    figures = (
        len(every),
        len(kept),
        len(kept) / len(every),
        mean([*every.values()]),
        mean([every[name] for name in kept]),
        added.real,
    )
    note = "Agreement: mIoU of what the segmenter finds in an image with its layout, averaged over images."
    return Table("The synthetic images", columns, [("synthetic", [Value(float(f)) for f in figures])], note)


def kept_over(added: Added) -> Chart:
    """The share that would be kept by every threshold."""
    thresholds = torch.linspace(0, 1, THRESHOLDS).tolist()
    scores = [score for score in added.scores.values() if math.isfinite(score)]
    shares = [sum(score >= least for score in scores) / len(scores) for least in thresholds]
    line = Line("synthetic images", [round(least, 3) for least in thresholds], [Value(share) for share in shares])
    return Chart("What would be kept", "least agreement", "share of the drawn images", [line])


def gallery(added: Added, rows: int, output: Path) -> Gallery:
    """Layouts, the images drawn for them, and what the segmenter finds there; kept ones first."""
    data, album = VOCFolder(added.folder, DRAWN), Album(output, "synthetic")
    place = {pair.name: index for index, pair in enumerate(data.pairs)}
    told, seen = [], []
    for what, names in (("kept", added.kept), ("dropped", added.dropped)):
        for name in (names[i] for i in evenly_spaced_indices(len(names), rows)):
            item = data[place[name]]
            masks = [as_mask(item["mask"]), added.judge(item["image"]).mask]
            seen += masks
            asked, found = (colorize(mask, data.palette) for mask in masks)
            files = [album.add(image) for image in (asked, item["image"], found)]
            told.append((f"{what}, {added.scores[name]:.2f}", files))
    columns = ["layout", "drawn image", "what the segmenter finds"]
    note = f"Beside each row its agreement; kept from {added.asked.agreement} on."
    return Gallery("Drawn for layouts", columns, told, note, legend(data.classes, np.asarray(data.palette), seen))


def findings(added: Added) -> list[str]:
    """What came out, in sentences."""
    before, after = (
        over_runs(runs, lambda run: last(run, "segmentation/mean_iou")) for runs in (added.before, added.after)
    )
    assert before.mean is not None and after.mean is not None
    gain, noise = after.mean - before.mean, max(before.spread or 0.0, after.spread or 0.0)
    verdict = "help" if gain > 0 else "do harm"
    told = f"{before.mean:.3f} without and {after.mean:.3f} with the synthetic images"
    if before.n > 1:
        size = "more" if abs(gain) > noise else "no more"
        told += f", a change of {gain:+.3f} that is {size} than the spread of {noise:.3f} over {before.n} seeds"
        verdict = verdict if abs(gain) > noise else "change nothing that can be told from chance"
    else:
        told += f", a change of {gain:+.3f} (one seed: it may be chance)"
    kept, every = added.kept, added.scores
    labelled = len(VOCFolder(added.folder, LABELLED))
    return [
        f"Synthetic images {verdict}: the segmenter of {labelled} labelled images has an mIoU of {told}.",
        f"{len(kept)} of {len(every)} drawn images ({100 * len(kept) / len(every):.0f} %) agree with their layout by "
        f"{added.asked.agreement} or more; all agree by {mean([*every.values()]):.3f} on average, real validation "
        f"images by {added.real:.3f}.",
    ]


def mean(values: list[float]) -> float:
    """Mean of those that are defined."""
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan
