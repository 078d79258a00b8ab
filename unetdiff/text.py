"""Tables as text, for a terminal or in Markdown, and which value of a row is the best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from unetdiff.errors import printable

Better = Literal["higher", "lower", "neither"]


def aligned(rows: Sequence[Sequence[str]], side: str = ">") -> list[str]:
    """Rows of cells as lines; the first column to the left, the others to `side` ("<" or ">").

    Control characters in cells, e.g. of class names, are shown as escapes.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    sides = ["<"] + [side] * (len(widths) - 1)
    return [
        "  ".join(f"{cell:{s}{width}}" for cell, s, width in zip(row, sides, widths, strict=True)).rstrip()
        for row in rows
    ]


def markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells, the head first, as the lines of a Markdown table; the first column to the left, others right."""
    head, *others = [[printable(cell).replace("|", "\\|") for cell in row] for row in rows]
    rule = [":--"] + ["--:"] * (len(head) - 1)
    return [f"| {' | '.join(row)} |" for row in (head, rule, *others)]


def best_of(numbers: Sequence[float | None], texts: Sequence[str], better: Better, groups: Sequence[str]) -> list[bool]:
    """Which values are the better ones.

    Nothing is marked if there is nothing to compare: a single value, equal texts, a metric without a better
    direction, or runs of different `groups` (dataset, objective, machine). Values with equal texts are marked alike.
    """
    present = [index for index, number in enumerate(numbers) if number is not None]
    if better == "neither" or len(present) < 2 or len({groups[index] for index in present}) > 1:
        return [False] * len(numbers)
    if len({texts[index] for index in present}) == 1:
        return [False] * len(numbers)
    pick = max if better == "higher" else min
    winner = pick(present, key=lambda index: numbers[index] or 0.0)
    return [index in present and texts[index] == texts[winner] for index in range(len(numbers))]
