from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import VOCSegmentation

from unetdiff.data.base import collate
from unetdiff.data.build import build_dataset
from unetdiff.data.config import AugmentConfig, DataConfig
from unetdiff.data.masks.classes import VOC_CLASSES, colors_of, first_palette, voc_colormap
from unetdiff.data.masks.voc import VOCFolder
from unetdiff.data.sampling import SampleKey
from unetdiff.errors import UserError

SaveMask = Callable[[Path, np.ndarray], None]


def config(root: Path, **more: object) -> DataConfig:
    return DataConfig(name="voc_folder", root=str(root), **more)  # type: ignore[arg-type]


def test_reads_what_torchvision_reads(voc_set: Path, tmp_path: Path) -> None:
    (tmp_path / "VOCdevkit").mkdir()
    (tmp_path / "VOCdevkit" / "VOC2012").symlink_to(voc_set, target_is_directory=True)
    reference = VOCSegmentation(tmp_path, image_set="train")
    folder = build_dataset(config(voc_set), "train", segmentation=True)
    through_torchvision = build_dataset(DataConfig(name="voc", root=str(tmp_path)), "train", segmentation=True)
    assert len(folder) == len(reference) == len(through_torchvision) == 4
    for i in range(4):
        image, mask = reference[i]
        for item in (folder[i], through_torchvision[i]):
            assert np.array_equal(item["image"].permute(1, 2, 0).numpy(), np.array(image))
            assert np.array_equal(item["mask"].numpy(), np.array(mask))
            assert item["name"] == f"a{i}" == folder.sample_name(i)
    assert through_torchvision.classes == VOC_CLASSES


def test_masks_beside_the_set_s_own(voc_set: Path, make_mask: SaveMask) -> None:
    added = voc_set / "SegmentationClassAug"
    added.mkdir()
    make_mask(added / "a0.png", np.full((30, 40), 3))  # the set has its own
    (voc_set / "SegmentationClass" / "a1.png").rename(added / "a1.png")
    (voc_set / "SegmentationClass" / "a2.png").unlink()
    folder = VOCFolder(voc_set, "train")
    assert [pair.mask.parent.name for pair in folder.pairs] == [
        "SegmentationClass", "SegmentationClassAug", "SegmentationClass", "SegmentationClass",
    ]  # fmt: skip
    assert 255 in folder[0]["mask"] and 255 in folder[1]["mask"]
    with pytest.raises(UserError, match="a2.png: file not found .*Add it, or remove 'a2' from the split"):
        folder[2]


def test_names_and_palette_are_the_set_s_own(voc_set: Path) -> None:
    folder = build_dataset(config(voc_set), "val", segmentation=True)
    assert folder.classes == ["ground", "tree", "house", "car"]
    assert folder.palette.tolist() == [[10, 20, 30], [0, 200, 0], [200, 0, 0], [0, 0, 200]]
    assert folder.labels == folder.classes


