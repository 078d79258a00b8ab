"""A record for the terminal."""

from __future__ import annotations

from unetdiff.experiments.record import Record, Table, Unit, Value
from unetdiff.text import aligned

DASH = "–"


def written(value: Value, unit: Unit = "number") -> str:
    """A figure with its spread: "0.912 ± 0.004", "91.2 % ± 0.4", "–"."""
    if value.mean is None:
        return DASH
    if unit == "percent":
        main, spread = f"{100 * value.mean:.1f} %", None if value.spread is None else f"{100 * value.spread:.1f}"
    elif unit == "count":
        main, spread = f"{value.mean:,.0f}", None if value.spread is None else f"{value.spread:,.0f}"
    else:
        digits = 3 if unit in ("share", "number") else 2 if unit == "decibel" else 1
        ending = {"minutes": " min", "seconds": " s", "decibel": " dB", "megabytes": " MB"}.get(unit, "")
        if unit == "number" and value.mean and not 1e-3 <= abs(value.mean) < 1e4:
            main, spread = f"{value.mean:.2e}", None if value.spread is None else f"{value.spread:.1e}"
        else:
            main, spread = f"{value.mean:.{digits}f}{ending}", None
            if value.spread is not None:
                spread = f"{value.spread:.{digits}f}"
    return main if spread is None else f"{main} ± {spread}"


def best_rows(table: Table, column: int) -> set[int]:
    """Rows with the better value of a column; none where it has no better, or only one row has a value."""
    better = table.columns[column].better
    known = {i: v[column].mean for i, (_, v) in enumerate(table.rows) if v[column].mean is not None}
    if better == "neither" or len(known) < 2:
        return set()
    best = (max if better == "higher" else min)(m for m in known.values() if m is not None)
    return {i for i, mean in known.items() if mean == best}


def record_text(record: Record) -> str:
    """Title, findings and tables."""
    lines = [record.title, "", *(f"- {finding}" for finding in record.findings)]
    for table in (part for part in record.parts if isinstance(part, Table)):
        head = ["", *(column.name for column in table.columns)]
        rows = [[name, *(written(v, c.unit) for v, c in zip(values, table.columns, strict=True))]
                for name, values in table.rows]  # fmt: skip
        lines += ["", table.title, *aligned([head, *rows])]
    return "\n".join(lines)
