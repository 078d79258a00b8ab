"""A denoiser that is a few functions, judged: what is drawn, counted, kept, written and told."""

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
from unetdiff.evaluation import classifier
from unetdiff.evaluation import feature_extractors as judges
from unetdiff.evaluation.classifier import Judge, Network
from unetdiff.evaluation.config import JudgingConfig, SweepConfig
from unetdiff.evaluation.denoiser import evaluate_denoiser
from unetdiff.evaluation.text_report import lines
from unetdiff.evaluation.types import Denoiser, EvalSplits, SampleBatch, SamplingConfig

CLASSES = ["dark", "bright"]
Build = Callable[[int, int], ImageDataset]


def images(count: int, seed: int) -> Tensor:
    """Grey noise, dark and bright in turn, uint8 (N, 3, 8, 8)."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 60, (count, 3, 8, 8), generator=generator)
    return (noise + 140 * (torch.arange(count) % 2)[:, None, None, None]).to(torch.uint8)


class Shop:
    """Draws such images; every third is of the other class. `copied`: gives out training images instead."""

    def __init__(self, copied: Tensor | None = None) -> None:
        self.copied = copied
        self.asked: list[tuple[int, SamplingConfig]] = []
        self.told: list[dict[str, Any]] = []

    def draw(self, count: int, setting: SamplingConfig) -> Iterator[SampleBatch]:
        self.asked.append((count, setting))
        drawn = images(count, 100 + setting.seed) if self.copied is None else self.copied[:count]
        labels = torch.arange(count) % 2
        if self.copied is None:
            drawn = torch.where((torch.arange(count) % 3 == 0)[:, None, None, None], 200 - drawn.int(), drawn)
        for part in torch.arange(count).split(7):
            yield SampleBatch(drawn[part].to(torch.uint8), labels[part])

    def denoise(self, batch: dict[str, Any]) -> Callable[[Tensor, Tensor], Tensor]:
        self.told.append(batch)
        return lambda xt, t: torch.zeros_like(xt)

    def as_denoiser(self) -> Denoiser:
        config = DiffusionConfig(prediction_type="sample", noise=NoiseConfig(num_train_timesteps=10))
        return Denoiser(self.draw, self.denoise, build_scheduler(config), CLASSES, True)


class Brightness(Judge):
    """A classifier that needs no training: bright or dark."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(Network(2), 2, "none")

    def predict(self, images: Tensor) -> Tensor:
        return (images.float().mean(dim=(1, 2, 3)) > 100).long()


@pytest.fixture
def sets(held: Callable[..., ImageDataset]) -> EvalSplits:
    train, val = held(images(40, 0), CLASSES, "train"), held(images(30, 1), CLASSES, "val")
    return EvalSplits("grey", train, val, "val")


@pytest.fixture(autouse=True)
def _no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judges, "train_judge", lambda *_, **__: Brightness())


def test_samples_are_judged_and_shown(sets: EvalSplits, tmp_path: Path) -> None:
    shop = Shop()
    config = JudgingConfig(samples_per_class=9, neighbours=2)
    setting = SamplingConfig(steps=4, guidance_scale=3.0, seed=5)
    figures = evaluate_denoiser(shop.as_denoiser(), sets, config, setting, tmp_path / "out", tmp_path)
    assert shop.asked == [(18, setting)]
    assert (figures["samples/number"], figures["samples/steps"], figures["samples/seed"]) == (18, 4, 5)
    assert figures["samples/guidance_scale"] == 3.0 and "samples/scheduler" not in figures
    assert figures["samples/class_consistency"] == pytest.approx(12 / 18)
    assert figures["samples/class_consistency_per_class"] == {
        "dark": pytest.approx(6 / 9),
        "bright": pytest.approx(6 / 9),
    }
    assert figures["samples/judge_accuracy_on_real"] == 1.0
    assert figures["samples/color_mean_error"] >= 0

    distances = figures["samples/distances"]
    assert [d["name"].split(" (")[0] for d in distances] == [
        "Fréchet distance",
        "kernel distance",
        "precision",
        "recall",
    ]
    assert all(d["reference"] == "grey train" for d in distances)
    assert (distances[0]["n"], distances[0]["reference_n"], distances[2]["n"]) == (18, 40, 18)
    printed = lines(figures)
    assert "n 18, reference grey train (40 images)" in printed[1] and "FID" not in "".join(printed)

    assert {file.name for file in (tmp_path / "out").iterdir()} == {"samples.png", "neighbours.png"}
    assert all(Image.open(file).width > 100 for file in (tmp_path / "out").iterdir())
    assert (tmp_path / "reference" / "train-classifier.safetensors").is_file()
    for space in ("classifier", "pixels"):
        assert 0 <= figures[f"neighbours/memorised_{space}"] <= 1
    assert figures["neighbours/memorised_by_chance"] == 0.05
    assert [figures[f"neighbours/{name}"] for name in ("samples", "unseen_images", "training_images")] == [
        18,
        30,
        40,
    ]
    assert len(figures["neighbours/nearest"]) == 16
    json.dumps(figures)


def test_copies_of_training_images_are_told(sets: EvalSplits, tmp_path: Path) -> None:
    shop = Shop(sets.train.images)  # type: ignore[attr-defined]
    figures = evaluate_denoiser(
        shop.as_denoiser(),
        sets,
        JudgingConfig(samples_per_class=10, neighbours=1),
        SamplingConfig(),
        tmp_path,
        tmp_path,
    )
    assert figures["neighbours/memorised_pixels"] == figures["neighbours/memorised_classifier"] == 1.0
    first = [entry for entry in figures["neighbours/nearest"] if entry["space"] == "pixels"]
    assert [entry["names"] for entry in first] == [[f"train/{row}"] for row in range(8)]
    assert figures["samples/distances"][2]["value"] == 1.0  # precision


