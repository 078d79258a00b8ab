"""The record of an experiment: findings, tables, charts, heatmaps and galleries, stored in one folder.

Records are the only interface between the experiments, which write them, and the page, which shows them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict

from unetdiff.errors import FileError, UserError
from unetdiff.files.folders import inside, regular_file
from unetdiff.files.records import jsonable, read_object, write_json
from unetdiff.files.typed import typed
from unetdiff.files.writing import file_errors, make_folder

RECORD = "record.json"
REMEDY = "Run the experiment again."

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


class Machine(TypedDict, total=False):
    """The keys of `Record.machine` that the page reads; others may follow."""

    device: str
    threads: int | None
    precision: str | None
    versions: dict[str, str] | None


def write_record(record: Record, folder: Path) -> Path:
    """Write record.json to the folder that already holds the images; returns the file.

    Raises:
        UserError: a row whose length differs from the header, or a missing image, which are bugs of the experiment; a
            full disk.
    """
    _check(record, folder)
    file = folder / RECORD
    with file_errors(file):
        make_folder(folder)
        write_json(file, asdict(record))
    return file


def read_record(folder: Path) -> Record:
    """Read the record in a folder; its images are inside the folder.

    Raises:
        UserError: record.json is missing or invalid; names the file and the key.
    """
    file = Path(folder) / RECORD
    if not file.exists():
        raise UserError(f"{folder} has no {RECORD}. Pass the --output of `unetdiff experiment`.")
    record = typed(Record, jsonable(read_object(file, REMEDY)), file, remedy=REMEDY)
    typed(Machine, record.machine, file, "machine", REMEDY)
    _check(record, Path(folder))
    return record


def _check(record: Record, folder: Path) -> None:
    for number, part in enumerate(record.parts):
        reason = _inconsistency(part)
        if reason is not None:
            raise FileError.of(Path(folder) / RECORD, f"parts[{number}] (“{part.title}”): {reason}", REMEDY)
        if isinstance(part, Gallery):
            for file in (file for _, files in part.rows for file in files if file):
                regular_file(inside(folder, file), REMEDY)


def _inconsistency(part: Part) -> str | None:
    """What contradicts itself in a part; None if nothing does."""
    if isinstance(part, Table | Gallery):
        long = [name for name, values in part.rows if len(values) != len(part.columns)]
        if long:
            return f"row {long[0]!r} must be as long as the header"
    if isinstance(part, Gallery):
        colors = [color for _, color in part.legend if not re.fullmatch(r"#[0-9a-fA-F]{6}", color)]
        if colors:
            return f"color {colors[0]!r} in the legend must be #rrggbb"
    if isinstance(part, Chart):
        odd = [line.name for line in part.lines if len(line.x) != len(line.y)]
        if odd:
            return f"line {odd[0]!r} must have as many x as y values"
    if isinstance(part, Heatmap) and [len(row) for row in part.values] != [len(part.columns)] * len(part.rows):
        return f"the heatmap must be {len(part.rows)} x {len(part.columns)}"
    return None
