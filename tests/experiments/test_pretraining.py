"""Initializations and label fractions: configs, findings, and a whole tiny experiment."""

from __future__ import annotations

import math
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
from unetdiff.experiments.linear_probes import ProbeTraining
from unetdiff.experiments.pretraining import CLASS_DENOISER, DENOISER, ENCODER, RANDOM, Plan
from unetdiff.experiments.pretraining_report import chart, findings, label_table
from unetdiff.experiments.runs import best_metric, last_metric, train_run, with_last_weights
from unetdiff.experiments.start_timestep import CleanFeatures, probe_timesteps
from unetdiff.files.records import read_object
from unetdiff.reports.dataset_groups import open_dataset
from unetdiff.reports.masks import predictions
from unetdiff.reports.record import Gallery, read_record, write_record
from unetdiff.reports.runs import Run, read_run

MIOU = {
    RANDOM: {0.01: [0.10, 0.20], 1.0: [0.80, 0.82]},
    DENOISER: {0.01: [0.30, 0.42], 1.0: [0.83, 0.79]},
}
COUNTS = {0.01: 1, 1.0: 1464}


def test_tables_and_findings() -> None:
    lines = findings(MIOU, COUNTS, RANDOM)
    assert lines[0] == (
        "denoiser init compared with random init: higher mIoU at 1 % of the labels; "
        "a difference within one std at 100 % of the labels."
    )
    # 0.20 and 0.22: mean 0.21, std 0.0141; +0.03 and -0.03: mean 0
    assert "1 labeled image (1 %): mIoU 0.360 ± 0.085 (denoiser init), 0.150 ± 0.071 (random init)" in lines[1]
    assert lines[1].endswith("; +0.210 ± 0.014, 2 paired seeds.")
    assert "0.000 ± 0.042, 2 paired seeds" in lines[2]
    lost = findings({RANDOM: {1.0: [0.9]}, DENOISER: {1.0: [0.5]}}, {1.0: 10}, RANDOM)
    assert "lower mIoU at 100 % of the labels (1 seed: may be due to chance)" in lost[0]
    curves = chart(MIOU, COUNTS)
    assert curves.log_x and curves.lines[1].x == [1.0, 1464.0] and curves.lines[1].y[0].mean == pytest.approx(0.36)
    table = label_table(MIOU, COUNTS)
    assert [column.name for column in table.columns] == ["1 %", "100 %"]
    assert [values[1].mean for _, values in table.rows] == pytest.approx([0.81, 0.81])


def test_config_of_each_run(parse_args: Callable[..., Any], tmp_path: Path) -> None:
    args, overrides = parse_args("pretraining", "--label_fractions", "0.5", "0.1", "--num_seeds", "2",
                                 "--segmenter_train_steps", "6", "--denoiser_train_steps", "9",
                                 "--training.frozen_levels=1", *TINY)  # fmt: skip
    plan = Plan(args, overrides, tmp_path)
    noise = plan.denoisers[DENOISER]
    assert (noise.task, noise.diffusion.condition, noise.data.train_fraction, noise.training.steps) == (
        "diffusion",
        "none",
        1,
        9,
    )
    assert noise.training.frozen_levels == 0 and plan.inits == [RANDOM, DENOISER] and plan.fractions == [0.1, 0.5]
    for (init, fraction, seed), config in plan.segmenters.items():
        assert (config.data.train_fraction, config.data.train_fraction_seed, config.training.seed) == (
            fraction,
            seed,
            seed,
        )
        assert config.training.init_from == (str(tmp_path / "pretrained") if init == DENOISER else None)
        assert config.model == noise.model and config.training.steps == config.training.validate_every == 6
        assert config.training.frozen_levels == 0, "random weights are not frozen"
    assert len({config.training.output_dir for config in plan.segmenters.values()}) == 8
    for words, wrong in (
        (["--label_fractions", "0", "1"], "--label_fractions=.*: must be in"),
        (["--encoder_weights", "x"], "--encoder_weights=x: must be set with --encoder_config"),
        (["--segmenter_train_steps", "0"], "training.steps=0"),
        (["--num_validations", "0"], "--num_validations=0: must be at least 1"),
        (["--num_validations", "300"], "--num_validations=300: must be at most the steps of a segmenter, 200"),
        (["--timesteps", "0", "1000"], r"--timesteps=\[0, 1000\]: must be in 0..999"),
        (["--data.root=.", "--data.name=cifar10"], "data.name=cifar10: must be a dataset with masks"),
    ):
        args, overrides = parse_args("pretraining", *words)
        with pytest.raises(UserError, match=wrong):
            Plan(args, overrides, tmp_path)
    args, overrides = parse_args("pretraining", "--num_rows", "0")
    with pytest.raises(UserError, match="--num_rows=0"):
        pretraining.run(args, overrides, tmp_path / "rows", "")
    assert not (tmp_path / "rows").exists()


def test_the_best_of_several_validations(parse_args: Callable[..., Any], tmp_path: Path) -> None:
    args, overrides = parse_args("pretraining", "--num_validations", "4", "--segmenter_train_steps", "10", *TINY)
    plan = Plan(args, overrides, tmp_path)
    assert all(config.training.validate_every == 3 for config in plan.segmenters.values())
    assert plan.denoisers[DENOISER].training.validate_every == plan.denoisers[DENOISER].training.steps
    rising = [{"miou": 0.3}, {"miou": 0.5}, {}, {"miou": 0.4}]
    run = Run("", tmp_path, "segmentation", {}, validation=rising)
    assert best_metric(run, "miou") == 0.5 and last_metric(run, "miou") == 0.4
    assert math.isnan(best_metric(run, "other"))


