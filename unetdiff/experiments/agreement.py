"""Does the one head see what the other was asked to draw?

Samples that were asked for a class, a text or a layout are segmented by a segmentation head. Counted are the samples in
which the class asked for is the foreground class with the most pixels, and for a denoiser of layouts the mIoU of the
segmentation against the layout asked for; beside the same figures on real images, which say what the segmenter itself
is worth. The figures are this project's own: they say nothing of realism or variety, and are never to be called FID.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unetdiff.config.reading import to_yaml
from unetdiff.config.validation.checks import require_at_least
from unetdiff.data.base import ImageDataset
from unetdiff.data.sampling import evenly_spaced_indices
from unetdiff.diffusion.conditioning import LayoutConditioner
from unetdiff.errors import UserError
from unetdiff.evaluation.layout_consistency import BATCH, ClassConsistency, background_of, class_consistency
from unetdiff.evaluation.load_run import load_run, run_config
from unetdiff.evaluation.sampling import sample
from unetdiff.evaluation.types import SamplingConfig
from unetdiff.experiments.images import Album, legend
from unetdiff.experiments.run_inputs import denoiser_of, no_overrides, open_segmenter
from unetdiff.reports.consistency import wilson
from unetdiff.reports.record import Column, Gallery, Heatmap, Part, Record, Table, Value
from unetdiff.reports.runs import data_name
from unetdiff.segmentation.inference import predict_masks
from unetdiff.segmentation.metrics import ConfusionMatrix
from unetdiff.segmentation.palette import as_mask, colorize
from unetdiff.training import runtime as machine
from unetdiff.training.checkpoints import model_directory

SOURCE = "This project's own; after the segmentation accuracy of GauGAN (Park et al. 2019) and class consistency"
MOST_CLASSES = 30  # of the map of what was asked for and what was found


@dataclass(frozen=True)
class Judged:
    """Some images, and what the segmenter found in them."""

    images: Tensor
    """uint8 (N, 3, H, W)."""
    masks: list[np.ndarray]
    """uint8 (H, W) each."""
    classes: ClassConsistency
    mean_iou: float | None
    """Against the layouts; None: there are none."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("run", type=Path, metavar="RUN", help="a run with a diffusion head")
    parser.add_argument("--segmenter", type=Path, metavar="RUN", help="who judges; none given: RUN's own other head")
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 2.0, 4.0], help="guidance scales")
    parser.add_argument("--n", type=int, default=200, help="samples at each")
    parser.add_argument("--steps", type=int, default=25, help="denoising steps")
    parser.add_argument("--seed", type=int, default=0, help="of the noise, the same at each guidance")
    parser.add_argument("--rows", type=int, default=6, help="samples that are shown")


