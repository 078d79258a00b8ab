"""The record of the linear probes: maps, tables, masks, and what was found in sentences."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, field
from typing import Any

import torch

from unetdiff.experiments.features import Moment, called
from unetdiff.reports.record import Column, Gallery, Heatmap, Part, Record, Table, Value
from unetdiff.segmentation.metrics import ConfusionMatrix

MEGA = 1e6
Matrices = list[list[list[int]]]


@dataclass(frozen=True)
class Probed:
    """The probes of one network, as they are kept."""

    name: str
    of: str
    """segmentation, diffusion or joint: what it was trained for; "random" or "trunk"."""
    classes: int
    probes: list[dict[str, Any]]
    """Each with "spec" (moment, blocks), "parameters" and "matrices", the counts of the two halves."""
    concat: dict[str, Any] | None
    """The same of the best blocks together."""
    own: Matrices | None
    """The counts of its own segmentation head."""
    images: int
    judged: int
    as_maps: int
    at_masks: int
    memory: int | None
    minutes: float
    masks: list[str] = field(default_factory=list)

    def figures(self, matrix: list[list[int]] | list[list[list[int]]], *keys: str) -> list[float]:
        """Figures of a matrix, or of the sum of several."""
        counts = ConfusionMatrix(self.classes)
        counts.matrix = torch.tensor(matrix).reshape(-1, self.classes, self.classes).sum(dim=0)
        computed = counts.compute()
        return [computed[key] for key in keys]

    @property
    def best(self) -> dict[str, Any]:
        """The probe that is best on the first half of the judged images."""
        return max(self.probes, key=lambda probe: self.figures(probe["matrices"][0], "mean_iou")[0])

    def told(self, probe: dict[str, Any]) -> tuple[float, float]:
        """Mean IoU and pixel accuracy of a probe on the second half, which it was not chosen by."""
        miou, accuracy = self.figures(probe["matrices"][1], "mean_iou", "pixel_accuracy")
        return miou, accuracy

    @property
    def moments(self) -> list[Moment]:
        return list(dict.fromkeys(probe["spec"]["moment"] for probe in self.probes))

    @property
    def blocks(self) -> list[str]:
        return list(dict.fromkeys(probe["spec"]["blocks"][0] for probe in self.probes))

    def map(self) -> list[list[float | None]]:
        """Mean IoU on all judged images, by block, then by moment."""
        there = {
            (p["spec"]["blocks"][0], p["spec"]["moment"]): self.figures(p["matrices"], "mean_iou")[0]
            for p in self.probes
        }
        return [[there[block, moment] for moment in self.moments] for block in self.blocks]


def probe_record(
    found: list[Probed],
    shown: dict[str, Any],
    given: argparse.Namespace,
    dataset_name: str,
    command: str,
    configs: dict[str, str],
    machine: dict[str, Any],
    minutes: float,
) -> Record:
    """All of it; `shown` has the gallery's first columns and its legend."""
    parts: list[Part] = [_best_table(found)]
    parts += [_heatmap(one) for one in found if len(one.moments) > 1]
    parts += _clean_maps([one for one in found if len(one.moments) == 1])
    columns = ["image", "truth", *(f"{one.name}: {_where(one.best)}" for one in found)]
    rows = [(name, [*files, *(one.masks[i] for one in found)]) for i, (name, files) in enumerate(shown["rows"])]
    parts.append(Gallery("Masks by the best linear probe of each network", columns, rows, legend=shown["legend"]))
    parts.append(_cost_table(found))
    return Record(
        name="probe",
        title="What frozen features know: linear probes",
        question="Which block, at which timestep, lets a linear classifier tell the class of each pixel?",
        findings=_findings(found),
        parts=parts,
        method=_method(found, given),
        source='Baranchuk et al. 2022, "Label-Efficient Semantic Segmentation with Diffusion Models"',
        command=command,
        seeds=[given.seed],
        dataset_name=dataset_name,
        configs=configs,
        machine=machine,
        minutes=minutes,
    )


def _where(probe: dict[str, Any]) -> str:
    """ "decoder 16x16 at t = 150", or "on clean images"."""
    spec = probe["spec"]
    at = "on clean images" if spec["moment"] is None else f"at t = {spec['moment']}"
    return f"{' + '.join(spec['blocks'])} {at}"


def _best_table(found: list[Probed]) -> Table:
    rows: list[tuple[str, list[Value]]] = []
    for one in found:
        kinds = [("best probe", one.best), *([("blocks together", one.concat)] if one.concat else [])]
        for what, probe in kinds:
            miou, accuracy = one.told(probe)
            values = [Value(miou), Value(accuracy), Value(probe["parameters"])]
            rows.append((f"{one.name}, {what}: {_where(probe)}", values))
        if one.own is not None:
            miou, accuracy = one.figures(one.own[1], "mean_iou", "pixel_accuracy")
            rows.append((f"{one.name}, its own segmentation head", [Value(miou), Value(accuracy), Value(None)]))
    columns = [
        Column("mIoU", "higher", "fraction"),
        Column("pixel accuracy", "higher", "fraction"),
        Column("parameters of the probe", "neither", "count"),
    ]
    note = (
        "Chosen by one half of the validation images, told with the other half, so that a network of many probes has "
        "no head start. A network's own head was trained on all its labelled images, with the network."
    )
    return Table("The best linear probe of each network", columns, rows, note)


