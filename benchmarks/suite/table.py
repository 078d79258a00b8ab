"""The result of a benchmark as Markdown, and as dicts for JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from suite.cases.case import MAX_MEMORY_RATIO
from suite.compare import Outcome, Row
from suite.growth import Fit, Growth
from unetdiff.benchmark.table import UNKNOWN, gigaflops, megabytes, milliseconds, peak_line, percent
from unetdiff.benchmark.timing import Quartiles
from unetdiff.text import markdown

METHOD = (
    "Times: median (quartiles) of {rounds} rounds after {warmups} warm-up rounds, both sides interleaved in one "
    "process. Speedup: median of the ratios of each round."
)

DERIVED = ("slopes", "passed")
"""Properties of a growth in its JSON, besides its fits."""


def as_json(
    machine: Mapping[str, Any], peak_flops: Mapping[str, float], rows: Sequence[Row], growths: Sequence[Growth]
):
    """All measurements as dicts and lists."""
    entries = [asdict(row) | {"passed": passed(row), "memory_ratio": row.memory_ratio} for row in rows]
    growth = [
        asdict(each)
        | {name: [asdict(fit) for fit in getattr(each, name)] for name in ("fits", "pure_power_laws")}
        | {name: getattr(each, name) for name in DERIVED}
        for each in growths
    ]
    return {"machine": machine, "peak_flops": peak_flops, "rows": entries, "growth": growth}


def passed(row: Row) -> dict[str, bool]:
    """Which of the row's floors are met, by name."""
    result = {"speedup": row.speedup.median >= row.min_speedup}
    if row.memory_ratio is not None:
        result["memory"] = row.memory_ratio <= MAX_MEMORY_RATIO
    return result | {name: row.agreement[name] >= minimum for name, minimum in row.min_agreement.items()}


def as_markdown(
    machine: Mapping[str, Any],
    peak_flops: Mapping[str, float],
    rows: Sequence[Row],
    growths: Sequence[Growth],
    rounds: int,
    warmups: int,
) -> str:
    """The non-empty tables of speed, cost, memory and growth."""
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    lines = [f"{machine['device']}, {machine['threads']} threads; {versions}", "", peak_line(peak_flops), ""]
    lines += [METHOD.format(rounds=rounds, warmups=warmups), ""]
    if rows:
        lines += [*markdown(_speed(rows)), "", *markdown(_work(rows)), ""]
    if any(row.memory_ratio is not None for row in rows):
        lines += [*markdown(_memory(rows)), ""]
    if growths:
        lines += [*markdown(_growth(growths)), ""]
    return "\n".join(lines)


def _ratio(ratio: Quartiles) -> str:
    return f"{ratio.median:.2f}× ({ratio.lower:.2f} to {ratio.upper:.2f})"


def _speed(rows: Sequence[Row]) -> list[list[str]]:
    header = ["work", "settings", "unetdiff, ms", "peer, ms", "speedup", "speedup in CPU time", "agreement"]
    return [header] + [
        [
            row.name,
            row.setting,
            milliseconds(row.unetdiff.seconds),
            milliseconds(row.peer.seconds),
            _ratio(row.speedup),
            _ratio(row.cpu_speedup),
            ", ".join(f"{name} {value:.3g}" for name, value in row.agreement.items()) or UNKNOWN,
        ]
        for row in rows
    ]


def _work(rows: Sequence[Row]) -> list[list[str]]:
    head = ["work", "settings", "side", "precision", "parameters, M", "GMAC", "GFLOP/s", "% of peak throughput"]

    def cells(row: Row, side: Outcome) -> list[str]:
        numbers = [f"{side.parameters / 1e6:.2f}", f"{side.macs / 1e9:.2f}", gigaflops(side.flops)]
        return [
            row.name,
            row.setting,
            side.name,
            side.precision,
            *(numbers if side.macs else [UNKNOWN] * 3),
            percent(side.utilization),
        ]

    return [head] + [cells(row, side) for row in rows for side in (row.unetdiff, row.peer)]


def _memory(rows: Sequence[Row]) -> list[list[str]]:
    header = ["peak memory beyond the network", "settings", "unetdiff, MB", "peer, MB", "unetdiff / peer"]
    return [header] + [
        [row.name, row.setting, megabytes(row.unetdiff.memory), megabytes(row.peer.memory), f"{row.memory_ratio:.2f}"]
        for row in rows
        if row.memory_ratio is not None
    ]


def _growth(growths: Sequence[Growth]) -> list[list[str]]:
    header = ["growth", "axis", "from", "to", "unetdiff, ms", "peer, ms", "exponents k", "overhead, ms"]
    header += ["slope, ms", "exponents without overhead"]
    return [header] + [
        [
            growth.name,
            growth.axis,
            str(growth.values[0]),
            str(growth.values[-1]),
            *(f"{1e3 * side[0].median:.4g} to {1e3 * side[-1].median:.4g}" for side in (growth.unetdiff, growth.peer)),
            _exponents(growth.fits),
            " and ".join(f"{1e3 * fit.overhead:.3g}" for fit in growth.fits),
            " and ".join(f"{1e3 * slope:.4g}" for slope in growth.slopes),
            _exponents(growth.pure_power_laws),
        ]
        for growth in growths
    ]


def _exponents(fits: Sequence[Fit]) -> str:
    """Of unetdiff and the peer, each with the error of its fit."""
    return " and ".join(f"{fit.exponent:.2f} (± {percent(fit.error)})" for fit in fits)