def run(given: argparse.Namespace, overrides: Sequence[str], output: Path, command: str) -> Record:
    """Draw, segment and count; see the module.

    Raises:
        UserError: a run without a diffusion head or without a condition, or a segmenter of other classes.
    """
    began = time.perf_counter()
    no_overrides(overrides)
    for name in ("n", "steps", "rows"):
        require_at_least(f"--{name}", getattr(given, name), 1)
    loaded = load_run(given.run, layouts=True)
    task, images = denoiser_of(loaded, given.run), loaded.images
    if task.conditioner is None:
        raise UserError(f"RUN: {given.run} is told no condition, so nothing can be asked of it; give one that is")
    judge_path = given.segmenter or given.run
    judge = open_segmenter(judge_path, images.classes, loaded)
    layouts = isinstance(task.conditioner, LayoutConditioner)

    def judged(some: Tensor, asked: list[set[int]], places: list[int]) -> Judged:
        masks = predict_masks(judge.unet, some, judge.size, BATCH, options=judge.inference)
        found = class_consistency(masks, asked, background_of(judge.classes))
        if not layouts:
            return Judged(some, masks, found, None)
        matrix = ConfusionMatrix(len(judge.classes), judge.ignore_index)
        for mask, place in zip(masks, places, strict=True):
            matrix.update(torch.as_tensor(mask).long(), images[place]["mask"])
        return Judged(some, masks, found, matrix.compute()["mean_iou"])

    places = [number % len(images) for number in range(given.n)]  # whose conditions samples are drawn for
    chosen = places[: len(images)] if layouts else evenly_spaced_indices(len(images), given.n)
    real_asked = [shown_classes(images, place) for place in chosen]
    real = judged(torch.stack([images[place]["image"] for place in chosen]), real_asked, chosen)
    drawn: dict[float, Judged] = {}
    asked: list[set[int]] = []  # the same at every scale
    for scale in given.guidance:
        samples, labels = sample(task, given.n, SamplingConfig(given.steps, scale, given.seed))
        if not asked and labels is None:
            asked = [shown_classes(images, place) for place in places]
        elif labels is not None:
            names = task.conditioner.labels  # type: ignore[union-attr]
            asked = [{class_index(images.classes, names[label])} for label in labels.tolist()]
        drawn[scale] = judged(samples, asked, places)
    best = max(drawn, key=lambda scale: drawn[scale].classes.num_correct)
    # of a layout without a background every class is foreground, and which of them has most says nothing
    by_class = not layouts or background_of(judge.classes) is not None
    parts: list[Part] = [_table(real, drawn, by_class, layouts)]
    if all(len(one) == 1 for one in asked) and len(images.classes) <= MOST_CLASSES:
        parts.append(_map([next(iter(one)) for one in asked], drawn[best].classes, images.classes, best))
    parts.append(_gallery(drawn, asked, images, layouts, given.rows, output))
    itself = model_directory(judge_path) == loaded.directory
    return Record(
        name="agreement",
        title="Does one head see what the other was asked to draw?",
        question="How many samples show a segmenter what they were asked for?",
        findings=findings(real, drawn, itself, by_class),
        parts=parts,
        method=[
            f"{given.n} samples at each guidance scale, {given.steps} steps of DDIM, the same noise at each.",
            f"Judged by {judge_path}" + (", the denoiser's own other head." if itself else "."),
            "A sample counts as right where the class asked for is the foreground class with the most pixels.",
            f"Real images: {len(chosen)} of the validation split"
            + (", those of the layouts" if layouts else "")
            + ", judged in the same way against what is in them.",
            "These figures are this project's own. They are no FID: a denoiser that draws one good image of each "
            "class again and again would have all of them.",
        ],
        source=SOURCE,
        command=command,
        seeds=[given.seed],
        dataset_name=data_name(asdict(loaded.config.data)),
        configs={"denoiser": to_yaml(loaded.config), "segmenter": to_yaml(run_config(Path(judge_path)))},
        machine=machine.facts(loaded.accelerator),
        minutes=(time.perf_counter() - began) / 60,
    )


def shown_classes(images: ImageDataset, place: int) -> set[int]:
    """The foreground classes in a real image, as indices of the masks' classes."""
    item = images[place]
    return {class_index(images.classes, images.labels[label]) for label in item["labels"]}


def class_index(classes: Sequence[str], name: str) -> int:
    """A class of the masks by the name that the denoiser has for it; UserError where there is none."""
    if name not in classes:
        raise UserError(f"--segmenter: it has no class {name!r}, which the denoiser draws; give one of the same set")
    return list(classes).index(name)


def _table(real: Judged, drawn: dict[float, Judged], by_class: bool, layouts: bool) -> Table:
    columns = []
    if by_class:
        columns += [
            Column("class asked for", "higher", "percent", "share in which it has most of the foreground's pixels"),
            Column("foreground", "neither", "percent", "mean share of the pixels that are no background"),
        ]
    if layouts:
        columns.append(Column("mIoU", "higher", "fraction", "of the segmentation against the layout asked for"))

    def values(one: Judged) -> list[Value]:
        figures = [Value(one.classes.accuracy), Value(one.classes.foreground_fraction)] if by_class else []
        return [*figures, Value(one.mean_iou)][: len(columns)]

    rows = [(f"guidance {scale:g}", values(one)) for scale, one in drawn.items()]
    rows.append(("real images", values(real)))
    return Table("What the segmenter finds", columns, rows, note="Ours, not FID.")


