"""Experiments' records as sections of the page: what the templates need, worked out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
from markupsafe import Markup
from PIL import Image, UnidentifiedImageError

from unetdiff.errors import UserError
from unetdiff.reports.charts import draw_chart, legend_mark
from unetdiff.reports.embed import data_uri, is_small
from unetdiff.reports.record import Chart, Gallery, Heatmap, Record, Subset, Table, Value, read_record
from unetdiff.reports.record_text import DASH, Written, best_cells, best_rows, pieces, written
from unetdiff.reports.table import minutes

MAPS = 2
"""Of more maps in a row, all but the first are folded away."""
NUMBERED = 16
"""Columns of a map up to which each cell has its number; beyond, a pointer over the cell tells it."""
STRONG = 0.55
"""Where on the ramp the letters change from ink to paper."""
DRAWN_COLORS = 256
"""Colours up to which an image is a mask or a drawing, which is embedded exactly."""

_ARROWS = {"higher": "↑", "lower": "↓", "neither": ""}


@dataclass(frozen=True)
class Cell:
    """One figure of a table or a map."""

    text: Written
    best: bool
    none: bool
    """True where there is no figure."""
    seeds: str = ""
    """ "n = 2", where it is not what the table's note says."""
    place: float = 0.0
    """On the map's ramp, 0 to 1."""
    says: str = ""
    """What a pointer over it tells."""

    @property
    def strong(self) -> bool:
        return self.place > STRONG


@dataclass(frozen=True)
class Shown:
    """A part of a record, or charts that stand side by side, with what the template adds to it."""

    kind: Literal["table", "charts", "heatmap", "folded", "gallery"]
    part: Any
    """The Table, Heatmap or Gallery; a list of `ShownChart`; of maps that are folded away, a list of `Shown`."""
    rows: Sequence[tuple[str, Sequence[Any]]] = ()
    """Name, and `Cell`s or images' data URIs (None for none)."""
    heads: Sequence[tuple[str, str, str]] = ()
    """Name, arrow and note of each column of a table."""
    notes: Sequence[str] = ()
    ends: tuple[str, str] = ("", "")
    """The figures at both ends of a map's ramp."""
    numbered: bool = True
    pixelated: bool = False


@dataclass(frozen=True)
class ShownChart:
    """A chart, its drawing, its legend and its figures."""

    part: Chart
    svg: Markup
    better: str
    legend: Sequence[tuple[str, Markup]]
    """Name and mark of each line; empty where the names stand in the drawing."""
    xs: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]
    """Name of each line, and its figure at each of `xs`."""


@dataclass(frozen=True)
class Section:
    """One experiment on the page."""

    id: str
    """Of the section, for links; different from every other section's."""
    record: Record
    answer: str
    """The first finding, for the summary."""
    parts: list[Shown]
    facts: list[tuple[str, str]]
    """Name and value: set, seeds, minutes, source."""
    path: Path


def read_sections(folders: Sequence[Path]) -> list[Section]:
    """The sections of experiments, in the order of their folders.

    Raises:
        UserError: a folder without a record, one that is given twice, or an image that cannot be read.
    """
    sections: list[Section] = []
    for index, folder in enumerate(folders):
        if Path(folder).resolve() in [Path(other).resolve() for other in folders[:index]]:
            raise UserError(f"--experiments: {folder} must be given only once.")
        record = read_record(Path(folder))
        sections.append(_section(record, Path(folder), _free_id(record.name, [s.id for s in sections])))
    return sections


def _free_id(name: str, taken: Sequence[str]) -> str:
    base = "experiment-" + (re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "one")
    number = sum(other == base or re.fullmatch(rf"{base}-\d+", other) is not None for other in taken)
    return base if not number else f"{base}-{number + 1}"


def _section(record: Record, folder: Path, place: str) -> Section:
    parts: list[Shown] = []
    for number, (kind, group) in enumerate(groupby(record.parts, key=lambda part: part.kind)):
        members = list(group)
        if kind == "chart":
            charts = [part for part in members if isinstance(part, Chart)]
            drawings = [_chart(chart, f"{place} {number} {index}") for index, chart in enumerate(charts)]
            parts.append(Shown("charts", drawings))
            continue
        shown = [_shown(part, folder) for part in members]
        if kind == "heatmap" and len(shown) > MAPS:
            shown = [shown[0], Shown("folded", shown[1:])]
        parts += shown
    known = {
        "set": record.set_name,
        "seeds" if len(record.seeds) > 1 else "seed": ", ".join(map(str, record.seeds)),
        "time": "" if record.minutes is None else minutes(record.minutes),
        "source": record.source,
    }
    answer = record.findings[0] if record.findings else record.question
    return Section(place, record, answer, parts, [(k, v) for k, v in known.items() if v], folder)