def test_colour_map_is_voc_s() -> None:
    colors = voc_colormap()
    assert colors.shape == (256, 3)
    assert colors[[0, 1, 2, 3, 15, 20]].tolist() == [
        [0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [192, 128, 128], [0, 64, 128],
    ]  # fmt: skip
    assert colors[255].tolist() == [224, 224, 192]


def test_grey_masks_get_voc_s_colours_and_names(voc_set: Path) -> None:
    (voc_set / "classes.txt").unlink()
    for path in (voc_set / "SegmentationClass").iterdir():
        Image.fromarray(np.array(Image.open(path)), mode="L").save(path)
    folder = VOCFolder(voc_set, "train", num_classes=21)
    assert folder.classes == VOC_CLASSES
    assert np.array_equal(folder.palette, voc_colormap(21))
    assert set(folder[0]["mask"].unique().tolist()) == {0, 1, 2, 3, 255}


@pytest.mark.parametrize("grays", [(0, 255), (0, 255, 90), tuple(range(256))], ids=["two", "three", "ramp"])
def test_a_palette_of_grays_is_not_a_choice_of_colors(tmp_path: Path, grays: tuple[int, ...]) -> None:
    mask = Image.new("P", (4, 4))
    mask.putpalette([level for level in grays for _ in range(3)])
    mask.save(tmp_path / "mask.png")
    assert np.array_equal(colors_of(first_palette([tmp_path / "mask.png"]), 2), voc_colormap(2))
    mask.putpalette([0, 0, 0, 255, 255, 255, 200, 0, 0])  # a white class among others stays white
    mask.save(tmp_path / "mask.png")
    palette = first_palette([tmp_path / "mask.png"])
    assert colors_of(palette, 3)[1].tolist() == [255, 255, 255]
    assert np.array_equal(colors_of(palette, 2), voc_colormap(2))


def test_training_item_and_batch(voc_set: Path) -> None:
    augment = AugmentConfig(flip=True, scale=[0.5, 2.0], crop=[32, 32], color=0.3)
    folder = build_dataset(config(voc_set, augment=augment), "train", segmentation=True)
    batch = collate([folder[SampleKey(i, 9 + i, True)] for i in range(4)])
    assert batch["image"].shape == (4, 3, 32, 32) and batch["mask"].shape == (4, 32, 32)
    assert batch["mask"].dtype == torch.uint8 and batch["name"] == ["a0", "a1", "a2", "a3"]
    # The same split asked for as validation is never augmented.
    val = build_dataset(config(voc_set, augment=augment, val_split="train"), "val", segmentation=True)
    assert val[SampleKey(0, 9, True)]["image"].equal(folder[0]["image"])


def test_validation_mask_keeps_its_size(voc_set: Path, make_mask: SaveMask) -> None:
    Image.new("RGB", (20, 50)).save(voc_set / "JPEGImages" / "b1.jpg")
    make_mask(voc_set / "SegmentationClass" / "b1.png", np.zeros((50, 20)))
    folder = build_dataset(config(voc_set, size=[16, 16]), "val", segmentation=True)
    batch = collate([folder[0], folder[1]])
    assert batch["image"].shape == (2, 3, 16, 16)
    assert [tuple(mask.shape) for mask in batch["mask"]] == [(30, 40), (50, 20)]


def test_images_alone(voc_set: Path) -> None:
    folder = build_dataset(config(voc_set, size=[24, 24]), "train", segmentation=False)
    assert set(folder[0]) == {"image", "name"} and folder[0]["image"].shape == (3, 24, 24)
    assert folder.classes == folder.labels == [] and folder.palette.shape == (0, 3)
    with pytest.raises(UserError, match="data.size"):
        build_dataset(config(voc_set), "train", segmentation=False)


def test_classes_in_the_mask_are_the_labels(voc_set: Path, make_mask: SaveMask) -> None:
    values = np.zeros((30, 40))
    values[:, :20], values[:, 30], values[0] = 3, 1, 255  # void hides nothing whole
    make_mask(voc_set / "SegmentationClass" / "a0.png", values)
    make_mask(voc_set / "SegmentationClass" / "a1.png", np.where(values == 255, 255, 0))
    folder = build_dataset(config(voc_set), "train", segmentation=True)
    batch = collate([folder[i] for i in range(4)])
    assert batch["labels"].tolist() == [[1, 3, -1], [-1, -1, -1], [1, 2, 3], [1, 2, 3]]
    assert [folder.labels[i] for i in folder[0]["labels"]] == ["tree", "car"]
    # of a crop, those that it shows
    cropped = build_dataset(config(voc_set, augment=AugmentConfig(crop=[30, 12])), "train", segmentation=True)
    seen = set()
    for seed in range(30):
        item = cropped[SampleKey(0, seed, True)]
        assert set(item["labels"]) == set(item["mask"].unique().tolist()) - {0, 255}
        seen.add(item["labels"])
    assert {(3,), (1,)} <= seen


def test_a_layout_has_the_image_s_size_and_place_in_both_splits(voc_set: Path) -> None:
    """Masks that say where their image is red stay on it through resizing, cropping, scaling and flipping."""
    for path in (voc_set / "SegmentationClass").iterdir():
        values = np.zeros((30, 40), np.uint8)
        values[6:18, 10:26] = 1
        Image.fromarray(values).save(path)
        red = np.stack([values * 255, np.zeros_like(values), np.zeros_like(values)], axis=-1)
        Image.fromarray(red).save(voc_set / "JPEGImages" / f"{path.stem}.jpg", quality=100, subsampling=0)
    augment = AugmentConfig(flip=True, scale=[0.8, 1.5], crop=[16, 16])
    settings = config(voc_set, size=[18, 18], augment=augment)
    train, val = (build_dataset(settings, split, False, layout=True) for split in ("train", "val"))
    assert train.labels == val.labels == train.classes == ["ground", "tree", "house", "car"]
    batch = collate([val[0], val[1], train[0]])
    assert batch["image"].shape == (3, 3, 18, 18) and batch["mask"].shape == (3, 18, 18)
    # 12 x 16 of 30 x 40 pixels at 18 / 30: the aspect is kept
    assert batch["mask"][0].sum() == pytest.approx(12 * 16 * (18 / 30) ** 2, rel=0.15)
    agree = []
    for item in [val[0], *(train[SampleKey(0, seed, True)] for seed in range(20))]:
        assert item["mask"].shape == item["image"].shape[1:] and item["labels"] == (1,)
        inside = item["mask"] != 255
        agree.append(((item["image"][0] > 127) == (item["mask"] == 1))[inside].float().mean())
    assert torch.stack(agree).min() > 0.9
    assert val.mask(0).shape == (30, 40)
    with pytest.raises(UserError, match="data.size"):
        build_dataset(config(voc_set), "train", False, layout=True)


def spoil_value(root: Path, make_mask: SaveMask) -> None:
    make_mask(root / "SegmentationClass" / "a0.png", np.full((30, 40), 37))


def spoil_rgb(root: Path, make_mask: SaveMask) -> None:
    Image.new("RGB", (40, 30)).save(root / "SegmentationClass" / "a0.png")


def spoil_size(root: Path, make_mask: SaveMask) -> None:
    make_mask(root / "SegmentationClass" / "a0.png", np.zeros((40, 30)))


def spoil_jpeg(root: Path, make_mask: SaveMask) -> None:
    path = root / "JPEGImages" / "a0.jpg"
    path.write_bytes(path.read_bytes()[:-40])


def spoil_missing(root: Path, make_mask: SaveMask) -> None:
    (root / "SegmentationClass" / "a0.png").rename(root / "SegmentationClass" / "a0.gif")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_value, r"a0\.png: mask values outside 0\.\.3 and 255 \(ignore\) \(37\)"),
        (spoil_rgb, r"a0\.png: .*mode RGB"),
        (spoil_size, r"a0\.png: .*mask 30x40, image a0.jpg 40x30\)\. Rotate"),
        (spoil_jpeg, r"a0\.jpg: cannot be read .*truncated"),
        (spoil_missing, r"a0\.png: file not found \(there is a0\.gif\)"),
    ],
)
def test_a_bad_file_is_named(
    voc_set: Path, make_mask: SaveMask, spoil: Callable[[Path, SaveMask], None], message: str
) -> None:
    spoil(voc_set, make_mask)
    folder = build_dataset(config(voc_set), "train", segmentation=True)
    folder[1]
    with pytest.raises(UserError, match=message):
        folder[0]


