"""The training loop: accumulation, freezing, precision, failures, and output files."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torchvision.models import resnet18

from unetdiff import GenerationPipeline, SegmentationPipeline, UNet
from unetdiff.config.schema import RunConfig
from unetdiff.data.build import build_dataset
from unetdiff.errors import TrainingStopped, UserError
from unetdiff.evaluation.config import EvaluationConfig
from unetdiff.evaluation.evaluate import evaluate
from unetdiff.training import checkpoints, trainer
from unetdiff.training.logger import read_lines
from unetdiff.training.tasks.build import load_task
from unetdiff.training.tasks.segmentation import SegmentationTask
from unetdiff.training.trainer import train

Tiny = Callable[..., RunConfig]


def _model(run: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoints.newest(run) / checkpoints.MODEL)  # type: ignore[operator]


def test_a_joint_run_leaves_what_the_commands_need(tiny: Tiny) -> None:
    run = train(tiny("joint"), command="unetdiff train joint tiny.yaml")
    lines = read_lines(run / "metrics.jsonl")
    assert [(line["kind"], line["step"]) for line in lines] == [
        ("train", 2), ("validation", 3), ("train", 4), ("train", 6), ("validation", 6)
    ]  # fmt: skip
    assert {"loss", "lr", "images_per_second", "data_wait", "segmentation/loss", "diffusion/loss"} <= lines[0].keys()
    assert {"segmentation/mean_iou", "diffusion/loss", "diffusion/color_mean_error"} <= lines[-1].keys()
    assert all(0 <= line["data_wait"] <= 1 for line in lines if line["kind"] == "train")
    assert [p.name for p in sorted((run / "checkpoints").iterdir())] == ["step-00000004", "step-00000006"]
    assert sorted(p.name for p in (run / "images").iterdir()) == [
        f"step-00000{s}-{what}.png" for s in (3, 6) for what in ("samples", "segmentation")
    ]
    assert any((run / "tensorboard").iterdir())

    summary = json.loads((run / "summary.json").read_text())
    validations = {line["step"]: line["segmentation/mean_iou"] for line in lines if line["kind"] == "validation"}
    assert summary["best"]["value"] == max(validations.values()) == validations[summary["best"]["step"]]
    assert summary["images"] == 24 and summary["command"] == "unetdiff train joint tiny.yaml"
    unet = UNet.from_pretrained(run / "best" / "unet")
    assert sum(summary["parameters"].values()) == sum(p.numel() for p in unet.parameters())

    image = Image.new("RGB", (40, 33), "red")
    assert SegmentationPipeline.from_pretrained(run / "best")(image).mask.shape == (33, 40)
    images = GenerationPipeline.from_pretrained(run / "best")("seven", num_inference_steps=2, batch_size=2).images
    assert len(images) == 2 and images[0].size == (32, 32)
    metrics = evaluate(run, config=EvaluationConfig(samples_per_class=0)).metrics
    if summary["best"]["step"] == 6:
        assert metrics["segmentation/mean_iou"] == pytest.approx(summary["final"]["segmentation/mean_iou"], abs=1e-6)
        assert metrics["diffusion/loss"] == pytest.approx(summary["final"]["diffusion/loss"], rel=1e-4)


def test_the_judged_weights_of_every_checkpoint_can_be_loaded(tiny: Tiny) -> None:
    config = tiny("diffusion", training__steps=4, training__validate_every=4, training__keep_checkpoints=5)
    run = train(config)
    kept = checkpoints.complete(run)
    assert [p.name for p in kept] == ["step-00000002", "step-00000004"] and kept[-1] == checkpoints.newest(run)
    val = build_dataset(config.data, "val", False)
    task = load_task(config, run / "latest", val)
    weight = "unet.encoder.conv_in.weight"
    for checkpoint, step in zip(kept, (2, 4), strict=True):
        assert checkpoints.load_eval_weights(checkpoint, task).step == step
        average = load_file(checkpoint / checkpoints.EMA_WEIGHTS)
        assert torch.equal(task.state_dict()[weight], average[weight])
    (kept[0] / checkpoints.EMA_WEIGHTS).unlink()  # as in a run without an average
    checkpoints.load_eval_weights(kept[0], task)
    assert torch.equal(task.state_dict()[weight], load_file(kept[0] / checkpoints.MODEL)[weight])


def test_accumulation_gives_the_same_step(tiny: Tiny) -> None:
    """In float32 without dropout, one batch of 4 and two parts of 2 are the same gradient."""
    same = {"training__steps": 3, "training__mixed_precision": "no", "model__residual__dropout": 0.0}
    same["segmentation__losses"] = {"cross_entropy": 1.0}
    whole = train(tiny("segmentation", "whole", **same))
    parts = train(tiny("segmentation", "parts", training__gradient_accumulation_steps=2, **same))
    a, b = _model(whole), _model(parts)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=2e-5)
    assert json.loads((whole / "summary.json").read_text())["precision"] == "float32"


def test_frozen_phase_then_free(tiny: Tiny, tmp_path: Path) -> None:
    save_file(resnet18().state_dict(), tmp_path / "resnet18.safetensors")
    options = {
        "model__encoder__name": "resnet18",
        "model__encoder__weights": str(tmp_path / "resnet18.safetensors"),
        "model__encoder__channels": None,
        "model__conditioning__attention_levels": None,
        "model__conditioning__cross_attention_dim": None,
        "model__decoder__channels": [8, 8, 8, 8, 8],
        "training__steps": 4,
        "training__checkpoint_every": 1,
        "training__keep_checkpoints": 9,
        "training__freeze_encoder": 0.5,
    }
    run = train(tiny("segmentation", **options))
    states = [load_file(run / "checkpoints" / f"step-{s:08d}" / checkpoints.MODEL) for s in (1, 2, 3)]
    trunk = [k for k in states[0] if k.startswith("unet.encoder.model")]
    rest = [k for k in states[0] if k.startswith("unet.decoder") and k.endswith("weight")]
    assert any("running_mean" in k for k in trunk)
    assert all(torch.equal(states[0][k], states[1][k]) for k in trunk)
    assert not any(torch.equal(states[0][k], states[1][k]) for k in rest)
    assert sum(not torch.equal(states[1][k], states[2][k]) for k in trunk) > len(trunk) / 2


def test_the_average_follows_and_buffers_are_copied(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unetdiff.training.ema.WARMUP_RATIO", 1.0)  # or so short a run has no average
    run = train(tiny("segmentation", training__ema__half_life_images=8))
    newest = checkpoints.newest(run)
    assert newest is not None
    model, average = load_file(newest / checkpoints.MODEL), load_file(newest / checkpoints.EMA_WEIGHTS)
    assert model.keys() == average.keys()
    assert any(not torch.equal(model[k], average[k]) for k in model)
    off = train(tiny("segmentation", "off", training__ema__enabled=False))
    assert not (checkpoints.newest(off) / checkpoints.EMA_WEIGHTS).exists()  # type: ignore[operator]


class _Poisoned(SegmentationTask):
    """A task whose loss is not a number at some steps; keeps the weights before each."""

    at: tuple[int, ...] = ()
    calls = 0
    before: ClassVar[list[dict[str, torch.Tensor]]] = []

    def losses(self, sums):  # type: ignore[no-untyped-def]
        losses = super().losses(sums)
        type(self).calls += self.training
        if self.training:
            self.before.append({name: value.clone() for name, value in self.state_dict().items()})
        if self.training and self.calls in self.at:
            losses["loss"] = losses["loss"] * torch.nan
        return losses


def _poison(monkeypatch: pytest.MonkeyPatch, *at: int) -> list[dict[str, torch.Tensor]]:
    """Make the losses of these steps NaN; returns the weights before each step, filled by the training."""
    before: list[dict[str, torch.Tensor]] = []

    def build(config, train_set, val):  # type: ignore[no-untyped-def]
        task = real(config, train_set, val)
        task.__class__ = type("Poisoned", (_Poisoned,), {"at": at, "calls": 0, "before": before})
        return task

    real = trainer.build_task
    monkeypatch.setattr(trainer, "build_task", build)
    return before


def test_a_nonfinite_loss_is_skipped_and_counted(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    before = _poison(monkeypatch, 3)
    run = train(tiny("segmentation", training__checkpoint_every=1, training__keep_checkpoints=9))
    assert all(torch.equal(before[2][k], before[3][k]) for k in before[2]), "the third step leaves the weights alone"
    assert any(not torch.equal(before[3][k], before[4][k]) for k in before[3])
    states = [load_file(run / "checkpoints" / f"step-{s:08d}" / checkpoints.MODEL) for s in (2, 4)]
    assert not (run / "checkpoints" / "step-00000003").exists(), "none is written during a streak"
    assert any(not torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert all(v.isfinite().all() for v in states[1].values())
    assert json.loads((run / "summary.json").read_text())["skipped_steps"] == 1
    skipped = [line for line in read_lines(run / "metrics.jsonl") if line["kind"] == "nonfinite"]
    assert len(skipped) == 1 and len(skipped[0]["names"]) == 4


def test_nonfinite_losses_in_a_row_stop_with_the_files_named(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    _poison(monkeypatch, 3, 4)
    monkeypatch.setattr("unetdiff.training.trainer.MAX_NONFINITE_STEPS", 2)
    with pytest.raises(TrainingStopped, match="2 non-finite losses in a row at step 4") as stopped:
        train(tiny("segmentation"))
    assert "step-00000002" in str(stopped.value) and "--resume" in str(stopped.value)
    run = Path(tiny().training.output_dir)
    names = json.loads((run / "nonfinite.json").read_text())["names"]
    assert len(names) == 4 and all(name.startswith("scenes/train/") for name in names)


def test_a_full_disk_leaves_the_last_checkpoint_whole(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = checkpoints.write_tensors, []

    def full(tensors, path):  # type: ignore[no-untyped-def]
        calls.append(path)
        if len(calls) == 5:  # the second checkpoint's second file
            Path(path).write_bytes(b"torn")
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(tensors, path)

    monkeypatch.setattr(checkpoints, "write_tensors", full)
    config = tiny("segmentation")
    with pytest.raises(
        TrainingStopped, match="no space left on device. .*step-00000002; continue with the same command and --resume"
    ):
        train(config)
    run = Path(config.training.output_dir)
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["step-00000002"]
    config.training.resume = True
    train(config)
    assert json.loads((run / "summary.json").read_text())["steps"] == 6


def test_a_full_disk_is_told_whoever_was_writing(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers' own writer, which writes what is exported, passes on safetensors' word for it."""

    def full(*args: object, **more: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(UNet, "save_pretrained", full)
    with pytest.raises(
        TrainingStopped, match="no space left on device. .*step-00000002; continue with the same command and --resume"
    ):
        train(tiny("segmentation"))


def test_a_validation_that_fails_loses_nothing(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(self: SegmentationTask, *args: object) -> None:
        raise RuntimeError("out of memory")

    message = "Out of memory after step 3 .*eval_batch_size.*step-00000003; continue with the same command and --resume"
    with monkeypatch.context() as broken, pytest.raises(TrainingStopped, match=message):
        broken.setattr(SegmentationTask, "evaluate", out_of_memory)
        train(tiny("segmentation", training__checkpoint_every=100))
    run = train(tiny("segmentation", training__checkpoint_every=100, training__resume=True))
    assert [line["step"] for line in read_lines(run / "metrics.jsonl") if line["kind"] == "validation"] == [3, 6]


def test_the_last_validation_is_made_up_for(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(tiny("segmentation", "whole"))
    evaluate_once, calls = SegmentationTask.evaluate, []

    def fails_at_last(self: SegmentationTask, *args: Any) -> dict[str, Any]:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return evaluate_once(self, *args)

    monkeypatch.setattr(SegmentationTask, "evaluate", fails_at_last)
    with pytest.raises(TrainingStopped, match="Out of memory"):
        train(tiny("segmentation"))
    run = train(tiny("segmentation", training__resume=True))
    for name in ("best", "latest"):
        files = [folder / name / "unet" / "diffusion_pytorch_model.safetensors" for folder in (run, whole)]
        assert files[0].read_bytes() == files[1].read_bytes()
    ours, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (run, whole))
    assert ours["final"] == theirs["final"] and ours["best"] == theirs["best"]
    lines = [line["step"] for line in read_lines(run / "metrics.jsonl") if line["kind"] == "validation"]
    assert lines == [3, 6]


def test_images_of_several_sizes_name_the_remedy(tiny: Tiny, tmp_path: Path) -> None:
    root = tmp_path / "voc"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for number, size in enumerate([(32, 40), (48, 32), (32, 32), (40, 40)]):
        Image.new("RGB", size, (number * 40, 0, 0)).save(root / "JPEGImages" / f"{number}.jpg")
        Image.new("P", size, number % 2).save(root / "SegmentationClass" / f"{number}.png")
    (root / "classes.txt").write_text("ground\nthing\n")
    (root / "ImageSets/Segmentation/train.txt").write_text("0\n1\n2\n")
    (root / "ImageSets/Segmentation/val.txt").write_text("3\n")
    options = {"data__name": "voc_folder", "data__root": str(root), "training__batch_size": 3, "training__steps": 2}
    with pytest.raises(UserError, match=r"differ in size .*Give data.size or data.augment.crop"):
        train(tiny("segmentation", **options))
    options |= {"data__augment__crop": [32, 32], "training__overwrite": True}
    assert train(tiny("segmentation", **options)).is_dir()


@pytest.mark.parametrize("head", ["segmentation", "diffusion"])
def test_classic_valid_and_unconditional_runs(tiny: Tiny, head: str) -> None:
    options: dict = {"training__steps": 2, "model__conditioning__attention_levels": None, "training__validate_every": 2}
    options |= {"model__conditioning__cross_attention_dim": None, "model__encoder__name": "classic"}
    options |= {"model__encoder__channels": [4, 4], "diffusion__condition": "none"}
    if head == "segmentation":
        options |= {"model__encoder__padding": "valid", "model__encoder__channels": [4, 4]}
    run = train(tiny(head, **options))
    assert (run / "best" / "unet").is_dir()
    evaluate(run, config=EvaluationConfig(samples_per_class=1, num_inference_steps=2))


def test_the_length_is_shown_as_it_was_given(tiny: Tiny, capsys: pytest.CaptureFixture) -> None:
    train(tiny("segmentation", training__steps=None, training__epochs=1.23))
    assert " (1.23 epochs)" in capsys.readouterr().err
