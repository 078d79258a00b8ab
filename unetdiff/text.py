"""Figures as text: for a terminal, and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], side: str = ">") -> list[str]:
    """Rows of cells as lines; the first column to the left, the others to `side` ("<" or ">")."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    sides = ["<"] + [side] * (len(widths) - 1)
    return [
        "  ".join(f"{cell:{s}{width}}" for cell, s, width in zip(row, sides, widths, strict=True)).rstrip()
        for row in rows
    ]


def markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells, the head first, as the lines of a Markdown table; the first column to the left, others right."""
    head, *others = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    rule = [":--"] + ["--:"] * (len(head) - 1)
    return [f"| {' | '.join(row)} |" for row in (head, rule, *others)]
