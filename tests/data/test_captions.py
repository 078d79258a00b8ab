"""Captioned folders, as Hugging Face reads them, and every fault of their metadata with its line."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import datasets as hf
import numpy as np
import pytest
from PIL import Image

from unetdiff.data.base import collate
from unetdiff.data.build import build_dataset
from unetdiff.data.check import check
from unetdiff.data.config import AugmentConfig, DataConfig
from unetdiff.data.sampling import SampleKey
from unetdiff.errors import UserError

Rows = list[dict[str, Any]]


def config(root: Path, **more: Any) -> DataConfig:
    return DataConfig(name="captioned_folder", root=str(root), **more)


def make_images(folder: Path, count: int, first: int = 0) -> Rows:
    """Images in the folder and one below it, and their rows."""
    (folder / "more").mkdir(parents=True)
    rows: Rows = []
    for i in range(count):
        name = f"{i}.png" if i % 2 else f"more/{i}.png"
        pixels = np.random.default_rng(first + i).integers(0, 256, (10, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
        rows.append({"file_name": name, "text": f"number {first + i}, in words"})
    return rows


def write(folder: Path, rows: Rows, kind: str = "jsonl") -> Path:
    file = folder / f"metadata.{kind}"
    if kind == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif kind == "csv":
        with open(file, "w", newline="", encoding="utf-8") as opened:
            writer = csv.DictWriter(opened, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        hf.Dataset.from_list(rows).to_parquet(str(file))
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of one split with ten images."""
    write(tmp_path / "set", make_images(tmp_path / "set", 10))
    return tmp_path / "set"


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_reads_what_hugging_face_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(hf.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    root = tmp_path / "set"
    for split, count, first in (("train", 5, 0), ("validation", 3, 100)):
        write(root / split, make_images(root / split, count, first), kind)
    reference = hf.load_dataset("imagefolder", data_dir=str(root), cache_dir=str(tmp_path / "cache"))
    for role, split in (("train", "train"), ("val", "validation")):
        images = build_dataset(config(root), role, segmentation=False)
        result = {row["text"]: np.array(row["image"]) for row in reference[split]}
        assert len(images) == len(result) and images.labels == images.classes == []
        for i in range(len(images)):
            item = images[i]
            assert set(item) == {"image", "name", "caption"}
            assert np.array_equal(item["image"].permute(1, 2, 0).numpy(), result[item["caption"]])
            assert item["caption"] == images.caption(i) and item["name"] == images.sample_name(i)


def test_one_folder_holds_a_tenth_out(folder: Path) -> None:
    train, val = (build_dataset(config(folder), role, False) for role in ("train", "val"))
    assert (len(train), len(val)) == (9, 1)
    captions = [images.caption(i) for images in (train, val) for i in range(len(images))]
    assert sorted(captions) == [f"number {i}, in words" for i in range(10)]
    for images in (train, val):
        for i in range(len(images)):
            assert images.caption(i).split()[1] == f"{Path(images.sample_name(i)).stem},"
    # the same where the one folder is root/train
    folder.rename(folder.parent / "train")
    again = build_dataset(config(folder.parent), "val", False)
    assert len(again) == 1 and again.caption(0) == val.caption(0)


def test_items_are_resized_augmented_and_batched(folder: Path) -> None:
    train = build_dataset(config(folder, size=[8, 8], augment=AugmentConfig(flip=True)), "train", False)
    batch = collate([train[SampleKey(i, 3, True)] for i in range(3)])
    assert batch["image"].shape == (3, 3, 8, 8) and batch["caption"] == [train.caption(i) for i in range(3)]


def test_another_column_and_space_around_captions(folder: Path) -> None:
    write(folder, [{"file_name": f"{i}.png", "words": f"  été {i}\n", "n": i} for i in (1, 3, 5)])
    train = build_dataset(config(folder, caption_column="words"), "train", False)
    assert {train.caption(i) for i in range(len(train))} < {"été 1", "été 3", "été 5"}
    with pytest.raises(
        UserError, match=r"no column text \(data\.caption_column=text\)\. Use one of file_name, words, n"
    ):
        build_dataset(config(folder), "train", False)


def test_every_fault_is_listed_with_its_line(folder: Path) -> None:
    good = make_images(folder.parent / "unused", 1)[0] | {"file_name": "1.png"}
    (folder.parent / "beside.png").write_bytes((folder / "1.png").read_bytes())
    (folder / "5.png").write_bytes((folder / "5.png").read_bytes()[:60])
    rows = [
        good,
        {"file_name": "ghost.png", "text": "a ghost"},
        {"text": "no image"},
        {"file_name": "3.png", "text": " "},
        {"file_name": "../beside.png", "text": "beside"},
        {"file_name": str(folder / "7.png"), "text": "named from the root of the disk"},
        {"file_name": "more/../1.png", "text": "once more"},
        {"file_name": "7.png", "text": 7},
        {"file_name": "5.png", "text": "cut short"},
        {"file_name": "more/0.png", "text": "good"},
    ]
    file = write(folder, rows)
    file.write_text(file.read_text() + "\n{'file_name': 1}\n[1, 2]\n")
    for full in (True, False):
        issues = check(config(folder), full=full, progress=False)
        assert [(p.file.removeprefix(f"{folder}/"), p.message, p.value) for p in issues[:-1]] == [
            ("metadata.jsonl:2", "image not found", str(folder / "ghost.png")),
            ("metadata.jsonl:3", "file_name missing", "None"),
            ("metadata.jsonl:4", "caption missing", "text is empty"),
            ("metadata.jsonl:5", "image outside of the folder", "../beside.png"),
            ("metadata.jsonl:6", "image outside of the folder", str(folder / "7.png")),
            ("metadata.jsonl:7", "file_name more/../1.png repeated", f"first in {file}:1"),
            ("metadata.jsonl:8", "caption missing", "text: 7"),
            ("metadata.jsonl:12", "invalid JSON", issues[7].value),
            ("metadata.jsonl:13", "not a JSON object", "[1, 2]"),
        ]
        assert issues[-1].file == str(folder / "5.png")
    with pytest.raises(UserError, match=r"metadata\.jsonl:2: image not found .* 8 more: run `unetdiff data check`\."):
        build_dataset(config(folder), "train", False)


def test_a_comma_without_quotes_is_a_fault_and_not_half_a_caption(folder: Path) -> None:
    (folder / "metadata.jsonl").unlink()
    (folder / "metadata.csv").write_text('file_name,text\n1.png,"red, or not"\n3.png,red, or not\n5.png\n')
    issues = check(config(folder), progress=False)
    assert [(p.file[-5:], p.message, p.value) for p in issues] == [
        ("csv:3", "too many cells", "3 cells, 2 columns"),
        ("csv:4", "caption missing", "text is empty"),
    ]


def test_a_image_in_both_splits_is_a_fault(tmp_path: Path) -> None:
    for split in ("train", "val"):  # the same seeds: the same images
        write(tmp_path / split, make_images(tmp_path / split, 2))
    issues = check(config(tmp_path), progress=False)
    assert {p.message for p in issues} == {"duplicate of a training image"} and len(issues) == 2


def test_bad_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must be an existing folder"):
        build_dataset(config(tmp_path / "none"), "train", False)
    with pytest.raises(UserError, match=r"no metadata\.jsonl or metadata\.csv or metadata\.parquet"):
        build_dataset(config(folder / "more"), "train", False)
    write(folder, [{"file_name": "1.png", "text": "one"}], "csv")
    with pytest.raises(UserError, match=r"both metadata\.jsonl and metadata\.csv found\. Keep one"):
        build_dataset(config(folder), "train", False)
    (folder / "metadata.csv").unlink()
    for text, message in (
        ("", "metadata.jsonl: no rows found"),
        ("\xff", "metadata.jsonl: must be UTF-8 .* Save it as UTF-8"),
        ('{"file_name": "1.png", "text": "one"}', r"1 image\(s\) cannot be split"),
        ("?", "invalid JSON"),
    ):
        (folder / "metadata.jsonl").write_text(text, encoding="latin-1")
        with pytest.raises(UserError, match=message):
            build_dataset(config(folder), "train", False)
