from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unetdiff.data.build import build_dataset
from unetdiff.data.check import check, first_issue, require_clean
from unetdiff.data.config import DataConfig
from unetdiff.data.download import download_voc
from unetdiff.data.masks.sbd import download_sbd
from unetdiff.errors import UserError

SaveMask = Callable[[Path, np.ndarray], None]


def config(root: Path, **more: object) -> DataConfig:
    return DataConfig(name="voc_folder", root=str(root), **more)  # type: ignore[arg-type]


def test_a_clean_set_has_no_problem(voc_set: Path) -> None:
    assert check(config(voc_set), progress=False) == []
    assert first_issue(config(voc_set)) is None
    require_clean(config(voc_set))
    assert check(DataConfig(), progress=False) == []


def test_every_fault_is_listed_with_file_value_and_remedy(voc_set: Path, make_mask: SaveMask) -> None:
    masks, images = voc_set / "SegmentationClass", voc_set / "JPEGImages"
    values = np.zeros((30, 40))
    values[0, 0], values[5, 5] = 4, 99
    make_mask(masks / "a0.png", values)
    Image.new("RGB", (40, 30)).save(masks / "a1.png")
    binary = np.zeros((30, 40))
    binary[:15] = 255
    make_mask(masks / "a2.png", binary)
    make_mask(masks / "a3.png", np.ones((20, 40)))
    jpeg = images / "b0.jpg"
    jpeg.write_bytes(jpeg.read_bytes()[: jpeg.stat().st_size // 2])
    lists = voc_set / "ImageSets" / "Segmentation"
    (lists / "val.txt").write_text("b0\nb1\na0\nghost\nghost\n")

    for full in (True, False):
        issues = check(config(voc_set), full=full, progress=False)
        found = {(Path(p.file).name, p.value) for p in issues}
        assert found == {
            ("train.txt", "a0"),
            ("val.txt", "ghost"),
            ("a0.png", "4, 99"),
            ("a1.png", "mode RGB, 1 color"),
            ("a2.png", "50% of it is 255"),
            ("a3.png", "mask 40x20, image a3.jpg 40x30"),
            ("b0.jpg", next(p.value for p in issues if p.file.endswith("b0.jpg"))),
            ("ghost.jpg", "missing"),
            ("ghost.png", "missing"),
        }
        assert len(issues) == 9, "each fault once, though a0 is in both splits"
        assert all(p.remedy and p.message and p.file in str(p) and p.value in str(p) for p in issues)
    with pytest.raises(UserError, match=r" 8 more: run `unetdiff data check`\."):
        require_clean(config(voc_set))


def test_every_fault_of_voc_and_its_trainaug_is_listed(net: Any, tmp_path: Path, make_mask: SaveMask) -> None:
    voc = download_voc(tmp_path)
    download_sbd(tmp_path, progress=False)
    own, added, images = voc / "SegmentationClass", voc / "SegmentationClassAug", voc / "JPEGImages"
    good = DataConfig(name="voc", root=str(tmp_path), train_split="trainaug")
    assert check(good, progress=False) == []

    values = np.zeros((16, 20))
    values[0, 0] = 21
    make_mask(added / "2008_05.png", values)
    Image.new("RGB", (20, 16)).save(added / "2008_06.png")
    binary = np.zeros((16, 20))
    binary[:4] = 255
    make_mask(added / "2008_07.png", binary)
    make_mask(own / "2007_02.png", np.ones((20, 16)))
    jpeg = images / "2007_03.jpg"
    jpeg.write_bytes(jpeg.read_bytes()[:-60])
    (images / "2007_04.jpg").unlink()
    (own / "2007_04.png").unlink()
    lists = voc / "ImageSets" / "Segmentation"
    (lists / "trainaug.txt").write_text((lists / "trainaug.txt").read_text() + "2007_03\n2008_99\n")

    for full in (True, False):
        issues = check(good, full=full, progress=False)
        assert {(Path(p.file).relative_to(voc).as_posix(), p.value) for p in issues} == {
            ("ImageSets/Segmentation/trainaug.txt", "2007_03"),
            ("SegmentationClassAug/2008_05.png", "21"),
            ("SegmentationClassAug/2008_06.png", "mode RGB, 1 color"),
            ("SegmentationClassAug/2008_07.png", "25% of it is 255"),
            ("SegmentationClass/2007_02.png", "mask 16x20, image 2007_02.jpg 20x16"),
            ("JPEGImages/2007_03.jpg", next(p.value for p in issues if "truncated" in p.value)),
            ("JPEGImages/2007_04.jpg", "missing"),
            ("SegmentationClass/2007_04.png", "missing"),
            ("JPEGImages/2008_99.jpg", "missing"),
            ("SegmentationClassAug/2008_99.png", "missing"),
        }
        assert len(issues) == 10 and all(p.remedy and p.message for p in issues)
    with pytest.raises(UserError, match=r"trainaug\.txt: 1 id.* 9 more: run `unetdiff data check`\."):
        require_clean(good)


def test_a_jpeg_cut_by_its_last_bytes_is_found_quickly_too(voc_set: Path) -> None:
    jpeg = voc_set / "JPEGImages" / "a2.jpg"
    jpeg.write_bytes(jpeg.read_bytes()[:-60])
    issue = first_issue(config(voc_set))
    assert issue is not None and issue.file == str(jpeg) and "truncated" in issue.value
    with pytest.raises(UserError, match="a2.jpg"):
        require_clean(config(voc_set))


def test_images_taken_on_their_side_are_upright_like_their_masks(voc_set: Path) -> None:
    jpeg = voc_set / "JPEGImages" / "a0.jpg"
    upright = Image.open(jpeg).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned right by a quarter
    upright.transpose(Image.Transpose.ROTATE_90).save(jpeg, exif=exif, quality=100, subsampling=0)
    assert check(config(voc_set), progress=False) == check(config(voc_set), full=False, progress=False) == []
    item = build_dataset(config(voc_set), "train", segmentation=True)[0]
    difference = item["image"].permute(1, 2, 0).int().numpy() - np.asarray(upright).astype(int)
    assert item["image"].shape[1:] == item["mask"].shape == (30, 40) and np.abs(difference).mean() < 3


def test_binary_masks_can_be_allowed(voc_set: Path, make_mask: SaveMask) -> None:
    make_mask(voc_set / "SegmentationClass" / "a0.png", np.full((30, 40), 255))
    issue = first_issue(config(voc_set))
    assert issue is not None and "data.allow_binary_masks=true" in issue.remedy
    assert first_issue(config(voc_set, allow_binary_masks=True)) is None


def test_a_grey_mask_is_recognised(voc_set: Path) -> None:
    grey = Image.fromarray(np.tile(np.arange(0, 240, 6, dtype=np.uint8), (30, 1)), mode="L")
    grey.save(voc_set / "SegmentationClass" / "a0.png")
    issue = first_issue(config(voc_set))
    assert issue is not None and issue.value == "6, 12, 18 and 36 more" and "convert it" in issue.remedy


def test_a_denoiser_does_not_mind_the_masks(voc_set: Path) -> None:
    (voc_set / "SegmentationClass" / "a0.png").unlink()
    assert first_issue(config(voc_set)) is not None
    assert first_issue(config(voc_set), masks=False) is None
    (voc_set / "JPEGImages" / "a0.jpg").write_bytes(b"no image")
    issue = first_issue(config(voc_set), masks=False)
    assert issue is not None and issue.message == "not an image"


def test_image_folder_truncated_and_shared_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("ant", "bee"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(3):
                image = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
                image.save(tmp_path / split / name / f"{i}.jpg")
    folder = DataConfig(name="image_folder", root=str(tmp_path))
    assert check(folder, progress=False) == []
    source, copy = tmp_path / "train" / "ant" / "1.jpg", tmp_path / "val" / "bee" / "2.jpg"
    copy.write_bytes(source.read_bytes())
    cut = tmp_path / "train" / "bee" / "0.jpg"
    cut.write_bytes(cut.read_bytes()[:-100])
    assert [(p.file, p.message) for p in check(folder, progress=False)] == [
        (str(copy), "duplicate of a training image"),
        (str(cut), "cannot be read"),
    ]
