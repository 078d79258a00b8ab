"""Segmenter accuracy on samples: real images in place of samples score as real images do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from unetdiff.data.build import build_dataset
from unetdiff.errors import UserError
from unetdiff.evaluation.distances import Gaussian
from unetdiff.evaluation.layout_consistency import ClassConsistency, layout_consistency
from unetdiff.experiments import agreement, agreement_report
from unetdiff.experiments.agreement_report import AgreementResults, SegmentedImages
from unetdiff.experiments.filtering import condition_scores, filter_findings, filter_table, kept_samples
from unetdiff.reports.record import Gallery, Heatmap, Table, read_record, write_record
from unetdiff.segmentation.pipeline import SegmentationPipeline
from unetdiff.training.trainer import train


def test_real_images_as_samples(
    tmp_path: Path, joint_run: Path, tiny_config: Callable, options: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    val = build_dataset(tiny_config("joint", tmp_path).data, "val", True)
    generated = torch.stack([item["image"] for item in val]), torch.tensor([item["label"] for item in val])
    monkeypatch.setattr(agreement, "sample", lambda task, n, config: generated)
    args = options(agreement, joint_run, "--guidance_scales", 1, 3, "--num_images", 12, "--num_rows", 2)
    record = agreement.run(args, [], tmp_path, "the command")
    write_record(record, tmp_path)
    assert read_record(tmp_path) == record
    table, heat, gallery = record.parts
    assert isinstance(table, Table) and isinstance(heat, Heatmap) and isinstance(gallery, Gallery)
    assert [name for name, _ in table.rows] == ["guidance 1", "guidance 3", "real images"]
    assert table.rows[0][1] == table.rows[1][1] == table.rows[2][1]
    assert all(sum(row) == pytest.approx(1) for row in heat.values)  # type: ignore[arg-type]
    right = sum(
        heat.values[heat.rows.index(val.labels[label])][heat.columns.index(val.labels[label])] or 0
        for label in generated[1].tolist()
    )  # the fraction of its class for each image
    assert table.rows[0][1][0].mean == pytest.approx(right / 12)
    assert len(gallery.columns) == 4 and len(gallery.rows) == 2
    assert "shares its backbone" in record.findings[-1]


def test_layouts_are_compared_pixel_by_pixel(
    tmp_path: Path,
    joint_run: Path,
    background_is_ignored: Path,
    tiny_config: Callable,
    options: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = tiny_config("diffusion", tmp_path / "layout")
    config.diffusion.condition = "layout"
    run = train(config)
    args = options(
        agreement, run, "--segmenter", joint_run, "--guidance_scales", 2, "--num_images", 3, "--num_inference_steps", 2
    )
    record = agreement.run(args, [], tmp_path, "")
    table, gallery = record.parts[0], record.parts[-1]
    assert isinstance(table, Table) and [column.name for column in table.columns][-1] == "mIoU"
    assert all(row[-1].mean is not None for _, row in table.rows)
    assert isinstance(gallery, Gallery) and gallery.columns[0] == "layout"

    # the real images are those of the layouts: as samples, they have the same metrics
    val = build_dataset(config.data, "val", False, layout=True)
    generated = torch.stack([val[i]["image"] for i in range(3)])
    monkeypatch.setattr(agreement, "sample", lambda task, n, config: (generated, None))
    (_, samples), (_, real) = agreement.run(args, [], tmp_path, "").parts[0].rows
    assert samples == real

    args.segmenter = background_is_ignored
    segmenter = SegmentationPipeline.from_pretrained(background_is_ignored)
    expected = layout_consistency(segmenter, generated, [val[i]["mask"] for i in range(3)], len(val.classes))[
        "mean_iou"
    ]
    (_, samples), _ = agreement.run(args, [], tmp_path, "").parts[0].rows
    assert samples[-1].mean == pytest.approx(expected) and samples[-1] != real[-1]


def test_without_a_background_only_the_layout_counts() -> None:
    def segmented(right: int, mean_iou: float) -> SegmentedImages:
        return SegmentedImages(torch.zeros(2), [], ClassConsistency([0, 1], right, 1.0), mean_iou)

    def results(has_classes: bool) -> AgreementResults:
        samples = {1.0: segmented(2, 0.3), 2.0: segmented(2, 0.4)}
        return AgreementResults(segmented(2, 0.5), samples, [{0}, {1}], True, has_classes, shared_backbone=False)

    (line,) = agreement_report.findings(results(has_classes=False))
    assert line == "mIoU between segmentation and layout: 0.400 on samples (guidance 2), 0.500 on real images."
    assert len(agreement_report.findings(results(has_classes=True))) == 4
    table = agreement_report.table(results(has_classes=False))
    assert [column.name for column in table.columns] == ["mIoU"]
    assert [row[0].mean for _, row in table.rows] == [0.3, 0.4, 0.5]


def test_refusals(tmp_path: Path, joint_run: Path, tiny_config: Callable, options: Callable) -> None:
    for name in ("--num_images", "--num_rows"):
        with pytest.raises(UserError, match=f"{name}.{{1,2}}0"):
            agreement.run(options(agreement, joint_run, name, 0), [], tmp_path, "")
    with pytest.raises(UserError, match="--training.steps: config keys do not apply"):
        agreement.run(options(agreement, joint_run), ["--training.steps", "3"], tmp_path, "")
    segmenter = train(tiny_config("segmentation", tmp_path / "segmenter"))
    with pytest.raises(UserError, match="RUN=.*: must have a diffusion head. Give a diffusion or joint run."):
        agreement.run(options(agreement, segmenter), [], tmp_path, "")
    config = tiny_config("diffusion", tmp_path / "none")
    config.diffusion.condition = "none"
    unconditional = train(config)
    with pytest.raises(UserError, match="RUN=.*: must be conditional"):
        agreement.run(options(agreement, unconditional), [], tmp_path, "")


def test_samples_are_filtered_by_the_segmenter_and_judged_by_another(
    tmp_path: Path, joint_run: Path, options: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agreement, "CLASSIFIER_STEPS", 2)
    args = options(
        agreement, joint_run, "--guidance_scales", 2, "--num_images", 6, "--num_inference_steps", 2,
        "--filter_thresholds", 0.01,
    )  # fmt: skip
    record = agreement.run(args, [], tmp_path, "")
    write_record(record, tmp_path)
    assert read_record(tmp_path) == record
    kept = record.parts[1]
    assert isinstance(kept, Table)
    assert [name for name, _ in kept.rows] == ["guidance 2, all samples", "guidance 2, score ≥ 0.01"]
    assert kept.rows[0][1][0].mean == 1
    args.filter_thresholds = [2.0]
    with pytest.raises(UserError, match="--filter_thresholds=.*must be in"):
        agreement.run(args, [], tmp_path, "")


def test_scores_and_what_is_kept_by_hand() -> None:
    masks = [np.array([[0, 3], [3, 2]]), np.array([[0, 0], [0, 1]]), np.zeros((2, 2), int)]
    scores = condition_scores(masks, [3, 1, 1], background=0)
    assert scores.tolist() == pytest.approx([2 / 3, 1, 0])
    features = torch.tensor([[0.0], [2.0], [4.0]])
    real = Gaussian(torch.zeros(1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64), 9)
    is_correct = np.array([False, True, True])
    kept = kept_samples(4.0, scores, is_correct, [0.9, 0.5], features, real)
    assert [(one.threshold, one.num_kept, one.num_correct) for one in kept] == [(0, 3, 2), (0.5, 2, 1), (0.9, 1, 1)]
    assert [one.distance for one in kept] == [None, None, None], "one sample has no covariance"
    assert [[value.mean for value in values[:2]] for _, values in filter_table(kept, 0.9).rows] == [
        pytest.approx([1, 2 / 3]), pytest.approx([2 / 3, 0.5]), pytest.approx([1 / 3, 1]),
    ]  # fmt: skip
    (line,) = filter_findings(kept)
    assert "66.7% (95 % interval" in line and line.endswith("1 samples) of those with a score of at least 0.9.")


def test_distances_are_of_equally_many_samples() -> None:
    features = torch.tensor([[0.0], [2.0], [4.0]])
    real = Gaussian(torch.zeros(1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64), 9)
    everything, high = kept_samples(4.0, np.array([0.1, 1, 0.9]), np.ones(3, bool), [0.8], features, real)
    # means 1 and 3, both with variance 2: μ² + (√2 - 1)²
    assert everything.num_compared == high.num_compared == 2
    assert everything.distance == pytest.approx(1 + (2**0.5 - 1) ** 2)
    assert high.distance == pytest.approx(9 + (2**0.5 - 1) ** 2)
    (line,) = filter_findings([everything, high])
    assert line.endswith("; Fréchet distance 1.17 and 9.17, 2 samples each.")
    table = filter_table([everything, high], 0.9)
    assert table.note is not None and table.note.endswith("Samples in each Fréchet distance: 2 at guidance 4.")
