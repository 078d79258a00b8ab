"""Channels, ranges and notes of images as people have them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from unetdiff.cli.main import main
from unetdiff.data.check import examine
from unetdiff.data.config import DataConfig
from unetdiff.data.decoding import decode
from unetdiff.data.image_format import common_channels, resolve_image_format, value_range
from unetdiff.data.raw_images import read_info
from unetdiff.errors import UserError

BANDS = np.random.default_rng(0).integers(0, 4096, (4, 12, 16), dtype=np.uint16)


def write(path: Path, values: np.ndarray, **options: object) -> Path:
    tifffile.imwrite(path, values, **options)  # type: ignore[arg-type]
    return path


KINDS = {
    "bands first": (BANDS, {}),
    "bands last": (BANDS.transpose(1, 2, 0), {}),
    "planar": (BANDS, {"photometric": "minisblack", "planarconfig": "separate"}),
    "imagej": (BANDS, {"imagej": True, "metadata": {"axes": "CYX"}}),
    "lzw": (BANDS.transpose(1, 2, 0), {"compression": "lzw", "photometric": "minisblack", "planarconfig": "contig"}),
    "rgb and infrared": (BANDS.transpose(1, 2, 0), {"photometric": "rgb", "extrasamples": ["unspecified"]}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_tiffs_of_several_bands(kind: str, tmp_path: Path) -> None:
    values, options = KINDS[kind]
    path = write(tmp_path / "a.tif", values, **options)
    info = read_info(path)
    assert (info.channels, info.size, info.is_deep, info.pages) == (4, (12, 16), True, 1)
    limits = [0, 4095, 0, 4095, 0, 2047, 100, 200]
    expected = [np.clip((b - low) * (255 / (high - low)), 0, 255) for b, low, high in
                zip(BANDS.astype(float), limits[::2], limits[1::2], strict=True)]  # fmt: skip
    assert np.abs(decode(path, image_range=limits, channels=4).numpy() - np.rint(expected)).max() <= 1
    with pytest.raises(UserError, match="it has 4 channels, the dataset 3: set data.channels"):
        decode(path, image_range=[0, 4095])
    with pytest.raises(UserError, match="data.image_range has 2 pairs for 4 channels"):
        decode(path, image_range=[0, 1, 0, 1], channels=4)


def test_stacks_are_read_by_their_first_image(tmp_path: Path) -> None:
    path = write(tmp_path / "z.tif", BANDS, imagej=True, metadata={"axes": "ZYX"})
    assert (read_info(path).channels, read_info(path).pages) == (1, 4)
    assert np.array_equal(decode(path, image_range=[0, 255], channels=1)[0].numpy(), BANDS[0].clip(max=255))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.uint32])
def test_gray_of_every_type(dtype: type, tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", BANDS[0].astype(dtype))
    assert np.abs(decode(path, image_range=[0, 4095], channels=1)[0].numpy() - BANDS[0] * (255 / 4095)).max() <= 0.51


def test_alpha_is_composited_over_white_or_a_band(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 4), np.uint8)
    image = Image.fromarray(pixels, "RGBA")
    image.save(tmp_path / "a.png")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    expected = np.asarray(Image.alpha_composite(white, image).convert("RGB"), int)
    assert np.abs(decode(tmp_path / "a.png").numpy().transpose(1, 2, 0) - expected).max() <= 1
    assert np.array_equal(decode(tmp_path / "a.png", channels=4).numpy().transpose(1, 2, 0), pixels)
    Image.fromarray(pixels[..., [0, 3]], "LA").save(tmp_path / "b.png")
    gray, alpha = pixels[..., 0].astype(float), pixels[..., 3] / 255
    assert np.abs(decode(tmp_path / "b.png", channels=1)[0].numpy() - (gray * alpha + 255 * (1 - alpha))).max() <= 1


def test_ranges_of_bands_and_colors(tmp_path: Path) -> None:
    values = np.stack([BANDS[0], BANDS[1] // 2, BANDS[2] + 1000, BANDS[3]])
    files = [write(tmp_path / f"{i}.tif", values[:, i::2], photometric="minisblack") for i in range(2)]
    expected = [f(np.percentile(band, p)) for band in values for f, p in ((np.floor, 0.1), (np.ceil, 99.9))]
    assert value_range(files) == expected
    colors = write(tmp_path / "rgb.tif", values[:3].transpose(1, 2, 0), photometric="rgb")
    low, high = np.percentile(values[:3], [0.1, 99.9])
    assert value_range([colors]) == [np.floor(low), np.ceil(high)]
    constant = write(tmp_path / "constant.tif", np.full((4, 4), 7, np.uint16))
    assert value_range([constant]) == [7, 8] and value_range([]) is None
    assert [common_channels(c) for c in ([1, 1], [1, 3], [3], [4, 4, 3], [7])] == [1, 3, 3, 4, 7]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four gray images of 12 bits, one with alpha, and a text."""
    (tmp_path / "set" / "a").mkdir(parents=True)
    for i in range(4):
        Image.fromarray(BANDS[i]).save(tmp_path / "set" / "a" / f"{i}.png")
    Image.fromarray(BANDS[0].astype(np.uint8)).convert("RGBA").save(tmp_path / "set" / "a" / "x.png")
    (tmp_path / "set" / "a" / "notes.docx").write_text("x")
    return tmp_path / "set"


def test_check_says_what_is_done_with_the_images(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = examine(DataConfig(name="image_folder", root=str(folder)), progress=False)
    assert report.issues == []
    text = "\n".join(report.notes)
    assert "4 image(s) of more than 8 bits: data.image_range=[" in text
    assert "1 image(s) with alpha" in text and "over white" in text
    assert "1 file(s) skipped, not images by their suffix: 1 .docx" in text
    assert main(["data", "check", "--data.name=image_folder", f"--data.root={folder}"]) == 0
    assert "note: 1 file(s) skipped" in capsys.readouterr().out


def test_denoisers_read_rgb(folder: Path) -> None:
    config = DataConfig(name="image_folder", root=str(folder), size=[12, 12])
    resolved = resolve_image_format(config, masks=False, only_rgb=True)
    assert resolved.channels == 3 and resolved.image_range is not None and len(resolved.image_range) == 2
    assert resolve_image_format(resolved, masks=False) is resolved
    missing = DataConfig(name="image_folder", root=str(folder / "none"))
    assert resolve_image_format(missing, masks=False) == missing  # the check says why
