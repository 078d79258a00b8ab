"""`unetdiff experiment synthesis`: layouts and agreement by hand, and the whole in a tiny setting."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from unetdiff.cli.main import main
from unetdiff.data.voc import VOCFolder
from unetdiff.experiments.runs import read_run
from unetdiff.experiments.synthetic_dataset import Synthesis, agreement, varied
from unetdiff.reports.record import Gallery, Table, read_record

ASKED = Synthesis(copies=2, agreement=0.5, zoom=1.0, mirror=False, steps=2, guidance=1.0)
TINY = [
    "--model.encoder.channels=[8, 16]",
    "--model.residual.norm_num_groups=4",
    "--model.conditioning.cross_attention_dim=8",
    "--model.conditioning.attention_levels=[1]",
    "--model.conditioning.attention_head_dim=8",
    "--data.scenes.train_images=40",
    "--data.scenes.val_images=6",
    "--diffusion.preview_per_class=1",
    "--training.batch_size=4",
]
SHORT = ["--labelled", "0.1", "--steps", "2", "--denoiser_steps", "2", "--segmenter_steps", "3", "--rows", "2"]


def test_agreement_by_hand() -> None:
    layout = torch.tensor([[0, 0, 1, 255]])
    assert agreement(torch.tensor([[0, 1, 1, 2]]), layout, 3) == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert agreement(torch.tensor([[0, 0, 1, 2]]), layout, 3) == 1
    assert agreement(torch.tensor([[0, 1, 1, 2]]), layout, 3, ignore_index=0) == 1


def test_layouts_are_windows_of_larger_ones() -> None:
    layout = torch.arange(64, dtype=torch.uint8).reshape(8, 8)
    assert torch.equal(varied(layout, ASKED, 3), layout)
    zoomed = [varied(layout, replace(ASKED, zoom=1.5), number) for number in range(20)]
    assert all(one.shape == layout.shape for one in zoomed) and len({one.numpy().tobytes() for one in zoomed}) > 5
    assert torch.equal(zoomed[4], varied(layout, replace(ASKED, zoom=1.5), 4))
    for one in zoomed:  # rows and columns stay in order, and none is invented
        assert set((one[:, 1:].int() - one[:, :-1].int()).flatten().tolist()) <= {0, 1}
        assert set((one[1:].int() - one[:-1].int()).flatten().tolist()) <= {0, 8}
    mirrored = [varied(layout, replace(ASKED, mirror=True), number) for number in range(20)]
    flipped = [torch.equal(one, layout.flip(-1)) for one in mirrored]
    assert 3 < sum(flipped) < 17 and all(f or torch.equal(o, layout) for f, o in zip(flipped, mirrored, strict=True))


def test_trained_drawn_filtered_and_trained_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    words = ["experiment", "synthesis", *SHORT, "--seeds", "2", *TINY, "--output", str(output)]
    assert main([*words, "--agreement", "0"]) == 0
    enlarged = output / "enlarged_set"
    own, every = VOCFolder(enlarged, "labelled"), VOCFolder(enlarged, "labelled_and_synthetic")
    assert len(own) == 4 and len(every) == 12  # two for each of the four, all of which agree by 0 or more
    assert every[0]["mask"].equal(own[0]["mask"]) and every[4]["image"].shape == (3, 32, 32)
    after = read_run(output / "enlarged-1")
    assert after.config["data"]["train_split"] == "labelled_and_synthetic" and after.config["training"]["seed"] == 1
    assert after.config["training"]["steps"] == read_run(output / "labelled-1").config["training"]["steps"] == 3

    record = read_record(output)
    outcome, drawn = record.parts[0], record.parts[1]
    assert isinstance(outcome, Table) and [v[-1].mean for _, v in outcome.rows] == [4, 12]
    assert [values[0].n for _, values in outcome.rows] == [2, 2]
    assert isinstance(drawn, Table) and [value.mean for value in drawn.rows[0][1][:3]] == [8, 8, 1]
    assert isinstance(record.parts[3], Gallery) and len(record.parts[3].rows) == 2
    assert "8 of 8 drawn images (100 %)" in record.findings[1]
    assert {"denoiser", "labelled 0", "enlarged 1"} <= record.configs.keys()

    written = (enlarged / "agreement.json").stat().st_mtime_ns
    assert main([*words, "--agreement", "0"]) == 0
    assert (enlarged / "agreement.json").stat().st_mtime_ns == written
    assert main([*words, "--agreement", "0.1"]) == 2
    assert "was made with other settings (agreement is 0.0, not 0.1)" in capsys.readouterr().err
    assert main([*words, "--agreement", "0", "--labelled", "0.2"]) == 2
    assert "was made with other settings (share is 0.1, not 0.2)" in capsys.readouterr().err

    shutil.rmtree(output / "denoiser")  # as the refusal of another number of steps says
    assert main([*words, "--agreement", "0", "--denoiser_steps", "3"]) == 2
    told = capsys.readouterr().err
    assert f"{enlarged} was made with other settings (denoiser is " in told and "all that was made from it" in told
    shutil.rmtree(enlarged)
    assert main([*words, "--agreement", "0", "--denoiser_steps", "3"]) == 2
    assert f"remove {output / 'enlarged-0'}, {output / 'enlarged-1'}, or" in capsys.readouterr().err
    shutil.rmtree(output / "labelled_set")
    assert main([*words, "--agreement", "0", "--labelled", "0.2"]) == 2
    assert f"remove {output / 'denoiser'}, {output / 'enlarged-0'}, " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--labelled", "0"], "--labelled=0.0: must be in (0, 1]"),
        (["--zoom", "0.9"], "--zoom=0.9: must be at least 1"),
        (["--agreement", "2"], "--agreement=2.0: must be in [0, 1]"),
        (
            ["--data.name=cifar10", "--data.root=.", "--data.size=[32,32]"],
            "data.name=cifar10: must be a dataset with masks",
        ),
        (["--data.name=voc", "--data.root=."], "data.size=null: must be set with data.name=voc"),
    ],
)
def test_what_cannot_be_is_refused(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["experiment", "synthesis", *words, "--output", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()
