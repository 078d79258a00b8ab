"""Keys that say where masks are and what their values mean: read from YAML and the command line, and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from unetdiff.config.reading import from_yaml, load, parse, to_yaml
from unetdiff.errors import UserError

FOLDERS = {
    "data.name": "folders",
    "data.root": ".",
    "data.images": "images",
    "data.masks": "masks",
    "data.size": [32, 32],
    "training.steps": 5,
}


def test_maps_and_tables_are_read_from_yaml_and_written_again(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("data:\n  name: folders\n  mask_values: {7: 0, 8: 1, 10-20: 2, else: ignore}\n")
    expected = {7: 0, 8: 1, "10-20": 2, "else": "ignore"}
    assert parse(path).data.mask_values == expected
    path.write_text(to_yaml(parse(path)))
    assert from_yaml(path).data.mask_values == expected
    words = ["--data.mask_values", "{7: 0, else: ignore}", "--data.mask_colors", "~/colors.txt"]
    data = parse(None, words).data
    assert data.mask_values == {7: 0, "else": "ignore"} and data.mask_colors == str(Path.home() / "colors.txt")
    colors = parse(None, ["--data.mask_colors={road: [1, 2, 3], car: [4, 5, 6]}"]).data.mask_colors
    assert colors == {"road": [1, 2, 3], "car": [4, 5, 6]}


def test_a_config_of_two_folders_is_complete() -> None:
    load(None, {**FOLDERS, "data.mask_encoding": "binary"}, "segmentation")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"data.name": "voc_folder"}, "data.images=images: must be null with data.name=voc_folder. Only folders"),
        ({"data.mask_encoding": "binary", "data.mask_values": {0: 0}}, "must be left out with data.mask_values"),
        ({"data.mask_values": {0: 0}, "data.mask_colors": "c.txt"}, "data.mask_values={0: 0}: must be null with"),
        ({"data.mask_values": {"x": 0}}, "data.mask_values.x=0: must be for a stored value from 0 to 65535"),
        ({"data.mask_values": {0: 300}}, "data.mask_values.0=300: must be at most 255"),
        ({"data.mask_values": [0, 1]}, "must be a mapping of integers or strings to integers or strings or null"),
        ({"data.mask_colors": {"road": [1, 2, 300], "car": [0, 0, 0]}}, "data.mask_colors.road=300: must be at most"),
        ({"data.mask_colors": {"road": [1, 2], "car": [0, 0, 0]}}, "a color must be three numbers from 0 to 255"),
        ({"data.mask_colors": "c.txt", "data.class_names": ["a", "b"]}, "data.class_names=.a, b.: must be null"),
        ({"data.class_names": ["a", "a"]}, "class 'a' repeats"),
        ({"data.class_names": ["a"]}, "data.class_names=.a.: must be a list of 2 to 254 names"),
        ({"data.mask_encoding": "binary", "data.num_classes": 3}, "must be null or 2"),
        ({"data.group_pattern": "(a"}, r"data.group_pattern=\(a: must be a regular expression"),
        ({"data.val_fraction": 1.0}, r"data.val_fraction=1.0: must be in"),
        ({"data.mask_encoding": "rgb"}, "data.mask_encoding=rgb: must be one of index, binary"),
    ],
)
def test_what_contradicts_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(None, {**FOLDERS, **changed}, "segmentation")
