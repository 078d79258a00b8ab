"""Experiment records as sections of the page, in the form that the templates need."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
from markupsafe import Markup

from unetdiff.errors import UserError
from unetdiff.files.folders import inside
from unetdiff.files.images import open_image
from unetdiff.reports.charts import draw_chart, legend_mark
from unetdiff.reports.embed import data_uri, is_small
from unetdiff.reports.record import REMEDY, Chart, Gallery, Heatmap, Part, Record, Table, Value, read_record
from unetdiff.reports.record_text import DASH, FormattedValue, as_text, best_cells, best_rows, format_parts
from unetdiff.reports.table import minutes

MAX_HEATMAPS = 2
"""Of more consecutive heatmaps, all but the first are collapsed."""
MAX_NUMBERED_COLUMNS = 16
"""Heatmaps with more columns show their values as tooltips only."""
DARK_FROM = 0.55
"""Position on the color ramp from which a cell has light text."""
MAX_DRAWING_COLORS = 256
"""Images with at most this many colors are masks or drawings, which are embedded losslessly."""

_ARROWS = {"higher": "↑", "lower": "↓", "neither": ""}


@dataclass(frozen=True)
class Cell:
    """One value of a table or a heatmap."""

    text: FormattedValue
    best: bool
    none: bool
    """True for a missing value."""
    seeds: str = ""
    """ "n = 2", where it differs from the table's note."""
    position: float = 0.0
    """On the heatmap's color ramp, 0 to 1."""
    tooltip: str = ""

    @property
    def strong(self) -> bool:
        return self.position > DARK_FROM


@dataclass(frozen=True)
class Block:
    """A part of a record, or consecutive charts, in the form that the template needs."""

    kind: Literal["table", "charts", "heatmap", "folded", "gallery"]
    part: Any
    """The Table, Heatmap or Gallery; a list of `ChartBlock`; for collapsed heatmaps, a list of `Block`."""
    rows: Sequence[tuple[str, Sequence[Any]]] = ()
    """Name, and `Cell`s or data URIs of images (None: no image)."""
    heads: Sequence[tuple[str, str, str]] = ()
    """Name, arrow and note of each column of a table."""
    notes: Sequence[str] = ()
    ends: tuple[str, str] = ("", "")
    """The values at both ends of a heatmap's color ramp."""
    numbered: bool = True
    pixelated: bool = False


@dataclass(frozen=True)
class ChartBlock:
    """A chart: its SVG, its legend and its values."""

    part: Chart
    svg: Markup
    better: str
    legend: Sequence[tuple[str, Markup]]
    """Name and mark of each line; empty if the SVG contains the names."""
    xs: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]
    """Name of each line, and its value at each of `xs`."""


@dataclass(frozen=True)
class Section:
    """One experiment on the page."""

    id: str
    """Anchor of the section, unique on the page."""
    record: Record
    answer: str
    """The first finding, for the summary."""
    parts: list[Block]
    facts: list[tuple[str, str]]
    """Name and value: dataset, seeds, time, source."""
    path: Path


def read_sections(folders: Sequence[Path]) -> list[Section]:
    """The sections of experiments, in the order of their folders.

    Raises:
        UserError: a folder without a record, a folder listed twice, or an unreadable image.
    """
    sections: list[Section] = []
    for index, folder in enumerate(folders):
        if Path(folder).resolve() in [Path(other).resolve() for other in folders[:index]]:
            raise UserError(f"experiments={folder}: must be listed once.")
        record = read_record(Path(folder))
        sections.append(_section(record, Path(folder), _free_id(record.name, [s.id for s in sections])))
    return sections


def _free_id(name: str, taken: Sequence[str]) -> str:
    base = "experiment-" + (re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "one")
    number = sum(other == base or re.fullmatch(rf"{base}-\d+", other) is not None for other in taken)
    return base if not number else f"{base}-{number + 1}"


def _section(record: Record, folder: Path, anchor: str) -> Section:
    parts: list[Block] = []
    for number, (kind, group) in enumerate(groupby(record.parts, key=lambda part: part.kind)):
        members = list(group)
        if kind == "chart":
            charts = [part for part in members if isinstance(part, Chart)]
            drawings = [_chart(chart, f"{anchor} {number} {index}") for index, chart in enumerate(charts)]
            parts.append(Block("charts", drawings))
            continue
        blocks = [_block(part, folder) for part in members]
        if kind == "heatmap" and len(blocks) > MAX_HEATMAPS:
            blocks = [blocks[0], Block("folded", blocks[1:])]
        parts += blocks
    facts = {
        "dataset": record.dataset_name,
        "seeds" if len(record.seeds) > 1 else "seed": ", ".join(map(str, record.seeds)),
        "time": "" if record.minutes is None else minutes(record.minutes),
        "source": record.source,
    }
    answer = record.findings[0] if record.findings else record.question
    return Section(anchor, record, answer, parts, [(k, v) for k, v in facts.items() if v], folder)


