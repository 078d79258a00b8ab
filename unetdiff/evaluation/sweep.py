"""Comparison of sampler settings: time, Fréchet distance and class consistency of every combination."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from torch import Tensor

from unetdiff.console import progress_bar
from unetdiff.evaluation.classifier import Classifier, label_accuracy
from unetdiff.evaluation.distances import frechet_distance
from unetdiff.evaluation.features import FeatureExtractor
from unetdiff.evaluation.reference import Reference
from unetdiff.evaluation.text_report import sweep_rows
from unetdiff.evaluation.types import SamplingConfig
from unetdiff.files.records import write_json
from unetdiff.files.tables import write_table
from unetdiff.files.writing import write_text
from unetdiff.text import markdown

Sample = Callable[[int, SamplingConfig], tuple[Tensor, Tensor | None]]
"""(n, config) -> images, uint8 (n, 3, H, W), and the classes (n,) they are conditioned on, or None."""


@dataclass(frozen=True)
class SettingResult:
    """The metrics of one combination of settings."""

    num_inference_steps: int
    scheduler: str
    guidance_scale: float
    seconds_per_image: float
    """Sampling only."""
    frechet_distance: float | None
    """None without a feature network."""
    class_consistency: float | None
    """None without classes."""


@dataclass(frozen=True)
class Sweep:
    """The metrics of all combinations."""

    results: list[SettingResult]
    n: int
    """Samples of each combination."""
    seed: int
    """Seed of the noise, shared by all."""
    distance: str | None
    """Name of the Fréchet distance."""
    reference: str | None
    """Dataset, split and number of the real images."""

    def metrics(self) -> dict[str, Any]:
        """As a dict for JSON."""
        return asdict(self)

    def write(self, folder: Path) -> list[Path]:
        """Write sweep.json, sweep.csv and sweep.md."""
        metrics = self.metrics()
        paths = [folder / f"sweep.{suffix}" for suffix in ("json", "csv", "md")]
        write_json(paths[0], metrics)
        write_table(paths[1], [list(metrics["results"][0]), *(list(row.values()) for row in metrics["results"])])
        write_text(paths[2], "\n".join(markdown(sweep_rows(metrics))) + "\n")
        return paths


def sweep(
    sample: Sample,
    num_inference_steps: Sequence[int],
    schedulers: Sequence[str],
    guidance_scales: Sequence[float],
    n: int,
    seed: int = 0,
    network: FeatureExtractor | None = None,
    real: Reference | None = None,
    classifier: Classifier | None = None,
) -> Sweep:
    """Sample `n` images with every combination of settings, from the same noise, and measure them.

    Two images are sampled first, so that the first setting does not include torch's initialization.

    Args:
        sample: the sampler.
        num_inference_steps: numbers of denoising steps.
        schedulers: of `unetdiff.diffusion.scheduler_names.SCHEDULERS`.
        guidance_scales: guidance scales.
        n: images of each combination; only those of one are held in memory.
        seed: seed of the noise.
        network: feature network of the Fréchet distance; None: no distance.
        real: reference features of that network.
        classifier: for class consistency; None: not measured.
    """
    settings = [
        SamplingConfig(steps, scale, seed, name)
        for name, steps, scale in product(schedulers, num_inference_steps, guidance_scales)
    ]
    sample(min(n, 2), settings[0])
    results = []
    for setting in progress_bar(settings, desc="settings", unit="setting"):
        start = time.perf_counter()
        images, labels = sample(n, setting)
        seconds = (time.perf_counter() - start) / n
        distance = consistency = None
        if network is not None and real is not None:
            distance = frechet_distance(real.gaussian, network(images))
        if classifier is not None and labels is not None:
            consistency = label_accuracy(classifier.predict(images), labels)
        assert setting.scheduler is not None
        steps, scale = setting.num_inference_steps, setting.guidance_scale
        results.append(SettingResult(steps, setting.scheduler, scale, seconds, distance, consistency))
    if network is None or real is None:
        return Sweep(results, n, seed, None, None)
    return Sweep(results, n, seed, network.frechet_name, f"{real.name}, {len(real.features)} images")
