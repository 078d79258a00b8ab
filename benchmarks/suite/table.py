"""The result of a benchmark as Markdown, and as plain values for JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from suite.cases.case import MEMORY_TARGET
from suite.compare import Outcome, Row
from suite.growth import Growth, Law
from unetdiff.benchmark.table import UNKNOWN, gigaflops, megabytes, milliseconds, peak_line, percent
from unetdiff.benchmark.timing import Spread
from unetdiff.text import markdown

HOW = (
    "Times are medians of {rounds} rounds after {warmups} that are not counted, with the quartiles, both sides in "
    "turns in one process. How many times as fast: the median of the rounds' own ratios."
)

DERIVED = ("slopes", "reached")
"""What a growth makes of its times, beside its laws."""


def as_json(machine: Mapping[str, Any], ceilings: Mapping[str, float], rows: Sequence[Row], growths: Sequence[Growth]):
    """Every figure, as dicts and lists."""
    told = [asdict(row) | {"reached": reached(row), "memory_ratio": row.memory_ratio} for row in rows]
    grown = [
        asdict(each)
        | {name: [asdict(law) for law in getattr(each, name)] for name in ("laws", "plain")}
        | {name: getattr(each, name) for name in DERIVED}
        for each in growths
    ]
    return {"machine": machine, "ceilings": ceilings, "rows": told, "growth": grown}


def reached(row: Row) -> dict[str, bool]:
    """Which of a row's targets are reached, by name."""
    found = {"speedup": row.speedup.median >= row.target}
    if row.memory_ratio is not None:
        found["memory"] = row.memory_ratio <= MEMORY_TARGET
    return found | {name: row.figures[name] >= least for name, least in row.figure_targets.items()}


def as_markdown(
    machine: Mapping[str, Any],
    ceilings: Mapping[str, float],
    rows: Sequence[Row],
    growths: Sequence[Growth],
    rounds: int,
    warmups: int,
) -> str:
    """The tables of speed, of work, of memory and of growth; those that there is something for."""
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    lines = [f"{machine['device']}, {machine['threads']} threads; {versions}", "", peak_line(ceilings), ""]
    lines += [HOW.format(rounds=rounds, warmups=warmups), ""]
    if rows:
        lines += [*markdown(_speed(rows)), "", *markdown(_work(rows)), ""]
    if any(row.memory_ratio is not None for row in rows):
        lines += [*markdown(_memory(rows)), ""]
    if growths:
        lines += [*markdown(_growth(growths)), ""]
    return "\n".join(lines)


def _times(spread: Spread) -> str:
    return f"{spread.median:.2f} ({spread.lower:.2f} to {spread.upper:.2f})"


def _verdict(good: bool) -> str:
    return "yes" if good else "**no**"


def _speed(rows: Sequence[Row]) -> list[list[str]]:
    head = ["work", "settings", "ours, ms", "peer, ms", "times as fast", "by CPU time", "to reach", "reached", "agree"]
    return [head] + [
        [
            row.name,
            row.setting,
            milliseconds(row.ours.seconds),
            milliseconds(row.theirs.seconds),
            _times(row.speedup),
            _times(row.cpu_speedup),
            f"{row.target:g}",
            _verdict(reached(row)["speedup"]),
            _agreement(row),
        ]
        for row in rows
    ]


def _agreement(row: Row) -> str:
    """How close the two sides' outputs are, where they have the same weights."""
    told = []
    for name, value in row.figures.items():
        least = row.figure_targets.get(name)
        verdict = "" if least is None else f" (at least {least:g}: {_verdict(reached(row)[name])})"
        told.append(f"{name} {value:.3g}{verdict}")
    return ", ".join(told) or UNKNOWN


def _work(rows: Sequence[Row]) -> list[list[str]]:
    head = ["work", "settings", "side", "precision", "parameters, M", "GMAC a round", "GFLOP/s", "share of the ceiling"]

    def cells(row: Row, side: Outcome) -> list[str]:
        counted = [f"{side.parameters / 1e6:.2f}", f"{side.macs / 1e9:.2f}", gigaflops(side.flops)]
        none = [UNKNOWN] * 3
        numbers = counted if side.macs else none
        return [row.name, row.setting, side.name, side.precision, *numbers, percent(side.share)]

    return [head] + [cells(row, side) for row in rows for side in (row.ours, row.theirs)]


def _memory(rows: Sequence[Row]) -> list[list[str]]:
    head = ["peak memory beyond the network's own", "settings", "ours, MB", "peer, MB", "ours / peer", "reached"]
    found = [head]
    for row in rows:
        if row.memory_ratio is not None:
            sides = [megabytes(row.ours.memory), megabytes(row.theirs.memory)]
            verdict = f"{_verdict(reached(row)['memory'])} (at most {MEMORY_TARGET:g})"
            found.append([row.name, row.setting, *sides, f"{row.memory_ratio:.2f}", verdict])
    return found


def _growth(growths: Sequence[Growth]) -> list[list[str]]:
    head = ["growth of", "against", "from", "to", "ours, ms", "peer, ms", "exponents", "reached", "a call, ms"]
    head += ["each further, ms", "exponents with nothing for a call"]
    return [head] + [
        [
            growth.name,
            growth.axis,
            str(growth.values[0]),
            str(growth.values[-1]),
            *(f"{1e3 * side[0].median:.4g} to {1e3 * side[-1].median:.4g}" for side in (growth.ours, growth.theirs)),
            _exponents(growth.laws),
            _verdict(growth.reached),
            " and ".join(f"{1e3 * law.fixed:.3g}" for law in growth.laws),
            " and ".join(f"{1e3 * number:.4g}" for number in growth.slopes),
            _exponents(growth.plain),
        ]
        for growth in growths
    ]


def _exponents(laws: Sequence[Law]) -> str:
    """Those of ours and the peer, each with how far its law is from the times."""
    return " and ".join(f"{law.exponent:.2f} (± {percent(law.error)})" for law in laws)
