"""The curve, table and sentences of `unetdiff experiment pretraining`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from unetdiff.experiments.runs import difference, difference_words
from unetdiff.reports.record import Chart, Column, Line, Table, Value
from unetdiff.reports.record_text import as_text

Figures = Mapping[str, Mapping[float, Sequence[float]]]
"""mIoU of each seed, by start, then by share of the labels."""
Counts = Mapping[float, int]
"""Labelled images of each share."""


def chart(figures: Figures, counts: Counts) -> Chart:
    """mIoU against labelled images, a line a start."""
    lines = [
        Line(start, [float(counts[share]) for share in by_share], [Value.of(seeds) for seeds in by_share.values()])
        for start, by_share in figures.items()
    ]
    return Chart("mIoU against labelled images", "labelled images", "mIoU", lines, "higher", log_x=True)


def label_table(figures: Figures, counts: Counts) -> Table:
    """A row a start, a column a share."""
    columns = [
        Column(f"{100 * share:g} %", "higher", "fraction", f"{count:,} image{'s' * (count != 1)}")
        for share, count in counts.items()
    ]
    rows = [(start, [Value.of(seeds) for seeds in by_share.values()]) for start, by_share in figures.items()]
    return Table("mIoU by share of the labels", columns, rows)


def findings(figures: Figures, counts: Counts, reference: str) -> list[str]:
    """For every other start, whether it gains on the reference, share by share, and in how many of them."""
    told = []
    for start, by_share in figures.items():
        if start == reference:
            continue
        gains = {share: difference(seeds, figures[reference][share]) for share, seeds in by_share.items()}
        told.append(_summary(start, gains, counts, reference))
        for share, gap in gains.items():
            ours, theirs = (as_text(Value.of(each[share]), "fraction") for each in (by_share, figures[reference]))
            count = f"{counts[share]:,} labelled image{'s' * (counts[share] != 1)} ({100 * share:g} %)"
            told.append(f"{count}: mIoU {ours} from the {start}, {theirs} from a {reference}: {difference_words(gap)}.")
    return told


def _summary(start: str, gains: Mapping[float, Value], counts: Counts, reference: str) -> str:
    beyond = {
        share: gap for share, gap in gains.items() if gap.mean is not None and abs(gap.mean) > (gap.spread or 0.0)
    }
    up = [share for share, gap in beyond.items() if (gap.mean or 0) > 0]
    down = [share for share, gap in beyond.items() if (gap.mean or 0) < 0]
    doubt = [share for share in gains if share not in beyond]

    def at(shares: Sequence[float]) -> str:
        return ", ".join(f"{counts[share]:,}" for share in shares)

    parts = [f"a gain with {at(up)} labelled images"] if up else []
    parts += [f"a loss with {at(down)}"] if down else []
    parts += [f"no difference beyond the seeds' spread with {at(doubt)}"] if doubt else []
    single = "" if any(gap.spread is not None for gap in gains.values()) else " (one seed: chance is not ruled out)"
    return f"Start from the {start} against a {reference}: {'; '.join(parts)}{single}."
