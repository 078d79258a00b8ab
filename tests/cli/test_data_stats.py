"""`unetdiff data stats`: the table, the JSON, and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from unetdiff.cli.main import main


@pytest.fixture
def root(voc_layout: Callable[..., Path]) -> Path:
    """Two classes; training masks of 6 x 4 (one ignored row) and 8 x 4 (all ground), a validation mask of 6 x 4."""
    half = np.repeat(np.array([[0], [0], [1], [255]], np.uint8), 6, axis=1)
    splits = {"most": {"a": half, "b": np.zeros((4, 8), np.uint8)}, "val": {"c": half % 255}}
    return voc_layout(["ground", "tree house"], splits, images=False)


def words(root: Path, *more: str) -> list[str]:
    return ["data", "stats", "--data.name", "voc_folder", "--data.root", str(root), "--data.train_split=most", *more]


def test_table_and_json(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "new" / "stats.json"
    assert main(words(root, "--output", str(file))) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"voc_folder in {root}: 2 classes"
    # f: 44 / 50 and 6 / 18, their median 0.6067; ln(1.02 + 0.88), ln(1.02 + 0.12)
    assert [line.split() for line in lines[3:5]] == [
        ["ground", "44", "88.00%", "2", "18", "75.00%", "1", "0.689", "1.558"],
        ["tree", "house", "6", "12.00%", "1", "6", "25.00%", "1", "1.820", "7.632"],
    ]
    assert len({len(line) for line in lines[2:5]}) == 1  # aligned on the right
    facts = {line[:28].strip(): line[28:].split("  ") for line in lines[6:]}
    facts = {name: [cell.strip() for cell in cells if cell] for name, cells in facts.items()}
    assert facts == {
        "": ["train (most)", "val (val)"],
        "images": ["2", "1"],
        "ignored": ["10.71% of the pixels", "0.00% of the pixels"],
        "width, min / median / max": ["6 / 8 / 8", "6 / 6 / 6"],
        "height, min / median / max": ["4 / 4 / 4", "4 / 4 / 4"],
        "sizes": ["2", "1"],
        "most common (width x height)": ["6 x 4 (1), 8 x 4 (1)", "6 x 4 (1)"],
    }
    figures = json.loads(file.read_text())
    assert figures["classes"] == ["ground", "tree house"]
    assert figures["train"]["split"] == "most" and figures["train"]["images"] == 2
    assert figures["train"]["pixels_by_class"] == {"ground": 44, "tree house": 6}
    assert figures["train"]["ignored_pixels"] == 6 and figures["val"]["ignored_fraction"] == 0
    assert figures["train"]["width"] == {"min": 6, "median": 8, "max": 8}
    assert figures["class_weights"]["median_frequency"] == {"ground": 0.6894, "tree house": 1.82}


def test_the_embedded_set(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--data.scenes.train_images=4", "--data.scenes.val_images=2"]
    assert main(["data", "stats", *small]) == 0
    out = capsys.readouterr().out
    assert out.startswith("scenes: 11 classes\n") and "32 x 32 (4)" in out
    assert any(line.split() == ["captions", "4", "2"] for line in out.splitlines())


def test_captions_are_counted_with_the_empty_and_the_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split, captions in (("train", ["a cat", "", "a cat", "a big dog"]), ("val", ["a bird"])):
        (tmp_path / split).mkdir()
        rows = [{"file_name": f"{i}.png", "text": caption} for i, caption in enumerate(captions)]
        (tmp_path / split / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = tmp_path / "stats.json"
    argv = ["data", "stats", "--data.name=captioned_folder", f"--data.root={tmp_path}", "--output", str(file)]
    assert main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"captioned_folder in {tmp_path}"
    facts = {line[:23].strip(): [cell.strip() for cell in line[23:].split("  ") if cell] for line in lines[2:]}
    assert facts == {
        "": ["train (train)", "val (val)"],
        "images": ["4", "1"],
        "captions": ["3", "1"],
        "empty": ["1", "0"],
        "duplicates": ["1", "0"],
        "words, median / longest": ["2 / 3", "2 / 2"],
        "longest": ["a big dog", "a bird"],
    }
    figures = json.loads(file.read_text())
    assert figures["train"]["captions"]["longest"] == "a big dog" and "classes" not in figures


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["data", "stats"], "nothing to count. Give a config file, or --data.name and"),
        (
            ["data", "stats", "--data.name=cifar10", "--data.root=."],
            "data.name=cifar10: must be a dataset with masks or captions",
        ),
        (
            ["data", "stats", "--data.name=parquet", "--data.root=."],
            "data.caption_column=null: must be set with data.name=parquet",
        ),
        (
            ["data", "stats", "--outptu", "x"],
            "unknown argument '--outptu'. Did you mean --output?",
        ),
        (["data", "stats", "--data.name=scenes", "--output", "."], "--output=.: must be a file. Give e.g. stats.json."),
        (["data", "chek"], "unknown action 'chek'. Did you mean check?"),
    ],
)
def test_refusals(argv: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"unetdiff: {line}") and error.count("\n") == 1


def test_a_bad_mask_and_a_bad_place_for_the_output(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(root, "--output", str(root / "classes.txt" / "stats.json"))) == 2
    assert "classes.txt: must be a folder (got a file)" in capsys.readouterr().err
    (root / "SegmentationClass" / "b.png").unlink()
    assert main(words(root)) == 2
    assert "b.png: file not found (missing)" in capsys.readouterr().err
