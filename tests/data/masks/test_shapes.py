"""Readers of annotations: COCO against pycocotools and masks written out, LabelMe and Label Studio against Pillow."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from pycocotools.coco import COCO

from unetdiff.data.build import build_dataset
from unetdiff.data.check import check
from unetdiff.data.config import DataConfig
from unetdiff.data.masks.label_studio import decode_rle, image_name
from unetdiff.data.masks.polygons import box
from unetdiff.errors import UserError

HEIGHT, WIDTH = 20, 30
BIG = [[2, 2, 22, 2, 22, 16, 2, 16]]  # x, y
SMALL = [[6, 5, 12, 5, 12, 11, 6, 11]]


def images(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        Image.new("RGB", (WIDTH, HEIGHT), (i, i, i)).save(folder / name)


def coco_json(path: Path, names: list[str], annotations: list[dict[str, Any]] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = [{"id": i, "file_name": name, "height": HEIGHT, "width": WIDTH} for i, name in enumerate(names)]
    if annotations is None:
        annotations = [
            annotation
            for i in range(len(names))
            for annotation in (
                {"image_id": i, "category_id": 9, "segmentation": SMALL, "area": 36, "bbox": [6, 5, 6, 6]},
                {"image_id": i, "category_id": 4, "segmentation": BIG, "area": 280, "bbox": [2, 2, 20, 14]},
            )
        ]
    content = {
        "images": entries,
        "annotations": [{"id": i, "iscrowd": 0, **one} for i, one in enumerate(annotations)],
        "categories": [{"id": 9, "name": "dog"}, {"id": 4, "name": "cat"}],
    }
    path.write_text(json.dumps(content))


def config(name: str, root: Path, **more: object) -> DataConfig:
    return DataConfig(name=name, root=str(root), **more)  # type: ignore[arg-type]


def test_coco_draws_small_instances_over_large_ones_as_pycocotools_draws_each(tmp_path: Path) -> None:
    images(tmp_path / "train2017", ["a.jpg", "b.jpg"])
    images(tmp_path / "val2017", ["c.jpg"])
    coco_json(tmp_path / "annotations/instances_train2017.json", ["a.jpg", "b.jpg"])
    coco_json(tmp_path / "annotations/instances_val2017.json", ["c.jpg"])
    data = build_dataset(config("coco", tmp_path), "train", segmentation=True)
    assert data.classes == ["background", "cat", "dog"] and len(data) == 2
    theirs = COCO(tmp_path / "annotations/instances_train2017.json")
    dog, cat = (theirs.annToMask(theirs.anns[i]).astype(bool) for i in (0, 1))
    expected = np.where(dog, 2, np.where(cat, 1, 0))
    assert np.array_equal(data[0]["mask"].numpy(), expected) and data[0]["labels"] == (1, 2)
    assert build_dataset(config("coco", tmp_path), "val", True).sample_name(0) == "c"
    assert check(config("coco", tmp_path), progress=False) == []
    only = build_dataset(config("coco", tmp_path, class_names=["background", "dog"]), "train", True)
    assert np.array_equal(only.mask(0).numpy(), dog & (expected == 2))
    with pytest.raises(UserError, match="labels of the annotations .no dgo.. Did you mean dog?"):
        build_dataset(config("coco", tmp_path, class_names=["background", "dgo"]), "train", True)


def test_coco_files_of_other_categories_are_refused(tmp_path: Path) -> None:
    """An index of the validation masks would be another class than in training."""
    images(tmp_path, ["a.jpg", "b.jpg", "c.jpg"])
    coco_json(tmp_path / "train.json", ["a.jpg", "b.jpg"])
    coco_json(tmp_path / "val.json", ["c.jpg"])
    content = json.loads((tmp_path / "val.json").read_text())
    content["categories"].append({"id": 1, "name": "bird"})
    (tmp_path / "val.json").write_text(json.dumps(content))
    (issue,) = check(config("coco", tmp_path, annotations="{split}.json"), progress=False)
    assert "val.json: other classes than those of 'train' (class 1 is 'bird', and 'cat' in 'train')" in str(issue)


@pytest.mark.parametrize(
    ("files", "folder", "keys"),
    [
        (["train/_annotations.coco.json", "valid/_annotations.coco.json"], "{split}", {}),  # Roboflow
        (["annotations/train.json", "annotations/val.json"], "images/{split}", {}),
        (["x/train.json", "x/val.json"], "pics/{split}", {"annotations": "x/{split}.json", "images": "pics/{split}"}),
    ],
)
def test_coco_files_where_exporters_put_them(
    tmp_path: Path, files: list[str], folder: str, keys: dict[str, str]
) -> None:
    for file, names in zip(files, (["a.jpg", "b.jpg"], ["c.jpg"]), strict=True):
        split = "valid" if "valid" in file else "val" if "val" in file else "train"
        images(tmp_path / folder.format(split=split), names)
        coco_json(tmp_path / file, names)
    assert len(build_dataset(config("coco", tmp_path, **keys), "train", True)) == 2
    assert build_dataset(config("coco", tmp_path, **keys), "val", True)[0]["mask"].max() == 2


def test_one_coco_file_is_split_by_seed(tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(10)]
    images(tmp_path / "images", names)
    coco_json(tmp_path / "export.json", names)
    settings = config("coco", tmp_path, val_fraction=0.2)
    sizes = [len(build_dataset(settings, role, True)) for role in ("train", "val")]  # type: ignore[arg-type]
    assert sizes == [8, 2]
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(UserError, match="data.annotations=null: must be a file in .* such as annotations/inst"):
        build_dataset(settings, "train", True)


def test_coco_faults_are_listed_with_file_value_and_remedy(tmp_path: Path) -> None:
    images(tmp_path, ["a.png", "b.png"])
    annotations: list[dict[str, Any]] = [
        {"image_id": 0, "category_id": 4, "segmentation": [[1, 1, 2, 2]], "area": 4},
        {"image_id": 7, "category_id": 4, "segmentation": BIG, "area": 4},
        {"image_id": 1, "category_id": 4, "segmentation": [], "area": 4},
        {"image_id": 1, "category_id": 9, "segmentation": {"size": [HEIGHT, WIDTH], "counts": [0, 600]}, "area": 600},
    ]
    coco_json(tmp_path / "a.json", ["a.png", "b.png"], annotations)
    found = [str(issue) for issue in check(config("coco", tmp_path), progress=False)]
    assert [issue.split("a.json: ")[1][:55] for issue in found] == [
        "annotation 1 is of an image or a category that is not l",
        "annotation 2 has no segmentation, only a box (b.png). E",
        "shape 0 (cat) of a.png cannot be drawn (a polygon needs",
    ]
    masks = [build_dataset(config("coco", tmp_path), role, True) for role in ("train", "val")]  # type: ignore[arg-type]
    whole = next(data for data in masks if data.sample_name(0) == "b")
    assert bool((whole.mask(0) == 2).all())  # run lengths


def labelme_json(path: Path, image: str, shapes: list[dict[str, Any]]) -> None:
    content = {"imagePath": image, "imageHeight": HEIGHT, "imageWidth": WIDTH, "imageData": None, "shapes": shapes}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def drawn(points: list[tuple[float, float]]) -> np.ndarray:
    canvas = Image.new("L", (WIDTH, HEIGHT))
    ImageDraw.Draw(canvas).polygon(points, outline=1, fill=1)
    return np.array(canvas, bool)


def test_labelme_draws_its_shapes_in_the_order_of_the_file(tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(5)]
    images(tmp_path, names)
    part = io.BytesIO()
    Image.fromarray(np.array([[True, False], [True, True]])).save(part, format="PNG")
    shapes: list[dict[str, Any]] = [
        {"label": "road", "points": [[2, 2], [22, 2], [22, 16], [2, 16]], "shape_type": "polygon"},
        {"label": "car", "points": [[12, 11], [6, 5]], "shape_type": "rectangle"},
        {"label": "ball", "points": [[25, 10], [25, 13]], "shape_type": "circle"},
        {"label": "__ignore__", "points": [[0, 17], [5, 17], [5, 19]], "shape_type": "polygon"},
        {"label": "car", "points": [[28, 0], [29, 1]], "shape_type": "mask",
         "mask": base64.b64encode(part.getvalue()).decode()},
    ]  # fmt: skip
    for name in names:
        labelme_json(tmp_path / f"{name[0]}.json", f"..\\somewhere\\{name}", shapes)
    (tmp_path / "other.json").write_text("{}")
    data = build_dataset(config("labelme", tmp_path), "train", segmentation=True)
    assert data.classes == ["background", "ball", "car", "road"] and len(data) == 4
    mask = data.mask(0).numpy()
    expected = np.where(drawn([(2, 2), (22, 2), (22, 16), (2, 16)]), 3, 0)
    expected[5:12, 6:13] = 2
    ball = box((22, 7), (28, 13), (HEIGHT, WIDTH), ellipse=True)
    assert ball[10, 22] and ball[10, 28] and not ball[7, 22]
    expected[ball] = 1
    expected[drawn([(0, 17), (5, 17), (5, 19)])] = 255
    expected[[0, 1, 1], [28, 28, 29]] = 2
    assert np.array_equal(mask, expected)
    assert check(config("labelme", tmp_path), progress=False) == []
    labelme_json(tmp_path / "0.json", "0.png", [{"label": "car", "points": [[0, 0], [5, 5]], "shape_type": "line"}])
    (tmp_path / "1.png").unlink()
    found = " ".join(str(issue) for issue in check(config("labelme", tmp_path), progress=False))
    assert "0.json: shape 0 (car) of 0.png cannot be drawn (a shape_type of polygon" in found
    assert "1.png: file not found (missing)" in found


def brush(mask: np.ndarray) -> list[int]:
    """Label Studio's run lengths of a mask: words of 8 bits, lengths of 4, 8, 12 or 16 bits."""
    values = np.repeat(mask.reshape(-1).astype(np.uint8) * 255, 4)
    bits = f"{len(values):032b}{7:05b}" + "".join(f"{n - 1:04b}" for n in (4, 8, 12, 16))
    start = 0
    while start < len(values):
        end = start
        while end < len(values) and values[end] == values[start] and end - start < 65_536:
            end += 1
        if end - start < 3:
            end = start + 1
            bits += f"0{0:02b}{0:04b}{values[start]:08b}"
        else:
            bits += f"1{3:02b}{end - start - 1:016b}{values[start]:08b}"
        start = end
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def region(kind: str, label: str, **value: Any) -> dict[str, Any]:
    return {"type": kind, "original_width": WIDTH, "original_height": HEIGHT, "value": {**value, kind: [label]}}


