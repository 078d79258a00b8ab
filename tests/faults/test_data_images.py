"""Images and masks as files hold them: what `data check` reports, training refuses, and what it accepts, trains."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torch.utils.data import DataLoader

from unetdiff.cli.main import main
from unetdiff.config.reading import from_yaml, parse
from unetdiff.data.base import collate
from unetdiff.data.build import build_dataset
from unetdiff.data.check import check
from unetdiff.data.config import DataConfig
from unetdiff.data.decoding import decode
from unetdiff.data.issues import BadFile
from unetdiff.data.transforms import resize_image
from unetdiff.errors import UserError
from unetdiff.segmentation.config import InferenceConfig
from unetdiff.segmentation.pipeline import SegmentationPipeline
from unetdiff.training.run_data import RunData

IDS = {"train": ["a0", "a1", "a2"], "val": ["b0"]}
SIZE = (32, 32)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, random = tmp_path_factory.mktemp("base"), np.random.default_rng(0)
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    (root / "classes.txt").write_text("ground\ntree\ncar\n")
    for split, names in IDS.items():
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("".join(f"{name}\n" for name in names))
        for name in names:
            Image.fromarray(random.integers(0, 255, (*SIZE, 3), np.uint8)).save(root / f"JPEGImages/{name}.jpg")
            Image.fromarray(random.integers(0, 3, SIZE, np.uint8)).save(root / f"SegmentationClass/{name}.png")
    return root


@pytest.fixture
def root(base: Path, tmp_path: Path) -> Path:
    return shutil.copytree(base, tmp_path / "set")


def image(root: Path, name: str = "a0") -> Path:
    return root / f"JPEGImages/{name}.jpg"


def mask(root: Path) -> Path:
    return root / "SegmentationClass/a0.png"


def save(path: Path, content: Image.Image, format: str = "PNG", **options: Any) -> None:
    buffer = io.BytesIO()
    content.save(buffer, format, **options)
    path.write_bytes(buffer.getvalue())


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def link(path: Path, target: Path) -> None:
    path.unlink()
    path.symlink_to(target)


def png_of(width: int, height: int) -> bytes:
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(bytes(99)))
    parts = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def gif_of(width: int, height: int) -> bytes:
    frame = struct.pack("<HHHH", 0, 0, width, height)
    return b"GIF89a" + struct.pack("<HH", width, height) + b"\x80\0\0" + bytes(6) + b"\x2c" + frame + b"\0\2\2\x44\1\0;"


def images16(root: Path, low: int, high: int) -> None:
    values = np.linspace(low, high, 32 * 32).astype(np.uint16)
    for index, path in enumerate(sorted((root / "JPEGImages").iterdir())):  # all different, of one range
        save(path, Image.fromarray(np.roll(values, index * 7).reshape(SIZE)))


def bands(path: Path, count: int, seed: int = 0) -> None:
    """A TIFF of 12 bits per band."""
    values = np.random.default_rng(seed).integers(100, 4000, (count, *SIZE), dtype=np.uint16)
    tifffile.imwrite(path, values, photometric="minisblack", planarconfig="separate")


def truncated_bands(path: Path) -> None:
    bands(path, 4)
    path.write_bytes(path.read_bytes()[:3000])


def run_data(root: Path, **data: Any) -> RunData:
    """What training reads, with its check."""
    overrides = {"data.name": "voc_folder", "data.root": str(root), **{f"data.{key}": v for key, v in data.items()}}
    process = SimpleNamespace(is_main_process=True, wait_for_everyone=lambda: None)
    return RunData(parse(None, overrides, "segmentation"), process)  # type: ignore[arg-type]


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "a14 p000.jpg beside p000.png": (lambda r: save(r / "JPEGImages/a0.png", Image.new("RGB", SIZE)), "a0.jpg, a0.png"),
    "a14 masks": (lambda r: save(r / "SegmentationClass/a0.gif", Image.new("L", SIZE), "GIF"), "a0.gif, a0.png"),
    "c png of 60000 x 60000": (lambda r: image(r).write_bytes(png_of(60000, 60000)), "at most 134,217,728 pixels"),
    "c gif of 60000 x 60000": (lambda r: image(r).write_bytes(gif_of(60000, 60000)), "at most 134,217,728 pixels"),
    "c ppm of 60000 x 60000": (lambda r: image(r).write_bytes(b"P6 60000 60000 255\n"), "at most 134,217,728 pixels"),
    "c mask of 60000 x 60000": (lambda r: mask(r).write_bytes(png_of(60000, 60000)), "at most 134,217,728 pixels"),
    "c eps": (lambda r: image(r).write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "not an image"),
    "c pipe": (lambda r: fifo(image(r)), "not a regular file"),
    "c pipe as mask": (lambda r: fifo(mask(r)), "not a regular file"),
    "c folder": (lambda r: folder(image(r)), "is a folder"),
    "c folder as mask": (lambda r: folder(mask(r)), "is a folder"),
    "c empty image": (lambda r: image(r).write_bytes(b""), "not an image"),
    "c empty mask": (lambda r: mask(r).write_bytes(b""), "not an image"),
    "c truncated": (lambda r: image(r).write_bytes(image(r).read_bytes()[:700]), "cannot be read"),
    "c link to nothing": (lambda r: link(image(r), r / "none"), "file not found"),
    "c link to itself": (lambda r: link(image(r), image(r)), "file not found"),
    "c mask of one pixel": (lambda r: save(mask(r), Image.new("L", (1, 1))), "sizes differ"),
    "a16 four bands among RGB": (lambda r: bands(image(r), 4), "it has 4 channels, the dataset 3: set data.channels"),
    "c truncated bands": (lambda r: truncated_bands(image(r)), "cannot be read"),
}


@pytest.mark.parametrize("case", BAD)
def test_c_what_data_check_reports_training_refuses(root: Path, case: str) -> None:
    spoil, message = BAD[case]
    spoil(root)
    config = DataConfig(name="voc_folder", root=str(root))
    for full in (True, False):
        issues = [str(issue) for issue in check(config, full=full, progress=False)]
        assert len(issues) == 1 and message in issues[0] and issues[0].isprintable()
    with pytest.raises(UserError) as refusal:
        run_data(root)
    assert str(refusal.value) == issues[0]


def rgb(mode: str, **options: Any) -> Callable[[Path], object]:
    format = options.pop("format", "PNG")
    return lambda root: save(image(root), Image.new(mode, SIZE), format, **options)


def one_pixel(root: Path) -> None:
    for path in [*(root / "JPEGImages").iterdir(), *(root / "SegmentationClass").iterdir()]:
        save(path, Image.open(path).resize((1, 1), Image.Resampling.NEAREST))


def exif(block: bytes) -> Callable[[Path], object]:
    return lambda root: save(image(root), Image.open(image(root)), "JPEG", exif=b"Exif\0\0" + block)


def in_folders(root: Path) -> None:
    for part, mode in (("JPEGImages", "RGB"), ("SegmentationClass", "L")):
        (root / part / "street").mkdir()
        save(root / part / "street/x.png", Image.new(mode, SIZE))
    (root / "ImageSets/Segmentation/train.txt").write_text("a0\nstreet/x\n./a1\n")


def hidden(root: Path) -> None:
    save(root / "JPEGImages/._a0.png", Image.new("RGB", SIZE))
    (root / "SegmentationClass/.ipynb_checkpoints").mkdir()
    (root / "SegmentationClass/Thumbs.db").touch()


def elsewhere(root: Path) -> None:
    shutil.move(image(root), root.parent / "x.jpg")
    image(root).symlink_to(root.parent / "x.jpg")


GOOD: dict[str, Callable[[Path], object]] = {
    "animated gif": rgb("P", format="GIF", save_all=True, append_images=[Image.new("P", SIZE, 3)]),
    "animated png": rgb("RGB", save_all=True, append_images=[Image.new("RGB", SIZE, 3)]),
    "cmyk": rgb("CMYK", format="JPEG"),
    "gray with alpha": rgb("LA"),
    "palette with alpha": rgb("P", transparency=bytes([1, 2, 3])),
    "bits": rgb("1"),
    "broken exif": exif(b"II*\0\x08\0\0\0\xff\xff"),
    "exif with a text as orientation": exif(b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x04abcd"),
    "one pixel": one_pixel,
    "ids with folders": in_folders,
    "a8 hidden files": hidden,
    "links of the user": elsewhere,
    "16 bits in full": lambda root: images16(root, 0, 65535),
    "a16 12 of 16 bits": lambda root: images16(root, 660, 1553),
    "a16 float": lambda root: save(image(root), Image.new("F", SIZE, 3.0), "TIFF"),
    "a16 bmp": rgb("RGB", format="BMP"),
    "a16 webp": rgb("RGB", format="WEBP"),
    "a16 gif": rgb("P", format="GIF"),
    "a16 rgba": rgb("RGBA"),
    "a16 four bands": lambda root: [bands(root / f"JPEGImages/{name}.jpg", 4) for name in ("a0", "a1", "a2", "b0")],
}


@pytest.mark.filterwarnings("error", "ignore:Corrupt EXIF data")
@pytest.mark.parametrize("case", GOOD)
def test_c_what_data_check_accepts_trains(root: Path, case: str) -> None:
    GOOD[case](root)
    assert check(DataConfig(name="voc_folder", root=str(root)), progress=False) == []
    data = run_data(root)
    for item in (data.train[0], data.train[1], data.val[0]):
        assert item["image"].dtype == torch.uint8 and item["image"].shape[1:] == item["mask"].shape


def test_a16_one_range_for_the_dataset(root: Path) -> None:
    """Values 660 to 1553 keep 5 gray values of 16 bits; a range of its own for each image would change brightness."""
    images16(root, 660, 1553)
    save(image(root, "a1"), Image.fromarray(np.full(SIZE, 700, np.uint16)))
    data = run_data(root)
    limits = data.config.data.image_range
    stored = np.concatenate([np.asarray(Image.open(image(root, name))).ravel() for name in IDS["train"]])
    expected = np.percentile(stored, [0.1, 99.9])
    assert limits is not None and limits == [np.floor(expected[0]), np.ceil(expected[1])]
    assert data.config.data.channels == 1
    values = data.train[0]["image"]
    assert values.shape == (1, *SIZE) and len(values.unique()) > 200 and int(values.max()) == 255
    dark = (700 - limits[0]) * 255 / (limits[1] - limits[0])
    assert data.train[1]["image"].unique().tolist() == [round(dark)]  # 700 is dark in every image
    assert len(run_data(root, image_range=[0, 65535]).train[0]["image"].unique()) == 4  # the user insists
    with pytest.raises(UserError, match=r"all values are outside of data.image_range=\[2000, 3000\]"):
        run_data(root, image_range=[2000, 3000])
    for limits in ([5, 5], [1], [0, float("nan")], [0, 1, 1, 0]):
        with pytest.raises(UserError, match="data.image_range=.*two ascending numbers"):
            run_data(root, image_range=limits)


def test_a16_float_and_8_bit_images(tmp_path: Path) -> None:
    save(tmp_path / "f.tif", Image.fromarray(np.array([[-1.0, 0.0], [1.0, np.nan]], np.float32)), "TIFF")
    assert decode(tmp_path / "f.tif", image_range=[-1, 1])[0].tolist() == [[0, 128], [255, 0]]
    save(tmp_path / "8.png", Image.new("L", (2, 2), 7))
    assert decode(tmp_path / "8.png", image_range=[0, 4095]).unique().tolist() == [7]


def png16(values: np.ndarray) -> bytes:
    """A PNG with colors of 16 bits, which Pillow cannot write; (H, W, 3 or 4)."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    chunks = (b"IHDR" + header, b"IDAT" + zlib.compress(rows), b"IEND")
    parts = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_a16_color_images_of_16_bits(tmp_path: Path) -> None:
    """Pillow reads the upper byte of their values only."""
    values = np.random.default_rng(0).integers(0, 4096, (5, 7, 3))
    (tmp_path / "a.png").write_bytes(png16(values))
    expected = np.rint(values * (255 / 4095)).transpose(2, 0, 1)
    assert np.array_equal(decode(tmp_path / "a.png", image_range=[0, 4095]).numpy(), expected)
    alpha = np.full((5, 7, 1), 65535)
    (tmp_path / "b.png").write_bytes(png16(np.concatenate([values, alpha], axis=2)))
    assert np.array_equal(decode(tmp_path / "b.png", image_range=[0, 4095]).numpy(), expected)
    tifffile.imwrite(tmp_path / "c.tif", values.astype(np.uint16), photometric="rgb")
    assert np.array_equal(decode(tmp_path / "c.tif", image_range=[0, 4095]).numpy(), expected)


