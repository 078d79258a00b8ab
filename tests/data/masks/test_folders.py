"""Folders of images and of masks as people have them: nested or flat, with suffixes, with and without lists."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unetdiff.data.build import build_dataset
from unetdiff.data.check import check
from unetdiff.data.config import DataConfig
from unetdiff.data.masks.classes import BLACK, BLUE, ORANGE
from unetdiff.data.masks.folders import common_suffix
from unetdiff.data.masks.globs import named_files
from unetdiff.data.masks.splits import group_of
from unetdiff.errors import UserError


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(path)


def make(root: Path, names: list[str], image: str = "images/{}.png", mask: str = "masks/{}.png") -> Path:
    """An image and a 0/255 mask of 6 x 8 per name; image k has the value k, and its mask k foreground pixels."""
    for k, name in enumerate(names):
        save(root / image.format(name), np.full((6, 8), k))
        values = np.zeros(48)
        values[: k + 1] = 255
        save(root / mask.format(name), values.reshape(6, 8))
    return root


def config(root: Path, **more: object) -> DataConfig:
    base = {"images": "images", "masks": "masks", "mask_encoding": "binary"}
    return DataConfig(name="folders", root=str(root), **{**base, **more})  # type: ignore[arg-type]


def names(data: DataConfig) -> tuple[list[str], list[str]]:
    """Names of both splits; every image is checked to come with its own mask."""
    found = []
    for role in ("train", "val"):
        split = build_dataset(data, role, segmentation=True)  # type: ignore[arg-type]
        for i in range(len(split)):
            assert int(split[i]["mask"].sum()) == int(split[i]["image"][0, 0, 0]) + 1
        found.append([split.sample_name(i) for i in range(len(split))])
    return found[0], found[1]


TEN = [f"s{i // 5}_{i:02d}" for i in range(10)]


def test_two_folders_without_lists(tmp_path: Path) -> None:
    train, val = names(config(make(tmp_path, TEN)))
    assert sorted(train + val) == TEN and len(val) == 1
    data = build_dataset(config(tmp_path), "train", segmentation=True)
    assert data.classes == ["background", "foreground"] and data.palette.tolist() == [list(BLACK), list(ORANGE)]
    named = build_dataset(config(tmp_path, class_names=["cell", "gap"]), "val", True)
    assert named.classes == ["cell", "gap"] and named.palette.tolist() == [list(BLUE), list(ORANGE)]
    assert check(config(tmp_path), progress=False) == []


@pytest.mark.parametrize(
    ("image", "mask", "keys"),
    [
        ("images/{}.jpeg", "masks/{}.png", {}),
        ("leftImg8bit/city/{}_leftImg8bit.png", "gtFine/city/{}_gtFine_labelIds.png",
         {"images": "leftImg8bit/**/*_leftImg8bit.png", "masks": "gtFine/**/*_gtFine_labelIds.png"}),
        ("a/b/{}.png", "flat/{}.png", {"images": "a", "masks": "flat"}),
        ("all/{}.png", "all/{}_mask.png", {"images": "all/*.png", "masks": "all/*_mask.png"}),
        ("x/{}/rgb/im.png", "x/{}/label/gt.png", {"images": "x/*/rgb/im.png", "masks": "x/*/label/gt.png"}),
        ("x/{}/rgb/im.png", "x/{}/label/im.png", {"images": "x/*/rgb", "masks": "x/*/label"}),
        ("Images/{}.PNG", "masks/mask-{}.png", {"images": "Images/*.*", "masks": "masks/mask-*.png"}),
    ],
)  # fmt: skip
def test_masks_are_found_by_what_the_wildcards_match(
    tmp_path: Path, image: str, mask: str, keys: dict[str, str]
) -> None:
    train, val = names(config(make(tmp_path, TEN, image, mask), val_fraction=0.3, **keys))
    assert len(train) == 7 and len(val) == 3
    assert {Path(name).name for name in train + val} <= {*TEN, "im"}


def test_nested_masks_keep_their_folder_in_the_name(tmp_path: Path) -> None:
    make(tmp_path, ["a/0", "b/0"])  # the same file name in two folders
    assert sorted(sum(names(config(tmp_path)), [])) == ["a/0", "b/0"]


def test_splits_of_folders_lists_patterns_and_groups(tmp_path: Path) -> None:
    folders = make(tmp_path / "folders", ["train/a", "train/b", "validation/c", "test/d"])
    assert names(config(folders)) == (["train/a", "train/b"], ["validation/c"])
    assert names(config(folders, val_split="test")) == (["train/a", "train/b"], ["test/d"])
    assert sum(map(len, names(config(folders, val_fraction=0.5)))) == 2  # of train/ alone
    listed = make(tmp_path / "listed", TEN)
    (listed / "train.txt").write_text("s0_01\nimages/s0_00.png\n")
    (listed / "val.txt").write_text("s1_09.png masks/s1_09.png\n")
    assert names(config(listed)) == (["s0_01", "s0_00"], ["s1_09"])
    plain = make(tmp_path / "plain", TEN)
    assert names(config(plain, val_split="s1_*")) == (TEN[:5], TEN[5:])
    for seed in range(4):
        train, val = names(config(plain, val_fraction=0.2, group_pattern="^[^_]+", split_seed=seed))
        assert {name[:2] for name in train}.isdisjoint(name[:2] for name in val) and len(val) == 5
    draws = {tuple(names(config(plain, val_fraction=0.2, split_seed=seed))[1]) for seed in range(6)}
    assert len(draws) > 1 and names(config(plain, val_fraction=0.2)) == names(config(plain, val_fraction=0.2))
    assert group_of("scene7_0001", "^(scene)7") == "scene" and group_of("x", "^scene") == "x"


def test_images_alone_need_no_masks(tmp_path: Path) -> None:
    data = build_dataset(config(make(tmp_path, TEN), masks=None, size=[6, 6]), "train", segmentation=False)
    assert set(data[0]) == {"image", "name"} and data.classes == []


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"images": None}, "data.images=null: must be set with data.name=folders"),
        ({"masks": None}, "data.masks=null: must be set"),
        ({"images": "nowhere"}, "data.images=nowhere: must be an existing folder, or a glob of files, in"),
        ({"images": "images/*.tif"}, r"no images found \(data.images=images/\*.tif\)"),
        ({"masks": "images"}, "data.images=images: must be a folder or a glob of other files than data.masks"),
        ({"val_split": "holdout"}, "data.val_split=holdout: must be a list or a glob of names, or a folder of images"),
        ({"val_split": "z*"}, "data.val_split=z.: must be a pattern of names such as s0_00"),
        ({"group_pattern": "^s"}, "cannot be split into train and val"),
        ({"mask_encoding": "index"}, "classes.txt: not found. Write one class name per line"),
    ],
)
def test_what_cannot_be_listed_is_refused(tmp_path: Path, keys: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_dataset(config(make(tmp_path, TEN), **keys), "val", segmentation=True)


def test_names_that_do_not_agree_are_shown_with_globs(tmp_path: Path) -> None:
    make(tmp_path, TEN, "images/{}_im.png", "masks/{}_seg.png")
    with pytest.raises(UserError, match=r"s0_00_im of data.images, s0_00_seg of data.masks.*'images/\*_im.png'.*_seg"):
        build_dataset(config(tmp_path), "train", segmentation=True)
    assert common_suffix(["a_mask.png", "b_mask.png"]) == "_mask.png" and common_suffix(["a1.png", "b1.png"]) == ".png"


Spoil = Callable[[Path], None]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "masks/s0_00.png").unlink(), "masks/s0_00.png: file not found"),
        (lambda root: save(root / "masks/s9.png", np.zeros((6, 8))), "s9.png: 1 mask.s. without an image"),
        (lambda root: save(root / "masks/s0_00.png", np.zeros((8, 6))), "s0_00.png: mask and image sizes differ"),
        (lambda root: save(root / "masks/s0_00.png", np.arange(48).reshape(6, 8)), "mask_values={0-127: 0"),
        (lambda root: save(root / "masks/s0_00.png", np.full((6, 8, 3), (9, 0, 1))), "mode RGB, 1 color.*mask_colors"),
        (lambda root: save(root / "images/s0_00.bmp", np.zeros((6, 8))), "s0_00.bmp: several files have this id"),
    ],
)
def test_check_names_each_wrong_mask(tmp_path: Path, spoil: Spoil, message: str) -> None:
    make(tmp_path, TEN)
    spoil(tmp_path)
    (found,) = check(config(tmp_path), progress=False)
    assert re.search(message, str(found))


def test_named_files_strip_what_a_pattern_fixes(tmp_path: Path) -> None:
    make(tmp_path, ["r1_left", "r2_left"])
    assert list(named_files("data.images", "images/r?_left.png", tmp_path)) == ["1", "2"]
    assert list(named_files("data.images", "images/r[!2]*.png", tmp_path)) == ["1/_left"]
    assert list(named_files("data.images", str(tmp_path / "images"), Path("/nowhere"))) == ["r1_left", "r2_left"]
