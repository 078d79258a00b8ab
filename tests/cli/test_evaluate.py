"""`unetdiff evaluate`, `compare` and `quickstart`: their arguments and what they print."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from unetdiff.cli.evaluate import table
from unetdiff.cli.main import main
from unetdiff.evaluation.config import EvaluationConfig, SweepConfig
from unetdiff.evaluation.evaluate import Evaluation


def test_evaluate_prints_the_metrics(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run), "--samples_per_class", "0", "--output", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    metrics = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=pytest.fail)  # no NaN in the file
    recorded = json.loads((run / "summary.json").read_text())["final"]
    assert metrics["segmentation/mean_iou"] == pytest.approx(recorded["segmentation/mean_iou"], abs=1e-3)
    line = next(line for line in text.splitlines() if line.startswith("segmentation/mean_iou"))
    assert float(line.split()[-1]) == pytest.approx(metrics["segmentation/mean_iou"], abs=1e-4)
    assert "diffusion/loss" in text
    assert "segmentation/boundary_width" in text and "2 % of the diagonal, 1 pixel" in text
    header = next(line for line in text.splitlines() if line.startswith("class "))
    columns = ["class", "IoU", "boundary IoU", "Dice", "precision", "recall", "accuracy", "pixel fraction", "images"]
    assert re.split(r"  +", header) == columns
    written = ["metrics.json", "per_class.csv", "confusion.png", "reliability.png", "report.html"]
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(written)
    assert text.splitlines()[-1] == f"{tmp_path}: {', '.join(written)}"


def test_evaluate_on_other_images(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(
        "unetdiff.evaluation.evaluate.evaluate", lambda path, **args: calls.append(args) or Evaluation(Path("nowhere"))
    )
    assert main(["evaluate", str(run)]) == 0
    assert calls[0]["data"] is None and calls[0]["split"] == "val" and calls[0]["output"] is None
    assert calls[0]["num_worst"] == 20 and calls[0]["config"] == EvaluationConfig()  # the same defaults
    words = ["--data.scenes.digits", "2", "--split", "train", "--samples_per_class", "5"]
    words += ["--num_inference_steps", "7", "--guidance_scale", "3"]
    words += ["--num_worst", "4"]
    assert main(["evaluate", str(run), *words]) == 0
    args = calls[1]
    assert args["data"].scenes.digits == 2
    assert args["data"].scenes.val_images == 4  # the rest is the run's own
    assert args["split"] == "train" and args["num_worst"] == 4
    assert args["config"] == EvaluationConfig(samples_per_class=5, num_inference_steps=7, guidance_scale=3.0)
    words = [
        "--features",
        "inception",
        "--features",
        "classifier",
        "--reference",
        "val",
        "--num_distance_samples",
        "40",
    ]
    words += ["--num_neighbors", "0", "--num_likelihood_images", "6", "--num_likelihood_timesteps", "0", "--seed", "3"]
    assert main(["evaluate", str(run), *words, "--sweep", "num_inference_steps=2,3 guidance_scale=1,1.5"]) == 0
    assert calls[2]["config"] == EvaluationConfig(
        seed=3,
        features=("inception", "classifier"),
        reference="val",
        num_distance_samples=40,
        num_neighbors=0,
        num_likelihood_images=6,
        num_likelihood_timesteps=0,
        sweep=SweepConfig(num_inference_steps=(2, 3), guidance_scale=(1.0, 1.5)),
    )


def test_evaluate_a_denoiser(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Distances of samples to the run's real images, printed with n and reference."""
    words = ["--samples_per_class", "1", "--num_inference_steps", "2", "--num_neighbors", "2", "--num_worst", "0"]
    words += ["--output", str(tmp_path)]
    words += ["--num_likelihood_images", "2", "--num_likelihood_timesteps", "2"]
    words += ["--sweep", "num_inference_steps=1,2 scheduler=ddim,dpm++"]
    assert main(["evaluate", str(run), *words]) == 0
    text = capsys.readouterr().out
    metrics = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=pytest.fail)
    distance = metrics["samples/distances"][0]
    assert (distance["n"], distance["reference"], distance["reference_n"]) == (10, "scenes train", 16)
    assert f"{distance['value']:.4f}" in next(line for line in text.splitlines() if line.startswith("Fréchet distance"))
    assert "n = 10, reference scenes train (16 images)" in text
    assert "Classifier accuracy on 4 real images: " in text
    assert len(metrics["sweep"]["results"]) == 4 and "s / image" in text
    assert metrics["likelihood/num_images"] == 2 and "likelihood/bits_per_dimension" in text
    assert "memorization/fraction_pixels" in text and "samples/class_consistency" in text
    last = text.splitlines()[-1].partition(": ")[2].split(", ")
    written = ["samples.png", "nearest_neighbors.png", "sweep.json", "sweep.csv", "sweep.md"]
    assert last[-5:] == written and all((tmp_path / name).stat().st_size > 0 for name in last)
    assert (run / "reference" / "train-classifier.json").is_file()


