from __future__ import annotations

import gzip
import io
import shutil
import struct
from pathlib import Path
from typing import Literal

import datasets as hf
import numpy as np
import pytest
from PIL import Image
from torchvision import datasets as tv

from unetdiff.data.build import build_dataset
from unetdiff.data.check import check
from unetdiff.data.config import AugmentConfig, DataConfig
from unetdiff.data.sampling import SampleKey
from unetdiff.errors import UserError

ROLES: tuple[Literal["train", "val"], ...] = ("train", "val")


def image(seed: int, size: tuple[int, int] = (12, 10)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    image(seed).save(buffer, "PNG")
    return buffer.getvalue()


def make_captioned(path: Path, captions: list[str | None], **columns: list[str]) -> None:
    images = [{"bytes": png(i), "path": None} for i in range(len(captions))]
    rows = {"img": images, "words": captions, **columns}
    features = hf.Features({"img": hf.Image(), "words": hf.Value("string")} | {k: hf.Value("string") for k in columns})
    hf.Dataset.from_dict(rows, features=features).to_parquet(str(path))


def make_parquet(path: Path, count: int, first: int = 0, names: bool = True) -> None:
    features = hf.Features(
        {"img": hf.Image(), "label": hf.ClassLabel(names=["cat", "dog"]) if names else hf.Value("string")}
    )
    rows = {
        "img": [{"bytes": png(first + i), "path": None} for i in range(count)],
        "label": [i % 2 if names else ["dog", "cat"][i % 2] for i in range(count)],
    }
    hf.Dataset.from_dict(rows, features=features).to_parquet(str(path))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def parquet(root: Path, **more: object) -> DataConfig:
    return DataConfig(name="parquet", root=str(root), **more)  # type: ignore[arg-type]


def test_parquet_with_one_split_holds_a_tenth_out(tmp_path: Path) -> None:
    make_parquet(tmp_path / "train-00000-of-00001.parquet", 40)
    train, val = (build_dataset(parquet(tmp_path), split, False) for split in ("train", "val"))
    assert (len(train), len(val)) == (36, 4)
    assert train.labels == ["cat", "dog"]
    found = {}
    for images in (train, val):
        for i in range(len(images)):
            item = images[i]
            row = int(item["name"].split("/")[-1])
            found[row] = item
    assert sorted(found) == list(range(40)), "every row is in exactly one split"
    for row, item in found.items():
        assert np.array_equal(item["image"].permute(1, 2, 0).numpy(), np.array(image(row)))
        assert item["label"] == row % 2 and item["labels"] == (row % 2,)
    again = build_dataset(parquet(tmp_path / "train-00000-of-00001.parquet"), "val", False)
    assert [again.sample_name(i) for i in range(4)] == [val.sample_name(i) for i in range(4)]


def test_parquet_with_splits_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    make_parquet(tmp_path / "data" / "train-0.parquet", 6, names=False)
    make_parquet(tmp_path / "data" / "validation-0.parquet", 3, first=100, names=False)
    train, val = (build_dataset(parquet(tmp_path), split, False) for split in ("train", "val"))
    assert (len(train), len(val)) == (6, 3)
    assert train.labels == val.labels == ["cat", "dog"]
    assert [train[i]["label"] for i in range(2)] == [1, 0]
    assert np.array_equal(val[2]["image"].permute(1, 2, 0).numpy(), np.array(image(102)))


def test_parquet_faults(tmp_path: Path) -> None:
    file = tmp_path / "train.parquet"
    make_parquet(file, 12)
    with pytest.raises(UserError, match=r"data\.label_column=fine.*img, label"):
        build_dataset(parquet(file, label_column="fine"), "train", False)
    with pytest.raises(UserError, match="must be a parquet file"):
        build_dataset(parquet(tmp_path / "other"), "train", False)
    file.write_bytes(b"PAR1 no more")
    with pytest.raises(UserError, match="cannot be read as parquet"):
        build_dataset(parquet(file), "train", False)


def test_parquet_with_captions_and_with_or_without_classes(tmp_path: Path) -> None:
    make_captioned(tmp_path / "train.parquet", [f" image {i} " for i in range(20)])
    sets = [build_dataset(parquet(tmp_path, caption_column="words"), split, False) for split in ("train", "val")]
    found = {}
    for images in sets:
        assert images.labels == []
        for i in range(len(images)):
            item = images[i]
            assert set(item) == {"image", "name", "caption"} and item["caption"] == images.caption(i)
            assert np.array_equal(item["image"].permute(1, 2, 0).numpy(), np.array(image(int(item["name"][-6:]))))
            found[int(item["name"][-6:])] = item["caption"]
    assert found == {i: f"image {i}" for i in range(20)}

    (tmp_path / "both").mkdir()
    make_captioned(tmp_path / "both" / "train.parquet", ["a", "b"], label=["dog", "cat"])
    both = build_dataset(parquet(tmp_path / "both", caption_column="words"), "train", False)
    assert both.labels == ["cat", "dog"] and both[0]["label"] == int(both[0]["caption"] == "a")


def test_parquet_caption_faults(tmp_path: Path) -> None:
    file = tmp_path / "train.parquet"
    make_captioned(file, ["a", None, "c", "  "], tags=["x", "x", "x", "x"])
    with pytest.raises(
        UserError, match=r"data\.caption_column=text: must be a column of train\.parquet: img, words, tags"
    ):
        build_dataset(parquet(file, caption_column="text"), "train", False)
    with pytest.raises(UserError, match=r"data\.label_column=tag: .* img, words, tags"):
        build_dataset(parquet(file, caption_column="words", label_column="tag"), "train", False)
    with pytest.raises(UserError, match="data.label_column=label"):
        build_dataset(parquet(file), "train", False)
    with pytest.raises(UserError, match=r"data\.caption_column=img: must be a column of strings"):
        build_dataset(parquet(file, caption_column="img"), "train", False)
    messages = set()
    for split in ("train", "val"):
        try:
            build_dataset(parquet(file, caption_column="words"), split, False)
        except UserError as error:
            messages.add(str(error))
    assert messages and all("caption missing (words is empty). Write one" in text for text in messages)
    issues = check(parquet(file, caption_column="words"), progress=False)
    assert {issue.file for issue in issues} == {f"{file}, row 1", f"{file}, row 3"} and len(issues) == 2


def make_folder(root: Path, splits: tuple[str, ...]) -> None:
    for s, split in enumerate(splits):
        for c, name in enumerate(("bee", "ant")):
            (root / split / name).mkdir(parents=True)
            for i in range(10):
                image(100 * s + 10 * c + i, (12 + i, 10)).save(root / split / name / f"{i}.png")


def test_image_folder_with_and_without_splits(tmp_path: Path) -> None:
    make_folder(tmp_path / "two", ("train", "val"))
    train, val = (
        build_dataset(DataConfig(name="image_folder", root=str(tmp_path / "two"), size=[8, 8]), s, False)
        for s in ("train", "val")
    )
    reference = tv.ImageFolder(tmp_path / "two" / "val")
    assert len(train) == 20 and train.labels == ["ant", "bee"]
    assert [val[i]["label"] for i in range(20)] == reference.targets
    assert val[3]["image"].shape == (3, 8, 8) and "val" in val.sample_name(3) and "train" in train.sample_name(3)

    make_folder(tmp_path / "one", ("",))
    both = [
        build_dataset(DataConfig(name="image_folder", root=str(tmp_path / "one")), s, False) for s in ("train", "val")
    ]
    names = [{images.sample_name(i) for i in range(len(images))} for images in both]
    assert [len(n) for n in names] == [18, 2] and not names[0] & names[1]
    item = both[1][0]
    result = np.array(Image.open(item["name"]).convert("RGB"))
    assert np.array_equal(item["image"].permute(1, 2, 0).numpy(), result)


def test_image_folder_faults(tmp_path: Path) -> None:
    make_folder(tmp_path, ("train", "val"))
    config = DataConfig(name="image_folder", root=str(tmp_path))
    (tmp_path / "val" / "wasp").mkdir()
    image(0).save(tmp_path / "val" / "wasp" / "0.png")
    with pytest.raises(UserError, match="wasp"):
        build_dataset(config, "val", False)
    with pytest.raises(UserError, match="must be an existing folder"):
        build_dataset(DataConfig(name="image_folder", root=str(tmp_path / "none")), "train", False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="one folder of images per class"):
        build_dataset(DataConfig(name="image_folder", root=str(tmp_path / "empty")), "train", False)


def test_image_folder_without_classes_is_one_class(tmp_path: Path) -> None:
    for folder, count in (("kites", 20), ("split/train", 3), ("split/valid", 2)):
        (tmp_path / folder).mkdir(parents=True)
        for i in range(count):
            image(i).save(tmp_path / folder / f"{i}.png")
    for root, sizes in (("kites", [18, 2]), ("split", [3, 2])):
        sets = [build_dataset(DataConfig(name="image_folder", root=str(tmp_path / root)), s, False) for s in ROLES]
        assert [len(images) for images in sets] == sizes
        assert [images.labels for images in sets] == [[root], [root]]
        assert {sets[0][i]["label"] for i in range(len(sets[0]))} == {0}


def test_folders_of_splits_are_not_taken_for_classes(tmp_path: Path) -> None:
    make_folder(tmp_path, ("testing", "training"))
    config = DataConfig(name="image_folder", root=str(tmp_path))
    with pytest.raises(UserError, match=r"testing, training contain folders instead of images.*data.train_split"):
        build_dataset(config, "train", False)
    named = DataConfig(name="image_folder", root=str(tmp_path), train_split="training", val_split="testing")
    assert build_dataset(named, "val", False).labels == ["ant", "bee"]
    for kind in ("testing", "training"):  # CLASS/images/*.png, as Tiny ImageNet has it
        shutil.rmtree(tmp_path / kind / "bee")
    assert build_dataset(config, "train", False).labels == ["testing", "training"]


def test_kept_images_are_augmented_anew_and_not_written_to(tmp_path: Path) -> None:
    make_folder(tmp_path, ("train", "val"))
    config = DataConfig(name="image_folder", root=str(tmp_path), size=[8, 8], augment=AugmentConfig(flip=True))
    train = build_dataset(config, "train", False)
    plain = train[0]["image"].clone()
    seen = {train[SampleKey(0, seed, True)]["image"].numpy().tobytes() for seed in range(20)}
    assert seen == {plain.numpy().tobytes(), plain.flip(-1).numpy().tobytes()}
    assert train[0]["image"].equal(plain)
    first, second = ([train[i]["image"] for i in range(20)] for _ in range(2))
    assert all(a.equal(b) for a, b in zip(first, second, strict=True))
    assert len({image.numpy().tobytes() for image in second}) == 20


def write_idx(path: Path, values: np.ndarray) -> None:
    header = struct.pack(f">4B{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    data = header + values.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def test_fashion_mnist_from_plain_files_as_torchvision_reads_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    raw = tmp_path / "tv" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for stem, count in (("train", 7), ("t10k", 4)):
        images, labels = rng.integers(0, 256, (count, 28, 28)), rng.integers(0, 10, count)
        for folder, suffix in ((tmp_path, ".gz"), (raw, "")):
            write_idx(folder / f"{stem}-images-idx3-ubyte{suffix}", images)
            write_idx(folder / f"{stem}-labels-idx1-ubyte{suffix}", labels)
    reference = tv.FashionMNIST(str(tmp_path / "tv"), train=False)
    for root in (tmp_path, tmp_path / "tv"):
        val = build_dataset(DataConfig(name="fashion_mnist", root=str(root)), "val", False)
        assert len(val) == 4 and val.labels == reference.classes
        for i in range(4):
            image, label = reference[i]
            assert np.array_equal(val[i]["image"].numpy(), np.repeat(np.array(image)[None], 3, axis=0))
            assert val[i]["label"] == label
    larger = build_dataset(DataConfig(name="fashion_mnist", root=str(tmp_path), size=[32, 32]), "train", False)
    assert len(larger) == 7 and larger[0]["image"].shape == (3, 32, 32)
    file = tmp_path / "train-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(UserError, match="train-images-idx3-ubyte.gz"):
        build_dataset(DataConfig(name="fashion_mnist", root=str(tmp_path)), "train", False)
    with pytest.raises(UserError, match="data.download=true"):
        build_dataset(DataConfig(name="fashion_mnist", root=str(tmp_path / "none")), "train", False)


def test_cifar10_keeps_the_channels_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)

    class Stub:
        def __init__(self, root: str, train: bool, download: bool) -> None:
            self.data, self.targets, self.classes = pixels[: 3 if train else 2], [1, 0, 1], ["cat", "dog"]

    with pytest.raises(UserError, match="data.download=true"):
        build_dataset(DataConfig(name="cifar10", root=str(tmp_path)), "train", False)
    monkeypatch.setattr(tv, "CIFAR10", Stub)
    train, val = (build_dataset(DataConfig(name="cifar10", root=str(tmp_path)), s, False) for s in ("train", "val"))
    assert (len(train), len(val)) == (3, 2)
    assert np.array_equal(train[2]["image"].permute(1, 2, 0).numpy(), pixels[2]) and train[2]["label"] == 1


def test_sets_without_masks_are_refused_where_masks_are_needed(tmp_path: Path) -> None:
    for name in ("image_folder", "captioned_folder", "parquet", "fashion_mnist", "cifar10"):
        with pytest.raises(UserError, match=f"data.name={name}: must be a dataset with masks for segmentation"):
            build_dataset(DataConfig(name=name, root=str(tmp_path)), "train", segmentation=True)
        with pytest.raises(UserError, match=f"data.name={name}: must be a dataset with masks for layouts"):
            build_dataset(DataConfig(name=name, root=str(tmp_path)), "train", segmentation=False, layout=True)
