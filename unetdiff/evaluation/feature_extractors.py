"""Who looks at a denoiser's samples, and what is left of samples that were seen part by part."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from unetdiff.errors import UserError
from unetdiff.evaluation.classifier import Judge, train_judge
from unetdiff.evaluation.config import CLASSIFIER, JudgingConfig, parse_features
from unetdiff.evaluation.features import FeatureNetwork, load_features
from unetdiff.evaluation.reference import Reference, reference
from unetdiff.evaluation.types import Denoiser, EvalSplits, SampleBatch


@dataclass(frozen=True)
class Judges:
    """Who looks at the samples."""

    networks: list[FeatureNetwork]
    classifier: Judge | None


@dataclass(frozen=True)
class References:
    """The real images' features, each set read once for each network whoever asks."""

    sets: EvalSplits
    cache: Path
    known: dict[tuple[str, str], Reference] = field(default_factory=dict)

    def of(self, network: FeatureNetwork, split: str) -> Reference:
        """The features of a split."""
        key = (network.fingerprint, split)
        if key not in self.known:
            place = self.cache / f"{split}-{network.name}"
            self.known[key] = reference(self.sets[split], f"{self.sets.name} {split}", network, place)
        return self.known[key]


@dataclass(frozen=True)
class Seen:
    """What is left of samples that were drawn part by part."""

    images: Tensor
    """The first few, uint8 (K, 3, H, W)."""
    labels: Tensor | None
    """The classes that all of them were asked for, (N,)."""
    predicted: Tensor | None
    """The classes that they were taken for, (N,)."""
    features: list[Tensor]
    """(N, D) of each network."""
    n: int


def find_judges(
    denoiser: Denoiser, sets: EvalSplits, config: JudgingConfig, cache: Path, device: torch.device | str
) -> Judges:
    """The feature networks that are asked for, and the classifier where it is one of them or there are classes.

    Raises:
        UserError: as in `evaluate_denoiser`.
    """
    one_class = "label" in sets.train[0]  # a mask's classes are several, and no classifier learns from them
    labels = list(sets.train.labels) if one_class else []
    if denoiser.classes and denoiser.classes != labels:
        raise UserError(
            f"data.name: the model draws the classes {denoiser.classes[:5]}, but {sets.name} has {labels[:5]}; "
            "judge it on its own set, or draw nothing (samples 0)"
        )
    asked = config.features
    if asked is None:
        asked = (CLASSIFIER,) if labels else ()
    words = [parse_features(word) for word in asked]
    classifier = None
    if labels and (denoiser.classes or CLASSIFIER in dict(words)):
        classifier = train_judge(sets.train, len(labels), cache / "judge", device=device)
    return Judges([load_features(name, weights, classifier, device) for name, weights in words], classifier)


def look(drawn: Iterable[SampleBatch], judges: Judges, kept: int) -> Seen:
    """Let the judges see samples as they are drawn; of the images only the first `kept` stay."""
    images: list[Tensor] = []
    labels: list[Tensor] = []
    predicted: list[Tensor] = []
    features: list[list[Tensor]] = [[] for _ in judges.networks]
    n = 0
    for part in drawn:
        if n < kept:
            images.append(part.images[: kept - n])
        n += len(part.images)
        for network, found in zip(judges.networks, features, strict=True):
            found.append(network(part.images))
        if part.labels is not None:
            labels.append(part.labels)
            if judges.classifier is not None:
                predicted.append(judges.classifier.predict(part.images))
    return Seen(
        torch.cat(images),
        torch.cat(labels) if labels else None,
        torch.cat(predicted) if predicted else None,
        [torch.cat(found) for found in features],
        n,
    )
