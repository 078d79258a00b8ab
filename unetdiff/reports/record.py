"""What an experiment leaves: its findings, tables, curves, maps and images, in one folder that a page can show.

An experiment knows nothing of pages, and the page nothing of experiments: this is all that passes between them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from unetdiff.errors import UserError
from unetdiff.files import write_whole
from unetdiff.training.logger import jsonable

RECORD = "record.json"

Better = Literal["higher", "lower", "neither"]
Unit = Literal["fraction", "percent", "number", "count", "minutes", "seconds", "decibel", "megabytes"]


@dataclass(frozen=True)
class Value:
    """One figure, of one run or of several seeds."""

    mean: float | None
    """None: not measured, or not defined."""
    spread: float | None = None
    """Standard deviation over the seeds (n - 1); None for one seed."""
    n: int = 1
    """Seeds, or runs, behind it."""

    @classmethod
    def of(cls, figures: Sequence[float]) -> Value:
        """Mean and spread of the same figure from several seeds; NaN counts as not measured."""
        known = [float(figure) for figure in figures if math.isfinite(figure)]
        if not known:
            return cls(None, None, 0)
        mean = sum(known) / len(known)
        if len(known) == 1:
            return cls(mean)
        return cls(mean, math.sqrt(sum((x - mean) ** 2 for x in known) / (len(known) - 1)), len(known))


@dataclass(frozen=True)
class Column:
    """A figure that the rows of a table are compared by."""

    name: str
    better: Better = "neither"
    unit: Unit = "number"
    note: str = ""


@dataclass(frozen=True)
class Table:
    """Rows beside each other; the page marks the better value of each column that has one."""

    title: str
    columns: list[Column]
    rows: list[tuple[str, list[Value]]]
    """Name of the row, and a value for each column."""
    note: str = ""
    spread_over: str = "seeds"
    """What the spreads are over."""
    kind: Literal["table"] = "table"


@dataclass(frozen=True)
class Line:
    """A curve of a chart."""

    name: str
    x: list[float]
    y: list[Value]


@dataclass(frozen=True)
class Chart:
    """Curves over one axis."""

    title: str
    across: str
    """What the horizontal axis is, with its unit."""
    up: str
    """What the vertical axis is, with its unit."""
    lines: list[Line]
    better: Better = "neither"
    log_x: bool = False
    log_y: bool = False
    note: str = ""
    kind: Literal["chart"] = "chart"


@dataclass(frozen=True)
class Heatmap:
    """A figure over two axes, such as block and timestep."""

    title: str
    down: str
    """What the rows are."""
    across: str
    """What the columns are."""
    rows: list[str]
    columns: list[str]
    values: list[list[float | None]]
    """By row, then by column."""
    better: Better = "neither"
    unit: Unit = "fraction"
    note: str = ""
    kind: Literal["heatmap"] = "heatmap"


@dataclass(frozen=True)
class Gallery:
    """Images in a grid: the same image, or the same noise, all along a row."""

    title: str
    columns: list[str]
    rows: list[tuple[str, list[str]]]
    """Name of the row, and an image's file for each column ("" for none), relative to the record's folder."""
    note: str = ""
    legend: list[tuple[str, str]] = field(default_factory=list)
    """Name and colour ("#rrggbb") of what the masks in it show."""
    kind: Literal["gallery"] = "gallery"


Part = Table | Chart | Heatmap | Gallery
KINDS: dict[str, type] = {"table": Table, "chart": Chart, "heatmap": Heatmap, "gallery": Gallery}


@dataclass(frozen=True)
class Record:
    """One experiment, done."""

    name: str
    """The experiment's, as on the command line."""
    title: str
    question: str
    """What a person would ask, in one sentence."""
    findings: list[str]
    """What came out, as plain sentences made of the figures; what did not work is one of them."""
    parts: list[Part]
    """In the order of the page."""
    method: list[str]
    """How it was measured, and what it may not be compared with."""
    source: str = ""
    """The paper that asked first."""
    command: str = ""
    """What a person types to do it again."""
    seeds: list[int] = field(default_factory=list)
    dataset_name: str = ""
    """The images, as `Run.data_name` has them."""
    configs: dict[str, str] = field(default_factory=dict)
    """YAML of each run's config, by its name."""
    machine: dict[str, Any] = field(default_factory=dict)
    """Device, threads and versions (`training.machine.facts`)."""
    minutes: float | None = None
    """On the clock, for all of it; what was kept from before is not in it."""


def write_record(record: Record, folder: Path) -> Path:
    """Write record.json in a folder that holds the images already; returns the file.

    Raises:
        UserError: a row of another length than its head, or an image that is not there; a bug of the experiment.
    """
    _check(record, folder)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / RECORD
    write_whole(file, json.dumps(jsonable(asdict(record)), indent=1, allow_nan=False) + "\n")
    return file


def read_record(folder: Path) -> Record:
    """The record in a folder.

    Raises:
        UserError: there is none, or it is not one.
    """
    file = Path(folder) / RECORD
    try:
        content = json.loads(file.read_text())
        parts = [_part(part) for part in content.pop("parts")]
        record = Record(parts=parts, **content)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{folder} holds no {RECORD}; give the --output of an `unetdiff experiment`") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is no record of an experiment ({error}); do the experiment again") from error
    _check(record, Path(folder))
    return record


def _part(content: dict[str, Any]) -> Part:
    """A part as JSON has it, typed again."""
    kind = content["kind"]
    if kind == "table":
        rows = [(name, [Value(**v) for v in values]) for name, values in content["rows"]]
        return Table(**{**content, "columns": [Column(**c) for c in content["columns"]], "rows": rows})
    if kind == "chart":
        lines = [Line(line["name"], line["x"], [Value(**v) for v in line["y"]]) for line in content["lines"]]
        return Chart(**{**content, "lines": lines})
    if kind == "gallery":
        rows = [(name, files) for name, files in content["rows"]]
        return Gallery(**{**content, "rows": rows, "legend": [(n, c) for n, c in content["legend"]]})
    return KINDS[kind](**content)


def _check(record: Record, folder: Path) -> None:
    for part in record.parts:
        if isinstance(part, Table | Gallery):
            long = [name for name, values in part.rows if len(values) != len(part.columns)]
            if long:
                raise UserError(f"{record.name}: row {long[0]!r} of “{part.title}” is not as long as its head")
        if isinstance(part, Gallery):
            missing = [file for _, files in part.rows for file in files if file and not (folder / file).is_file()]
            if missing:
                raise UserError(f"{folder / missing[0]} is missing; do the experiment again: {record.command}")
            colors = [color for _, color in part.legend if not re.fullmatch(r"#[0-9a-fA-F]{6}", color)]
            if colors:
                raise UserError(f"{record.name}: colour {colors[0]!r} in the legend of “{part.title}” is not #rrggbb")
        if isinstance(part, Chart):
            odd = [line.name for line in part.lines if len(line.x) != len(line.y)]
            if odd:
                raise UserError(f"{record.name}: line {odd[0]!r} of “{part.title}” has other x than y")
        if isinstance(part, Heatmap) and [len(row) for row in part.values] != [len(part.columns)] * len(part.rows):
            raise UserError(f"{record.name}: the map “{part.title}” is not {len(part.rows)} x {len(part.columns)}")