def _block(part: Part, folder: Path) -> Block:
    if isinstance(part, Table):
        return _table(part)
    if isinstance(part, Heatmap):
        return _heatmap(part)
    assert isinstance(part, Gallery)
    return _gallery(part, folder)


def _table(table: Table) -> Block:
    best = [best_rows(table, column) for column in range(len(table.columns))]
    several = [any(values[c].spread is not None for _, values in table.rows) for c in range(len(table.columns))]
    seeds = max((value.n for _, values in table.rows for value in values if value.spread is not None), default=0)
    rows = [
        (name, [
            Cell(text := format_parts(value, head.unit), index in best[column], not _has(value),
                 f"n = {value.n}" if _has(value) and several[column] and value.n != seeds else "", tooltip=str(text))
            for column, (value, head) in enumerate(zip(values, table.columns, strict=True))
        ])
        for index, (name, values) in enumerate(table.rows)
    ]  # fmt: skip
    notes = [table.note] if table.note else []
    if any(best):
        notes.append("The best value of each column is highlighted.")
    if seeds:
        notes.append(f"±: standard deviation over {seeds} {table.spread_over}.")
    heads = [(column.name, _ARROWS[column.better], column.note) for column in table.columns]
    return Block("table", table, rows, heads, notes)


def _heatmap(heatmap: Heatmap) -> Block:
    best = best_cells(heatmap)
    known = [value for row in heatmap.values for value in row if value is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    rows = []
    for down, (name, values) in enumerate(zip(heatmap.rows, heatmap.values, strict=True)):
        cells = []
        for across, value in enumerate(values):
            text = format_parts(Value(value), heatmap.unit)
            position = 0.0 if value is None else (value - low) / (high - low) if high > low else 0.5
            tooltip = f"{name}, {heatmap.columns[across]}: {text}"
            cells.append(
                Cell(text, (down, across) in best, value is None, position=round(position, 3), tooltip=tooltip)
            )
        rows.append((name, cells))
    notes = [heatmap.note] if heatmap.note else []
    ends = (as_text(Value(low), heatmap.unit), as_text(Value(high), heatmap.unit)) if known else ("", "")
    numbered = len(heatmap.columns) <= MAX_NUMBERED_COLUMNS
    return Block("heatmap", heatmap, rows, notes=notes, ends=ends, numbered=numbered)


def _gallery(gallery: Gallery, folder: Path) -> Block:
    rows, small = [], True
    for name, files in gallery.rows:
        uris: list[str | None] = []
        for file in files:
            if not file:
                uris.append(None)
                continue
            pixels, photo = _image(inside(folder, file))
            small = small and is_small(pixels)
            uris.append(data_uri(pixels, photo=photo))
        rows.append((name, uris))
    return Block("gallery", gallery, rows, notes=[gallery.note] if gallery.note else [], pixelated=small)


def _image(file: Path) -> tuple[np.ndarray, bool]:
    """An image (H, W, 3) uint8, and whether it is a photo."""
    with open_image(file, remedy=REMEDY) as image:
        plain = image.convert("RGB")
    return np.asarray(plain), plain.getcolors(MAX_DRAWING_COLORS) is None


def _chart(chart: Chart, salt: str) -> ChartBlock:
    svg, has_names = draw_chart(chart, salt)
    xs = sorted({x for line in chart.lines for x in line.x})
    rows = []
    for line in chart.lines:
        at = {x: as_text(value) for x, value in zip(line.x, line.y, strict=True)}
        rows.append((line.name, [at.get(x, "") for x in xs]))
    legend = [] if has_names else [(line.name, Markup(legend_mark(i, salt))) for i, line in enumerate(chart.lines)]
    better = "" if chart.better == "neither" else f"{chart.better} is better"
    return ChartBlock(chart, Markup(svg), better, legend, [f"{x:.10g}" for x in xs], rows)


def _has(value: Value) -> bool:
    return format_parts(value).number != DASH