def test_bad_sets_are_refused(voc_set: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="trian.txt: not found. Available splits: train, val"):
        build_dataset(config(voc_set, train_split="trian"), "train", segmentation=True)
    with pytest.raises(UserError, match="no JPEGImages found"):
        build_dataset(config(tmp_path / "nowhere"), "train", segmentation=True)
    with pytest.raises(UserError, match="num_classes=5: must be null or 4"):
        build_dataset(config(voc_set, num_classes=5), "train", segmentation=True)
    with pytest.raises(UserError, match="data.root"):
        build_dataset(DataConfig(name="voc_folder"), "train", segmentation=True)
    with pytest.raises(UserError, match="data.download=true"):
        build_dataset(DataConfig(name="voc", root=str(tmp_path)), "train", segmentation=True)
    for split, message in (
        ("trian", "must be one of train, trainval, val, trainaug .got trian"),
        ("trainaug", "download sbd"),
    ):
        with pytest.raises(UserError, match=message):
            build_dataset(DataConfig(name="voc", root=str(tmp_path), train_split=split), "train", segmentation=True)
    (voc_set / "classes.txt").unlink()
    with pytest.raises(UserError, match="classes.txt: not found"):
        build_dataset(config(voc_set), "train", segmentation=True)
    (voc_set / "ImageSets" / "Segmentation" / "train.txt").write_text("\n")
    with pytest.raises(UserError, match="no ids found"):
        build_dataset(config(voc_set, num_classes=4), "train", segmentation=True)
