"""`unetdiff data`: the actions, what they print and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unetdiff.cli.data import ACTIONS
from unetdiff.cli.main import main


def test_help_lists_the_actions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "--help"]) == 0
    text = capsys.readouterr().out
    assert [line.split()[0] for line in text.partition("actions:\n")[2].partition("\n\n")[0].splitlines()] == list(
        ACTIONS
    )
    for action in ACTIONS:
        assert main(["data", action, "--help"]) == 0
        assert f"usage: unetdiff data {action}" in capsys.readouterr().out


def test_data_download_says_where_and_what_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("unetdiff.data.download.download_voc", lambda root: root / "VOCdevkit" / "VOC2012")
    ids = tmp_path / "trainaug.txt"
    ids.write_text("a\nb\n")
    monkeypatch.setattr("unetdiff.data.masks.sbd.download_sbd", lambda root: ids)
    assert main(["data", "download", "voc", "--root", "my data"]) == 0
    text = capsys.readouterr().out
    assert "VOC 2012 is in my data/VOCdevkit/VOC2012\n" in text
    assert "voc_resnet50_reference --data.root 'my data'\n" in text and "download sbd --root 'my data'\n" in text
    assert main(["data", "download", "sbd", "--root", "data"]) == 0
    text = capsys.readouterr().out
    assert f"{ids}: 2 training images" in text and "voc_resnet50 --data.root data\n" in text


def test_data_download_refuses(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for words, part in (
        ([], "missing dataset (one of "),
        (["voc"], "missing --root ("),
        (["camvid", "--root", "x"], "dataset=camvid: must be one of voc, sbd"),
        (["voc", "--roto", "x"], "--root"),
        (["sbd", "--root", str(tmp_path)], f"Run `unetdiff data download voc --root {tmp_path}` first"),
    ):
        assert main(["data", "download", *words]) == 2
        error = capsys.readouterr().err
        assert part in error and error.count("\n") == 1


def test_data_check(tmp_path: Path, voc_layout: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    mask = np.zeros((16, 16), dtype=np.uint8)
    mask[4:8] = 1
    root = voc_layout(["background", "thing"], {"train": {name: mask for name in "012"}, "val": {"3": mask}})
    words = ["data", "check", "--data.name", "voc_folder", "--data.root", str(root)]
    assert main(words) == 0
    assert capsys.readouterr().out == f"voc_folder in {root}: no problems found\n"

    mask = np.zeros((16, 16), dtype=np.uint8)
    mask[0, 0] = 7
    Image.fromarray(mask).save(root / "SegmentationClass" / "1.png")
    (root / "JPEGImages" / "2.jpg").write_bytes((root / "JPEGImages" / "2.jpg").read_bytes()[:300])
    assert main(words) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert any("1.png" in line and "7" in line for line in lines[:2])
    assert any("2.jpg" in line for line in lines[:2])
    assert lines[2] == f"voc_folder in {root}: 2 problems found"

    (tmp_path / "set.yaml").write_text(f"data: {{name: voc_folder, root: {root}}}\n")
    assert main(["data", "check", str(tmp_path / "set.yaml")]) == 1
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert main(["data", "check", str(tmp_path / "set.yaml"), "--no_masks"]) == 1
    assert "1.png" not in capsys.readouterr().out
    for condition, seen in (("none", False), ("layout", True)):  # a denoiser needs masks only as a condition
        text = f"task: diffusion\ndata: {{name: voc_folder, root: {root}, size: [8, 8]}}\n"
        (tmp_path / "set.yaml").write_text(text + f"diffusion: {{condition: {condition}}}\n")
        assert main(["data", "check", str(tmp_path / "set.yaml")]) == 1
        assert ("1.png" in capsys.readouterr().out) == seen


def test_data_check_of_captions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
    good = [f'{{"file_name": "{number}.png", "text": "image {number}"}}' for number in range(3)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(good))
    words = ["data", "check", "--data.name=captioned_folder", f"--data.root={tmp_path}"]
    assert main(words) == 0
    assert capsys.readouterr().out == f"captioned_folder in {tmp_path}: no problems found\n"
    bad = [good[0], good[1].replace("image 1", ""), good[2].replace("2.png", "9.png"), good[0]]
    (tmp_path / "metadata.jsonl").write_text("\n".join(bad))
    assert main(words) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" (")[0] for line in lines] == [
        f"{tmp_path}/metadata.jsonl:2: caption missing",
        f"{tmp_path}/metadata.jsonl:3: image not found",
        f"{tmp_path}/metadata.jsonl:4: file_name 0.png repeated",
        "note: 1 file(s) skipped, without a caption: 1 .png, e.g. " + f"{tmp_path}/2.png",
        f"captioned_folder in {tmp_path}: 3 problems found",
    ]


def test_data_check_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, part in (
        ([], "no action. Give one of check, stats, download"),
        (["chek"], "unknown action 'chek'. Did you mean check?"),
        (["check"], "nothing to check"),
        (["check", "--data.nam", "x"], "Did you mean --data.name?"),
        (["check", "--data.name", "voc_folder", "--data.root", str(tmp_path / "no")], str(tmp_path / "no")),
    ):
        assert main(["data", *words]) == 2
        assert part in capsys.readouterr().err
