"""Evaluation of a denoiser of a few functions: samples, metrics, cache, written files and text."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from unetdiff.data.base import ImageDataset
from unetdiff.diffusion.config import DiffusionConfig, NoiseConfig
from unetdiff.diffusion.objectives import build_scheduler
from unetdiff.errors import UserError
from unetdiff.evaluation import classifier, feature_extractors
from unetdiff.evaluation.classifier import Classifier, ClassifierNetwork
from unetdiff.evaluation.config import EvaluationConfig, SweepConfig
from unetdiff.evaluation.denoiser import evaluate_denoiser
from unetdiff.evaluation.text_report import denoiser_lines
from unetdiff.evaluation.types import Denoiser, EvalSplits, SampleBatch, SamplingConfig

CLASSES = ["dark", "bright"]
Build = Callable[[int, int], ImageDataset]


def images(count: int, seed: int) -> Tensor:
    """Grey noise, dark and bright in turn, uint8 (N, 3, 8, 8)."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 60, (count, 3, 8, 8), generator=generator)
    return (noise + 140 * (torch.arange(count) % 2)[:, None, None, None]).to(torch.uint8)


class FakeDenoiser:
    """Samples such images, every third of the wrong class; with `copied`, training images instead."""

    def __init__(self, copied: Tensor | None = None) -> None:
        self.copied = copied
        self.calls: list[tuple[int, SamplingConfig]] = []
        self.batches: list[dict[str, Any]] = []

    def sample(self, count: int, setting: SamplingConfig) -> Iterator[SampleBatch]:
        self.calls.append((count, setting))
        samples = images(count, 100 + setting.seed) if self.copied is None else self.copied[:count]
        labels = torch.arange(count) % 2
        if self.copied is None:
            samples = torch.where((torch.arange(count) % 3 == 0)[:, None, None, None], 200 - samples.int(), samples)
        for indices in torch.arange(count).split(7):
            yield SampleBatch(samples[indices].to(torch.uint8), labels[indices])

    def denoise(self, batch: dict[str, Any]) -> Callable[[Tensor, Tensor], Tensor]:
        self.batches.append(batch)
        return lambda xt, t: torch.zeros_like(xt)

    def as_denoiser(self) -> Denoiser:
        config = DiffusionConfig(prediction_type="sample", noise=NoiseConfig(num_train_timesteps=10))
        return Denoiser(self.sample, self.denoise, build_scheduler(config), CLASSES, True)


