"""The contrast of two colors, as WCAG 2.1 defines it: 3 to 1 is what a mark or a control needs (1.4.11)."""

from __future__ import annotations

from collections.abc import Sequence


def luminance(color: Sequence[int]) -> float:
    """Relative luminance of sRGB in [0, 255]."""
    linear = [x / 12.92 if x <= 0.03928 else ((x + 0.055) / 1.055) ** 2.4 for x in (one / 255 for one in color)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: Sequence[int], other: Sequence[int]) -> float:
    """From 1 to 21."""
    dark, light = sorted([luminance(one), luminance(other)])
    return (light + 0.05) / (dark + 0.05)
