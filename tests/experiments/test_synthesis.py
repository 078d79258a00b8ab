"""`unetdiff experiment synthesis`: layouts and their mIoU, and a tiny run end to end."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from unetdiff.cli.main import main
from unetdiff.data.masks.voc import VOCFolder
from unetdiff.experiments.runs import read_run
from unetdiff.experiments.synthetic_dataset import Scores, SynthesisConfig, augment_layout, layout_miou
from unetdiff.files.records import read_object
from unetdiff.reports.record import Gallery, Table, read_record

CONFIG = SynthesisConfig(
    num_samples=2, min_miou=0.5, max_zoom=1.0, hflip=False, num_inference_steps=2, guidance_scale=1.0
)
TINY = [
    "--model.encoder.channels=[8, 16]",
    "--model.residual.layers_per_block=1",
    "--model.residual.norm_num_groups=4",
    "--model.conditioning.cross_attention_dim=8",
    "--model.conditioning.attention_levels=[1]",
    "--model.conditioning.attention_head_dim=8",
    "--data.scenes.train_images=40",
    "--data.scenes.val_images=6",
    "--diffusion.preview_steps=2",
    "--diffusion.preview_per_class=1",
    "--training.batch_size=4",
]
SHORT = ["--label_fraction", "0.1", "--num_inference_steps", "2", "--denoiser_train_steps", "2",
         "--segmenter_train_steps", "3", "--num_rows", "2"]  # fmt: skip


def test_miou_of_a_layout() -> None:
    layout = torch.tensor([[0, 0, 1, 255]])
    assert layout_miou(torch.tensor([[0, 1, 1, 2]]), layout, 3) == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert layout_miou(torch.tensor([[0, 0, 1, 2]]), layout, 3) == 1
    assert layout_miou(torch.tensor([[0, 1, 1, 2]]), layout, 3, ignore_index=0) == 1


def test_the_hardest_of_the_images_that_match() -> None:
    scores = Scores({"a": 0.9, "b": 0.6, "c": 0.2, "d": 0.7}, {"a": 0.1, "b": 0.5, "c": 0.9, "d": 0.3})
    assert scores.kept(CONFIG) == ["a", "b", "d"]
    assert scores.kept(replace(CONFIG, hard_fraction=0.5)) == ["b", "d"]  # 1.5 of 3, rounded up
    assert scores.kept(replace(CONFIG, hard_fraction=0.1)) == ["b"]


def test_layouts_are_windows_of_larger_ones() -> None:
    layout = torch.arange(64, dtype=torch.uint8).reshape(8, 8)
    assert torch.equal(augment_layout(layout, CONFIG, 3), layout)
    zoomed = [augment_layout(layout, replace(CONFIG, max_zoom=1.5), number) for number in range(20)]
    assert all(one.shape == layout.shape for one in zoomed) and len({one.numpy().tobytes() for one in zoomed}) > 5
    assert torch.equal(zoomed[4], augment_layout(layout, replace(CONFIG, max_zoom=1.5), 4))
    for one in zoomed:  # rows and columns stay in order, without new ones
        assert set((one[:, 1:].int() - one[:, :-1].int()).flatten().tolist()) <= {0, 1}
        assert set((one[1:].int() - one[:-1].int()).flatten().tolist()) <= {0, 8}
    mirrored = [augment_layout(layout, replace(CONFIG, hflip=True), number) for number in range(20)]
    flipped = [torch.equal(one, layout.flip(-1)) for one in mirrored]
    assert 3 < sum(flipped) < 17 and all(f or torch.equal(o, layout) for f, o in zip(flipped, mirrored, strict=True))


def test_trained_sampled_filtered_and_trained_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    words = ["experiment", "synthesis", *SHORT, "--num_seeds", "2", *TINY, "--output", str(output)]
    assert main([*words, "--min_miou", "0"]) == 0
    extended = output / "extended_dataset"
    own, every = VOCFolder(extended, "labeled"), VOCFolder(extended, "labeled_and_synthetic")
    assert len(own) == 4 and len(every) == 12  # two for each of the four, all of which have an mIoU of at least 0
    assert every[0]["mask"].equal(own[0]["mask"]) and every[4]["image"].shape == (3, 32, 32)
    after = read_run(output / "extended-1")
    assert after.config["data"]["train_split"] == "labeled_and_synthetic" and after.config["training"]["seed"] == 1
    assert after.config["training"]["steps"] == read_run(output / "labeled-1").config["training"]["steps"] == 3

    record = read_record(output)
    segmenters, filtered = record.parts[0], record.parts[1]
    assert isinstance(segmenters, Table) and [v[-1].mean for _, v in segmenters.rows] == [4, 12]
    assert [values[0].n for _, values in segmenters.rows] == [2, 2]
    assert isinstance(filtered, Table) and [value.mean for value in filtered.rows[0][1][:3]] == [8, 8, 1]
    assert isinstance(record.parts[3], Gallery) and len(record.parts[3].rows) == 2
    assert "8 of 8 synthetic images (100 %)" in record.findings[1]
    assert {"denoiser", "labeled 0", "extended 1"} <= record.configs.keys()

    passes = ["--min_miou", "0", "--equal_passes", "--hard_fraction", "0.5", "--num_seeds", "1"]
    assert main([*words, *passes, "--output", str(tmp_path / "passes")]) == 0
    longer = read_run(tmp_path / "passes" / "extended-0").config["training"]
    assert longer["steps"] == 6, "8 images, 4 of them labeled: twice as many as 3"
    kept = VOCFolder(tmp_path / "passes" / "extended_dataset", "labeled_and_synthetic")
    unsure = read_object(tmp_path / "passes" / "extended_dataset" / "uncertainty.json")
    assert len(unsure) == 8 and all(0 <= value <= 1 for value in unsure.values())
    hardest = sorted(unsure, key=lambda name: unsure[name], reverse=True)[:4]
    assert {pair.name for pair in kept.pairs[4:]} == set(hardest)
    text = " ".join(read_record(tmp_path / "passes").method)
    assert "3 steps on these alone, 6 on the extended dataset" in text and "least certain" in text

    written = (extended / "miou.json").stat().st_mtime_ns
    assert main([*words, "--min_miou", "0"]) == 0
    assert (extended / "miou.json").stat().st_mtime_ns == written
    assert main([*words, "--min_miou", "0.1"]) == 2
    assert "was made with other settings (min_miou is 0.0, not 0.1)" in capsys.readouterr().err
    assert main([*words, "--min_miou", "0", "--label_fraction", "0.2"]) == 2
    assert "was made with other settings (train_fraction is 0.1, not 0.2)" in capsys.readouterr().err

    shutil.rmtree(output / "denoiser")  # as the refusal of another number of steps says
    assert main([*words, "--min_miou", "0", "--denoiser_train_steps", "3"]) == 2
    error = capsys.readouterr().err
    assert f"{extended} was made with other settings (denoiser is " in error and "everything made from it" in error
    shutil.rmtree(extended)
    assert main([*words, "--min_miou", "0", "--denoiser_train_steps", "3"]) == 2
    assert f"Delete {output / 'extended-0'}, {output / 'extended-1'}, or" in capsys.readouterr().err
    shutil.rmtree(output / "labeled_dataset")
    assert main([*words, "--min_miou", "0", "--label_fraction", "0.2"]) == 2
    assert f"Delete {output / 'denoiser'}, {output / 'extended-0'}, " in capsys.readouterr().err


def test_a_config_in_epochs_passes_equally_often_over_the_labeled_images(tmp_path: Path) -> None:
    config = tmp_path / "epochs.yaml"
    config.write_text("task: segmentation\ndata: {name: scenes}\ntraining: {epochs: 3}\n")
    words = [word for word in SHORT if word not in ("--segmenter_train_steps", "3")]
    output = tmp_path / "out"
    words = ["experiment", "synthesis", str(config), *words, "--min_miou", "0", "--num_seeds", "1", *TINY]
    assert main([*words, "--model.encoder.name=residual", "--data.size=[32, 32]", "--output", str(output)]) == 0
    assert "3 steps on these alone, 9 on the extended dataset" in " ".join(read_record(output).method)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--label_fraction", "0"], "--label_fraction=0.0: must be in (0, 1]."),
        (["--hard_fraction", "0"], "--hard_fraction=0.0: must be in (0, 1]."),
        (["--max_zoom", "0.9"], "--max_zoom=0.9: must be at least 1"),
        (["--min_miou", "2"], "--min_miou=2.0: must be in [0, 1]."),
        (
            ["--data.name=cifar10", "--data.root=.", "--data.size=[32,32]"],
            "data.name=cifar10: must be a dataset with masks",
        ),
        (["--data.name=voc", "--data.root=."], "data.size=null: must be set with data.name=voc."),
    ],
)
def test_what_cannot_be_is_refused(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["experiment", "synthesis", *words, "--output", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()
