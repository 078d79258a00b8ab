"""All runs start from the same noise; class consistency, its interval and its classifier."""

from __future__ import annotations

import pytest
import torch

from unetdiff.diffusion.noise import generator_for
from unetdiff.diffusion.pipeline import GenerationPipeline
from unetdiff.reports.consistency import consistency, wilson
from unetdiff.reports.runs import read_runs
from unetdiff.reports.samples import Budget, sample_blocks

TINY = Budget(images=20, steps=2, classifier_steps=4, batch_size=8)


def test_wilson_against_published_values():
    # Brown, Cai, DasGupta 2001 and R's binom.confint(methods="wilson")
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-3)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-3)
    assert wilson(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-3)
    low, high = wilson(282, 300)
    assert low < 0.94 < high


def test_consistency():
    score = consistency(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 1]), ["a", "b"])
    assert (score.value, score.n, score.per_class) == (0.75, 4, {"a": 0.5, "b": 1.0})


def test_every_run_starts_from_the_same_noise(make_run, monkeypatch, tmp_path):
    paths = [
        make_run("alone", task="diffusion"),
        make_run("both", task="joint", seed=3),
        make_run("seg", task="segmentation"),
    ]
    seen: list[tuple[list[int], list[int]]] = []
    call = GenerationPipeline.__call__

    def spy(self, **options):
        seen.append(([g.initial_seed() for g in options["generator"]], options["class_labels"].tolist()))
        return call(self, **options)

    monkeypatch.setattr(GenerationPipeline, "__call__", spy)
    blocks, problems = sample_blocks(read_runs(paths), TINY, seed=1, cache=tmp_path / "classifiers")
    half = len(seen) // 2
    assert half == 4  # 20 images in batches of 8, and the strip
    for (noise, labels), (other, other_labels) in zip(seen[:half], seen[half:], strict=True):
        assert noise == other and labels == other_labels
    assert seen[0][0] == [generator_for(1, index).initial_seed() for index in range(8)]

    assert problems == [] and len(blocks) == 1
    block = blocks[0]
    assert block.runs == [0, 1] and set(block.scores) == {0, 1}
    assert [grid.run for grid in block.grids] == [None, 0, 1]
    for grid in block.grids[1:]:
        assert [name for name, _ in grid.rows][:2] == ["zero", "one"]
        assert all(cell.target == name for name, cells in grid.rows for cell in cells)
    for strip in block.strips:
        assert strip.timesteps[0] == 999 and strip.timesteps[-1] == 0
        assert strip.target == "one"
    assert block.classifier is not None and block.classifier.n == 40 and block.classifier.trained_on == 60


def test_score_is_the_classifiers_accuracy(make_run, monkeypatch):
    """With a classifier that always predicts "one", exactly the ones are correct and all others framed."""
    from unetdiff.reports.consistency import SampleClassifier

    monkeypatch.setattr(SampleClassifier, "classify", lambda self, images: torch.ones(len(images), dtype=torch.long))
    blocks, _ = sample_blocks(read_runs([make_run(task="diffusion")]), TINY)
    assert blocks[0].scores[0].value == pytest.approx(0.1)
    for name, cells in blocks[0].grids[1].rows:
        assert all(cell.wrong == (name != "one") for cell in cells)


def test_missing_images_are_reported(make_run):
    path = make_run(task="diffusion")
    config = path / "config.yaml"
    config.write_text(
        config.read_text().replace("name: scenes", "name: image_folder").replace("root: null", "root: gone")
    )
    blocks, problems = sample_blocks(read_runs([path]), TINY)
    assert len(blocks) == 1 and blocks[0].classifier is None and blocks[0].scores == {}
    assert len(problems) == 1 and "gone" in problems[0]


def test_each_size_has_its_own_classifier(make_run, monkeypatch, tmp_path):
    """A classifier gets samples of its own image size, and noise is shared by runs of one size."""
    from unetdiff.reports.consistency import SampleClassifier

    classified: list[tuple[str, torch.Size]] = []
    classify = SampleClassifier.classify

    def spy(self, images):
        classified.append((self.classifier.fingerprint, images.shape))
        return classify(self, images)

    monkeypatch.setattr(SampleClassifier, "classify", spy)
    sizes: dict[str, list[int] | None] = {"small": [16, 16], "large": None, "also large": [32, 32]}
    paths = [make_run(name, task="diffusion", size=size) for name, size in sizes.items()]
    blocks, problems = sample_blocks(read_runs(paths), TINY, cache=tmp_path / "classifiers")
    assert problems == [] and [block.runs for block in blocks] == [[0], [1, 2]]
    assert [block.dataset_name for block in blocks] == ["scenes, 16×16", "scenes, 32×32"]
    small, large = (block.classifier.classifier.fingerprint for block in blocks if block.classifier is not None)
    assert small != large
    assert classified == [(small, (20, 3, 16, 16)), (large, (20, 3, 32, 32)), (large, (20, 3, 32, 32))]
    assert len(list((tmp_path / "classifiers").glob("*.safetensors"))) == 2, "one classifier overwrote the other"


def test_the_classifier_counts_its_images(make_run, monkeypatch):
    monkeypatch.setattr("unetdiff.evaluation.classifier.MAX_IMAGES", 25)
    blocks, _ = sample_blocks(read_runs([make_run(task="diffusion")]), TINY)
    classifier = blocks[0].classifier
    assert classifier is not None and (classifier.n, classifier.trained_on) == (25, 25)
    assert classifier.accuracy * 25 == pytest.approx(round(classifier.accuracy * 25), abs=1e-3), "a fraction of 25"