def _shown(part: Subset, folder: Path) -> Shown:
    if isinstance(part, Table):
        return _table(part)
    if isinstance(part, Heatmap):
        return _heatmap(part)
    assert isinstance(part, Gallery)
    return _gallery(part, folder)


def _table(table: Table) -> Shown:
    best = [best_rows(table, column) for column in range(len(table.columns))]
    several = [any(values[c].spread is not None for _, values in table.rows) for c in range(len(table.columns))]
    seeds = max((value.n for _, values in table.rows for value in values if value.spread is not None), default=0)
    rows = [
        (name, [
            Cell(text := pieces(value, head.unit), index in best[column], not _has(value),
                 f"n = {value.n}" if _has(value) and several[column] and value.n != seeds else "", says=str(text))
            for column, (value, head) in enumerate(zip(values, table.columns, strict=True))
        ])
        for index, (name, values) in enumerate(table.rows)
    ]  # fmt: skip
    notes = [table.note] if table.note else []
    if any(best):
        notes.append("The better value of a column is marked.")
    if seeds:
        notes.append(f"±: standard deviation over {seeds} {table.spread_over}.")
    heads = [(column.name, _ARROWS[column.better], column.note) for column in table.columns]
    return Shown("table", table, rows, heads, notes)


def _heatmap(heatmap: Heatmap) -> Shown:
    best = best_cells(heatmap)
    known = [value for row in heatmap.values for value in row if value is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    rows = []
    for down, (name, values) in enumerate(zip(heatmap.rows, heatmap.values, strict=True)):
        cells = []
        for across, value in enumerate(values):
            text = pieces(Value(value), heatmap.unit)
            place = 0.0 if value is None else (value - low) / (high - low) if high > low else 0.5
            says = f"{name}, {heatmap.columns[across]}: {text}"
            cells.append(Cell(text, (down, across) in best, value is None, place=round(place, 3), says=says))
        rows.append((name, cells))
    notes = [heatmap.note] if heatmap.note else []
    ends = (written(Value(low), heatmap.unit), written(Value(high), heatmap.unit)) if known else ("", "")
    numbered = len(heatmap.columns) <= NUMBERED
    return Shown("heatmap", heatmap, rows, notes=notes, ends=ends, numbered=numbered)


def _gallery(gallery: Gallery, folder: Path) -> Shown:
    rows, small = [], True
    for name, files in gallery.rows:
        uris: list[str | None] = []
        for file in files:
            if not file:
                uris.append(None)
                continue
            pixels, photo = _image(folder / file)
            small = small and is_small(pixels)
            uris.append(data_uri(pixels, photo=photo))
        rows.append((name, uris))
    return Shown("gallery", gallery, rows, notes=[gallery.note] if gallery.note else [], pixelated=small)


def _image(file: Path) -> tuple[np.ndarray, bool]:
    """An image (H, W, 3) uint8, and whether it is a photograph."""
    try:
        with Image.open(file) as image:
            plain = image.convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(f"{file} is no image that can be read ({error}); do the experiment again") from error
    return np.asarray(plain), plain.getcolors(DRAWN_COLORS) is None


def _chart(chart: Chart, salt: str) -> ShownChart:
    svg, beside = draw_chart(chart, salt)
    xs = sorted({x for line in chart.lines for x in line.x})
    rows = []
    for line in chart.lines:
        at = {x: written(value) for x, value in zip(line.x, line.y, strict=True)}
        rows.append((line.name, [at.get(x, "") for x in xs]))
    legend = [] if beside else [(line.name, Markup(legend_mark(i, salt))) for i, line in enumerate(chart.lines)]
    better = "" if chart.better == "neither" else f"{chart.better} is better"
    return ShownChart(chart, Markup(svg), better, legend, [f"{x:.10g}" for x in xs], rows)


def _has(value: Value) -> bool:
    return pieces(value).figure != DASH
