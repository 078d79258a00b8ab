"""TIFF stacks: what counts as one, and that each image is read as a file of its own would be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from unetdiff.cli.main import main
from unetdiff.data.build import build_dataset
from unetdiff.data.config import DataConfig
from unetdiff.data.discovery.discover import discover
from unetdiff.data.masks.inspect import inspect_masks
from unetdiff.data.raw_images import read_values
from unetdiff.data.stacks import page_count, page_file, read_page, stack_size
from unetdiff.errors import FileError

RANDOM = np.random.default_rng(0)
GRAY = RANDOM.integers(0, 256, (5, 12, 10), dtype=np.uint8)
DEEP = RANDOM.integers(0, 4096, (5, 12, 10), dtype=np.uint16)
COLOR = RANDOM.integers(0, 256, (4, 12, 10, 3), dtype=np.uint8)


def written_by_pillow(path: Path, values: np.ndarray) -> None:
    first, *others = [Image.fromarray(page) for page in values]
    first.save(path, save_all=True, append_images=others)


def written_as_an_array(path: Path, values: np.ndarray) -> None:
    tifffile.imwrite(path, values, photometric="rgb" if values.ndim == 4 else "minisblack")


def written_by_imagej(path: Path, values: np.ndarray) -> None:
    tifffile.imwrite(path, values, imagej=True, metadata={"axes": "ZYXS" if values.ndim == 4 else "ZYX"})


def written_page_by_page(path: Path, values: np.ndarray) -> None:
    with tifffile.TiffWriter(path) as writer:
        for page in values:
            writer.write(page, contiguous=False, compression="zlib")


@pytest.mark.parametrize("write", [written_by_pillow, written_as_an_array, written_by_imagej, written_page_by_page])
@pytest.mark.parametrize("values", [GRAY, DEEP, COLOR], ids=["gray", "16 bits", "color"])
def test_every_image_of_a_stack(tmp_path: Path, write, values: np.ndarray) -> None:
    write(tmp_path / "stack.tif", values)
    channels = 3 if values.ndim == 4 else 1
    for source in (tmp_path / "stack.tif", (tmp_path / "stack.tif").read_bytes()):
        assert stack_size(source, channels) == len(values)
        for index, page in enumerate(values):
            np.testing.assert_array_equal(read_page(source, index).values, page.reshape(12, 10, channels))


def test_bands_are_no_stack_for_a_network_of_bands(tmp_path: Path) -> None:
    written_as_an_array(tmp_path / "bands.tif", GRAY)
    assert stack_size(tmp_path / "bands.tif", 5) == 1
    assert read_values(tmp_path / "bands.tif").values.shape == (12, 10, 5)
    assert stack_size(tmp_path / "bands.tif", 3) == 5  # gray slices, for a network of RGB images


def test_other_files_are_no_stacks(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "one.tif", GRAY[0])
    Image.fromarray(GRAY[0]).save(tmp_path / "one.png")
    with tifffile.TiffWriter(tmp_path / "sizes.tif") as writer:  # an image and its thumbnail
        writer.write(GRAY[0])
        writer.write(GRAY[0, ::2, ::2])
    first, *others = [Image.fromarray(page) for page in GRAY]
    first.save(tmp_path / "film.gif", save_all=True, append_images=others)
    for name in ("one.tif", "one.png", "sizes.tif", "film.gif"):
        assert stack_size(tmp_path / name, 1) == 1, name


def test_a_damaged_stack_is_named(tmp_path: Path) -> None:
    written_page_by_page(tmp_path / "stack.tif", GRAY)
    content = (tmp_path / "stack.tif").read_bytes()
    pages = tifffile.TiffFile(tmp_path / "stack.tif").pages
    start, length = pages[3].dataoffsets[0], pages[3].databytecounts[0]
    (tmp_path / "stack.tif").write_bytes(content[:start] + bytes(length) + content[start + length :])
    assert stack_size(tmp_path / "stack.tif", 1) == 5
    with pytest.raises(FileError, match=r"stack\.tif"):
        read_page(tmp_path / "stack.tif", 3)


def test_a_page_keeps_its_palette(tmp_path: Path) -> None:
    pages = [Image.fromarray(values % 3) for values in GRAY]
    for page in pages:
        page.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    pages[0].save(tmp_path / "masks.tif", save_all=True, append_images=pages[1:])
    (tmp_path / "one.tif").write_bytes(page_file(tmp_path / "masks.tif", 2))
    with Image.open(tmp_path / "one.tif") as one:
        assert one.mode == "P" and one.getpalette()[:9] == pages[2].getpalette()[:9]
        np.testing.assert_array_equal(np.asarray(one), np.asarray(pages[2]))


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """A stack of images, as in the ISBI challenge of 2012, and one of 0/255 masks: page k has k + 1 white pixels."""
    images = np.repeat(np.arange(10, dtype=np.uint8), 48).reshape(10, 6, 8) + np.arange(48, dtype=np.uint8).reshape(
        6, 8
    )
    masks = (np.arange(48)[None] <= np.arange(10)[:, None]).reshape(10, 6, 8).astype(np.uint8) * 255
    written_by_imagej(tmp_path / "train-volume.tif", np.repeat(images, 2, axis=2))
    written_by_pillow(tmp_path / "train-labels.tif", np.repeat(masks, 2, axis=2))
    return tmp_path


@pytest.mark.parametrize("globs", [("train-volume.tif", "train-labels.tif"), ("*-volume.tif", "*-labels.tif")])
def test_two_stacks_are_a_dataset(volume: Path, globs: tuple[str, str]) -> None:
    data = DataConfig(name="folders", root=str(volume), images=globs[0], masks=globs[1], mask_encoding="binary")
    data.val_fraction = 0.2
    seen = set()
    for role, count in (("train", 8), ("val", 2)):
        split = build_dataset(data, role, segmentation=True)  # type: ignore[arg-type]
        assert len(split) == count
        for index in range(count):
            page = int(split.sample_name(index).rpartition("/")[2])
            assert int(split[index]["image"][0, 0, 0]) == page
            assert int(split[index]["mask"].sum()) == 2 * (page + 1)
            seen.add(page)
    assert seen == set(range(10))
    data.val_fraction, data.val_split = None, "*/000[89]"
    assert len(build_dataset(data, "val", segmentation=True)) == 2


def test_stacks_that_do_not_fit_are_named(volume: Path) -> None:
    written_as_an_array(volume / "train-labels.tif", GRAY)
    data = DataConfig(name="folders", root=str(volume), images="train-volume.tif", masks="train-labels.tif")
    data.mask_encoding = "binary"
    with pytest.raises(FileError, match=r"train-labels\.tif: has 5 pages, its image train-volume\.tif 10"):
        build_dataset(data, "train", segmentation=True)


def test_stacks_are_found_and_trained_on_as_they_are(volume: Path, tmp_path: Path, monkeypatch) -> None:
    assert page_count(volume / "train-labels.tif") == 10 and inspect_masks([volume / "train-labels.tif"]).files == 10
    found = discover(volume)
    assert found.keys["images"] == "*-volume.tif" and found.keys["masks"] == "*-labels.tif"
    assert found.keys["mask_encoding"] == "binary" and "10 pages" in found.reasons["masks"]
    monkeypatch.chdir(tmp_path)
    assert main(["init", str(volume), "--output", "volume.yaml", "--weights", "null"]) == 0
    assert main(["data", "check", "volume.yaml"]) == 0
    tiny = ["--model.encoder.name", "classic", "--model.encoder.channels", "[4, 4]", "--model.decoder.channels", "null"]
    short = ["--training.steps", "1", "--training.batch_size", "2", "--training.num_workers", "0"]
    assert main(["train", "segmentation", "volume.yaml", *tiny, *short]) == 0