def _map(asked: list[int], found: ClassConsistency, classes: Sequence[str], scale: float) -> Heatmap:
    """Share of the samples of each class (rows) that the segmenter takes for each class (columns)."""
    foreground = [i for i in range(len(classes)) if i != background_of(classes)]
    rows = [index for index in foreground if index in asked]
    ends: list[int | None] = [*foreground, None]
    values: list[list[float | None]] = []
    for row in rows:
        seen = [one for one, wanted in zip(found.predictions, asked, strict=True) if wanted == row]
        values.append([seen.count(end) / len(seen) for end in ends])
    return Heatmap(
        f"Asked for and found, guidance {scale:g}",
        "class asked for",
        "class found",
        [classes[row] for row in rows],
        [*(classes[index] for index in foreground), "nothing"],
        values,
        note="Shares of a row's samples.",
    )


def _gallery(
    drawn: dict[float, Judged],
    asked: list[set[int]],
    images: ImageDataset,
    layouts: bool,
    count: int,
    output: Path,
) -> Gallery:
    album = Album(output, "agreement")
    columns = ["layout asked for"] if layouts else []
    for scale in drawn:
        columns += [f"guidance {scale:g}", "segmented"]
    rows, masks = [], []
    for number in range(min(count, len(asked))):
        files = []
        if layouts:
            masks.append(as_mask(images[number % len(images)]["mask"]))
            files.append(album.add(colorize(masks[-1], images.palette)))
        for one in drawn.values():
            masks.append(one.masks[number])
            files += [album.add(one.images[number]), album.add(colorize(masks[-1], images.palette))]
        rows.append((", ".join(images.classes[index] for index in sorted(asked[number])) or "nothing", files))
    note = "The same noise all along a row."
    return Gallery("Samples, segmented", columns, rows, note, legend(images.classes, images.palette, masks))


def findings(real: Judged, drawn: dict[float, Judged], itself: bool, by_class: bool) -> list[str]:
    """What came out, as sentences of the figures; `by_class`: also of the class that has most of the foreground."""
    told = []
    if real.mean_iou is not None:
        miou = max(drawn, key=lambda scale: drawn[scale].mean_iou or 0.0)
        told.append(
            f"Against the layouts asked for, mIoU is {drawn[miou].mean_iou:.3f} at guidance {miou:g}; on the real "
            f"images of the same masks it is {real.mean_iou:.3f}."
        )
    if by_class:
        told += _class_findings(real, drawn)
    if itself:
        told.append("The judge shares its backbone with the denoiser: it may see what an independent one would not.")
    return told


def _class_findings(real: Judged, drawn: dict[float, Judged]) -> list[str]:
    best = max(drawn, key=lambda scale: drawn[scale].classes.num_correct)
    first, last = min(drawn), max(drawn)
    one, n = drawn[best].classes, len(drawn[best].classes.predictions)
    low, high = wilson(one.num_correct, n)
    told = [
        f"At guidance {best:g}, {one.accuracy:.1%} of {n} samples show the segmenter the class asked for (95 % "
        f"interval {low:.1%} to {high:.1%}); of {len(real.classes.predictions)} real images, "
        f"{real.classes.accuracy:.1%}."
    ]
    if first != last:
        change = drawn[last].classes.accuracy - drawn[first].classes.accuracy
        told.append(
            f"From guidance {first:g} to {last:g} the share goes from {drawn[first].classes.accuracy:.1%} to "
            f"{drawn[last].classes.accuracy:.1%} ({100 * change:+.1f} points)."
        )
    told.append(
        f"Foreground covers {one.foreground_fraction:.1%} of the samples' pixels (guidance {best:g}) and "
        f"{real.classes.foreground_fraction:.1%} of the real ones'."
    )
    return told
