"""`unetdiff experiment mask_diffusion`: metrics against closed forms, and a tiny run end to end."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from unetdiff.cli.main import main
from unetdiff.experiments.mask_metrics import MaskEvaluator
from unetdiff.reports.record import Chart, Gallery, Table, read_record

TINY = [
    "--model.encoder.channels=[8, 16]",
    "--model.residual.layers_per_block=1",
    "--model.residual.norm_num_groups=4",
    "--model.conditioning.cross_attention_dim=8",
    "--model.conditioning.attention_levels=[1]",
    "--model.conditioning.attention_head_dim=8",
    "--data.scenes.train_images=24",
    "--data.scenes.val_images=6",
    "--diffusion.preview_steps=2",
    "--diffusion.preview_per_class=1",
    "--training.steps=2",
    "--training.batch_size=4",
    "--training.validate_every=2",
    "--training.checkpoint_every=2",
]


def test_metrics_equal_their_closed_forms() -> None:
    """Four pixels of two classes, one of them ignored and one wrong."""
    probabilities = torch.tensor([[0.9, 0.2, 0.6, 0.5], [0.1, 0.8, 0.4, 0.5]]).reshape(1, 2, 1, 4)
    evaluator = MaskEvaluator(2)
    evaluator.update(probabilities, torch.tensor([[[0, 1, 1, 255]]]))
    metrics = evaluator.compute()
    assert metrics.pixel_accuracy == pytest.approx(2 / 3)
    assert metrics.mean_iou == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert metrics.ece == pytest.approx((abs(1 - 0.9) + abs(1 - 0.8) + abs(0 - 0.6)) / 3, abs=1e-5)
    assert metrics.nll == pytest.approx(-(math.log(0.9) + math.log(0.8) + math.log(0.4)) / 3, abs=1e-5)

    def entropy(p: float) -> float:
        return -(p * math.log2(p) + (1 - p) * math.log2(1 - p))

    assert metrics.uncertainty_wrong == pytest.approx(entropy(0.6), abs=1e-5)
    assert metrics.uncertainty_correct == pytest.approx((entropy(0.9) + entropy(0.8)) / 2, abs=1e-5)


def test_trained_sampled_evaluated_and_cached(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["experiment", "mask_diffusion", "--num_samples", "3", "--num_inference_steps", "2",
             "--num_val_images", "5", "--num_rows", "2", *TINY]  # fmt: skip
    words.append("--data.size=[32, 32]")
    assert main([*words, "--output", str(tmp_path / "out")]) == 0
    record = read_record(tmp_path / "out")
    table, iou, ece, gallery = record.parts
    assert isinstance(table, Table) and isinstance(iou, Chart) and isinstance(ece, Chart)
    assert isinstance(gallery, Gallery) and len(gallery.rows) == 2 and len(gallery.columns) == 6
    by_name = {name: [value.mean for value in values] for name, values in table.rows}
    assert len(by_name) == 3 and table.rows[1][1][0].n == 3
    assert iou.lines[0].y[-1].mean == by_name["mean of 3 sampled masks"][0]
    one, all_three = by_name["single sampled mask"], by_name["mean of 3 sampled masks"]
    assert one[7] == all_three[7] and all(value is not None for row in by_name.values() for value in row[:4])
    assert any("images resized to data.size, the denoiser on center crops" in line for line in record.method)
    assert "× the time (3 samples of 2 steps)" in record.findings[0] and "× the time" in capsys.readouterr().out

    written = {name: (tmp_path / "out" / name / "summary.json").stat().st_mtime_ns for name in record.configs}
    assert main([*words, "--output", str(tmp_path / "out")]) == 0
    again = read_record(tmp_path / "out")
    assert written == {n: (tmp_path / "out" / n / "summary.json").stat().st_mtime_ns for n in written}
    assert [row[:4] for row in again.parts[0].rows[0][1:]] == [row[:4] for row in table.rows[0][1:]]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num_samples", "0"], "--num_samples=0: must be at least 1"),
        (["--data.name=cifar10", "--data.root=."], "data.name=cifar10: must be a dataset with masks"),
        (["--input_scale", "0"], "diffusion.noise.input_scale=0.0: must be a positive number"),
    ],
)
def test_what_cannot_be_is_refused(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["experiment", "mask_diffusion", *words, "--output", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()