def test_label_studio_s_regions(tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(5)]
    images(tmp_path / "images", names)
    shape = np.zeros((HEIGHT, WIDTH), bool)
    shape[3:7, 20:29] = True
    result = [
        region("polygonlabels", "road", points=[[10, 10], [70, 10], [70, 80]]),
        region("rectanglelabels", "car", x=20, y=50, width=20, height=25, rotation=0),
        region("brushlabels", "tree", format="rle", rle=brush(shape)),
        {"type": "choices", "value": {"choices": ["x"]}},
    ]
    links = ["/data/upload/1/0123abcd-{}", "/data/local-files/?d=images/{}", "s3://b/{}", "https://x/y/{}", "{}"]
    tasks = [
        {"id": i, "data": {"image": link.format(name)}, "annotations": [{"result": result}]}
        for i, (name, link) in enumerate(zip(names, links, strict=True))
    ]
    tasks.append({"id": 9, "data": {"image": "9.png"}, "annotations": []})  # not labeled yet
    images(tmp_path / "images", [*names, "empty.png"])
    tasks.append({"id": 10, "data": {"image": "empty.png"}, "annotations": [{"result": []}]})  # nothing in it
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    data = build_dataset(config("label_studio", tmp_path), "train", segmentation=True)
    assert data.classes == ["background", "car", "road", "tree"]
    both = [data, build_dataset(config("label_studio", tmp_path), "val", segmentation=True)]
    masks = {part.sample_name(i): part.mask(i) for part in both for i in range(len(part))}
    assert set(masks) == {"0", "1", "2", "3", "4", "empty"}
    assert masks.pop("empty").equal(torch.zeros(HEIGHT, WIDTH, dtype=torch.uint8))
    expected = np.where(drawn([(3, 2), (21, 2), (21, 16)]), 2, 0)
    expected[10:16, 6:13] = 1
    expected[shape] = 3
    assert all(np.array_equal(mask.numpy(), expected) for mask in masks.values())
    assert check(config("label_studio", tmp_path), progress=False) == []
    with pytest.raises(ValueError, match="truncated"):
        decode_rle(brush(shape)[:20])
    assert image_name("/data/upload/12/ab-x%20y.png") == "ab-x y.png"
    (tmp_path / "export.json").write_text(json.dumps([{"data": {"image": "0.png"}, "label": []}]))
    with pytest.raises(UserError, match="tasks without annotations .JSON-MIN"):
        build_dataset(config("label_studio", tmp_path), "train", segmentation=True)
