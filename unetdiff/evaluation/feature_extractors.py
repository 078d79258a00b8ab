"""Feature networks and the classifier applied to samples batch by batch, and to the real images of a split."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from unetdiff.errors import UserError
from unetdiff.evaluation.classifier import Classifier, train_classifier
from unetdiff.evaluation.config import CLASSIFIER, EvaluationConfig, parse_features
from unetdiff.evaluation.features import FeatureExtractor, load_feature_extractor
from unetdiff.evaluation.reference import Reference, load_reference
from unetdiff.evaluation.types import Denoiser, EvalSplits, SampleBatch


@dataclass(frozen=True)
class EvaluationNetworks:
    """The networks that samples are evaluated with."""

    extractors: list[FeatureExtractor]
    classifier: Classifier | None


@dataclass(frozen=True)
class ReferenceFeatures:
    """The features of real images, computed once for each feature network and split."""

    splits: EvalSplits
    folder: Path
    """Folder of the cache on disk."""
    in_memory: dict[tuple[str, str], Reference] = field(default_factory=dict)

    def get(self, network: FeatureExtractor, split: str) -> Reference:
        """The features of a split, "train" or "val"."""
        key = (network.fingerprint, split)
        if key not in self.in_memory:
            path = self.folder / f"{split}-{network.name}"
            self.in_memory[key] = load_reference(self.splits[split], f"{self.splits.name} {split}", network, path)
        return self.in_memory[key]


@dataclass(frozen=True)
class SampleFeatures:
    """Features and predictions of n samples, and the first images."""

    images: Tensor
    """The first k samples, uint8 (k, 3, H, W)."""
    labels: Tensor | None
    """Classes (n,) they are conditioned on."""
    predictions: Tensor | None
    """Classes (n,) predicted by the classifier."""
    features: list[Tensor]
    """(n, D) of each feature network."""
    n: int


def load_evaluation_networks(
    denoiser: Denoiser, splits: EvalSplits, config: EvaluationConfig, cache: Path, device: torch.device | str
) -> EvaluationNetworks:
    """The configured feature networks, and the classifier if it is one of them or the denoiser has classes.

    Raises:
        UserError: see `evaluate_denoiser`.
    """
    has_labels = "label" in splits.train[0]  # the classes of a mask are not labels that a classifier can be trained on
    labels = list(splits.train.labels) if has_labels else []
    if denoiser.classes and denoiser.classes != labels:
        raise UserError(
            f"data.name={splits.name}: must have the classes of the model, {denoiser.classes[:5]} (got {labels[:5]}). "
            "Evaluate on the dataset of the run, or draw no samples (--samples_per_class 0)."
        )
    names = config.features
    if names is None:
        names = (CLASSIFIER,) if labels else ()
    features = [parse_features(name) for name in names]
    classifier = None
    if labels and (denoiser.classes or CLASSIFIER in dict(features)):
        classifier = train_classifier(splits.train, len(labels), cache / "classifier", device=device)
    extractors = [load_feature_extractor(name, weights, classifier, device) for name, weights in features]
    return EvaluationNetworks(extractors, classifier)


def extract_features(samples: Iterable[SampleBatch], networks: EvaluationNetworks, max_images: int) -> SampleFeatures:
    """Extract features and predictions batch by batch; only the first `max_images` images are kept."""
    images: list[Tensor] = []
    labels: list[Tensor] = []
    predictions: list[Tensor] = []
    features: list[list[Tensor]] = [[] for _ in networks.extractors]
    n = 0
    for batch in samples:
        if n < max_images:
            images.append(batch.images[: max_images - n])
        n += len(batch.images)
        for extractor, chunks in zip(networks.extractors, features, strict=True):
            chunks.append(extractor(batch.images))
        if batch.labels is not None:
            labels.append(batch.labels)
            if networks.classifier is not None:
                predictions.append(networks.classifier.predict(batch.images))
    return SampleFeatures(
        torch.cat(images),
        torch.cat(labels) if labels else None,
        torch.cat(predictions) if predictions else None,
        [torch.cat(chunks) for chunks in features],
        n,
    )
