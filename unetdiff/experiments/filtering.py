"""Samples filtered by a segmenter: what an independent classifier says of those that it agrees with.

A sample's score is the fraction of its foreground pixels that the segmenter gives the condition's class. Samples below
a threshold are dropped; the others are classified by a network that had no part in that choice, and compared with real
images by its features. A Fréchet distance decreases with the number of samples, so as many of those kept enter each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unetdiff.evaluation.distances import Gaussian, frechet_distance
from unetdiff.reports.consistency import wilson
from unetdiff.reports.record import Column, Table, Value

MIN_COMPARED = 2
"""Samples that a covariance needs."""


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
    distance: float | None = None
    """Fréchet distance of the first `num_compared` of those kept to real images; None if they are fewer than two."""
    num_compared: int = 0
    """As many as are kept at the highest threshold, the same at all of this guidance scale."""


def condition_scores(masks: Sequence[np.ndarray], classes: Sequence[int], background: int | None) -> np.ndarray:
    """Fraction of the foreground pixels of each mask (H, W) that have the condition's class, (N,); 0 without any."""
    scores = np.zeros(len(masks))
    for index, (mask, wanted) in enumerate(zip(masks, classes, strict=True)):
        counts = np.bincount(mask.ravel(), minlength=256)
        if background is not None:
            counts[background] = 0
        scores[index] = counts[wanted] / max(1, counts.sum())
    return scores


def kept_samples(
    scale: float,
    scores: np.ndarray,
    is_correct: np.ndarray,
    thresholds: Sequence[float],
    features: Tensor,
    real: Gaussian,
) -> list[Kept]:
    """All samples, then those at least at each threshold.

    Args:
        scale: the guidance scale.
        scores: of `condition_scores`, (N,).
        is_correct: what the classifier says, bool (N,).
        thresholds: of the score.
        features: of the samples, (N, D).
        real: of real images.
    """
    count = int((scores >= max(thresholds)).sum())
    results = []
    for threshold in (0.0, *sorted(thresholds)):
        kept = scores >= threshold
        compared = features[torch.from_numpy(kept)][:count]
        distance = frechet_distance(compared, real) if count >= MIN_COMPARED else None
        correct = int(is_correct[kept].sum())
        results.append(Kept(scale, threshold, len(scores), int(kept.sum()), correct, distance, count))
    return results


def filter_table(kept: Sequence[Kept], accuracy: float) -> Table:
    """Fraction kept, class consistency and Fréchet distance, a row for each guidance scale and threshold; `accuracy`:
    on real images."""
    columns = [
        Column("kept", "higher", "percent", "fraction of the samples that reach the threshold"),
        Column("class consistency", "higher", "percent", "independent classifier, of the samples kept"),
        Column("Fréchet distance", "lower", "number", "classifier features, validation images, equally many samples"),
    ]
    rows = []
    for one in kept:
        name = f"guidance {one.scale:g}, " + (f"score ≥ {one.threshold:g}" if one.threshold else "all samples")
        consistency = Value(one.num_correct / one.num_kept) if one.num_kept else Value(None)
        rows.append((name, [Value(one.num_kept / one.num_samples), consistency, Value(one.distance)]))
    counts = {f"{one.scale:g}": one.num_compared for one in kept}
    note = f"Accuracy of the classifier on real validation images: {accuracy:.1%}. Samples in each Fréchet distance: "
    note += ", ".join(f"{count} at guidance {scale}" for scale, count in counts.items()) + "."
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
        line = (
            f"Filtering at guidance {scale:g}: class consistency {texts[0]} of all samples, {texts[1]} of those with a "
            f"score of at least {last.threshold:g}"
        )
        if first.distance is not None and last.distance is not None:
            line += f"; Fréchet distance {first.distance:.2f} and {last.distance:.2f}, {last.num_compared} samples each"
        lines.append(f"{line}.")
    return lines
