"""The figures of a denoiser as lines for a terminal; they are plain dicts here, as metrics.json holds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unetdiff.text import aligned


def lines(figures: Mapping[str, Any]) -> list[str]:
    """The distances and the sweep of an evaluation's figures, each after an empty line; [] without them."""
    found: list[str] = []
    if figures.get("samples/distances"):
        found += ["", *aligned(distance_rows(figures["samples/distances"]), "<")]
    if figures.get("sweep"):
        found += ["", *sweep_lines(figures["sweep"])]
    return found


def distance_rows(distances: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Name, value, and what it was measured with."""
    rows = []
    for figure in distances:
        value = f"{figure['value']:.4f}"
        if figure["deviation"] is not None:
            value += f" ± {figure['deviation']:.4f}"
        told = f"n {figure['n']}, reference {figure['reference']} ({figure['reference_n']} images)"
        rows.append([figure["name"], value, f"{told}; {figure['note']}" if figure["note"] else told])
    return rows


def sweep_lines(sweep: Mapping[str, Any]) -> list[str]:
    """The sweep as an aligned table, and below it what all its cells share."""
    shared = f"n {sweep['n']} each, from the same noise (seed {sweep['seed']})"
    if sweep["reference"] is not None:
        shared += f"; reference {sweep['reference']}"
    return [*aligned(sweep_rows(sweep)), shared]


def sweep_rows(sweep: Mapping[str, Any]) -> list[list[str]]:
    """The sweep's table as text, its head first; a column that no cell has is left out."""
    cells = sweep["cells"]
    columns: list[tuple[str, str, str]] = [("scheduler", "scheduler", "s"), ("steps", "steps", "d")]
    columns += [("guidance", "guidance", "g"), ("seconds_per_image", "s / image", ".4f")]
    columns += [("frechet", sweep["distance"] or "", ".3f"), ("class_consistency", "class consistency", ".4f")]
    kept = [column for column in columns if any(cell[column[0]] is not None for cell in cells)]
    head = [label for _, label, _ in kept]
    return [head, *([format(cell[key], spec) for key, _, spec in kept] for cell in cells)]