def _heatmap(one: Probed) -> Heatmap:
    return Heatmap(
        f"mIoU of a linear probe: {one.name}",
        "block",
        "timestep of the noise in the image",
        one.blocks,
        [called(moment) for moment in one.moments],
        one.map(),
        better="higher",
        note=f"On all {one.judged} judged images; more to the right is more noise.",
    )


def _clean_maps(found: list[Probed]) -> list[Heatmap]:
    """Networks of clean images, those of the same blocks beside each other."""
    by_blocks: dict[tuple[str, ...], list[Probed]] = {}
    for one in found:
        by_blocks.setdefault(tuple(one.blocks), []).append(one)
    maps = []
    for blocks, members in by_blocks.items():
        columns = [one.name for one in members]
        values = [list(row) for row in zip(*([line[0] for line in one.map()] for one in members), strict=True)]
        title = f"mIoU of a linear probe on clean images: {', '.join(columns)}"
        maps.append(Heatmap(title, "block", "network", list(blocks), columns, values, better="higher",
                            note=f"On all {members[0].judged} judged images."))  # fmt: skip
    return maps


def _cost_table(found: list[Probed]) -> Table:
    rows = [
        (
            one.name,
            [
                Value(len(one.probes)),
                Value(None if one.memory is None else one.memory / MEGA),
                Value(one.as_maps / MEGA),
                Value(one.at_masks / MEGA),
                Value(one.minutes),
            ],
        )
        for one in found
    ]
    columns = [
        Column("probes", "neither", "count"),
        Column("peak memory of training them", "lower", "megabytes", "beyond network and libraries"),
        Column("the maps, stored", "neither", "megabytes", "float32, of the labelled images"),
        Column("the same at the masks' size", "neither", "megabytes", "as the published code stores them"),
        Column("time", "lower", "minutes"),
    ]
    note = (
        f"For {found[0].images} labelled images. The stream holds one batch's maps of one timestep, whatever the "
        "number of images; what is stored grows with them. The published code asks for 210 GB for 50 images."
    )
    return Table("What it takes", columns, rows, note)


def _method(found: list[Probed], given: argparse.Namespace) -> list[str]:
    return [
        "A probe is a 1x1 convolution on standardised maps of one block, enlarged bilinearly to the mask: multinomial "
        "logistic regression. The network is frozen, and a denoiser is told no condition.",
        f"Probes learn from {found[0].images} labelled training images, not augmented, with masks at the size that "
        f"the network sees them at, in {given.steps} steps of {given.batch_size} images (AdamW, rate {given.lr:g}, "
        f"cosine to 0, weight decay {given.weight_decay:g}); they are judged at the masks' own size on "
        f"{found[0].judged} validation images.",
        "An image's noise is a function of its name and the seed: the same at every timestep, in every step, and for "
        "every network of one input size.",
        "“clean” is an image without noise, as a segmentation head sees it; a denoiser is given it as timestep 0.",
        "“random weights” is the first run's network before any training, on clean images: what a linear probe finds "
        "in features that nobody learned.",
        "Not to be compared with the published figures: those use an ensemble of small non-linear networks on several "
        "blocks and timesteps at once, on other images. Nor is a segmenter's map a fair rival of a denoiser's: its "
        "features were learned from masks, the denoiser's without any.",
    ]


def _findings(found: list[Probed]) -> list[str]:
    floor = next(one for one in found if one.of == "random")
    floor_miou = floor.told(floor.best)[0]
    lines = []
    for one in found:
        if one is floor:
            continue
        miou = one.told(one.best)[0]
        text = (
            f"{one.name}: the best probe reads {_where(one.best)} and reaches mIoU {miou:.3f}, "
            f"{_difference(miou - floor_miou)} than the best on random weights ({floor_miou:.3f})."
        )
        if one.own is not None:
            own = one.figures(one.own[1], "mean_iou")[0]
            text += f" Its own segmentation head reaches {own:.3f}."
        if one.concat is not None:
            together = one.told(one.concat)[0]
            blocks = len(one.concat["spec"]["blocks"])
            text += f" {blocks} blocks read together reach {together:.3f}, {_difference(together - miou)} than one."
        lines.append(text)
        if len(one.moments) > 1:
            lines.append(_by_noise(one))
    stored = max(found, key=lambda one: one.at_masks)
    if stored.memory is not None:
        lines.append(
            f"Training the {len(stored.probes)} probes of {stored.name} took {stored.memory / MEGA:,.0f} MB at the "
            f"peak; storing the features of its {stored.images} labelled images would take "
            f"{stored.as_maps / MEGA:,.0f} MB as they are and {stored.at_masks / MEGA:,.0f} MB at the masks' size, as "
            "the published code does."
        )
    return lines


def _by_noise(one: Probed) -> str:
    """The best block's figure at each timestep, in words."""
    columns = list(zip(*one.map(), strict=True))
    told = []
    for moment, column in zip(one.moments, columns, strict=True):
        known = [(value, block) for value, block in zip(column, one.blocks, strict=True) if value is not None]
        value, block = max(known)
        told.append(f"{called(moment)} {value:.3f} ({block})")
    return f"{one.name}, best block by timestep, on all judged images: {', '.join(told)}."


def _difference(gap: float) -> str:
    """ "0.012 higher"."""
    if math.isclose(gap, 0, abs_tol=5e-4):
        return "no higher"
    return f"{abs(gap):.3f} {'higher' if gap > 0 else 'lower'}"
