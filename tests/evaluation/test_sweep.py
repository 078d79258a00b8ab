"""The sweep draws every setting from one noise, and its table says what it measured."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from unetdiff.evaluation.classifier import Judge, Network
from unetdiff.evaluation.distances import frechet_distance
from unetdiff.evaluation.features import FeatureNetwork
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
    """Noise that gets darker with guidance; remembers what it was asked for."""

    def __init__(self, classes: int | None) -> None:
        self.asked: list[tuple[int, SamplingConfig]] = []
        self.classes = classes

    def __call__(self, count: int, setting: SamplingConfig) -> tuple[Tensor, Tensor | None]:
        self.asked.append((count, setting))
        generator = torch.Generator().manual_seed(setting.seed)
        images = torch.randint(0, 256, (count, 3, 8, 8), generator=generator)
        labels = None if self.classes is None else torch.arange(count) % self.classes
        return (images / setting.guidance_scale).to(torch.uint8), labels


class AllTwos(Judge):
    """Takes every image for class 2."""

    def predict(self, images: Tensor) -> Tensor:
        return torch.full((len(images),), 2)


def test_every_setting_with_every_other(noisy: Noisy, tmp_path: Path) -> None:
    network = FeatureNetwork("corner", Corner())
    real = Reference("noise train", network(noisy(40, 9)))
    sampler, judge = Sampler(4), AllTwos(Network(4), 4, "none")
    found = sweep(sampler, (5, 10), ("ddim", "dpm++"), (1.0, 2.0), 12, 3, network, real, judge)
    warm_up, *asked = sampler.asked
    assert warm_up[0] == 2
    assert [(s.scheduler, s.steps, s.guidance_scale) for _, s in asked] == [
        (name, steps, scale) for name in ("ddim", "dpm++") for steps in (5, 10) for scale in (1.0, 2.0)
    ]
    assert {(count, s.seed) for count, s in asked} == {(12, 3)}
    assert [(cell.scheduler, cell.steps, cell.guidance) for cell in found.cells] == [
        (s.scheduler, s.steps, s.guidance_scale) for _, s in asked
    ]
    for cell, (count, setting) in zip(found.cells, asked, strict=True):
        images, _ = Sampler(4)(count, setting)
        assert cell.frechet == pytest.approx(frechet_distance(real.gaussian, network(images)))
        assert cell.class_consistency == 0.25 and cell.seconds_per_image > 0
    assert (found.n, found.distance) == (12, "Fréchet distance (corner features)")
    assert found.reference == "noise train, 40 images"

    paths = found.write(tmp_path)
    assert [path.name for path in paths] == ["sweep.json", "sweep.csv", "sweep.md"]
    assert json.loads(paths[0].read_text()) == found.figures()
    with paths[1].open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["frechet"]) for row in rows] == [cell.frechet for cell in found.cells]
    table = paths[2].read_text().splitlines()
    assert table[0].split(" | ")[1:] == [
        "steps",
        "guidance",
        "s / image",
        "Fréchet distance (corner features)",
        "class consistency |",
    ]
    assert table[1] == "| :-- | --: | --: | --: | --: | --: |" and len(table) == 10
    printed = sweep_lines(found.figures())
    assert len({len(line) for line in printed[:-1]}) == 1  # aligned
    assert printed[-1] == "n 12 each, from the same noise (seed 3); reference noise train, 40 images"


def test_without_judges_only_the_time_is_told() -> None:
    found = sweep(Sampler(None), (5,), ("ddim",), (1.0,), 1)
    assert found.distance is None and found.reference is None
    assert (found.cells[0].frechet, found.cells[0].class_consistency) == (None, None)
    head, row, shared = sweep_lines(found.figures())
    assert head.split() == ["scheduler", "steps", "guidance", "s", "/", "image"]
    assert row.split()[:3] == ["ddim", "5", "1"] and shared == "n 1 each, from the same noise (seed 0)"
