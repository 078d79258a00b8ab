"""TIFF stacks: what counts as one, and that each image is read as a file of its own would be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from unetdiff.data.raw_images import read_values
from unetdiff.data.stacks import read_page, stack_size
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
