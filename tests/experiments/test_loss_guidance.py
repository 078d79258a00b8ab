"""Layout guidance by a segmenter: an experiment from end to end, and the segmenter's input size."""

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
from unetdiff.experiments import loss_guidance, loss_guidance_report
from unetdiff.experiments.loss_guidance_report import GuidedSamples
from unetdiff.reports.record import Gallery, Table, read_record, write_record
from unetdiff.segmentation.pipeline import SegmentationPipeline


def test_from_noise_to_the_record(tmp_path: Path, joint_run: Path, options: Callable) -> None:
    words = ("--loss_scales", 0.3, "--num_images", 3, "--num_inference_steps", 2, "--num_rows", 2,
             "--segmenter_train_steps", 3)  # fmt: skip
    record = loss_guidance.run(options(loss_guidance, joint_run, *words), [], tmp_path, "the command")
    write_record(record, tmp_path)
    assert read_record(tmp_path) == record
    table, gallery = record.parts
    assert isinstance(table, Table) and isinstance(gallery, Gallery)
    assert [name for name, _ in table.rows] == ["no loss guidance", "scale 0.3", "real images"]
    assert table.rows[-1][1][-1].mean is None  # not sampled
    assert (tmp_path / "eval_segmenter" / "best" / "segmentation.json").is_file()
    assert "seed: 1" in record.configs["eval_segmenter"] and "task: segmentation" in record.configs["eval_segmenter"]
    assert len(gallery.columns) == 7 and len(gallery.rows) == 2
    before, after = (Image.open(tmp_path / gallery.rows[0][1][place]).tobytes() for place in (1, 4))
    assert before != after


def test_the_segmenter_in_both_roles_agrees_with_itself(tmp_path: Path, joint_run: Path, options: Callable) -> None:
    words = ("--eval_segmenter", joint_run, "--loss_scales", 0.1, "--num_images", 2, "--num_inference_steps", 2,
             "--backprop_through", "image", "--conditional")  # fmt: skip
    record = loss_guidance.run(options(loss_guidance, joint_run, *words), [], tmp_path, "")
    table = record.parts[0]
    assert isinstance(table, Table) and all(row[0] == row[1] for _, row in table.rows)


def test_the_own_head_guides_at_x_t(tmp_path: Path, make_run: Callable[..., Path], options: Callable) -> None:
    run = make_run("noisy", "joint", **{"segmentation.noise": 0.5})
    words = ("--eval_segmenter", run, "--loss_scales", 0.5, "--num_images", 2, "--num_inference_steps", 2,
             "--loss_sees", "xt")  # fmt: skip
    record = loss_guidance.run(options(loss_guidance, run, *words), [], tmp_path / "out", "")
    gallery = record.parts[1]
    assert isinstance(gallery, Gallery) and "it sees the noisy image at its timestep" in " ".join(record.method)
    before, after = (Image.open(tmp_path / "out" / gallery.rows[0][1][place]).tobytes() for place in (1, 4))
    assert before != after


def test_a_segmenter_of_clean_images_is_refused_at_x_t(
    tmp_path: Path, make_run: Callable[..., Path], joint_run: Path, options: Callable
) -> None:
    with pytest.raises(UserError, match="--segmenter=.*trained on noisy images.*segmentation.noise=0.5"):
        loss_guidance.run(options(loss_guidance, joint_run, "--loss_sees", "xt"), [], tmp_path, "")
    other = make_run("other", "joint", **{"segmentation.noise": 0.5, "diffusion.noise.input_scale": 0.5})
    with pytest.raises(UserError, match="with the denoiser's diffusion.noise"):
        words = ("--loss_sees", "xt", "--segmenter", other)
        loss_guidance.run(options(loss_guidance, joint_run, *words), [], tmp_path, "")


def test_the_ignore_index_is_that_of_the_segmenter(
    tmp_path: Path, joint_run: Path, background_is_ignored: Path, options: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    indices = []

    def loss(segment, layouts: Tensor, ignore_index: int = 255):
        indices.append(ignore_index)
        return layout_loss(segment, layouts, ignore_index)

    monkeypatch.setattr(loss_guidance, "layout_loss", loss)
    words = ("--segmenter", background_is_ignored, "--eval_segmenter", joint_run, "--loss_scales", 0.1,
             "--num_images", 1, "--num_inference_steps", 2)  # fmt: skip
    loss_guidance.run(options(loss_guidance, joint_run, *words), [], tmp_path, "")
    assert indices == [0]


@pytest.mark.parametrize(
    ("size", "expected"), [(None, (8, 12)), ((16, 16), (16, 16)), (24, (16, 24))], ids=["own", "fixed", "longest side"]
)
def test_a_segmenter_sees_images_at_its_size(size, expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    unet = UNet(
        encoder={"channels": [8, 8]}, residual={"norm_num_groups": 4}, heads={"segmentation": {"num_classes": 2}}
    )
    sizes = []

    def segment(pixels: Tensor, timestep: Tensor | None = None) -> Tensor:
        sizes.append(tuple(pixels.shape[-2:]))
        return pixels[:, :2]

    monkeypatch.setattr(unet, "segment", segment)
    images = torch.zeros(1, 3, 8, 12, requires_grad=True)
    loss_guidance.segment_at_size(SegmentationPipeline(unet, ["a", "b"], size=size), images).sum().backward()
    assert sizes == [expected] and images.grad is not None and bool((images.grad[:, :2] > 0).all())


def test_findings_report_unconfirmed_gains() -> None:
    def row(guiding: float, independent: float) -> GuidedSamples:
        return GuidedSamples(torch.zeros(1), guiding, independent, 1.0)

    real = row(0.9, 0.9)
    fooled = {"no loss guidance": row(0.1, 0.2), "scale 1": row(0.6, 0.15)}
    lines = " ".join(loss_guidance_report.findings(fooled, real, 9))
    assert "0.150 (-0.050) by the independent segmenter, which does not confirm" in lines
    assert "not improved at any scale" in lines
    half = {"no loss guidance": row(0.1, 0.1), "scale 1": row(0.5, 0.3)}
    lines = " ".join(loss_guidance_report.findings(half, real, 9))
    assert "0.300 (+0.200) by the independent segmenter, which confirms 50% of the gain." in lines
    failed = {"no loss guidance": row(0.3, 0.1), "scale 1": row(0.2, 0.3)}
    assert "did not improve" in loss_guidance_report.findings(failed, real, 9)[0]


def test_refusals_come_first(tmp_path: Path, options: Callable) -> None:
    for words, message in [
        (("--loss_scales", -1), "--loss_scale=-1.0"),
        (("--loss_interval", 0.9, 0.1), r"--loss_interval=\[0.9, 0.1\]"),
        (("--num_inference_steps", 0), "--num_inference_steps=0"),
        (("--num_rows", 0), "--num_rows=0"),
    ]:
        with pytest.raises(UserError, match=message):
            loss_guidance.run(options(loss_guidance, tmp_path / "nowhere", *words), [], tmp_path, "")