def test_c_an_error_in_a_loader_worker_is_one_line(root: Path) -> None:
    data = build_dataset(DataConfig(name="voc_folder", root=str(root)), "train", True)
    image(root).write_bytes(b"x")
    loader = DataLoader(data, batch_size=1, collate_fn=collate, num_workers=1)  # type: ignore[arg-type]
    with pytest.raises(BadFile) as caught:
        next(iter(loader))
    expected = f"{image(root)}: not an image (1 bytes). Replace it, or remove 'a0' from the split."
    assert str(caught.value) == expected == str(pickle.loads(pickle.dumps(caught.value)))


@pytest.mark.parametrize("key", ["data.size", "data.augment.crop"])
def test_c_sizes_of_one_pixel_are_refused(root: Path, key: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "segmentation", "--data.name=voc_folder", f"--data.root={root}", f"--{key}=[1,1]"]
    assert main([*words, f"--training.output_dir={root.parent / 'run'}"]) == 2
    assert capsys.readouterr().err.startswith(f"unetdiff: {key}=[1, 1]: must be [height, width], two integers from")


def test_c_resizing_to_one_pixel() -> None:
    pixels = torch.arange(3 * 4 * 5, dtype=torch.uint8).reshape(3, 4, 5)
    assert (resize_image(pixels, (1, 1)).flatten() - torch.tensor([9.5, 29.5, 49.5])).abs().max() <= 0.5


