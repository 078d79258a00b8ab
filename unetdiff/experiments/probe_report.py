"""The record of the linear probes: heatmaps, tables, masks and findings."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from typing import Any

import torch

from unetdiff.experiments.features import NoiseLevel, level_name
from unetdiff.reports.record import Column, Gallery, Heatmap, Part, Record, Table, Value
from unetdiff.segmentation.metrics import ConfusionMatrix

MEGABYTE = 1e6
Matrix = list[list[int]]


@dataclass(frozen=True)
class ProbeResults:
    """The probes of one network, as they are cached."""

    name: str
    kind: str
    """Task of the run: segmentation, diffusion or joint; "random", or "encoder"."""
    num_classes: int
    probes: list[dict[str, Any]]
    """Each with "input" (level, blocks), "parameters" and "matrices": the confusion matrices of both halves of the
    validation images, for selection and for testing."""
    concat: dict[str, Any] | None
    """The probe on the concatenated best blocks."""
    head: list[Matrix] | None
    """The confusion matrices of the network's own segmentation head."""
    num_train_images: int
    num_val_images: int
    map_bytes: int
    upsampled_bytes: int
    memory: int | None
    """Peak bytes of training."""
    minutes: float
    masks: list[str] = field(default_factory=list)

    def metrics(self, matrices: Matrix | list[Matrix], *keys: str) -> list[float]:
        """Metrics of a confusion matrix, or of the sum of several."""
        total = ConfusionMatrix(self.num_classes)
        total.matrix = torch.tensor(matrices).reshape(-1, self.num_classes, self.num_classes).sum(dim=0)
        values = total.compute()
        return [values[key] for key in keys]

    @property
    def best(self) -> dict[str, Any]:
        """The probe with the highest mIoU on the selection half of the validation images."""
        return max(self.probes, key=lambda probe: self.metrics(probe["matrices"][0], "mean_iou")[0])

    def test_metrics(self, probe: dict[str, Any]) -> tuple[float, float]:
        """mIoU and pixel accuracy of a probe on the test half."""
        miou, accuracy = self.metrics(probe["matrices"][1], "mean_iou", "pixel_accuracy")
        return miou, accuracy

    @property
    def noise_levels(self) -> list[NoiseLevel]:
        return list(dict.fromkeys(probe["input"]["level"] for probe in self.probes))

    @property
    def blocks(self) -> list[str]:
        return list(dict.fromkeys(probe["input"]["blocks"][0] for probe in self.probes))

    def miou_map(self) -> list[list[float | None]]:
        """mIoU on all validation images, by block, then by noise level."""
        miou = {
            (p["input"]["blocks"][0], p["input"]["level"]): self.metrics(p["matrices"], "mean_iou")[0]
            for p in self.probes
        }
        return [[miou[block, level] for level in self.noise_levels] for block in self.blocks]


def probe_record(
    results: list[ProbeResults],
    gallery: dict[str, Any],
    args: argparse.Namespace,
    **fields: Any,
) -> Record:
    """The record; `gallery`: images and ground truth of its rows, and the legend; `fields`: the rest of `Record`."""
    parts: list[Part] = [_best_table(results)]
    parts += [_heatmap(one) for one in results if len(one.noise_levels) > 1]
    parts += _clean_heatmaps([one for one in results if len(one.noise_levels) == 1])
    columns = ["image", "ground truth", *(f"{one.name}: {_location(one.best)}" for one in results)]
    rows = [(name, [*files, *(one.masks[i] for one in results)]) for i, (name, files) in enumerate(gallery["rows"])]
    parts.append(Gallery("Masks of the best linear probe of each network", columns, rows, legend=gallery["legend"]))
    parts.append(_cost_table(results))
    return Record(
        name="probe",
        title="Linear probes of frozen features",
        question="Which block, at which timestep, is most informative for a linear pixel classifier?",
        findings=_findings(results),
        parts=parts,
        method=_method(results, args),
        source='Baranchuk et al. 2022, "Label-Efficient Semantic Segmentation with Diffusion Models"',
        seeds=[args.seed],
        **fields,
    )


def _location(probe: dict[str, Any]) -> str:
    """ "decoder 16x16 at t = 150", or "decoder 16x16 on clean images"."""
    level = probe["input"]["level"]
    at = "on clean images" if level is None else f"at t = {level}"
    return f"{' + '.join(probe['input']['blocks'])} {at}"


def _best_table(results: list[ProbeResults]) -> Table:
    rows: list[tuple[str, list[Value]]] = []
    for one in results:
        kinds = [("best probe", one.best), *([("concatenated blocks", one.concat)] if one.concat else [])]
        for kind, probe in kinds:
            miou, accuracy = one.test_metrics(probe)
            values = [Value(miou), Value(accuracy), Value(probe["parameters"])]
            rows.append((f"{one.name}, {kind}: {_location(probe)}", values))
        if one.head is not None:
            miou, accuracy = one.metrics(one.head[1], "mean_iou", "pixel_accuracy")
            rows.append((f"{one.name}, trained segmentation head", [Value(miou), Value(accuracy), Value(None)]))
    columns = [
        Column("mIoU", "higher", "fraction"),
        Column("pixel accuracy", "higher", "fraction"),
        Column("probe parameters", "neither", "count"),
    ]
    note = (
        "Probes are selected on one half of the validation images and tested on the other, so that the number of "
        "probes of a network gives it no advantage. A trained segmentation head saw all labels of its run."
    )
    return Table("Best linear probe of each network", columns, rows, note)


