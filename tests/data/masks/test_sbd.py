"""The split trainaug from tiny archives of VOC's and SBD's layout; torchvision's readers are the judges."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import SBDataset, VOCSegmentation

from unetdiff.data.build import build_dataset
from unetdiff.data.check import check
from unetdiff.data.config import DataConfig
from unetdiff.data.download import download_voc
from unetdiff.data.masks import sbd as module
from unetdiff.data.masks.classes import voc_colormap
from unetdiff.data.masks.sbd import download_sbd, read_mat, trainaug
from unetdiff.errors import UserError

SaveMat = Callable[[Path, np.ndarray], None]
NAMES = ["2007_01", "2007_02", "2008_05", "2008_06", "2008_07"]  # 2007_03 and 2007_04 are in SBD's lists and VOC's val


def files(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


def config(root: Path, split: str = "trainaug") -> DataConfig:
    return DataConfig(name="voc", root=str(root), train_split=split)


@pytest.fixture
def root(net: Any, tmp_path: Path) -> Path:
    download_voc(tmp_path / "data")
    return tmp_path / "data"


def test_trainaug_is_sbd_and_voc_s_train_without_voc_s_val(root: Path) -> None:
    voc = root / "VOCdevkit" / "VOC2012"
    before = files(voc / "SegmentationClass")
    path = download_sbd(root, progress=False)
    assert path == voc / "ImageSets" / "Segmentation" / "trainaug.txt"
    assert path.read_text().splitlines() == NAMES
    assert files(voc / "SegmentationClass") == before, "VOC's own masks and nothing else"
    assert sorted(os.listdir(voc / "SegmentationClassAug")) == ["2008_05.png", "2008_06.png", "2008_07.png"]
    assert sorted(os.listdir(root)) == ["VOCdevkit", "VOCtrainval_11-May-2012.tar", "benchmark.tgz", "sbd"]

    truth = {}
    for split in ("train", "val"):
        reference = SBDataset(root / "sbd", image_set=split, mode="segmentation")
        truth |= {Path(mask).stem: np.array(reference[i][1]) for i, mask in enumerate(reference.masks)}
    own = VOCSegmentation(root, image_set="train")
    truth |= {Path(mask).stem: np.array(own[i][1]) for i, mask in enumerate(own.masks)}
    data = build_dataset(config(root), "train", segmentation=True)
    assert [data.sample_name(i) for i in range(len(data))] == NAMES
    for item in (data[i] for i in range(len(data))):
        assert np.array_equal(item["mask"].numpy(), truth[item["name"]])
        assert (255 in item["mask"]) == item["name"].startswith("2007"), "VOC's masks have a void border"
    with Image.open(voc / "SegmentationClassAug" / "2008_05.png") as mask:
        assert mask.mode == "P" and np.array_equal(np.array(mask.getpalette()).reshape(-1, 3), voc_colormap())
    assert check(config(root), progress=False) == []


def test_a_second_call_does_nothing(net: Any, root: Path) -> None:
    download_sbd(root, progress=False)
    net.down()
    shutil.rmtree(root / "sbd")
    (root / "benchmark.tgz").unlink()
    before = files(root)
    download_sbd(str(root), progress=False)
    assert files(root) == before


def test_a_conversion_that_is_interrupted_goes_on(net: Any, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def interrupted(path: Path) -> np.ndarray:
        read.append(path.stem)
        if len(read) == 2:
            raise KeyboardInterrupt
        return read_mat(path)

    monkeypatch.setattr(module, "read_mat", interrupted)
    with pytest.raises(KeyboardInterrupt):
        download_sbd(root, progress=False)
    added = root / "VOCdevkit" / "VOC2012" / "SegmentationClassAug"
    (added / ".writing-2008_06.png").write_bytes(b"half a mask")  # where it was killed in the middle of a file
    with pytest.raises(
        UserError, match=f"'trainaug' does not exist yet. Run `unetdiff data download sbd --root {root}`"
    ):
        build_dataset(config(root), "train", segmentation=True)
    net.down()
    assert download_sbd(root, progress=False).read_text().splitlines() == NAMES
    assert read == ["2008_05", "2008_06", "2008_06", "2008_07"]
    assert sorted(os.listdir(added)) == ["2008_05.png", "2008_06.png", "2008_07.png"]
    assert check(config(root), progress=False) == []


def test_a_mask_that_got_lost_is_written_again(root: Path) -> None:
    path = download_sbd(root, progress=False)
    mask = path.parents[2] / "SegmentationClassAug" / "2008_06.png"
    values = np.array(Image.open(mask))
    mask.unlink()
    (lost,) = check(config(root), progress=False)
    assert lost.file == str(mask) and lost.value == "missing"
    assert f"unetdiff data download sbd --root {root}" in lost.remedy
    mask.write_bytes(b"no image")
    (damaged,) = check(config(root), progress=False)
    assert damaged.message == "not an image" and damaged.remedy.startswith("Delete it and run `unetdiff data")
    mask.unlink()
    download_sbd(root, progress=False)
    assert np.array_equal(np.array(Image.open(mask)), values)


def test_a_damaged_mat_file_is_named(net: Any, root: Path, make_mat: SaveMat) -> None:
    shutil.unpack_archive(net.sbd, root)
    (root / "benchmark_RELEASE" / "dataset").rename(root / "sbd")
    mat = root / "sbd" / "cls" / "2008_06.mat"
    whole = mat.read_bytes()
    wrong = np.zeros((16, 20), np.uint8)
    wrong[0, :2] = 21, 254
    spoiled: list[tuple[Callable[[], object], str]] = [
        (lambda: mat.write_bytes(whole[: len(whole) // 2]), "not an SBD mask"),
        (lambda: mat.write_bytes(b""), "not an SBD mask"),
        (lambda: make_mat(mat, wrong), r"mask values outside 0\.\.20 and 255 \(ignore\) \(21, 254\)"),
        (lambda: make_mat(mat, np.zeros((16, 20), np.int16)), r"is int16 \(16, 20\), not uint8"),
        (mat.unlink, "no such file"),
    ]
    for spoil, message in spoiled:
        spoil()
        with pytest.raises(
            UserError, match=rf"2008_06\.mat: .*{message}.* Remove {root}/sbd \(not the archive\) and run"
        ):
            download_sbd(root, progress=False)
        assert not (root / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation" / "trainaug.txt").exists()
    shutil.rmtree(root / "sbd")
    assert len(download_sbd(root, progress=False).read_text().split()) == 5


def test_an_id_without_a_image_is_named_before_anything_is_written(root: Path) -> None:
    voc = root / "VOCdevkit" / "VOC2012"
    (voc / "JPEGImages" / "2008_06.jpg").unlink()
    with pytest.raises(
        UserError, match=rf"2008_06\.jpg: not found, 1 image.* Move {voc} away and run `unetdiff data download voc"
    ):
        download_sbd(root, progress=False)
    assert not (voc / "SegmentationClassAug").exists()
    assert not (voc / "ImageSets" / "Segmentation" / "trainaug.txt").exists()


def test_what_stands_in_the_way_is_named(net: Any, root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"Run `unetdiff data download voc --root {tmp_path}/other` first"):
        download_sbd(tmp_path / "other")
    (root / "sbd").mkdir()
    with pytest.raises(UserError, match=f"{root}/sbd: not a complete SBD .*train.txt"):
        download_sbd(root, progress=False)
    (root / "sbd").rmdir()
    path = download_sbd(root, progress=False)
    path.write_text(path.read_text() + "2007_04\n")  # a list from elsewhere
    with pytest.raises(UserError, match=rf"{path}: 1 id\(s\) also in val \(first 2007_04\)"):
        download_sbd(root, progress=False)
    (issue,) = check(config(root), progress=False)
    assert (issue.file, issue.value) == (str(path), "2007_04")


def test_a_full_disk_is_one_line(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Image.Image, path: Path, format: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(Image.Image, "save", full)
        with pytest.raises(UserError, match="VOC2012: cannot be written to .*No space left.*run this again to resume"):
            download_sbd(root, progress=False)
    assert len(download_sbd(root, progress=False).read_text().split()) == 5


def test_whole_lists_give_10582_ids() -> None:
    sbd = [f"s{i}" for i in range(11_355)]
    val = sbd[:1_449]
    train = sbd[1_449 : 1_449 + 788] + [f"v{i}" for i in range(676)]
    assert len(train) == 1_464
    names = trainaug(sbd, train, val)
    assert len(names) == 10_582 and names == sorted(set(names)) and not set(names) & set(val)
    with pytest.raises(UserError, match="must have 10582 ids .got 10583"):
        trainaug(sbd, [*train[1:], "another"], val)
    assert trainaug(["b", "a", "v"], ["t", "a"], ["v", "w"]) == ["a", "b", "t"]
