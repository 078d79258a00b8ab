"""Class consistency of a run's samples, judged once and kept in the run's folder."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from unetdiff.data.capabilities import WITH_LABELS
from unetdiff.experiments.runs import last_weights
from unetdiff.reports.runs import Run, read_json
from unetdiff.reports.samples import Budget, conditional, sample_blocks

KEPT = "class_consistency.json"


@dataclass(frozen=True)
class Judged:
    """What the independent classifier says of a run's samples."""

    value: float
    """Share of samples that it takes for the class that was asked for."""
    n: int
    """Samples."""
    accuracy: float
    """Share of real validation images that it names rightly."""


def class_consistency(run: Run, budget: Budget, cache: Path, seed: int = 0) -> Judged | None:
    """Draw a run's samples with its last weights and let the independent classifier name them (`unetdiff compare` does
    the same with the best ones); None where the run draws no classes.

    Args:
        run: a finished run.
        budget: how many samples, in how many steps.
        cache: folder of the classifier, which is trained once on the set's real images.
        seed: of the noise that the samples start from.
    """
    if "diffusion" not in run.heads or run.config["data"]["name"] not in WITH_LABELS or not conditional(run):
        return None
    asked = {"seed": seed, **asdict(replace(budget, rows=0))}
    file = run.path / KEPT
    found: dict[str, Any] = read_json(file)
    if found.get("asked") != asked:
        blocks, _ = sample_blocks([last_weights(run)], budget, seed, cache)
        judge, score = blocks[0].classifier, blocks[0].scores.get(0)
        if judge is None or score is None:
            return None
        found = {"asked": asked, "judged": asdict(Judged(score.value, score.n, judge.accuracy))}
        aside = file.with_suffix(".writing")
        aside.write_text(json.dumps(found, indent=1) + "\n")
        aside.replace(file)
    return Judged(**found["judged"])