def test_evaluate_in_tiles_and_views(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def evaluated(*words: str) -> dict[str, Any]:
        assert main(["evaluate", str(run), "--samples_per_class", "0", "--output", str(tmp_path), *words]) == 0
        return json.loads((tmp_path / "metrics.json").read_text())

    plain = evaluated()
    assert "segmentation/inference" not in plain
    seen = evaluated("--tile", "16,24", "--overlap", "0.5", "--flip", "--scales", "1,1.5")
    assert seen["segmentation/inference"] == {
        "tile": [16, 24],
        "overlap": 0.5,
        "margin": 0,
        "flip": True,
        "scales": [1.0, 1.5],
        "batch_size": 8,
        "image_range": None,
    }
    assert seen["segmentation/nll"] != plain["segmentation/nll"]
    report = (tmp_path / "report.html").read_text()
    assert "tiles, 4 views" in report and report.count('class="case"') == 4
    assert seen["segmentation/images"] == plain["segmentation/images"] == 4
    assert "segmentation/v_rand" not in plain
    scores = evaluated("--instances")
    assert scores["segmentation/pixel_error"] == pytest.approx(1 - plain["segmentation/pixel_accuracy"])
    assert 0 < scores["segmentation/v_rand"] <= 1 and 0 <= scores["segmentation/v_info"] <= 1
    for words, part in (
        (["--overlap", "2"], "--overlap=2.0: must be in [0, 0.9]"),
        (["--tile", "a"], "a: must be a side"),
        (["--scales", "1,b"], "1,b: must be a list of numbers"),
    ):
        assert main(["evaluate", str(run), *words]) == 2
        assert part in capsys.readouterr().err


def test_evaluate_refuses(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, part in (
        ([str(run), "--training.steps", "3"], "must be a --data.KEY"),
        ([str(run), "--data.rot", "3"], "unknown option --data.rot. Did you mean --data.root?"),
        ([str(run), "--split", "test"], "--split=test: must be one of val, train."),
        ([str(run), "--num_worst", "-1"], "--num_worst=-1: must be from 0 to 1000"),
        ([str(run), "--num_distance_samples", "1"], "--num_distance_samples=1: must be from 2 to 1000000"),
        ([str(run), "--features", "mobilenet"], "Did you mean mobilenet_v2?"),
        ([str(run), "--features", "inception=no.pth"], "--features=inception=no.pth: no.pth must be an existing file"),
        ([str(run), "--sweep", "num_inference_steps=10 schedular=ddim"], "--sweep: unknown setting 'schedular=ddim'"),
        ([str(tmp_path / "nowhere")], f"{tmp_path}/nowhere"),
    ):
        assert main(["evaluate", *words]) == 2
        assert part in capsys.readouterr().err


def test_table() -> None:
    metrics = {"model": "run/best", "t/mean_iou": 0.81234, "n": 3, "pixels": [1, 2], "bins": {"count": [1]}}
    metrics |= {"t/iou_per_class": {"cat": 0.5, "a dog": float("nan")}, "t/hits_per_class": {"cat": 12, "a dog": 7}}
    metrics |= {"s/consistency_per_class": {"seven": 0.25}}
    conditions = {"n": 12, "reference": "scenes train", "reference_n": 16}
    metrics["samples/distances"] = [
        {"name": "FID", "value": 1.5, "deviation": None, "note": "", **conditions},
        {"name": "KID", "value": 0.25, "deviation": 0.125, "note": "2 subsets of 6", **conditions},
    ]
    assert table(metrics).splitlines() == [
        "model       run/best",
        "t/mean_iou  0.8123",
        "n           3",
        "",
        "FID  1.5000           n = 12, reference scenes train (16 images)",
        "KID  0.2500 ± 0.1250  n = 12, reference scenes train (16 images); 2 subsets of 6",
        "",
        "class     IoU  hits",
        "cat    0.5000    12",
        "a dog       –     7",
        "",
        "class  consistency",
        "seven       0.2500",
    ]


def test_compare_hands_on_the_runs(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    calls: list[tuple[list[Path], Path]] = []

    def write_report(runs: list[Path], output: Path, **_: Any) -> Path:
        calls.append((list(runs), output))
        return output

    monkeypatch.setattr("unetdiff.reports.report.write_report", write_report)
    assert main(["compare", str(run), str(run), "--output", str(tmp_path / "page.html")]) == 0
    assert calls == [([run, run], tmp_path / "page.html")]
    assert capsys.readouterr().out == f"{tmp_path / 'page.html'}\n"
    assert main(["compare", str(tmp_path)]) == 2
    assert f"{tmp_path}: contains no model" in capsys.readouterr().err


def test_quickstart_hands_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    calls: list[tuple[Path, dict[str, Any]]] = []
    monkeypatch.setattr(
        "unetdiff.cli.quickstart.run",
        lambda output, **given: calls.append((output, given)) or output / "report.html",
    )
    assert main(["quickstart"]) == 0
    assert main(["quickstart", "--output", str(tmp_path), "--tiny", "--overwrite"]) == 0
    assert calls == [
        (Path("runs/quickstart"), {"overwrite": False, "tiny": False}),
        (tmp_path, {"overwrite": True, "tiny": True}),
    ]
    assert capsys.readouterr().out == f"runs/quickstart/report.html\n{tmp_path}/report.html\n"
    assert main(["quickstart", "--resume", "--overwrite"]) == 2
    assert "--resume: must not be combined with --overwrite." in capsys.readouterr().err
