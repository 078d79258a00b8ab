"""Steering by a segmentation head: an experiment from end to end, and what the segmenter sees."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from unetdiff import UNet
from unetdiff.diffusion.loss_guidance import layout_loss
from unetdiff.errors import UserError
from unetdiff.experiments import steering
from unetdiff.reports.record import Gallery, Table, read_record, write_record
from unetdiff.segmentation.pipeline import SegmentationPipeline


def test_from_noise_to_the_record(tmp_path: Path, joint_run: Path, options: Callable) -> None:
    words = ("--scales", 0.3, "--n", 3, "--steps", 2, "--rows", 2, "--classifier_steps", 3)
    record = steering.run(options(steering, joint_run, *words), [], tmp_path, "the command")
    write_record(record, tmp_path)
    assert read_record(tmp_path) == record
    table, gallery = record.parts
    assert isinstance(table, Table) and isinstance(gallery, Gallery)
    assert [name for name, _ in table.rows] == ["not steered", "scale 0.3", "real images"]
    assert table.rows[-1][1][-1].mean is None  # nothing was drawn
    assert (tmp_path / "judge" / "best" / "segmentation.json").is_file()
    assert "seed: 1" in record.configs["judge"] and "task: segmentation" in record.configs["judge"]
    assert len(gallery.columns) == 7 and len(gallery.rows) == 2
    before, after = (Image.open(tmp_path / gallery.rows[0][1][place]).tobytes() for place in (1, 4))
    assert before != after


def test_the_segmenter_as_its_own_judge_agrees_with_itself(tmp_path: Path, joint_run: Path, options: Callable) -> None:
    words = ("--judge", joint_run, "--scales", 0.1, "--n", 2, "--steps", 2, "--through", "image", "--tell")
    record = steering.run(options(steering, joint_run, *words), [], tmp_path, "")
    table = record.parts[0]
    assert isinstance(table, Table) and all(row[0] == row[1] for _, row in table.rows)


def test_void_is_the_segmenters(
    tmp_path: Path, joint_run: Path, background_is_void: Path, options: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []

    def loss(segment, layouts: Tensor, ignore_index: int = 255):
        given.append(ignore_index)
        return layout_loss(segment, layouts, ignore_index)

    monkeypatch.setattr(steering, "layout_loss", loss)
    words = ("--segmenter", background_is_void, "--judge", joint_run, "--scales", 0.1, "--n", 1, "--steps", 2)
    steering.run(options(steering, joint_run, *words), [], tmp_path, "")
    assert given == [0]


@pytest.mark.parametrize(
    ("size", "seen"), [(None, (8, 12)), ((16, 16), (16, 16)), (24, (16, 24))], ids=["own", "fixed", "longest side"]
)
def test_a_segmenter_sees_images_at_its_size(size, seen: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    unet = UNet(
        encoder={"channels": [8, 8]}, residual={"norm_num_groups": 4}, heads={"segmentation": {"num_classes": 2}}
    )
    sizes = []

    def segment(pixels: Tensor, timestep: Tensor | None = None) -> Tensor:
        sizes.append(tuple(pixels.shape[-2:]))
        return pixels[:, :2]

    monkeypatch.setattr(unet, "segment", segment)
    images = torch.zeros(1, 3, 8, 12, requires_grad=True)
    steering.seen_by(SegmentationPipeline(unet, ["a", "b"], size=size), images).sum().backward()
    assert sizes == [seen] and images.grad is not None and bool((images.grad[:, :2] > 0).all())


def test_findings_do_not_flatter() -> None:
    def row(by_segmenter: float, by_judge: float) -> steering.Judged:
        return steering.Judged(torch.zeros(1), by_segmenter, by_judge, 1.0)

    real = row(0.9, 0.9)
    fooled = {"not steered": row(0.1, 0.2), "scale 1": row(0.6, 0.15)}
    told = " ".join(steering.findings(fooled, real, "not steered", 9))
    assert "does not confirm it: 0.150 (-0.050)" in told and "At no scale" in told
    half = {"not steered": row(0.1, 0.1), "scale 1": row(0.5, 0.3)}
    assert "sees 50% of that gain: 0.300 (+0.200)" in " ".join(steering.findings(half, real, "scale 1", 9))
    failed = {"not steered": row(0.3, 0.1), "scale 1": row(0.2, 0.3)}
    assert "steering failed" in steering.findings(failed, real, "scale 1", 9)[0]


def test_refusals_come_first(tmp_path: Path, options: Callable) -> None:
    for words, message in [
        (("--scales", -1), "--scale: -1.0"),
        (("--interval", 0.9, 0.1), r"--interval: \[0.9, 0.1\]"),
        (("--steps", 0), "--steps: 0"),
        (("--rows", 0), "--rows: 0"),
    ]:
        with pytest.raises(UserError, match=message):
            steering.run(options(steering, tmp_path / "nowhere", *words), [], tmp_path, "")
