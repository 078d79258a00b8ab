"""Figures of a benchmark as the cells of a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from unetdiff.benchmark.own import Measured
from unetdiff.benchmark.timing import Spread

UNKNOWN = "–"


def milliseconds(seconds: Spread) -> str:
    """ "12.3 (12.1 to 12.9)": the median and the quartiles."""
    median, lower, upper = (f"{1e3 * value:.4g}" for value in (seconds.median, seconds.lower, seconds.upper))
    return f"{median} ({lower} to {upper})"


def megabytes(count: float | None) -> str:
    """Bytes in MB (10^6)."""
    return UNKNOWN if count is None else f"{count / 1e6:,.0f}"


def gigaflops(flops: float) -> str:
    """Operations a second, in 10^9."""
    return f"{flops / 1e9:,.1f}"


def percent(share: float | None) -> str:
    """0.31 as "31 %"."""
    return UNKNOWN if share is None else f"{100 * share:.0f} %"


def peak_line(ceilings: Mapping[str, float]) -> str:
    """The measured ceilings in one line."""
    found = ", ".join(f"{gigaflops(flops)} GFLOP/s in {precision}" for precision, flops in ceilings.items())
    return f"ceiling (the fastest of a wide 3x3 convolution's rounds): {found}"


def rows(measured: Iterable[Measured]) -> list[list[str]]:
    """A model's figures by kind of work and batch size, the head first."""
    head = ["work", "batch", "images/s", "ms", "CPU ms", "GFLOP/s", "share of the ceiling", "peak memory, MB"]
    return [head] + [
        [
            f"{one.kind}, {one.precision}",
            str(one.batch),
            f"{one.images_per_second:.4g}",
            milliseconds(one.seconds),
            f"{1e3 * one.cpu_seconds.median:.4g}",
            gigaflops(2 * one.macs / one.seconds.median),
            percent(one.share),
            megabytes(one.memory),
        ]
        for one in measured
    ]
