"""Samples filtered by a segmenter: what an independent classifier says of those that it agrees with.

A sample's score is the fraction of its foreground pixels that the segmenter gives the condition's class. Samples below
a threshold are dropped; the others are classified by a network that had no part in that choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unetdiff.reports.consistency import wilson
from unetdiff.reports.record import Column, Table, Value


@dataclass(frozen=True)
class Kept:
    """The samples of one guidance scale that reach a threshold."""

    scale: float
    threshold: float
    num_samples: int
    """Before filtering."""
    num_kept: int
    num_correct: int
    """Of those kept, by the classifier."""


def condition_scores(masks: Sequence[np.ndarray], classes: Sequence[int], background: int | None) -> np.ndarray:
    """Fraction of the foreground pixels of each mask (H, W) that have the condition's class, (N,); 0 without any."""
    scores = np.zeros(len(masks))
    for index, (mask, wanted) in enumerate(zip(masks, classes, strict=True)):
        counts = np.bincount(mask.ravel(), minlength=256)
        if background is not None:
            counts[background] = 0
        scores[index] = counts[wanted] / max(1, counts.sum())
    return scores


def kept_samples(scale: float, scores: np.ndarray, is_correct: np.ndarray, thresholds: Sequence[float]) -> list[Kept]:
    """All samples, then those at least at each threshold; scores and is_correct are (N,)."""
    return [
        Kept(scale, threshold, len(scores), int(kept.sum()), int(is_correct[kept].sum()))
        for threshold in (0.0, *sorted(thresholds))
        for kept in [scores >= threshold]
    ]


def filter_table(kept: Sequence[Kept], accuracy: float) -> Table:
    """Share kept and class consistency, a row for each guidance scale and threshold; `accuracy`: on real images."""
    columns = [
        Column("kept", "higher", "percent", "fraction of the samples that reach the threshold"),
        Column("class consistency", "higher", "percent", "independent classifier, of the samples kept"),
    ]
    rows = []
    for one in kept:
        name = f"guidance {one.scale:g}, " + (f"score ≥ {one.threshold:g}" if one.threshold else "all samples")
        consistency = Value(one.num_correct / one.num_kept) if one.num_kept else Value(None)
        rows.append((name, [Value(one.num_kept / one.num_samples), consistency]))
    note = f"Accuracy of the classifier on real validation images: {accuracy:.1%}."
    return Table("Samples filtered by the segmenter", columns, rows, note=note)


def filter_findings(kept: Sequence[Kept]) -> list[str]:
    """A sentence for each guidance scale: all samples against those at the highest threshold."""
    lines = []
    for scale in dict.fromkeys(one.scale for one in kept):
        of_scale = [one for one in kept if one.scale == scale and one.num_kept]
        first, last = of_scale[0], of_scale[-1]
        if first is last:
            continue
        texts = []
        for one in (first, last):
            low, high = wilson(one.num_correct, one.num_kept)
            rate = one.num_correct / one.num_kept
            texts.append(f"{rate:.1%} (95 % interval {low:.1%} to {high:.1%}, {one.num_kept} samples)")
        lines.append(
            f"Filtering at guidance {scale:g}: class consistency {texts[0]} of all samples, {texts[1]} of those with a "
            f"score of at least {last.threshold:g}."
        )
    return lines