def test_c_names_with_escape_codes_stay_off_the_terminal(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "ImageSets/Segmentation/train.txt").write_text("a0\nx\x1b[31m\n")
    words = ["--data.name=voc_folder", f"--data.root={root}"]
    assert main(["data", "check", *words]) == 1 and main(["data", "stats", *words]) == 2
    output = "".join(capsys.readouterr())
    assert "\x1b" not in output and r"x\x1b[31m.jpg: file not found" in output


@pytest.mark.parametrize("channels", [1, 4])
def test_a16_predict_uses_the_range_and_channels_of_the_training(root: Path, channels: int) -> None:
    """Microscopy of 12 bits and images of four bands: from files as they are to `predict`."""
    if channels == 1:
        images16(root, 660, 1553)
    else:
        for seed, path in enumerate(sorted((root / "JPEGImages").iterdir())):
            bands(path, 4, seed)
    run = root.parent / "run"
    words = ["train", "segmentation", "--data.name=voc_folder", f"--data.root={root}", f"--training.output_dir={run}"]
    words += ["--model.encoder.name=classic", "--model.encoder.channels=[4,8]", "--training.batch_size=3"]
    words += ["--data.augment.crop=null"]
    assert main([*words, "--training.steps=1", "--data.size=[32,32]"]) == 0
    config = from_yaml(run / "config.yaml")
    pipeline = SegmentationPipeline.from_pretrained(run / "latest")
    limits = pipeline.inference.image_range
    assert limits is not None and limits == config.data.image_range and len(limits) == 2 * channels
    assert pipeline.unet.config["in_channels"] == config.data.channels == channels
    mean, std = config.model.encoder.mean, config.model.encoder.std
    assert mean is not None and std is not None and len(mean) == len(std) == channels
    train = [decode(image(root, name), image_range=limits, channels=channels) / 255 for name in IDS["train"]]
    torch.testing.assert_close(torch.tensor(mean), torch.stack(train).mean(dim=(0, 2, 3)), atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.tensor(std), torch.stack(train).std(dim=(0, 2, 3)), atol=1e-3, rtol=0)
    pixels = decode(image(root), image_range=limits, channels=channels)
    assert torch.equal(pipeline.load_image(image(root)), pixels)
    options = [InferenceConfig(), InferenceConfig(image_range=[0, 65535])]
    own, other = (pipeline(image(root), return_logits=True, inference=option).logits for option in options)
    assert torch.equal(own, pipeline(pixels, return_logits=True).logits)  # type: ignore[arg-type]
    assert not torch.equal(own, other)  # type: ignore[arg-type]
    assert main(["predict", str(run), str(image(root)), f"--output={root.parent / 'out'}"]) == 0
    assert main(["evaluate", str(run)]) == 0
    assert main([*words, "--training.steps=2", "--data.size=[32,32]", "--training.resume=true"]) == 0


def test_a16_a_denoiser_of_12_bit_images_sees_their_range(root: Path) -> None:
    images16(root, 660, 1553)
    run = root.parent / "run"
    words = ["train", "diffusion", "--data.name=image_folder", f"--data.root={root / 'JPEGImages'}"]
    words += ["--data.size=[16,16]", "--model.encoder.channels=[8,16]", "--diffusion.condition=none"]
    assert main([*words, "--training.steps=1", "--training.batch_size=2", f"--training.output_dir={run}"]) == 0
    config = from_yaml(run / "config.yaml")
    assert config.data.channels == 3 and config.data.image_range == [660, 1552]  # percentiles 0.1 and 99.9
    pixels = build_dataset(config.data, "train", False)[0]["image"]
    assert pixels.shape[0] == 3 and (int(pixels.min()), int(pixels.max())) > (0, 200)
    assert config.model.encoder.mean is None