def _heatmap(one: ProbeResults) -> Heatmap:
    return Heatmap(
        f"Linear-probe mIoU: {one.name}",
        "block",
        "timestep of the noise in the image",
        one.blocks,
        [level_name(level) for level in one.noise_levels],
        one.miou_map(),
        better="higher",
        note=f"On all {one.num_val_images} validation images; noise increases to the right.",
    )


def _clean_heatmaps(results: list[ProbeResults]) -> list[Heatmap]:
    """Networks of clean images; those with the same blocks share a heatmap."""
    by_blocks: dict[tuple[str, ...], list[ProbeResults]] = {}
    for one in results:
        by_blocks.setdefault(tuple(one.blocks), []).append(one)
    heatmaps = []
    for blocks, members in by_blocks.items():
        columns = [one.name for one in members]
        values = [list(row) for row in zip(*([line[0] for line in one.miou_map()] for one in members), strict=True)]
        title = f"Linear-probe mIoU on clean images: {', '.join(columns)}"
        heatmaps.append(Heatmap(title, "block", "network", list(blocks), columns, values, better="higher",
                                note=f"On all {members[0].num_val_images} validation images."))  # fmt: skip
    return heatmaps


def _cost_table(results: list[ProbeResults]) -> Table:
    rows = [
        (
            one.name,
            [
                Value(len(one.probes)),
                Value(None if one.memory is None else one.memory / MEGABYTE),
                Value(one.map_bytes / MEGABYTE),
                Value(one.upsampled_bytes / MEGABYTE),
                Value(one.minutes),
            ],
        )
        for one in results
    ]
    columns = [
        Column("probes", "neither", "count"),
        Column("peak training memory", "lower", "megabytes", "excluding network and libraries"),
        Column("stored maps", "neither", "megabytes", "float32, of all training images"),
        Column("stored maps, upsampled", "neither", "megabytes", "at the masks' size, as in the published code"),
        Column("time", "lower", "minutes"),
    ]
    note = (
        f"For {results[0].num_train_images} training images. Streaming holds the maps of one batch at one timestep, "
        "independent of the number of images; stored maps grow with it. The published code needs 210 GB for 50 images."
    )
    return Table("Cost of the probes", columns, rows, note)


def _method(results: list[ProbeResults], args: argparse.Namespace) -> list[str]:
    return [
        "A probe is a 1x1 convolution on the standardized maps of one block, upsampled bilinearly to the mask: "
        "multinomial logistic regression. The network is frozen; a denoiser is unconditional.",
        f"Probes are trained on {results[0].num_train_images} labeled training images without augmentation, with masks "
        f"at the network's input size, for {args.train_steps} steps of {args.batch_size} images (AdamW, learning rate "
        f"{args.lr:g}, cosine to 0, weight decay {args.weight_decay:g}), and evaluated at the masks' own size on "
        f"{results[0].num_val_images} validation images.",
        "An image's noise is a function of its name and the seed: the same at every timestep, in every step, and for "
        "every network of one input size.",
        "“clean” is an image without noise, the input of a segmentation head; a denoiser gets it with timestep 0.",
        "“random weights” is the first run's network at initialization, on clean images: the baseline of a linear "
        "probe on untrained features.",
        "Not comparable with the published results, which use an ensemble of small nonlinear networks on several "
        "blocks and timesteps, on other datasets. A segmenter's features are trained with masks, a denoiser's without.",
    ]


def _findings(results: list[ProbeResults]) -> list[str]:
    baseline = next(one for one in results if one.kind == "random")
    baseline_miou = baseline.test_metrics(baseline.best)[0]
    lines = []
    for one in results:
        if one is baseline:
            continue
        miou = one.test_metrics(one.best)[0]
        line = (
            f"{one.name}: best probe mIoU {miou:.3f} ({_location(one.best)}), {miou - baseline_miou:+.3f} relative to "
            f"random weights ({baseline_miou:.3f})."
        )
        if one.head is not None:
            line += f" Trained segmentation head: {one.metrics(one.head[1], 'mean_iou')[0]:.3f}."
        if one.concat is not None:
            concat = one.test_metrics(one.concat)[0]
            line += f" {len(one.concat['input']['blocks'])} concatenated blocks: {concat:.3f} ({concat - miou:+.3f})."
        lines.append(line)
        if len(one.noise_levels) > 1:
            lines.append(_by_noise(one))
    largest = max(results, key=lambda one: one.upsampled_bytes)
    if largest.memory is not None:
        lines.append(
            f"Peak memory for training the {len(largest.probes)} probes of {largest.name}: "
            f"{largest.memory / MEGABYTE:,.0f} MB. Storing the features of its {largest.num_train_images} training "
            f"images would take {largest.map_bytes / MEGABYTE:,.0f} MB, or {largest.upsampled_bytes / MEGABYTE:,.0f} "
            "MB upsampled to the masks as in the published code."
        )
    return lines


def _by_noise(one: ProbeResults) -> str:
    """The best block at each noise level."""
    entries = []
    for level, column in zip(one.noise_levels, zip(*one.miou_map(), strict=True), strict=True):
        value, block = max((value, block) for value, block in zip(column, one.blocks, strict=True) if value is not None)
        entries.append(f"{level_name(level)} {value:.3f} ({block})")
    return f"{one.name}, mIoU of the best block by timestep, on all validation images: {', '.join(entries)}."
