"""Small pieces of HTML: legends with fractions, probabilities, notes."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from unetdiff.segmentation.palette import IGNORE_COLOR

Color = Sequence[int] | NDArray[np.uint8]


def css(color: Color) -> str:
    """rgb(r, g, b)."""
    red, green, blue = (int(value) for value in color)
    return f"rgb({red}, {green}, {blue})"


def hex_color(color: Color) -> str:
    """#rrggbb."""
    return "#" + "".join(f"{int(value):02x}" for value in color)


def percent(fraction: float) -> str:
    """0.1234 -> "12.3 %"."""
    return f"{100 * fraction:.1f} %"


def bars(rows: Sequence[tuple[str, Color, float]], title: str = "") -> str:
    """Names with their color, and a bar as long as their fraction of 1."""
    lines = [
        f'<li><i style="background:{css(color)}"></i><b>{escape(name)}</b>'
        f'<span class="bar"><span style="width:{100 * fraction:.2f}%;background:{css(color)}"></span></span>'
        f"<em>{percent(fraction)}</em></li>"
        for name, color, fraction in rows
    ]
    head = heading(title) if title else ""
    return f'{head}<ul class="legend">{"".join(lines)}</ul>'


def chips(names: Sequence[str], palette: Sequence[Color]) -> str:
    """Names with their color, in one line."""
    items = [
        f'<span class="chip"><i style="background:{css(color)}"></i>{escape(name)}</span>'
        for name, color in zip(names, palette, strict=False)
    ]
    return f'<p class="chips">{"".join(items)}</p>'


def legend(mask: NDArray[np.uint8], classes: Sequence[str], palette: NDArray[np.uint8], title: str = "") -> str:
    """The classes of a mask (H, W) with the fraction of its pixels, the largest first."""
    counts = np.bincount(mask.ravel(), minlength=256)
    rows: list[tuple[str, Color, float]] = []
    for value in np.argsort(-counts, kind="stable"):
        if counts[value]:
            known = value < len(classes)
            name, color = (classes[value], palette[value]) if known else ("ignore", IGNORE_COLOR)
            rows.append((name, color, counts[value] / mask.size))
    return bars(rows, title)


def heading(text: str) -> str:
    """A small heading."""
    return f'<p class="legend-title">{escape(text)}</p>'


def note(text: str) -> str:
    """A line of small print."""
    return f'<p class="note">{escape(text)}</p>'


def error(text: str) -> str:
    """A message in place of a result."""
    return f'<p class="error" role="alert">{escape(text)}</p>'