def test_a_pretrained_encoder_keeps_its_own_network(parse_args: Callable[..., Any], tmp_path: Path) -> None:
    weights = tmp_path / "mobilenet.safetensors"
    save_file(mobilenet_v2().features.state_dict(), weights)
    encoder = tmp_path / "encoder.yaml"
    encoder.write_text(
        "task: segmentation\nmodel: {encoder: {name: mobilenet_v2}, decoder: {channels: [16, 8]}}\n"
        "data: {name: voc_folder, root: nowhere}\ntraining: {frozen_levels: 2, batch_size: 3}\n"
    )
    args, overrides = parse_args(
        "pretraining", "--encoder_config", str(encoder), "--label_fractions", "0.1", "--num_seeds", "1", *TINY
    )
    with pytest.raises(UserError, match="model.encoder.weights=null: must be set in .*encoder.yaml"):
        Plan(args, overrides, tmp_path)
    args.encoder_weights = str(tmp_path / "none.safetensors")
    with pytest.raises(UserError, match="model.encoder.weights=.*: must be an existing"):
        Plan(args, overrides, tmp_path)
    args.encoder_weights = str(weights)
    plan = Plan(args, overrides, tmp_path)
    config = plan.segmenters[ENCODER, 0.1, 0]
    assert (config.model.encoder.name, config.model.encoder.weights) == ("mobilenet_v2", str(weights))
    assert (config.data.name, config.training.frozen_levels, config.training.batch_size) == ("scenes", 2, 8)
    assert plan.segmenters[RANDOM, 0.1, 0].model.encoder.name == "residual"


def test_a_whole_tiny_pretraining(parse_args: Callable[..., Any], tmp_path: Path) -> None:
    args, overrides = parse_args("pretraining", "--label_fractions", "0.05", "1", "--num_seeds", "1",
                                 "--segmenter_train_steps", "3", "--denoiser_train_steps", "3", "--num_rows", "2",
                                 "--timesteps", "0", "300", "--probe_train_steps", "2", "--layer_decay", "0.5",
                                 *TINY)  # fmt: skip
    record = pretraining.run(args, overrides, tmp_path, "unetdiff experiment pretraining")
    write_record(record, tmp_path)
    assert read_record(tmp_path) == record and record.seeds == [0]
    curves, table, gallery = record.parts
    assert curves.kind == "chart" and [line.x for line in curves.lines] == [[3.0, 64.0]] * 2
    assert table.kind == "table" and all(value.n == 1 for _, values in table.rows for value in values)
    assert isinstance(gallery, Gallery) and gallery.columns == ["image", "ground truth", RANDOM, DENOISER]

    # the gallery's last column is what the denoiser's segmenter says, in the set's colours
    run = read_run(tmp_path / "denoiser-init" / "fraction-0.05" / "seed-0")
    dataset = open_dataset(run)
    names = {item["name"]: item for item in (dataset[i] for i in range(12))}
    for name, files in gallery.rows:
        item = names[name]
        shown = np.asarray(Image.open(tmp_path / files[-1]).convert("RGB"))
        expected = predictions(with_last_weights(run), [item], dataset.classes)[0]
        assert np.array_equal(shown, PALETTE[expected])
    probes = read_object(tmp_path / "pretrained.probes.json")["result"]
    assert set(probes) == {"0", "300"} and any(
        "trained on half of the fewest labeled" in line for line in record.method
    )
    best = int(max(probes, key=lambda t: probes[t]))
    assert run.config["segmentation"]["timestep"] == best and run.config["training"]["optimizer"]["layer_decay"] == 0.5
    other = read_run(tmp_path / "random-init" / "fraction-0.05" / "seed-0").config
    assert other["segmentation"]["timestep"] == 0 and other["training"]["optimizer"]["layer_decay"] == 1
    assert run.summary["init_from"]["network"].startswith(str(tmp_path / "pretrained"))
    assert run.summary["init_from"]["fresh"]["parts"] == ["segmentation head"], "the whole backbone was taken"

    shutil.rmtree(tmp_path / "pretrained")  # as the refusal of another number of steps says
    args.denoiser_train_steps = 4
    with pytest.raises(
        UserError, match="denoiser-init/fraction-0.05/seed-0' was initialized from an older version of .*pretrained"
    ):
        pretraining.run(args, overrides, tmp_path, "")


def test_probes_find_the_timestep_whose_maps_know_the_classes(tmp_path: Path, parse_args: Callable[..., Any]) -> None:
    """Maps that are zero at every timestep but one."""
    args, overrides = parse_args("pretraining", "--class_denoiser", "--denoiser_train_steps", "1", *TINY)
    plan = Plan(args, overrides, tmp_path)
    assert plan.denoisers[CLASS_DENOISER].diffusion.condition == "class"
    run = train_run("denoiser", plan.denoisers[CLASS_DENOISER], "")
    segmenter = plan.segmenters[CLASS_DENOISER, 1.0, 0]
    maps = CleanFeatures._maps

    def only_at_150(self: CleanFeatures, images: Any, names: Any, level: Any) -> Any:
        return {k: v if level == 150 else 0 * v for k, v in maps(self, images, names, level).items()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CleanFeatures, "_maps", only_at_150)
        found = probe_timesteps(run, [0, 150, 300], segmenter, ProbeTraining(steps=20), tmp_path / "probes.json")
    assert max(found, key=lambda t: found[t]) == 150 and found[0] == found[300]
