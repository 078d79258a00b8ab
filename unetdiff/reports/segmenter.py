"""What `unetdiff evaluate` leaves of a segmenter: the table, two plots, and the page of its worst images."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from unetdiff.data.base import ImageDataset
from unetdiff.reports import table
from unetdiff.reports.embed import data_uri, is_small
from unetdiff.reports.templates import render
from unetdiff.segmentation.evaluation import SegmentationEvaluation, WorstImage
from unetdiff.segmentation.inference import load_image
from unetdiff.segmentation.palette import ERROR_COLOR, IGNORE_COLOR, as_mask, colorize, error_map
from unetdiff.segmentation.plots import draw_confusion, draw_reliability

TABLE, CONFUSION, RELIABILITY, PAGE = "per_class.csv", "confusion.png", "reliability.png", "report.html"
LARGEST = 720
"""Pixels of the longer side of an image on the page, for who enlarges it."""
INCH = 96 / 160
"""CSS pixels for each pixel of a plot (drawn at 160 an inch)."""


@dataclass
class Case:
    """One of the worst images as the page shows it."""

    name: str
    score: float
    right: float
    tiles: list[tuple[str, str]]
    """What it is (image, truth, prediction, errors), and its data URI."""
    classes: list[tuple[str, str, str]]
    """Name, CSS colour and IoU of every class in its truth or prediction, the worst first."""
    void: bool
    pixelated: bool


def write_segmenter_report(
    evaluation: SegmentationEvaluation,
    images: ImageDataset,
    output: Path,
    title: str,
    facts: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write per_class.csv, confusion.png, reliability.png and report.html (one file, needing no other) to a folder.

    Args:
        evaluation: what was counted.
        images: the set it was counted on, which the worst images are read from again.
        output: an existing folder.
        title: the page's heading.
        facts: more to say under it, e.g. {"set": "camvid"}.

    Returns:
        The four files.
    """
    output = Path(output)
    files = [output / name for name in (TABLE, CONFUSION, RELIABILITY, PAGE)]
    figures = evaluation.metrics()
    matrix = evaluation.matrix.matrix.cpu().numpy()
    evaluation.write_table(files[0])
    draw_confusion(files[1], matrix, evaluation.classes)
    draw_reliability(files[2], figures)
    with TemporaryDirectory() as aside:
        dark = [Path(aside) / CONFUSION, Path(aside) / RELIABILITY]
        draw_confusion(dark[0], matrix, evaluation.classes, dark=True)
        draw_reliability(dark[1], figures, dark=True)
        plots = [
            (png_uri(light), png_uri(night), png_width(light)) for light, night in zip(files[1:3], dark, strict=True)
        ]
    cases = [_case(one, images, evaluation) for one in evaluation.worst]
    occurring = {label for one in evaluation.worst for label in one.iou}
    marks = [("wrong, among the errors", _css(ERROR_COLOR))]
    if any(case.void for case in cases):
        marks.append(("void, counted nowhere", _css(IGNORE_COLOR)))
    page = render(
        "segmenter.html",
        title=title,
        facts=facts or {},
        figures=figures,
        cards=_cards(figures, len(evaluation.classes)),
        cases=cases,
        legend=[(evaluation.classes[label], _css(images.palette[label])) for label in sorted(occurring)],
        marks=marks,
        rows=_rows(figures, evaluation.classes, images.palette),
        plots=plots,
        percent=percent,
    )
    files[3].write_text(page, encoding="utf-8")
    return files


def _cards(figures: Mapping[str, Any], classes: int) -> list[tuple[str, str, str, str]]:
    """(CSS colour, figure, what it is, a sentence) for the head of the page."""
    without = sum(iou != iou for iou in figures["iou_per_class"].values())
    mean = f"Mean over {classes - without} classes" + (f"; {without} never occur" if without else "")
    sure, right = figures["mean_confidence"], figures["pixel_accuracy"]
    verdict = "balanced" if abs(sure - right) < 0.005 else ("too sure" if sure > right else "not sure enough")
    return [
        ("--c1", percent(figures["mean_iou"]), "mIoU", f"{mean}. Weighted by pixels: {percent(figures['fw_iou'])}."),
        ("--c2", percent(figures["mean_boundary_iou"]), "boundary IoU",
         f"Along the contours only: within {figures['boundary_width']}."),
        ("--seg", percent(right), "pixel accuracy", f"Mean over classes: {percent(figures['mean_accuracy'])}."),
        ("--c3", percent(figures["ece"]), "calibration error (ECE)",
         f"It is {percent(sure)} sure and {percent(right)} right: {verdict}."),
    ]  # fmt: skip


def _case(one: WorstImage, images: ImageDataset, evaluation: SegmentationEvaluation) -> Case:
    item = images[one.index]
    truth, ignore = as_mask(item["mask"]), evaluation.matrix.ignore_index
    image = load_image(item["image"])
    backdrop = image if tuple(image.shape[-2:]) == truth.shape else None
    tiles = [
        ("image", data_uri(image, largest=LARGEST)),
        ("truth", data_uri(colorize(truth, images.palette, ignore), photo=False, largest=LARGEST)),
        ("prediction", data_uri(colorize(one.prediction, images.palette, ignore), photo=False, largest=LARGEST)),
        ("errors", data_uri(error_map(one.prediction, truth, ignore, backdrop), largest=LARGEST)),
    ]
    present = set(np.unique(truth).tolist())
    classes = [
        (evaluation.classes[label], _css(images.palette[label]), percent(iou) if label in present else "not there")
        for label, iou in sorted(one.iou.items(), key=lambda pair: pair[1])
    ]
    return Case(one.name, one.score, one.pixel_accuracy, tiles, classes, ignore in present, is_small(image))


def _rows(figures: Mapping[str, Any], classes: Sequence[str], palette: np.ndarray) -> list[dict[str, Any]]:
    """The table of classes, the best first, those that never occur last."""
    rows = [
        {
            "name": name,
            "color": _css(palette[index]),
            "iou": figures["iou_per_class"][name],
            "boundary_iou": figures["boundary_iou_per_class"][name],
            "accuracy": figures["accuracy_per_class"][name],
            "share": figures["pixel_fraction_per_class"][name],
            "images": figures["images_per_class"][name],
        }
        for index, name in enumerate(classes)
    ]
    return sorted(rows, key=lambda row: (row["iou"] != row["iou"], -row["iou"]))


def percent(number: float) -> str:
    """0.9433 -> "94.3 %"; a dash for a figure that there is not."""
    return "–" if number != number else table.percent(number)


def png_uri(path: Path) -> str:
    """A PNG file as the value of an `src` attribute."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def png_width(path: Path) -> int:
    """The width in CSS pixels at which a plot's letters have their size (its header's width: bytes 16 to 19)."""
    return round(int.from_bytes(path.read_bytes()[16:20], "big") * INCH)


def _css(color: Sequence[int] | np.ndarray) -> str:
    return "rgb({}, {}, {})".format(*color)
