"""Noise robustness: segmenters are trained once, evaluated as by `evaluate`, and conditioned as configured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from unetdiff.config.reading import from_yaml, to_yaml
from unetdiff.errors import UserError
from unetdiff.evaluation.evaluate import evaluate
from unetdiff.experiments import noise, noise_report, runs
from unetdiff.reports.record import Chart, Gallery, Table, read_record, write_record
from unetdiff.training import trainer


def test_from_training_to_the_record(
    tmp_path: Path, tiny_config: Callable, joint_run: Path, options: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "joint.yaml"
    few = {"data.scenes.val_images": 4, "training.validate_every": 3}
    config = tiny_config("joint", tmp_path / "unused", **few)  # any task: the segmenters follow from it
    file.write_text(to_yaml(config))
    words = (file, "--train_steps", 3, "--num_seeds", 2, "--timesteps", 0, 500, 900, "--num_rows", 1,
             "--joint_run", joint_run)  # fmt: skip
    args = options(noise, *words)
    changes = ["--training.batch_size", "2", "--training.mixed_precision", "no"]  # bf16 would round by the batch
    record = noise.run(args, changes, tmp_path / "out", "the command")
    write_record(record, tmp_path / "out")
    assert read_record(tmp_path / "out") == record

    chart, table, gallery = record.parts
    assert isinstance(chart, Chart) and isinstance(table, Table) and isinstance(gallery, Gallery)
    assert [line.name for line in chart.lines] == [
        noise_report.CLEAN_TRAINED,
        noise_report.NOISE_TRAINED,
        noise_report.CONDITIONED,
        noise_report.WRONG_TIMESTEP,
        noise_report.JOINT,
    ]
    assert [line.y[0].n for line in chart.lines] == [2, 2, 2, 2, 1]
    evaluated = [evaluate(tmp_path / "out" / f"clean-{s}" / "latest").metrics["segmentation/mean_iou"] for s in (0, 1)]
    assert chart.lines[0].y[0].mean == pytest.approx(sum(evaluated) / 2, abs=1e-6)
    assert chart.lines[2].y[0] == chart.lines[3].y[0]  # t = 0 is right on clean images
    assert table.rows[0][1][-1].mean == pytest.approx(sum(v.mean or 0 for v in chart.lines[0].y) / 3)
    assert len(gallery.rows) == 3 and len(gallery.columns) == 7

    configs = {
        name: from_yaml(tmp_path / "out" / f"{name}-1" / "config.yaml") for name in ("clean", "noisy", "conditioned")
    }
    assert [c.segmentation.noise for c in configs.values()] == [0.0, 1.0, 1.0]
    assert [c.model.conditioning.timestep for c in configs.values()] == [False, False, True]
    assert {(c.task, c.training.steps, c.training.seed, c.training.batch_size) for c in configs.values()} == {
        ("segmentation", 3, 1, 2)
    }

    monkeypatch.setattr(trainer, "train", lambda *_, **__: pytest.fail("trained again"))
    again = noise.run(args, changes, tmp_path / "out", "the command")
    assert again.parts == record.parts and again.findings == record.findings


def test_the_context_of_the_segmenters_is_used(
    tmp_path: Path, tiny_config: Callable, options: Callable, text_encoder: Path
) -> None:
    """As by `evaluate`, with attention maps of the class names, which no other context has."""
    context = {
        "segmentation.context": "classes",
        "diffusion.text.encoder": str(text_encoder),
        "model.heads.segmentation.attention_maps": True,
        "model.heads.segmentation.pyramid": 8,
        "training.mixed_precision": "no",
        "data.scenes.val_images": 4,
    }
    (tmp_path / "a.yaml").write_text(to_yaml(tiny_config("segmentation", tmp_path / "unused", **context)))
    words = (tmp_path / "a.yaml", "--train_steps", 1, "--timesteps", 0, "--num_rows", 1)
    record = noise.run(options(noise, *words), [], tmp_path / "out", "")
    chart = record.parts[0]
    assert isinstance(chart, Chart)
    evaluated = evaluate(tmp_path / "out" / "clean-0" / "latest").metrics["segmentation/mean_iou"]
    assert chart.lines[0].y[0].mean == pytest.approx(evaluated, abs=1e-6)


def test_refusals_come_before_any_training(
    tmp_path: Path, tiny_config: Callable, options: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "train_once", lambda *_: pytest.fail("trained"))
    file = tmp_path / "a.yaml"
    file.write_text(to_yaml(tiny_config("segmentation", tmp_path / "run")))
    for words, message in [
        (("--timesteps", 0, 1000), r"timesteps=\[0, 1000\]: must be one or more of 0 .clean. to 999"),
        (("--noise_fraction", 1.5), "segmentation.noise=1.5"),
        (("--num_seeds", 0), "--num_seeds=0"),
        (("--num_val_images", 0), "--num_val_images=0"),
        (("--num_rows", 0), "--num_rows=0"),
        (("--joint_run", tmp_path / "nowhere"), "does not exist"),
    ]:
        with pytest.raises(UserError, match=message):
            noise.run(options(noise, file, *words), [], tmp_path / "out", "")


def test_without_a_config_it_is_the_quickstarts_backbone() -> None:
    config = noise.base_config(None, ["--data.scenes.val_images", "7"], None)
    assert (config.task, config.data.name, config.data.scenes.val_images) == ("segmentation", "scenes", 7)
    assert config.model.encoder.channels == [48, 96, 96] and config.training.steps == 400
