"""Measurements of a benchmark as cells of a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from unetdiff.benchmark.run_benchmark import Measurement
from unetdiff.benchmark.timing import Quartiles

UNKNOWN = "–"


def milliseconds(seconds: Quartiles) -> str:
    """ "12.3 (12.1 to 12.9)": the median and the quartiles."""
    median, lower, upper = (f"{1e3 * value:.4g}" for value in (seconds.median, seconds.lower, seconds.upper))
    return f"{median} ({lower} to {upper})"


def megabytes(count: float | None) -> str:
    """Bytes in MB (10^6)."""
    return UNKNOWN if count is None else f"{count / 1e6:,.0f}"


def gigaflops(flops: float) -> str:
    """FLOP/s in GFLOP/s (10^9)."""
    return f"{flops / 1e9:,.1f}"


def percent(fraction: float | None) -> str:
    """0.31 as "31 %"."""
    return UNKNOWN if fraction is None else f"{100 * fraction:.0f} %"


def peak_line(peak_flops: Mapping[str, float]) -> str:
    """The machine's peak throughput in one line."""
    values = ", ".join(f"{gigaflops(flops)} GFLOP/s in {precision}" for precision, flops in peak_flops.items())
    return f"peak throughput (3 × 3 convolution, fastest round): {values}"


def rows(measurements: Iterable[Measurement]) -> list[list[str]]:
    """A row for each workload and batch size, after the header."""
    header = ["work", "batch", "images/s", "ms", "CPU ms", "GFLOP/s", "% of peak throughput", "peak memory, MB"]
    return [header] + [
        [
            f"{one.kind}, {one.precision}",
            str(one.batch_size),
            f"{one.images_per_second:.4g}",
            milliseconds(one.seconds),
            f"{1e3 * one.cpu_seconds.median:.4g}",
            gigaflops(2 * one.macs / one.seconds.median),
            percent(one.utilization),
            megabytes(one.memory),
        ]
        for one in measurements
    ]
