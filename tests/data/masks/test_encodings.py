"""What stored values mean, against arrays written out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unetdiff.data.build import build_dataset
from unetdiff.data.check import check
from unetdiff.data.config import DataConfig
from unetdiff.data.issues import BadFile
from unetdiff.data.masks.classes import classes_of
from unetdiff.data.masks.color_tables import read_colors
from unetdiff.data.masks.encodings import Binary, ClassIndices, ColorTable, ValueMap, value_table
from unetdiff.data.masks.pairs import read_values
from unetdiff.errors import UserError

ROAD, CAR, VOID = [128, 64, 128], [64, 0, 128], [0, 0, 0]


def test_value_map_takes_values_ranges_and_else() -> None:
    encoding = ValueMap(value_table({7: 0, "8": 1, "10-20": 2, "else": "ignore"}))
    values = np.array([[7, 8, 9, 10], [20, 21, 65535, 0]], np.uint16)
    assert encoding.decode(values, "m.png").tolist() == [[0, 1, 255, 2], [2, 255, 255, 255]]
    strict = ValueMap(value_table({7: 0, 8: 255}))
    assert strict.decode(np.array([[7, 8]]), "m.png").tolist() == [[0, 255]]
    with pytest.raises(BadFile, match=r"m.png: values that are not in data.mask_values \(0, 9\)"):
        strict.decode(np.array([[7, 9, 0]]), "m.png")
    gray = np.repeat(np.array([[[7], [8]]], np.uint8), 3, axis=2)  # a gray image saved as RGB
    assert strict.decode(gray, "m.png").tolist() == [[0, 255]]


@pytest.mark.parametrize(
    "mapping", [{7: 255}, {"a": 1}, {"9-3": 1}, {70000: 1}, {7: "road"}, {7: 256}, {"else": "ignore"}]
)
def test_a_wrong_value_map_is_refused(mapping: dict[int | str, int | str]) -> None:
    with pytest.raises(UserError, match="data.mask_values"):
        value_table(mapping)


def test_binary_masks_are_0_and_255_or_0_and_1() -> None:
    for top in (1, 255):
        assert Binary().decode(np.array([[0, top]], np.uint8), "m").tolist() == [[0, 1]]
    assert Binary().decode(np.full((1, 2, 3), 255, np.uint8), "m").tolist() == [[1, 1]]
    for values, message in (([[0, 128]], "0: 0, 128: 1"), ([[0, 1, 2, 3]], "set data.mask_encoding=index")):
        with pytest.raises(BadFile, match=message):
            Binary().decode(np.array(values, np.uint8), "m")


def test_indices_of_sixteen_bits() -> None:
    assert ClassIndices(4).decode(np.array([[3, 255]], np.uint16), "m").dtype == np.uint8
    with pytest.raises(BadFile, match="300"):
        ClassIndices(4).decode(np.array([[3, 300]], np.uint16), "m")


def test_colors_become_the_classes_of_their_names() -> None:
    colors, names, palette = read_colors({"road": ROAD, "Void": VOID, "car": CAR}, Path())
    assert names == ["road", "car"] and palette == [tuple(ROAD), tuple(CAR)]
    encoding = ColorTable.of(colors)
    assert encoding.decode(np.array([[CAR, ROAD], [VOID, CAR]], np.uint8), "m").tolist() == [[1, 0], [255, 1]]
    with pytest.raises(BadFile, match=r"25.0% of it has colors outside data.mask_colors \(\[1, 2, 3\]\)"):
        encoding.decode(np.array([[CAR, ROAD], [VOID, (1, 2, 3)]], np.uint8), "m")
    with pytest.raises(BadFile, match="This looks like a lossy"):
        encoding.decode(np.random.default_rng(0).integers(0, 256, (9, 9, 3)).astype(np.uint8), "m")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.txt", "# CamVid\n128 64 128\troad\n64 0 128 a car\n128 0 192 road\n0 0 0 Void\n"),
        ("t.txt", "road 128 64 128\na car 64 0 128\nroad 128 0 192\nvoid 0 0 0\n"),
        ("t.csv", "name,r,g,b\nroad,128,64,128\na car,64,0,128\nroad,128,0,192\nVoid,0,0,0\n"),
        ("t.csv", "128,64,128,road\n64,0,128,a car\n128,0,192,road\n0,0,0,ignore\n"),
        ("t.json", '[{"name": "road", "color": [128, 64, 128]}, {"name": "a car", "color": [64, 0, 128]},'
                   ' {"name": "road", "color": [128, 0, 192]}, {"name": "void", "color": [0, 0, 0]}]'),
    ],
)  # fmt: skip
def test_color_tables_in_files(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    colors, names, palette = read_colors(name, tmp_path)
    assert names == ["road", "a car"] and palette == [(128, 64, 128), (64, 0, 128)]
    assert colors == {(128, 64, 128): 0, (64, 0, 128): 1, (128, 0, 192): 0, (0, 0, 0): 255}
    (tmp_path / "t.yaml").write_text("road: [128, 64, 128]\na car: [64, 0, 128]\n")
    assert read_colors("t.yaml", tmp_path)[1] == ["road", "a car"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"road": [1, 2]}, "three numbers from 0 to 255"),
        ({"road": ROAD, "car": ROAD}, "occurs twice"),
        ({"road": ROAD, "void": VOID}, "2 to 254 classes .got 1"),
        ("none.txt", "the existing file of a color table"),
    ],
)
def test_a_wrong_color_table_is_refused(tmp_path: Path, table: dict[str, list[int]] | str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_colors(table, tmp_path)


def test_palette_files_have_indices_and_colors(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1]], np.uint8), mode="P")
    image.putpalette([*VOID, *CAR])
    image.save(tmp_path / "p.png")
    assert read_values(tmp_path / "p.png", colors=False).tolist() == [[0, 1]]
    assert read_values(tmp_path / "p.png", colors=True).tolist() == [[VOID, CAR]]
    Image.fromarray(np.array([[0, 300]], np.uint16)).save(tmp_path / "deep.png")
    assert read_values(tmp_path / "deep.png", colors=False).tolist() == [[0, 300]]


def test_decoded_colors_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        for name in ("a", "b"):
            values = np.array([[ROAD, CAR, VOID]] * 2, np.uint8)
            Image.fromarray(values).save(tmp_path / folder / f"{name}.png")
    (tmp_path / "colors.txt").write_text("128 64 128 road\n64 0 128 car\n0 0 0 void\n")
    config = DataConfig(name="folders", root=str(tmp_path), images="images", masks="masks", mask_colors="colors.txt")
    data = build_dataset(config, "train", segmentation=True)
    first = data[0]["mask"]
    assert first.tolist() == [[0, 1, 255]] * 2 and data.palette.tolist() == [ROAD, CAR]
    monkeypatch.setattr("unetdiff.data.masks.pairs.read_values", lambda *_: pytest.fail("decoded it again"))
    assert data.mask(0).equal(first) and data[0]["labels"] == (1,)
    data.mask(0)[0] = 7  # what is returned may be changed
    assert data.mask(0).equal(first)
    data.release()
    monkeypatch.undo()
    assert data.mask(0).equal(first)
    with pytest.raises(UserError, match="a one-channel PNG"):
        plain = DataConfig(name="folders", root=str(tmp_path), images="images", masks="masks", num_classes=2)
        build_dataset(plain, "train", segmentation=True)[0]
    assert check(config, progress=False) == []


def test_a_number_of_classes_that_a_value_map_contradicts_is_refused(tmp_path: Path) -> None:
    for values, names in (({7: 0, 8: 4}, None), ({7: 0, 8: 1}, ["road", "car"])):
        config = DataConfig(name="folders", root=str(tmp_path), num_classes=3, mask_values=values, class_names=names)  # type: ignore[arg-type]
        with pytest.raises(UserError, match=r"data.num_classes=3: must be null or [25], as in data.mask_values"):
            classes_of(config, tmp_path)
    config = DataConfig(name="folders", root=str(tmp_path), num_classes=3, mask_values={7: 0, 8: 1})
    assert classes_of(config, tmp_path)[1] == ["class 0", "class 1", "class 2"]