def test_distances_have_a_number_and_a_reference_of_their_own(sets: EvalSplits, tmp_path: Path) -> None:
    shop, base = Shop(), JudgingConfig(samples_per_class=3, neighbours=0, reference="val")
    more = evaluate_denoiser(
        shop.as_denoiser(), sets, replace(base, fid_samples=20), SamplingConfig(), tmp_path / "more", tmp_path
    )
    assert shop.asked[-1][0] == more["samples/number"] == more["samples/distances"][0]["n"] == 20
    assert more["samples/distances"][0]["reference"] == "grey val"
    assert more["samples/distances"][0]["reference_n"] == 30
    fewer = evaluate_denoiser(
        shop.as_denoiser(), sets, replace(base, fid_samples=5), SamplingConfig(), tmp_path / "fewer", tmp_path
    )
    assert (fewer["samples/number"], fewer["samples/distances"][0]["n"]) == (6, 5)
    none = evaluate_denoiser(
        shop.as_denoiser(), sets, replace(base, features=()), SamplingConfig(), tmp_path / "no", tmp_path
    )
    assert none["samples/distances"] == [] and lines(none) == []


def test_a_denoiser_without_classes(held: Callable[..., ImageDataset], tmp_path: Path) -> None:
    sets = EvalSplits("grey", held(images(12, 0)), held(images(12, 1)), "train")
    shop = Shop()
    plain = replace(
        shop.as_denoiser(),
        draw=lambda count, setting: (SampleBatch(part.images, None) for part in shop.draw(count, setting)),
        classes=[],
        uses_guidance=False,
    )
    figures = evaluate_denoiser(plain, sets, JudgingConfig(samples_per_class=2), SamplingConfig(), tmp_path, tmp_path)
    assert figures["samples/number"] == 20 and figures["samples/guidance_scale"] == 1.0
    assert figures["samples/distances"] == [] and "samples/class_consistency" not in figures
    assert "neighbours/memorised_pixels" in figures and "neighbours/memorised_classifier" not in figures
    with pytest.raises(UserError, match="needs a set with classes"):
        evaluate_denoiser(plain, sets, JudgingConfig(features=("classifier",)), SamplingConfig(), tmp_path, tmp_path)


def test_likelihood_of_so_many_images_each_told_its_condition(sets: EvalSplits, tmp_path: Path) -> None:
    shop = Shop()
    config = JudgingConfig(samples_per_class=0, bits_per_dimension=20, bits_timesteps=3)
    figures = evaluate_denoiser(shop.as_denoiser(), sets, config, SamplingConfig(seed=1), tmp_path, tmp_path)
    assert shop.asked == []
    assert [len(batch["image"]) for batch in shop.told] == [16, 4]
    assert sum((batch["label"].tolist() for batch in shop.told), []) == [
        int(n) % 2 for n in torch.linspace(0, 29, 20).round()
    ]
    assert (figures["likelihood/images"], figures["likelihood/timesteps"]) == (20, "4 of 10")
    assert figures["likelihood/bits_per_dimension"] > 0
    again = evaluate_denoiser(shop.as_denoiser(), sets, config, SamplingConfig(seed=1), tmp_path, tmp_path)
    assert again == figures


def test_sweep_is_written_with_the_evaluations_own_settings(sets: EvalSplits, tmp_path: Path) -> None:
    shop = Shop()
    config = JudgingConfig(samples_per_class=5, neighbours=0, sweep=SweepConfig(steps=(2, 3)))
    figures = evaluate_denoiser(
        shop.as_denoiser(), sets, config, SamplingConfig(guidance_scale=2.5, seed=4), tmp_path / "out", tmp_path
    )
    assert [(c["steps"], c["scheduler"], c["guidance"]) for c in figures["sweep"]["cells"]] == [
        (2, "ddim", 2.5),
        (3, "ddim", 2.5),
    ]
    assert figures["sweep"]["n"] == 10 and shop.asked[-1] == (10, SamplingConfig(3, 2.5, 4, "ddim"))
    assert json.loads((tmp_path / "out" / "sweep.json").read_text()) == figures["sweep"]
    assert "n 10 each" in lines(figures)[-1]


def test_refused_before_anything_is_drawn(sets: EvalSplits, tmp_path: Path) -> None:
    shop = Shop()
    ours = shop.as_denoiser()
    for subject, config, message in (
        (ours, JudgingConfig(sweep=SweepConfig(steps=(5, 11))), "steps=11, but the model has 10 timesteps"),
        (
            replace(ours, uses_guidance=False),
            JudgingConfig(sweep=SweepConfig(guidance=(1, 2))),
            "told no condition",
        ),
        (replace(ours, classes=["cat", "dog"]), JudgingConfig(), r"draws the classes \['cat', 'dog'\], but grey has"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate_denoiser(subject, sets, config, SamplingConfig(), tmp_path / "out", tmp_path)
    assert shop.asked == []


def test_share_right() -> None:
    predicted, labels = torch.tensor([0, 1, 1, 1]), torch.tensor([0, 0, 1, 1])
    assert classifier.share_right(predicted, labels) == 0.75
    assert classifier.share_right_per_class(predicted, labels, 3) == [0.5, 1.0, None]
