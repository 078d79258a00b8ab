"""The values of a record as text, the best ones among them, and a record for the terminal."""

from __future__ import annotations

import math
from dataclasses import dataclass

from unetdiff.reports.record import Better, Heatmap, Record, Table, Unit, Value
from unetdiff.text import aligned, best_of

DASH = "–"

_DIGITS = {"fraction": 3, "number": 3, "decibel": 2}
_ENDINGS = {"percent": " %", "minutes": " min", "seconds": " s", "decibel": " dB", "megabytes": " MB"}


@dataclass(frozen=True)
class FormattedValue:
    """A value as text, in the parts that a table sets apart."""

    number: str
    """ "0.912", or a dash for a missing value."""
    ending: str = ""
    """Unit, with a leading space; "" for none."""
    spread: str = ""
    """ "0.004", in the same unit; "" for one seed."""

    def __str__(self) -> str:
        return f"{self.number}{self.ending}" + (f" ± {self.spread}" if self.spread else "")


def format_parts(value: Value, unit: Unit = "number") -> FormattedValue:
    """Number, unit and standard deviation; the latter gets more decimals where all would be 0."""
    mean, spread = _finite(value.mean), _finite(value.spread)
    if mean is None:
        return FormattedValue(DASH)
    scale = 100 if unit == "percent" else 1
    if unit == "count":
        form = ",.0f"
    elif unit == "number" and mean and not 1e-3 <= abs(mean) < 1e4:
        form = ".2e"
    else:
        form = f".{_decimals(mean * scale, unit)}f"
    shown = "" if spread is None else f"{spread * scale:{'.1e' if form == '.2e' else form}}"
    if spread and not shown.strip("0."):
        shown = f"{spread * scale:.1g}" if spread * scale >= 1e-4 else "<0.0001"
    number = f"{mean * scale:{form}}"
    return FormattedValue(number if number.strip("-0.") else number.lstrip("-"), _ENDINGS.get(unit, ""), shown)


def as_text(value: Value, unit: Unit = "number") -> str:
    """A value as text: "0.912 ± 0.004", "91.2 % ± 0.4", "–"."""
    return str(format_parts(value, unit))


def best_rows(table: Table, column: int) -> set[int]:
    """Rows with the best value of a column, as formatted.

    Empty if the column has no better direction, fewer than two rows have a value, or all are formatted alike.
    """
    head = table.columns[column]
    return _best([values[column] for _, values in table.rows], head.better, head.unit)


def best_cells(heatmap: Heatmap) -> set[tuple[int, int]]:
    """Cells (row, column) with the best value of a heatmap, under the rules of `best_rows`."""
    across = len(heatmap.columns)
    values = [Value(value) for row in heatmap.values for value in row]
    return {divmod(index, across) for index in _best(values, heatmap.better, heatmap.unit)}


def _best(values: list[Value], better: Better, unit: Unit) -> set[int]:
    texts = [format_parts(value, unit).number for value in values]
    marked = best_of([_finite(value.mean) for value in values], texts, better, [""] * len(values))
    return {index for index, mark in enumerate(marked) if mark}


def _decimals(shown: float, unit: Unit) -> int:
    """Decimals of a unit; times and sizes below 1 keep two significant digits."""
    least = _DIGITS.get(unit, 1)
    if unit == "number" and abs(shown) >= 100:
        return 1
    if unit in ("minutes", "seconds", "megabytes") and 0 < abs(shown) < 1:
        return max(least, 1 - math.floor(math.log10(abs(shown))))
    return least


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None


def record_text(record: Record) -> str:
    """Title, findings and tables."""
    lines = [record.title, "", *(f"- {finding}" for finding in record.findings)]
    for table in (part for part in record.parts if isinstance(part, Table)):
        head = ["", *(column.name for column in table.columns)]
        rows = [[name, *(as_text(v, c.unit) for v, c in zip(values, table.columns, strict=True))]
                for name, values in table.rows]  # fmt: skip
        lines += ["", table.title, *aligned([head, *rows])]
    return "\n".join(lines)
