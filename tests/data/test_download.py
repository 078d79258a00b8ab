"""VOC 2012 from a tiny archive of its layout: fetched, unpacked and read by torchvision; what interrupts it, and how it
goes on.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision.datasets import VOCSegmentation

from unetdiff.data import download as module
from unetdiff.data.build import build_dataset
from unetdiff.data.config import DataConfig
from unetdiff.data.download import Archive, download_voc, fetch, unpack
from unetdiff.errors import UserError


def files(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_voc_comes_once_and_torchvision_reads_it(net: Any, tmp_path: Path) -> None:
    root = tmp_path / "data"
    assert download_voc(root) == root / "VOCdevkit" / "VOC2012"
    reference = VOCSegmentation(root, image_set="val")
    assert len(reference) == 2 and np.array(reference[0][1]).max() == 255
    assert sorted(os.listdir(root)) == ["VOCdevkit", net.voc.name]
    assert os.listdir(root / "VOCdevkit") == ["VOC2012"]

    (root / net.voc.name).unlink()
    net.down()
    before = files(root)
    assert download_voc(str(root)) == root / "VOCdevkit" / "VOC2012"
    assert files(root) == before


def test_the_reader_downloads_where_it_is_told_to(net: Any, tmp_path: Path) -> None:
    config = DataConfig(name="voc", root=str(tmp_path / "data"), download=True)
    assert len(build_dataset(config, "train", segmentation=True)) == 2
    net.down()
    assert len(build_dataset(config, "val", segmentation=True)) == 2


def test_without_the_net_the_line_says_what_to_put_where(net: Any, tmp_path: Path) -> None:
    net.down()
    root = tmp_path / "data"
    with pytest.raises(UserError) as error:
        download_voc(root)
    path = root / net.voc.name
    for part in ("from 127.0.0.1:", f"or download {net.url}{net.voc.name} to {path}", "refused"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)
    shutil.copy(net.voc, path)
    assert len(os.listdir(download_voc(root) / "SegmentationClass")) == 4


def test_an_archive_that_arrives_damaged_is_fetched_again(net: Any, tmp_path: Path) -> None:
    whole = net.voc.read_bytes()
    net.voc.write_bytes(whole[: len(whole) // 2])
    root = tmp_path / "data"
    with pytest.raises(UserError, match=r"VOCtrainval_11-May-2012.tar: md5 differs from [0-9a-f]{32}"):
        download_voc(root)
    assert os.listdir(root) == [net.voc.name]
    net.voc.write_bytes(whole)
    assert len(os.listdir(download_voc(root) / "JPEGImages")) == 7


def test_an_unpacking_that_is_interrupted_leaves_nothing_half(
    net: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract, root = module.extract_archive, tmp_path / "data"

    def interrupted(archive: Path, target: Path) -> None:
        extract(archive, target)
        next(target.rglob("2007_01.png")).unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "extract_archive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        download_voc(root)
    assert not (root / "VOCdevkit" / "VOC2012").exists()
    monkeypatch.setattr(module, "extract_archive", extract)
    killed = root / "VOCdevkit" / ".VOC2012.unpacking" / "VOCdevkit" / "VOC2012"  # where no `finally` was reached
    killed.mkdir(parents=True)
    (killed / "half.jpg").touch()
    assert not (download_voc(root) / "half.jpg").exists()
    assert os.listdir(root / "VOCdevkit") == ["VOC2012"]


@pytest.mark.parametrize("cut", [2000, 600, 0])
def test_archives_that_cannot_be_unpacked(net: Any, tmp_path: Path, cut: int) -> None:
    archive = tmp_path / net.sbd.name
    archive.write_bytes(net.sbd.read_bytes()[:cut])
    with pytest.raises(UserError, match=f"{archive}: could not be unpacked to {tmp_path}/here"):
        unpack(archive, Path("benchmark_RELEASE") / "dataset", tmp_path / "here")
    assert sorted(os.listdir(tmp_path)) == [net.sbd.name, "net"]
    with pytest.raises(UserError, match="no folder benchmark_RELEASE/dat in it"):
        unpack(net.sbd, Path("benchmark_RELEASE") / "dat", tmp_path / "here")


def test_a_folder_without_a_listed_file_is_refused(net: Any, tmp_path: Path) -> None:
    folder = download_voc(tmp_path)
    for file in ("SegmentationClass/2007_04.png", "JPEGImages/2007_02.jpg", "ImageSets/Segmentation/val.txt"):
        moved = tmp_path / "moved"
        (folder / file).rename(moved)
        with pytest.raises(
            UserError, match=f"{folder / file}: not found, {folder} is incomplete. Move that folder away"
        ):
            download_voc(tmp_path)
        moved.rename(folder / file)
    download_voc(tmp_path)


def test_a_folder_that_cannot_be_written_to(net: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="could not be downloaded.*(exists|directory)"):
        fetch(Archive(net.url + net.voc.name, "voc.tar", "0"), tmp_path / "file")
