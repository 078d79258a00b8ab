"""The commands of docs/data.md, one block per kind of data, run on a tiny instance of it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets as hf
import numpy as np
import pytest
import tifffile
from PIL import Image

from unetdiff.cli.main import main

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
SECTION = PAGE.partition("## By kind of data\n")[2].partition("\n## ")[0]
BLOCKS = dict(re.findall(r"### (.*?)\n.*?```bash\n(.*?)```", SECTION, re.DOTALL))
TINY = [
    "--model.encoder.name=classic", "--model.encoder.weights=null", "--model.encoder.channels=[8, 8]",
    "--model.decoder.channels=null", "--model.decoder.upsample=nearest", "--training.optimizer.encoder_lr=null",
    "--training.frozen_levels=0", "--training.epochs=0.01", "--training.batch_size=2", "--training.num_workers=0",
    "--data.augment.crop=[32, 32]", "--training.mixed_precision=no",
]  # fmt: skip
HEIGHT, WIDTH = 32, 40
INDEX = np.repeat(np.arange(2, dtype=np.uint8), WIDTH // 2)[None].repeat(HEIGHT, 0)
SHAPE = [[1, 1, 30, 1, 30, 25]]


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(path)


def photo(path: Path) -> None:
    save(path, np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3)))


def pairs(root: Path, image: str, mask: str, values: np.ndarray, names: list[str] | None = None) -> None:
    for name in names or [f"x{i}" for i in range(5)]:
        photo(root / image.format(name))
        save(root / mask.format(name), values)


def streets(root: Path) -> None:
    for part in ("train/a/0", "train/b/1", "val/c/2"):
        photo(root / f"leftImg8bit/{part}_leftImg8bit.png")
        save(root / f"gtFine/{part}_gtFine_ids.png", INDEX)
        save(root / f"gtFine/{part}_gtFine_color.png", np.stack([INDEX * 90] * 3, -1))


def colors(root: Path) -> None:
    pairs(root, "frames/{}.png", "labels/{}_L.png", np.array([[128, 64, 128], [0, 0, 0]])[INDEX])
    (root / "label_colors.txt").write_text("128 64 128\tRoad\n0 0 0\tVoid\n64 0 128\tCar\n")


def microscope(root: Path) -> None:
    for i in range(5):
        (root / "raw").mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(i).integers(100, 900, INDEX.shape) + INDEX.astype(int) * 3000
        Image.fromarray(values.astype(np.uint16)).save(root / f"raw/{i}.tif")
        save(root / f"labels/{i}.png", INDEX)


def volume(root: Path) -> None:
    root.mkdir(parents=True)
    slices = np.random.default_rng(0).integers(0, 256, (8, HEIGHT, WIDTH)).astype(np.uint8)
    tifffile.imwrite(root / "train-volume.tif", slices, photometric="minisblack")
    tifffile.imwrite(root / "train-labels.tif", INDEX[None].repeat(8, 0) * np.uint8(255), photometric="minisblack")


def satellite(root: Path) -> None:
    for i in range(5):
        (root / "tiles").mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(i).integers(0, 5000, (HEIGHT, WIDTH, 4)).astype(np.uint16)
        tifffile.imwrite(root / f"tiles/{i}.tif", values)
        save(root / f"labels/{i}.png", INDEX * 255)


def coco(root: Path) -> None:
    for split, names in (("train2017", ["a", "b"]), ("val2017", ["c"])):
        entries = [{"id": i, "file_name": f"{n}.jpg", "height": HEIGHT, "width": WIDTH} for i, n in enumerate(names)]
        annotations = [
            {"id": i, "image_id": i, "category_id": 3, "segmentation": SHAPE, "area": 300, "iscrowd": 0}
            for i in range(len(names))
        ]
        content = {"images": entries, "annotations": annotations, "categories": [{"id": 3, "name": "cat"}]}
        for name in names:
            photo(root / split / f"{name}.jpg")
        (root / "annotations").mkdir(exist_ok=True)
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(content))


def labelme(root: Path) -> None:
    points = np.array(SHAPE[0]).reshape(-1, 2).tolist()
    for i in range(3):
        photo(root / f"{i}.png")
        shapes = [{"label": "cat", "points": points, "shape_type": "polygon"}]
        content = {"shapes": shapes, "imagePath": f"{i}.png", "imageHeight": HEIGHT, "imageWidth": WIDTH}
        (root / f"{i}.json").write_text(json.dumps(content))


def studio(root: Path) -> None:
    value = {"points": [[5, 5], [90, 5], [90, 90]], "polygonlabels": ["cat"]}
    region = {"type": "polygonlabels", "original_width": WIDTH, "original_height": HEIGHT, "value": value}
    tasks = []
    for i in range(3):
        photo(root / f"images/{i}.png")
        data = {"image": f"/data/upload/1/0123abcd-{i}.png"}
        tasks.append({"id": i, "data": data, "annotations": [{"result": [region]}]})
    (root / "export.json").write_text(json.dumps(tasks))


def table(root: Path) -> None:
    photo(Path("photo.png"))
    rows = {"image": [Image.fromarray(np.asarray(Image.open("photo.png")))] * 3, "label": [Image.fromarray(INDEX)] * 3}
    root.mkdir(parents=True)
    features = hf.Features({"image": hf.Image(), "label": hf.Image()})
    hf.Dataset.from_dict(rows, features=features).to_parquet(str(root / "rows.parquet"))


def voc(root: Path) -> None:
    pairs(root, "JPEGImages/{}.jpg", "SegmentationClass/{}.png", INDEX)
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "ImageSets/Segmentation/train.txt").write_text("x0\nx1\n")
    (root / "ImageSets/Segmentation/val.txt").write_text("x2\n")


def cityscapes(root: Path) -> None:
    names = ["train/a/0", "val/b/1"]
    pairs(root, "leftImg8bit/{}_leftImg8bit.png", "gtFine/{}_gtFine_labelIds.png", INDEX + 7, names)


def ade20k(root: Path) -> None:
    root /= "ADEChallengeData2016"
    pairs(root, "images/{}.jpg", "annotations/{}.png", INDEX + 1, ["training/a", "training/b", "validation/c"])


MAKERS: dict[str, Callable[[Path], Any]] = {
    "Two folders, masks of 0 and 255": lambda root: pairs(root, "images/{}.png", "masks/{}.png", INDEX * 255),
    "Nested folders and suffixes": streets,
    "Masks in colors": colors,
    "Other values": lambda root: pairs(root, "images/{}.png", "masks/{}.png", INDEX + 7),
    "Microscopy of 12 bits": microscope,
    "TIFF stacks": volume,
    "Images of four bands": satellite,
    "COCO": coco,
    "LabelMe": labelme,
    "Label Studio": studio,
    "Hugging Face": table,
    "VOC's layout": voc,
    "Cityscapes": cityscapes,
    "ADE20K": ade20k,
}


def test_every_kind_with_commands_is_run() -> None:
    assert set(BLOCKS) <= set(MAKERS) and set(MAKERS) <= set(BLOCKS)


@pytest.mark.parametrize("kind", MAKERS)
def test_from_data_as_it_is_to_predictions(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    commands = [shlex.split(line) for line in BLOCKS[kind].replace("\\\n", " ").splitlines()]
    root = next(Path(word) for command in commands for word in command if word.startswith("data/"))
    MAKERS[kind](Path(*root.parts[:2]))
    before = {path: path.read_bytes() for path in Path("data").rglob("*") if path.is_file()}
    for program, *words in commands:
        assert program == "unetdiff"
        more = {"init": ["--weights", "null"], "train": TINY}.get(words[0], [])
        assert main([*words, *more]) == 0
    assert any(path.suffix == ".png" for path in Path("predictions").rglob("*"))
    assert before == {path: path.read_bytes() for path in Path("data").rglob("*") if path.is_file()}  # as it was
