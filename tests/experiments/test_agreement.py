"""Agreement of the heads: real images in the place of samples agree as real images do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from unetdiff.data.build import build_dataset
from unetdiff.errors import UserError
from unetdiff.evaluation.layout_consistency import ClassConsistency, layout_consistency
from unetdiff.experiments import agreement
from unetdiff.reports.record import Gallery, Heatmap, Table, read_record, write_record
from unetdiff.segmentation.pipeline import SegmentationPipeline
from unetdiff.training.trainer import train


def test_real_images_as_samples(
    tmp_path: Path, joint_run: Path, tiny_config: Callable, options: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    val = build_dataset(tiny_config("joint", tmp_path).data, "val", True)
    drawn = torch.stack([item["image"] for item in val]), torch.tensor([item["label"] for item in val])
    monkeypatch.setattr(agreement, "draw", lambda task, n, setting: drawn)
    given = options(agreement, joint_run, "--guidance", 1, 3, "--n", 12, "--rows", 2)
    record = agreement.run(given, [], tmp_path, "the command")
    write_record(record, tmp_path)
    assert read_record(tmp_path) == record
    table, heat, gallery = record.parts
    assert isinstance(table, Table) and isinstance(heat, Heatmap) and isinstance(gallery, Gallery)
    assert [name for name, _ in table.rows] == ["guidance 1", "guidance 3", "real images"]
    assert table.rows[0][1] == table.rows[1][1] == table.rows[2][1]
    assert all(sum(row) == pytest.approx(1) for row in heat.values)  # type: ignore[arg-type]
    right = sum(
        heat.values[heat.rows.index(val.labels[label])][heat.columns.index(val.labels[label])] or 0
        for label in drawn[1].tolist()
    )  # each image counts as its class's share
    assert table.rows[0][1][0].mean == pytest.approx(right / 12)
    assert len(gallery.columns) == 4 and len(gallery.rows) == 2
    assert "shares its backbone" in record.findings[-1]


def test_layouts_are_compared_pixel_by_pixel(
    tmp_path: Path,
    joint_run: Path,
    background_is_void: Path,
    tiny_config: Callable,
    options: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = tiny_config("diffusion", tmp_path / "layout")
    config.diffusion.condition = "layout"
    run = train(config)
    given = options(agreement, run, "--segmenter", joint_run, "--guidance", 2, "--n", 3, "--steps", 2)
    record = agreement.run(given, [], tmp_path, "")
    table, gallery = record.parts[0], record.parts[-1]
    assert isinstance(table, Table) and [column.name for column in table.columns][-1] == "mIoU"
    assert all(row[-1].mean is not None for _, row in table.rows)
    assert isinstance(gallery, Gallery) and gallery.columns[0] == "layout asked for"

    # the real images are those of the layouts: drawn perfectly, samples agree as they do
    val = build_dataset(config.data, "val", False, layout=True)
    drawn = torch.stack([val[i]["image"] for i in range(3)])
    monkeypatch.setattr(agreement, "draw", lambda task, n, setting: (drawn, None))
    (_, samples), (_, real) = agreement.run(given, [], tmp_path, "").parts[0].rows
    assert samples == real

    given.segmenter = background_is_void
    segmenter = SegmentationPipeline.from_pretrained(background_is_void)
    expected = layout_consistency(segmenter, drawn, [val[i]["mask"] for i in range(3)], len(val.classes))["mean_iou"]
    (_, samples), _ = agreement.run(given, [], tmp_path, "").parts[0].rows
    assert samples[-1].mean == pytest.approx(expected) and samples[-1] != real[-1]


def test_without_a_background_only_the_layout_is_told() -> None:
    def judged(right: int, mean_iou: float) -> agreement.Judged:
        return agreement.Judged(torch.zeros(2), [], ClassConsistency([0, 1], right, 1.0), mean_iou)

    real, drawn = judged(2, 0.5), {1.0: judged(2, 0.3), 2.0: judged(2, 0.4)}
    (told,) = agreement.findings(real, drawn, itself=False, by_class=False)
    assert told.startswith("Against the layouts asked for, mIoU is 0.400 at guidance 2;") and "0.500" in told
    assert len(agreement.findings(real, drawn, itself=False, by_class=True)) == 4
    table = agreement._table(real, drawn, by_class=False, layouts=True)
    assert [column.name for column in table.columns] == ["mIoU"]
    assert [row[0].mean for _, row in table.rows] == [0.3, 0.4, 0.5]


def test_refusals(tmp_path: Path, joint_run: Path, tiny_config: Callable, options: Callable) -> None:
    for name in ("--n", "--rows"):
        with pytest.raises(UserError, match=f"{name}: 0"):
            agreement.run(options(agreement, joint_run, name, 0), [], tmp_path, "")
    with pytest.raises(UserError, match="--training.steps: this experiment trains nothing"):
        agreement.run(options(agreement, joint_run), ["--training.steps", "3"], tmp_path, "")
    segmenter = train(tiny_config("segmentation", tmp_path / "segmenter"))
    with pytest.raises(UserError, match="RUN: .* has no diffusion head; give a diffusion or joint run"):
        agreement.run(options(agreement, segmenter), [], tmp_path, "")
    config = tiny_config("diffusion", tmp_path / "none")
    config.diffusion.condition = "none"
    untold = train(config)
    with pytest.raises(UserError, match="RUN: .* is told no condition"):
        agreement.run(options(agreement, untold), [], tmp_path, "")
