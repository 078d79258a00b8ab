"""The sweep: every combination of settings from the same noise, its files and its table."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from unetdiff.evaluation.classifier import Classifier, ClassifierNetwork
from unetdiff.evaluation.distances import frechet_distance
from unetdiff.evaluation.features import FeatureExtractor
from unetdiff.evaluation.reference import Reference
from unetdiff.evaluation.sweep import sweep
from unetdiff.evaluation.text_report import sweep_lines
from unetdiff.evaluation.types import SamplingConfig

Noisy = Callable[..., Tensor]


class Corner(nn.Module):
    """Three pixels as features."""

    def forward(self, images: Tensor) -> Tensor:
        return images[:, :, 0, 0].float()


class Sampler:
    """Noise that gets darker with guidance; records its calls."""

    def __init__(self, classes: int | None) -> None:
        self.calls: list[tuple[int, SamplingConfig]] = []
        self.classes = classes

    def __call__(self, count: int, setting: SamplingConfig) -> tuple[Tensor, Tensor | None]:
        self.calls.append((count, setting))
        generator = torch.Generator().manual_seed(setting.seed)
        images = torch.randint(0, 256, (count, 3, 8, 8), generator=generator)
        labels = None if self.classes is None else torch.arange(count) % self.classes
        return (images / setting.guidance_scale).to(torch.uint8), labels


class AllTwos(Classifier):
    """Predicts class 2 for every image."""

    def predict(self, images: Tensor) -> Tensor:
        return torch.full((len(images),), 2)


def test_every_combination(noisy: Noisy, tmp_path: Path) -> None:
    network = FeatureExtractor("corner", Corner())
    real = Reference("noise train", network(noisy(40, 9)))
    sampler, classifier = Sampler(4), AllTwos(ClassifierNetwork(4), 4, "none")
    result = sweep(sampler, (5, 10), ("ddim", "dpm++"), (1.0, 2.0), 12, 3, network, real, classifier)
    warm_up, *calls = sampler.calls
    assert warm_up[0] == 2
    assert [(s.scheduler, s.num_inference_steps, s.guidance_scale) for _, s in calls] == [
        (name, steps, scale) for name in ("ddim", "dpm++") for steps in (5, 10) for scale in (1.0, 2.0)
    ]
    assert {(count, s.seed) for count, s in calls} == {(12, 3)}
    assert [(row.scheduler, row.num_inference_steps, row.guidance_scale) for row in result.results] == [
        (s.scheduler, s.num_inference_steps, s.guidance_scale) for _, s in calls
    ]
    for row, (count, setting) in zip(result.results, calls, strict=True):
        images, _ = Sampler(4)(count, setting)
        assert row.frechet_distance == pytest.approx(frechet_distance(real.gaussian, network(images)))
        assert row.class_consistency == 0.25 and row.seconds_per_image > 0
    assert (result.n, result.distance) == (12, "Fréchet distance (corner features)")
    assert result.reference == "noise train, 40 images"

    paths = result.write(tmp_path)
    assert [path.name for path in paths] == ["sweep.json", "sweep.csv", "sweep.md"]
    assert json.loads(paths[0].read_text()) == result.metrics()
    with paths[1].open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["frechet_distance"]) for row in rows] == [row.frechet_distance for row in result.results]
    table = paths[2].read_text().splitlines()
    assert table[0].split(" | ")[1:] == [
        "steps",
        "guidance scale",
        "s / image",
        "Fréchet distance (corner features)",
        "class consistency |",
    ]
    assert table[1] == "| :-- | --: | --: | --: | --: | --: |" and len(table) == 10
    printed = sweep_lines(result.metrics())
    assert len({len(line) for line in printed[:-1]}) == 1  # aligned
    assert printed[-1] == "n = 12 each, same noise (seed 3); reference noise train, 40 images"


def test_time_only() -> None:
    result = sweep(Sampler(None), (5,), ("ddim",), (1.0,), 1)
    assert result.distance is None and result.reference is None
    assert (result.results[0].frechet_distance, result.results[0].class_consistency) == (None, None)
    head, row, shared = sweep_lines(result.metrics())
    assert head.split() == ["scheduler", "steps", "guidance", "scale", "s", "/", "image"]
    assert row.split()[:3] == ["ddim", "5", "1"] and shared == "n = 1 each, same noise (seed 0)"
