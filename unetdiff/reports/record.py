"""The record of an experiment: findings, tables, charts, heatmaps and galleries, stored in one folder.

Records are the only interface between the experiments, which write them, and the page, which shows them.
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
from unetdiff.files.records import jsonable
from unetdiff.files.writing import write_text

RECORD = "record.json"

Better = Literal["higher", "lower", "neither"]
Unit = Literal["fraction", "percent", "number", "count", "minutes", "seconds", "decibel", "megabytes"]


@dataclass(frozen=True)
class Value:
    """One value, of one run or over several seeds."""

    mean: float | None
    """None: not measured or undefined."""
    spread: float | None = None
    """Standard deviation over the seeds (with n - 1); None for one seed."""
    n: int = 1
    """Number of seeds (or runs)."""

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Value:
        """Mean and standard deviation over seeds; NaN and infinity are left out."""
        known = [float(number) for number in numbers if math.isfinite(number)]
        if not known:
            return cls(None, None, 0)
        mean = sum(known) / len(known)
        if len(known) == 1:
            return cls(mean)
        return cls(mean, math.sqrt(sum((x - mean) ** 2 for x in known) / (len(known) - 1)), len(known))


@dataclass(frozen=True)
class Column:
    """A metric in a table."""

    name: str
    better: Better = "neither"
    unit: Unit = "number"
    note: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of values; the page highlights the best value of each column that has a better direction."""

    title: str
    columns: list[Column]
    rows: list[tuple[str, list[Value]]]
    """Name of the row, and a value for each column."""
    note: str = ""
    spread_over: str = "seeds"
    """What the standard deviations are over."""
    kind: Literal["table"] = "table"


@dataclass(frozen=True)
class Line:
    """A line of a chart."""

    name: str
    x: list[float]
    y: list[Value]


@dataclass(frozen=True)
class Chart:
    """Lines over one axis."""

    title: str
    across: str
    """Label of the x axis, with its unit."""
    up: str
    """Label of the y axis, with its unit."""
    lines: list[Line]
    better: Better = "neither"
    log_x: bool = False
    log_y: bool = False
    note: str = ""
    kind: Literal["chart"] = "chart"


@dataclass(frozen=True)
class Heatmap:
    """A metric over two axes, such as block and timestep."""

    title: str
    down: str
    """Label of the row axis."""
    across: str
    """Label of the column axis."""
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
    """Images in a grid; a row shows the same image, or the same noise."""

    title: str
    columns: list[str]
    rows: list[tuple[str, list[str]]]
    """Name of the row, and an image's file for each column ("" for none), relative to the record's folder."""
    note: str = ""
    legend: list[tuple[str, str]] = field(default_factory=list)
    """Name and color ("#rrggbb") of each class in the masks."""
    kind: Literal["gallery"] = "gallery"


Part = Table | Chart | Heatmap | Gallery
KINDS: dict[str, type] = {"table": Table, "chart": Chart, "heatmap": Heatmap, "gallery": Gallery}


@dataclass(frozen=True)
class Record:
    """A finished experiment."""

    name: str
    """Name of the experiment on the command line."""
    title: str
    question: str
    """The question, in one sentence."""
    findings: list[str]
    """Results as sentences with their numbers, negative results included."""
    parts: list[Part]
    """In the order of the page."""
    method: list[str]
    """How it was measured, and the limits of comparability."""
    source: str = ""
    """The paper it follows."""
    command: str = ""
    """The command that reproduces it."""
    seeds: list[int] = field(default_factory=list)
    dataset_name: str = ""
    """As in `Run.data_name`."""
    configs: dict[str, str] = field(default_factory=dict)
    """YAML of each run's config, by its name."""
    machine: dict[str, Any] = field(default_factory=dict)
    """Device, threads and versions (`training.runtime.facts`)."""
    minutes: float | None = None
    """Wall-clock time, without results reused from earlier calls."""


def write_record(record: Record, folder: Path) -> Path:
    """Write record.json to the folder that already holds the images; returns the file.

    Raises:
        UserError: a row whose length differs from the header, or a missing image; a bug of the experiment.
    """
    _check(record, folder)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / RECORD
    write_text(file, json.dumps(jsonable(asdict(record)), indent=1, allow_nan=False) + "\n")
    return file


def read_record(folder: Path) -> Record:
    """Read the record in a folder.

    Raises:
        UserError: record.json is missing or invalid.
    """
    file = Path(folder) / RECORD
    try:
        content = json.loads(file.read_text())
        parts = [_part(part) for part in content.pop("parts")]
        record = Record(parts=parts, **content)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{folder} has no {RECORD}. Pass the --output of `unetdiff experiment`.") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is not a valid record ({error}). Run the experiment again.") from error
    _check(record, Path(folder))
    return record


def _part(content: dict[str, Any]) -> Part:
    """A part as a dataclass, from its JSON."""
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
                raise UserError(f"{record.name}: row {long[0]!r} of “{part.title}” must be as long as the header")
        if isinstance(part, Gallery):
            missing = [file for _, files in part.rows for file in files if file and not (folder / file).is_file()]
            if missing:
                raise UserError(f"{folder / missing[0]} is missing. Run the experiment again: {record.command}")
            colors = [color for _, color in part.legend if not re.fullmatch(r"#[0-9a-fA-F]{6}", color)]
            if colors:
                raise UserError(f"{record.name}: color {colors[0]!r} in the legend of “{part.title}” must be #rrggbb")
        if isinstance(part, Chart):
            odd = [line.name for line in part.lines if len(line.x) != len(line.y)]
            if odd:
                raise UserError(f"{record.name}: line {odd[0]!r} of “{part.title}” must have as many x as y values")
        if isinstance(part, Heatmap) and [len(row) for row in part.values] != [len(part.columns)] * len(part.rows):
            raise UserError(f"{record.name}: the heatmap “{part.title}” must be {len(part.rows)} x {len(part.columns)}")
