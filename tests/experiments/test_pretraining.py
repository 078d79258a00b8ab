"""Starts and shares of the labels: the plan, the sentences, and a whole tiny experiment."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file
from torchvision.models import mobilenet_v2

from tests.experiments.test_budget import TINY
from unetdiff.data.scenes import PALETTE
from unetdiff.errors import UserError
from unetdiff.experiments import pretraining
from unetdiff.experiments.label_tables import chart, findings, label_table
from unetdiff.experiments.pretraining import DENOISER, RANDOM, TRUNK, Plan
from unetdiff.experiments.runs import last_weights
from unetdiff.reports.dataset_groups import open_dataset
from unetdiff.reports.masks import predictions
from unetdiff.reports.record import Gallery, read_record, write_record
from unetdiff.reports.runs import read_run

FIGURES = {
    RANDOM: {0.01: [0.10, 0.20], 1.0: [0.80, 0.82]},
    DENOISER: {0.01: [0.30, 0.42], 1.0: [0.83, 0.79]},
}
COUNTS = {0.01: 1, 1.0: 1464}


def test_tables_and_sentences_by_hand() -> None:
    told = findings(FIGURES, COUNTS, RANDOM)
    assert told[0] == (
        "Start from the denoiser against a random start: a gain with 1 labelled images; "
        "no difference beyond the seeds' spread with 1,464."
    )
    # 0.20 and 0.22: mean 0.21, deviation 0.0141; +0.03 and -0.03: mean 0
    assert "1 labelled image (1 %): mIoU 0.360 ± 0.085 from the denoiser, 0.150 ± 0.071 from a random start" in told[1]
    assert "0.210 higher, more than the spread of that difference over 2 seeds (0.014)" in told[1]
    assert "the same, within the spread" in told[2]
    lost = findings({RANDOM: {1.0: [0.9]}, DENOISER: {1.0: [0.5]}}, {1.0: 10}, RANDOM)
    assert "a loss with 10 (one seed: chance is not ruled out)" in lost[0]
    curves = chart(FIGURES, COUNTS)
    assert curves.log_x and curves.lines[1].x == [1.0, 1464.0] and curves.lines[1].y[0].mean == pytest.approx(0.36)
    table = label_table(FIGURES, COUNTS)
    assert [column.name for column in table.columns] == ["1 %", "100 %"]
    assert [values[1].mean for _, values in table.rows] == pytest.approx([0.81, 0.81])


def test_what_each_run_is_told(asked: Callable[..., Any], tmp_path: Path) -> None:
    given, overrides = asked("pretraining", "--shares", "0.5", "0.1", "--seeds", "2", "--steps", "6",
                             "--pretraining_steps", "9", "--training.frozen_levels=1", *TINY)  # fmt: skip
    plan = Plan(given, overrides, tmp_path)
    noise = plan.denoiser
    assert (noise.task, noise.diffusion.condition, noise.data.train_fraction, noise.training.steps) == (
        "diffusion",
        "none",
        1,
        9,
    )
    assert noise.training.frozen_levels == 0 and plan.starts == [RANDOM, DENOISER] and plan.shares == [0.1, 0.5]
    for (start, share, seed), config in plan.segmenters.items():
        assert (config.data.train_fraction, config.data.train_fraction_seed, config.training.seed) == (
            share,
            seed,
            seed,
        )
        assert config.training.init_from == (str(tmp_path / "pretrained") if start == DENOISER else None)
        assert config.model == noise.model and config.training.steps == config.training.validate_every == 6
        assert config.training.frozen_levels == 0, "a random start has no filters to spare"
    assert len({config.training.output_dir for config in plan.segmenters.values()}) == 8
    for words, wrong in (
        (["--shares", "0", "1"], "--shares: .* are no shares"),
        (["--trunk_weights", "x"], "--trunk_weights: 'x' needs --trunk"),
        (["--steps", "0"], "training.steps=0: must be at least 1"),
        (["--data.root=.", "--data.name=cifar10"], "data.name=cifar10: must be a dataset with masks"),
    ):
        given, overrides = asked("pretraining", *words)
        with pytest.raises(UserError, match=wrong):
            Plan(given, overrides, tmp_path)
    given, overrides = asked("pretraining", "--rows", "0")
    with pytest.raises(UserError, match="--rows=0: must be at least 1"):
        pretraining.run(given, overrides, tmp_path / "rows", "")
    assert not (tmp_path / "rows").exists()


def test_an_imagenet_trunk_keeps_its_own_network(asked: Callable[..., Any], tmp_path: Path) -> None:
    weights = tmp_path / "mobilenet.safetensors"
    save_file(mobilenet_v2().features.state_dict(), weights)
    trunk = tmp_path / "trunk.yaml"
    trunk.write_text(
        "task: segmentation\nmodel: {encoder: {family: mobilenet_v2}, decoder: {channels: [16, 8]}}\n"
        "data: {name: voc_folder, root: nowhere}\ntraining: {frozen_levels: 2, batch_size: 3}\n"
    )
    given, overrides = asked("pretraining", "--trunk", str(trunk), "--shares", "0.1", "--seeds", "1", *TINY)
    with pytest.raises(UserError, match="model.encoder.weights: None in .*trunk.yaml is no ImageNet trunk"):
        Plan(given, overrides, tmp_path)
    given.trunk_weights = str(tmp_path / "none.safetensors")
    with pytest.raises(UserError, match="model.encoder.weights=.*: must be an existing"):
        Plan(given, overrides, tmp_path)
    given.trunk_weights = str(weights)
    plan = Plan(given, overrides, tmp_path)
    config = plan.segmenters[TRUNK, 0.1, 0]
    assert (config.model.encoder.name, config.model.encoder.weights) == ("mobilenet_v2", str(weights))
    assert (config.data.name, config.training.frozen_levels, config.training.batch_size) == ("scenes", 2, 8)
    assert plan.segmenters[RANDOM, 0.1, 0].model.encoder.name == "residual"


def test_a_whole_tiny_pretraining(asked: Callable[..., Any], tmp_path: Path) -> None:
    given, overrides = asked("pretraining", "--shares", "0.05", "1", "--seeds", "1", "--steps", "3",
                             "--pretraining_steps", "3", "--rows", "2", *TINY)  # fmt: skip
    record = pretraining.run(given, overrides, tmp_path, "unetdiff experiment pretraining")
    write_record(record, tmp_path)
    assert read_record(tmp_path) == record and record.seeds == [0]
    curves, table, gallery = record.parts
    assert curves.kind == "chart" and [line.x for line in curves.lines] == [[3.0, 64.0]] * 2
    assert table.kind == "table" and all(value.n == 1 for _, values in table.rows for value in values)
    assert isinstance(gallery, Gallery) and gallery.columns == ["image", "truth", RANDOM, DENOISER]

    # the gallery's last column is what the denoiser's segmenter says, in the set's colours
    run = read_run(tmp_path / "from-denoiser" / "share-0.05" / "seed-0")
    names = {item["name"]: item for item in (open_dataset(run)[i] for i in range(12))}
    for name, files in gallery.rows:
        item = names[name]
        shown = np.asarray(Image.open(tmp_path / files[-1]).convert("RGB"))
        expected = predictions(last_weights(run), [item])[0]
        assert np.array_equal(shown, PALETTE[expected])
    assert run.summary["init_from"]["network"].startswith(str(tmp_path / "pretrained"))
    assert run.summary["init_from"]["fresh"]["parts"] == ["segmentation head"], "the whole backbone was taken"

    shutil.rmtree(tmp_path / "pretrained")  # as the refusal of another number of steps says
    given.pretraining_steps = 4
    with pytest.raises(UserError, match="from-denoiser/share-0.05/seed-0 started from weights that .*pretrained had"):
        pretraining.run(given, overrides, tmp_path, "")
