"""The report of a segmenter: per-class table, confusion matrix, reliability diagram and worst images."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from unetdiff.data.base import ImageDataset
from unetdiff.files.writing import file_errors, make_folder, write_bytes, write_text
from unetdiff.reports import table
from unetdiff.reports.embed import data_uri, is_small
from unetdiff.reports.templates import render
from unetdiff.segmentation.evaluation import SegmentationEvaluation, WorstImage
from unetdiff.segmentation.palette import ERROR_COLOR, IGNORE_COLOR, as_mask, colorize, error_map
from unetdiff.segmentation.plots import draw_confusion, draw_reliability

TABLE, CONFUSION, RELIABILITY, PAGE = "per_class.csv", "confusion.png", "reliability.png", "report.html"
LARGEST = 720
"""Pixels of the longer side of an image on the page."""
CSS_SCALE = 96 / 160
"""CSS pixels per pixel of a plot (drawn at 160 dpi)."""


@dataclass
class Case:
    """One of the worst images as the page shows it."""

    name: str
    score: float
    """Mean IoU over the classes in the ground truth."""
    pixel_accuracy: float
    tiles: list[tuple[str, str]]
    """Caption (image, ground truth, prediction, errors) and data URI."""
    classes: list[tuple[str, str, str]]
    """Name, CSS color and IoU of every class in the ground truth or the prediction, the worst first."""
    has_ignored: bool
    pixelated: bool


def write_segmenter_report(
    evaluation: SegmentationEvaluation,
    images: ImageDataset,
    output: Path,
    title: str,
    facts: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write per_class.csv, confusion.png, reliability.png and a self-contained report.html to a folder.

    Args:
        evaluation: the metrics and the worst images.
        images: the evaluated dataset, from which the worst images are read again.
        output: a folder, created where it does not exist.
        title: the page's heading.
        facts: facts under the heading, e.g. {"dataset": "camvid"}.

    Returns:
        The four files.
    """
    output = Path(output)
    files = [output / name for name in (TABLE, CONFUSION, RELIABILITY, PAGE)]
    metrics = evaluation.metrics()
    matrix = evaluation.matrix.matrix.cpu().numpy()
    confusion, reliability = (
        [_drawn(partial(draw, dark=dark), *values) for dark in (False, True)]
        for draw, values in ((draw_confusion, (matrix, evaluation.classes)), (draw_reliability, (metrics,)))
    )
    cases = [_case(one, images, evaluation) for one in evaluation.worst]
    occurring = {label for one in evaluation.worst for label in one.iou}
    marks = [("misclassified", _css(ERROR_COLOR))]
    if any(case.has_ignored for case in cases):
        marks.append(("ignored in evaluation", _css(IGNORE_COLOR)))
    page = render(
        "segmenter.html",
        title=title,
        facts=facts or {},
        metrics=metrics,
        cards=_cards(metrics, len(evaluation.classes)),
        cases=cases,
        legend=[(evaluation.classes[label], _css(images.palette[label])) for label in sorted(occurring)],
        marks=marks,
        rows=_rows(metrics, evaluation.classes, images.palette),
        plots=[(png_uri(light), png_uri(dark), png_width(light)) for light, dark in (confusion, reliability)],
        percent=percent,
    )
    with file_errors(output, "Give another --output, or make room."):  # all is computed: no half of it is written
        make_folder(output)
        evaluation.write_table(files[0])
        write_bytes(files[1], confusion[0])
        write_bytes(files[2], reliability[0])
        write_text(files[3], page)
    return files


def _drawn(draw: Callable[..., None], *values: Any) -> bytes:
    """The PNG of a plot."""
    png = BytesIO()
    draw(png, *values)
    return png.getvalue()


def _cards(metrics: Mapping[str, Any], classes: int) -> list[tuple[str, str, str, str]]:
    """(CSS color, metric, label, sentence) of each card in the summary."""
    absent = sum(iou != iou for iou in metrics["iou_per_class"].values())
    mean = f"Mean over {classes - absent} classes" + (f"; {absent} do not occur" if absent else "")
    confidence, accuracy = metrics["mean_confidence"], metrics["pixel_accuracy"]
    verdict = "underconfident" if confidence < accuracy else "overconfident"
    if abs(confidence - accuracy) < 0.005:
        verdict = "calibrated on average"
    return [
        ("--c1", percent(metrics["mean_iou"]), "mIoU", f"{mean}. Frequency-weighted: {percent(metrics['fw_iou'])}."),
        ("--c2", percent(metrics["mean_boundary_iou"]), "boundary IoU",
         f"IoU within {metrics['boundary_width']}, of the contours."),
        ("--seg", percent(accuracy), "pixel accuracy", f"Mean class accuracy: {percent(metrics['mean_accuracy'])}."),
        ("--c3", percent(metrics["ece"]), "expected calibration error (ECE)",
         f"Mean confidence {percent(confidence)}, accuracy {percent(accuracy)}: {verdict}."),
    ]  # fmt: skip


def _case(one: WorstImage, images: ImageDataset, evaluation: SegmentationEvaluation) -> Case:
    item = images[one.index]
    truth, ignore = as_mask(item["mask"]), evaluation.matrix.ignore_index
    image = item["image"]
    backdrop = image if tuple(image.shape[-2:]) == truth.shape else None
    tiles = [
        ("image", data_uri(image, largest=LARGEST)),
        ("ground truth", data_uri(colorize(truth, images.palette, ignore), photo=False, largest=LARGEST)),
        ("prediction", data_uri(colorize(one.prediction, images.palette, ignore), photo=False, largest=LARGEST)),
        ("errors", data_uri(error_map(one.prediction, truth, ignore, backdrop), largest=LARGEST)),
    ]
    present = set(np.unique(truth).tolist())
    classes = [
        (
            evaluation.classes[label],
            _css(images.palette[label]),
            percent(iou) if label in present else "not in ground truth",
        )
        for label, iou in sorted(one.iou.items(), key=lambda pair: pair[1])
    ]
    return Case(one.name, one.score, one.pixel_accuracy, tiles, classes, ignore in present, is_small(image))


def _rows(metrics: Mapping[str, Any], classes: Sequence[str], palette: np.ndarray) -> list[dict[str, Any]]:
    """The rows of the per-class table by descending IoU, absent classes last."""
    rows = [
        {
            "name": name,
            "color": _css(palette[index]),
            "iou": metrics["iou_per_class"][name],
            "boundary_iou": metrics["boundary_iou_per_class"][name],
            **{metric: metrics[f"{metric}_per_class"][name] for metric in ("dice", "precision", "recall")},
            "fraction": metrics["pixel_fraction_per_class"][name],
            "images": metrics["images_per_class"][name],
        }
        for index, name in enumerate(classes)
    ]
    return sorted(rows, key=lambda row: (row["iou"] != row["iou"], -row["iou"]))


def percent(number: float) -> str:
    """0.9433 -> "94.3 %"; NaN -> "–"."""
    return "–" if number != number else table.percent(number)


def png_uri(png: bytes) -> str:
    """A PNG file's content as the value of an `src` attribute."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def png_width(png: bytes) -> int:
    """The width of a plot in CSS pixels, from bytes 16 to 19 of the PNG header."""
    return round(int.from_bytes(png[16:20], "big") * CSS_SCALE)


def _css(color: Sequence[int] | np.ndarray) -> str:
    return "rgb({}, {}, {})".format(*color)
