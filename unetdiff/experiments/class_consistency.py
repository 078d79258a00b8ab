"""Class consistency of a run's samples, evaluated once and cached in the run's folder."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from unetdiff.data.capabilities import WITH_LABELS
from unetdiff.errors import UserError
from unetdiff.experiments.result_cache import store_result, stored_result
from unetdiff.experiments.runs import with_last_weights
from unetdiff.models.weights_files import fingerprint
from unetdiff.reports.runs import Run
from unetdiff.reports.samples import Budget, conditional, sample_blocks

CACHE_FILE = "class_consistency.json"


@dataclass(frozen=True)
class ClassConsistency:
    """Accuracy of an independent classifier on the class-conditional samples of a run."""

    value: float
    """Fraction of the samples that are classified as the class they were conditioned on."""
    num_samples: int
    real_accuracy: float
    """Accuracy of the classifier on real validation images."""


def class_consistency(run: Run, budget: Budget, cache: Path, seed: int = 0) -> ClassConsistency | None:
    """Sample from a run's last weights and classify the samples; None if the run is not class-conditional.

    `unetdiff compare` reports the same metric for the best weights.

    Args:
        run: a finished run.
        budget: number of samples and denoising steps.
        cache: folder of the classifier, which is trained once on the real images of the dataset.
        seed: seed of the noise.
    """
    if "diffusion" not in run.heads or run.config["data"]["name"] not in WITH_LABELS or not conditional(run):
        return None
    last = with_last_weights(run)
    assert last.model is not None
    settings = {"seed": seed, **asdict(replace(budget, rows=0)), "network": fingerprint(last.model / "unet")}
    file = run.path / CACHE_FILE
    stored = stored_result(file, settings)
    if stored is not None:
        return ClassConsistency(**stored)
    blocks, problems = sample_blocks([last], budget, seed, cache)
    if problems:
        raise UserError(problems[0])
    classifier, score = blocks[0].classifier, blocks[0].scores.get(0)
    if classifier is None or score is None:
        return None
    result = ClassConsistency(score.value, score.n, classifier.accuracy)
    store_result(file, settings, asdict(result))
    return result