class Brightness(Classifier):
    """A classifier that needs no training: bright or dark."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(ClassifierNetwork(2), 2, "none")

    def predict(self, images: Tensor) -> Tensor:
        return (images.float().mean(dim=(1, 2, 3)) > 100).long()


@pytest.fixture
def splits(in_memory: Callable[..., ImageDataset]) -> EvalSplits:
    train, val = in_memory(images(40, 0), CLASSES, "train"), in_memory(images(30, 1), CLASSES, "val")
    return EvalSplits("grey", train, val, "val")


@pytest.fixture(autouse=True)
def _no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_extractors, "train_classifier", lambda *_, **__: Brightness())


def test_samples(splits: EvalSplits, tmp_path: Path) -> None:
    fake = FakeDenoiser()
    config = EvaluationConfig(samples_per_class=9, num_neighbors=2)
    setting = SamplingConfig(num_inference_steps=4, guidance_scale=3.0, seed=5)
    metrics = evaluate_denoiser(fake.as_denoiser(), splits, config, setting, tmp_path / "out", tmp_path)
    assert fake.calls == [(18, setting)]
    assert (metrics["samples/num_images"], metrics["samples/num_inference_steps"], metrics["samples/seed"]) == (
        18,
        4,
        5,
    )
    assert metrics["samples/guidance_scale"] == 3.0 and "samples/scheduler" not in metrics
    assert metrics["samples/class_consistency"] == pytest.approx(12 / 18)
    assert metrics["samples/class_consistency_per_class"] == {
        "dark": pytest.approx(6 / 9),
        "bright": pytest.approx(6 / 9),
    }
    assert metrics["samples/classifier_accuracy_on_real"] == 1.0
    assert metrics["samples/color_mean_error"] >= 0

    distances = metrics["samples/distances"]
    assert [d["name"].split(" (")[0] for d in distances] == [
        "Fréchet distance",
        "kernel distance",
        "precision",
        "recall",
    ]
    assert all(d["reference"] == "grey train" for d in distances)
    assert (distances[0]["n"], distances[0]["reference_n"], distances[2]["n"]) == (18, 40, 18)
    text = denoiser_lines(metrics)
    assert text[1] == "Classifier accuracy on 30 real images: 100 %"
    assert "n = 18, reference grey train (40 images)" in text[3] and "FID" not in "".join(text)

    assert {file.name for file in (tmp_path / "out").iterdir()} == {"samples.png", "nearest_neighbors.png"}
    assert all(Image.open(file).width > 100 for file in (tmp_path / "out").iterdir())
    assert (tmp_path / "reference" / "train-classifier.safetensors").is_file()
    for space in ("classifier", "pixels"):
        assert 0 <= metrics[f"memorization/fraction_{space}"] <= 1
    assert metrics["memorization/expected_fraction"] == 0.05
    assert [
        metrics[f"memorization/{name}"] for name in ("num_samples", "num_held_out_images", "num_training_images")
    ] == [
        18,
        30,
        40,
    ]
    assert len(metrics["memorization/nearest"]) == 16
    json.dumps(metrics)


def test_copies_of_training_images(splits: EvalSplits, tmp_path: Path) -> None:
    fake = FakeDenoiser(splits.train.images)  # type: ignore[attr-defined]
    metrics = evaluate_denoiser(
        fake.as_denoiser(),
        splits,
        EvaluationConfig(samples_per_class=10, num_neighbors=1),
        SamplingConfig(),
        tmp_path,
        tmp_path,
    )
    assert metrics["memorization/fraction_pixels"] == metrics["memorization/fraction_classifier"] == 1.0
    first = [entry for entry in metrics["memorization/nearest"] if entry["space"] == "pixels"]
    assert [entry["names"] for entry in first] == [[f"train/{row}"] for row in range(8)]
    assert metrics["samples/distances"][2]["value"] == 1.0  # precision


def test_number_and_reference_of_distances(splits: EvalSplits, tmp_path: Path) -> None:
    fake, base = FakeDenoiser(), EvaluationConfig(samples_per_class=3, num_neighbors=0, reference="val")
    more = evaluate_denoiser(
        fake.as_denoiser(),
        splits,
        replace(base, num_distance_samples=20),
        SamplingConfig(),
        tmp_path / "more",
        tmp_path,
    )
    assert fake.calls[-1][0] == more["samples/num_images"] == more["samples/distances"][0]["n"] == 20
    assert more["samples/distances"][0]["reference"] == "grey val"
    assert more["samples/distances"][0]["reference_n"] == 30
    fewer = evaluate_denoiser(
        fake.as_denoiser(),
        splits,
        replace(base, num_distance_samples=5),
        SamplingConfig(),
        tmp_path / "fewer",
        tmp_path,
    )
    assert (fewer["samples/num_images"], fewer["samples/distances"][0]["n"]) == (6, 5)
    none = evaluate_denoiser(
        fake.as_denoiser(), splits, replace(base, features=()), SamplingConfig(), tmp_path / "no", tmp_path
    )
    assert none["samples/distances"] == [] and denoiser_lines(none)[2:] == []


def test_a_denoiser_without_classes(in_memory: Callable[..., ImageDataset], tmp_path: Path) -> None:
    splits = EvalSplits("grey", in_memory(images(12, 0)), in_memory(images(12, 1)), "train")
    fake = FakeDenoiser()
    plain = replace(
        fake.as_denoiser(),
        sample=lambda count, setting: (SampleBatch(part.images, None) for part in fake.sample(count, setting)),
        classes=[],
        uses_guidance=False,
    )
    metrics = evaluate_denoiser(
        plain, splits, EvaluationConfig(samples_per_class=2), SamplingConfig(), tmp_path, tmp_path
    )
    assert metrics["samples/num_images"] == 20 and metrics["samples/guidance_scale"] == 1.0
    assert metrics["samples/distances"] == [] and "samples/class_consistency" not in metrics
    assert "memorization/fraction_pixels" in metrics and "memorization/fraction_classifier" not in metrics
    with pytest.raises(UserError, match="must have a dataset with class labels"):
        evaluate_denoiser(
            plain, splits, EvaluationConfig(features=("classifier",)), SamplingConfig(), tmp_path, tmp_path
        )


def test_likelihood(splits: EvalSplits, tmp_path: Path) -> None:
    fake = FakeDenoiser()
    config = EvaluationConfig(samples_per_class=0, num_likelihood_images=20, num_likelihood_timesteps=3)
    metrics = evaluate_denoiser(fake.as_denoiser(), splits, config, SamplingConfig(seed=1), tmp_path, tmp_path)
    assert fake.calls == []
    assert [len(batch["image"]) for batch in fake.batches] == [16, 4]
    assert sum((batch["label"].tolist() for batch in fake.batches), []) == [
        int(n) % 2 for n in torch.linspace(0, 29, 20).round()
    ]
    assert (metrics["likelihood/num_images"], metrics["likelihood/timesteps"]) == (20, "4 of 10")
    assert metrics["likelihood/bits_per_dimension"] > 0
    again = evaluate_denoiser(fake.as_denoiser(), splits, config, SamplingConfig(seed=1), tmp_path, tmp_path)
    assert again == metrics


def test_sweep_defaults_to_the_settings_of_the_evaluation(splits: EvalSplits, tmp_path: Path) -> None:
    fake = FakeDenoiser()
    config = EvaluationConfig(samples_per_class=5, num_neighbors=0, sweep=SweepConfig(num_inference_steps=(2, 3)))
    metrics = evaluate_denoiser(
        fake.as_denoiser(), splits, config, SamplingConfig(guidance_scale=2.5, seed=4), tmp_path / "out", tmp_path
    )
    assert [(r["num_inference_steps"], r["scheduler"], r["guidance_scale"]) for r in metrics["sweep"]["results"]] == [
        (2, "ddim", 2.5),
        (3, "ddim", 2.5),
    ]
    assert metrics["sweep"]["n"] == 10 and fake.calls[-1] == (10, SamplingConfig(3, 2.5, 4, "ddim"))
    assert json.loads((tmp_path / "out" / "sweep.json").read_text()) == metrics["sweep"]
    assert "n = 10 each" in denoiser_lines(metrics)[-1]


def test_errors_before_sampling(splits: EvalSplits, tmp_path: Path) -> None:
    fake = FakeDenoiser()
    denoiser = fake.as_denoiser()
    for candidate, config, message in (
        (
            denoiser,
            EvaluationConfig(sweep=SweepConfig(num_inference_steps=(5, 11))),
            "sweep.num_inference_steps=11: must be at most the 10 timesteps",
        ),
        (
            replace(denoiser, uses_guidance=False),
            EvaluationConfig(sweep=SweepConfig(guidance_scale=(1, 2))),
            "sweep.guidance_scale=1: must be 1 for an unconditional model",
        ),
        (
            replace(denoiser, classes=["cat", "dog"]),
            EvaluationConfig(),
            r"data.name=grey: must have the classes of the model, \['cat', 'dog'\]",
        ),
    ):
        with pytest.raises(UserError, match=message):
            evaluate_denoiser(candidate, splits, config, SamplingConfig(), tmp_path / "out", tmp_path)
    assert fake.calls == []


def test_label_accuracy() -> None:
    predicted, labels = torch.tensor([0, 1, 1, 1]), torch.tensor([0, 0, 1, 1])
    assert classifier.label_accuracy(predicted, labels) == 0.75
    assert classifier.per_class_accuracy(predicted, labels, 3) == [0.5, 1.0, None]
