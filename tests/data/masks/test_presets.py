"""Cityscapes and ADE20K in their own layouts, and Hugging Face tables with masks."""

from __future__ import annotations

from pathlib import Path

import datasets as hf
import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import Cityscapes

from unetdiff.data.build import build_dataset
from unetdiff.data.check import check
from unetdiff.data.config import DataConfig
from unetdiff.errors import UserError


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(path)


def test_cityscapes_by_name(tmp_path: Path) -> None:
    ids = np.array([[0, 7, 8, 11], [26, 33, 6, 16]])
    for split, city in (("train", "aachen"), ("val", "munster"), ("test", "bonn")):
        stem = f"{split}/{city}/{city}_000000_000019"
        save(tmp_path / f"leftImg8bit/{stem}_leftImg8bit.png", np.zeros((2, 4, 3)))
        save(tmp_path / f"gtFine/{stem}_gtFine_labelIds.png", ids)
        save(tmp_path / f"gtFine/{stem}_gtFine_color.png", np.zeros((2, 4, 3)))
    config = DataConfig(name="cityscapes", root=str(tmp_path))
    data = build_dataset(config, "train", segmentation=True)
    theirs = {one.id: one.train_id if one.train_id < 19 else 255 for one in Cityscapes.classes}
    assert data[0]["mask"].tolist() == [[theirs[i] for i in row] for row in ids.tolist()]
    assert data.classes[:3] == ["road", "sidewalk", "building"] and len(data.classes) == 19
    assert data.palette[0].tolist() == [128, 64, 128]
    assert [build_dataset(config, role, True).sample_name(0).split("/")[1] for role in ("train", "val")] == [
        "aachen", "munster",
    ]  # fmt: skip
    assert check(config, progress=False) == []


def test_ade20k_by_name(tmp_path: Path) -> None:
    root = tmp_path / "ADEChallengeData2016"
    for split, name in (("training", "ADE_train_1"), ("validation", "ADE_val_1")):
        Image.new("RGB", (3, 1)).save(_made(root / f"images/{split}") / f"{name}.jpg")
        save(root / f"annotations/{split}/{name}.png", np.array([[0, 1, 150]]))
    config = DataConfig(name="ade20k", root=str(tmp_path))
    assert build_dataset(config, "val", True).classes[0] == "class 0"
    lines = ["Idx\tRatio\tTrain\tVal\tStuff\tName", *(f"{i}\t0.1\t1\t1\t1\tname{i}, other" for i in range(1, 151))]
    (root / "objectInfo150.txt").write_text("\n".join(lines))
    data = build_dataset(config, "train", segmentation=True)
    assert data[0]["mask"].tolist() == [[255, 0, 149]] and data.classes[149] == "name150"
    assert check(config, progress=False) == []


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def table(count: int) -> hf.Dataset:
    rows = {
        "pixel_values": [Image.new("RGB", (4, 2), (i, i, i)) for i in range(count)],
        "label": [Image.fromarray(np.array([[0, 1, 2, 255], [i, 0, 0, 0]], np.uint8)) for i in range(count)],
        "id": list(range(count)),
    }
    features = hf.Features({"pixel_values": hf.Image(), "label": hf.Image(), "id": hf.Value("int64")})
    return hf.Dataset.from_dict(rows, features=features)


@pytest.mark.parametrize("kind", ["parquet", "splits", "saved", "saved_dict"])
def test_hugging_face_tables(tmp_path: Path, kind: str) -> None:
    rows, root = table(3), tmp_path / "set"
    if kind == "parquet":
        root.mkdir()
        rows.to_parquet(str(root / "rows.parquet"))
    elif kind == "splits":
        (root / "data").mkdir(parents=True)
        table(2).to_parquet(str(root / "data" / "train-00000-of-00001.parquet"))
        table(1).to_parquet(str(root / "data" / "validation-00000-of-00001.parquet"))
    elif kind == "saved":
        rows.save_to_disk(str(root))
    else:
        hf.DatasetDict({"train": table(2), "validation": table(1)}).save_to_disk(str(root))
    config = DataConfig(name="huggingface", root=str(root), num_classes=3)
    train, val = (build_dataset(config, role, True) for role in ("train", "val"))  # type: ignore[arg-type]
    assert len(train) == 2 and len(val) == 1
    item = train[1]
    number = int(item["image"][0, 0, 0])
    assert item["mask"].tolist() == [[0, 1, 2, 255], [number, 0, 0, 0]] and item["name"] == train.sample_name(1)
    assert check(config, progress=False) == []
    assert set(build_dataset(DataConfig(name="huggingface", root=str(root), size=[8, 8]), "val", False)[0]) == {
        "image", "name",
    }  # fmt: skip


def test_hugging_face_faults(tmp_path: Path) -> None:
    table(3).save_to_disk(str(tmp_path / "set"))
    config = DataConfig(name="huggingface", root=str(tmp_path / "set"), num_classes=2)
    issues = check(config, progress=False)
    assert len(issues) == 3 and all("mask values outside 0..1" in str(issue) for issue in issues)
    for keys, message in (
        ({"mask_column": "maks"}, "data.mask_column=maks: must be a column of images in .*pixel_values, label, id"),
        ({"mask_column": "id"}, "data.mask_column=id: must be a column of images .got Value"),
        ({"train_split": "all"}, "data.train_split=all: must be a split of .*: train"),
        ({"root": str(tmp_path)}, "a parquet file, a folder of parquet files or of save_to_disk"),
        ({"root": "owner/name"}, "data.root=owner/name: cannot be loaded from the Hub"),
    ):
        changed = DataConfig(**{**vars(config), **keys})
        with pytest.raises(UserError, match=message):
            build_dataset(changed, "val", segmentation=True)
