"""`unetdiff predict`: images, folders, globs in; palette masks and overlays out; bad files named, the rest done."""

from __future__ import annotations

import io
import shutil
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from unetdiff.cli.main import main
from unetdiff.cli.predict_inputs import list_images, masks_of_run
from unetdiff.errors import UserError
from unetdiff.segmentation.config import InferenceConfig
from unetdiff.segmentation.pipeline import SegmentationPipeline


def photo(path: Path, size: tuple[int, int], seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_images_in_masks_out(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = photo(tmp_path / "in" / "one.png", (40, 36))
    photo(tmp_path / "in" / "deep" / "two.png", (33, 47), 1)
    photo(tmp_path / "more" / "three.jpg", (32, 32), 2)
    output = tmp_path / "out"
    words = [str(tmp_path / "in"), str(tmp_path / "more" / "*.jpg"), "--output", str(output), "--batch_size", "2"]
    assert main(["predict", str(run), *words]) == 0
    sizes = {"one": (40, 36), "deep/two": (33, 47), "three": (32, 32)}
    for folder in ("masks", "overlays"):
        found = {str(path.relative_to(output / folder).with_suffix("")) for path in (output / folder).rglob("*.png")}
        assert found == set(sizes)
    for name, size in sizes.items():
        with (
            Image.open(output / "masks" / f"{name}.png") as mask,
            Image.open(output / "overlays" / f"{name}.png") as over,
        ):
            assert mask.mode == "P" and mask.size == size
            assert over.mode == "RGB" and over.size == size
    first = capsys.readouterr().out
    assert f"{output}: 3 masks and overlays\n" in first
    assert main(["predict", str(run), *words]) == 0
    assert f"{output}: 3 masks and overlays, replaced 6 files of an earlier prediction\n" in capsys.readouterr().out

    pipeline = SegmentationPipeline.from_pretrained(run / "best")
    assert first.splitlines()[-1].startswith(f"masks hold class indices: 0 {pipeline.classes[0]}, 1 ")
    with Image.open(output / "masks" / "one.png") as mask:
        palette = np.array(mask.getpalette()).reshape(-1, 3)
        np.testing.assert_array_equal(palette[: len(pipeline.classes)], pipeline.palette)
        assert (np.asarray(mask) == pipeline(one).mask).mean() > 0.95  # bf16 where the machine has it


def test_all_images_of_a_stack(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slices = np.random.default_rng(0).integers(0, 256, (10, 36, 40), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "slices.tif", slices, photometric="minisblack")
    for number, values in enumerate(slices):
        Image.fromarray(values).save(photo(tmp_path / "files" / f"{number}.png", (40, 36)))
    output = tmp_path / "out"
    inputs = [str(tmp_path / "slices.tif"), str(tmp_path / "files"), "--output", str(output)]
    assert main(["predict", str(run), *inputs]) == 0
    for number in range(10):
        pages, files = (output / "masks" / name for name in (f"slices/{number:04d}.png", f"{number}.png"))
        with Image.open(pages) as mask, Image.open(files) as same:
            assert (np.asarray(mask) == np.asarray(same)).mean() > 0.95  # bf16, in another batch
    assert f"{output}: 20 masks" in capsys.readouterr().out
    with pytest.warns(UserWarning, match="a stack of 10 images, of which the first is read"):
        SegmentationPipeline.from_pretrained(run / "best").load_image(tmp_path / "slices.tif")


def test_a_camera_of_12_bits_and_a_model_of_8_bit_images(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gray = np.random.default_rng(0).integers(0, 256, (36, 40), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "camera.tif", gray.astype(np.uint16) * 16 + 8)
    Image.fromarray(gray).save(tmp_path / "gray.png")
    pipeline = SegmentationPipeline.from_pretrained(run / "best")
    with pytest.warns(UserWarning, match=r"camera\.tif: the brightest value is 40\d\d of 65535.*--image_range 0,4095"):
        pipeline.load_image(tmp_path / "camera.tif")
    inputs = [str(tmp_path / name) for name in ("camera.tif", "gray.png")]
    assert main(["predict", str(run), *inputs, "--output", str(tmp_path / "out"), "--image_range", "0,4095"]) == 0
    with Image.open(tmp_path / "out/masks/camera.png") as mask, Image.open(tmp_path / "out/masks/gray.png") as same:
        assert (np.asarray(mask) == np.asarray(same)).mean() > 0.95  # rounded apart by one gray value
    assert main(["predict", str(run), *inputs, "--image_range", "5"]) == 2
    assert "--image_range=[5.0]: must be [black, white]" in capsys.readouterr().err


def test_bad_images_are_named_and_the_rest_is_done(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        photo(tmp_path / "in" / f"{number}.png", (32, 32), number)
    (tmp_path / "in" / "1.png").write_bytes((tmp_path / "in" / "1.png").read_bytes()[:200])
    (tmp_path / "in" / "text.jpg").write_text("no image")
    assert main(["predict", str(run), str(tmp_path / "in"), "--output", str(tmp_path / "out")]) == 1
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("unetdiff:")]
    assert len(lines) == 2
    assert str(tmp_path / "in" / "1.png") in lines[0] and str(tmp_path / "in" / "text.jpg") in lines[1]
    assert {path.name for path in (tmp_path / "out" / "masks").iterdir()} == {"0.png", "2.png"}
    assert "2 masks" in captured.out


def test_masks_of_the_dataset_are_left_out(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder of images and masks in the layout of the run's dataset; the masks alone are taken as images."""
    model, data = tmp_path / "run", tmp_path / "data"
    shutil.copytree(run, model)
    config = (model / "config.yaml").read_text()
    config = config.replace("name: scenes", "name: folders", 1).replace("masks: null", "masks: masks", 1)
    (model / "config.yaml").write_text(config.replace("root: null", f"root: {data / 'own'}", 1))
    for name in ("own/images/a", "own/masks/a", "new/images/b", "new/masks/b"):
        photo(data / f"{name}.png", (16, 16))
    masks = masks_of_run(model / "best")
    for name, image in (("own", "images/a"), ("new", "images/b")):
        found = list_images([str(data / name)], masks=masks)
        assert [str(stem) for _, stem in found] == [image]
        assert capsys.readouterr().err == (
            f"unetdiff: {data / name}: 1 masks of the dataset left out ({data / name / 'masks'}).\n"
        )
    assert len(list_images([str(data)], masks=masks)) == 3  # those of its own dataset, whose place is known
    capsys.readouterr()
    for alone in (str(data / "own" / "masks"), str(data / "own" / "masks" / "*.png")):
        assert len(list_images([alone], masks=masks)) == 1
    assert not capsys.readouterr().err
    assert len(list_images([str(data / "own")], masks=masks_of_run(tmp_path))) == 2  # a model without a config


def test_names_that_meet_do_not_overwrite_each_other(tmp_path: Path) -> None:
    a, b, c = (photo(tmp_path / name, (8, 8)) for name in ("a/x.png", "b/x.png", "b/x.jpg"))
    pairs = list_images([str(tmp_path / "a"), str(tmp_path / "b"), str(a)])
    assert [file for file, _ in pairs] == [a, c, b]
    assert [str(stem) for _, stem in pairs] == ["x", "x-2", "x-3"]


def test_inputs_that_name_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for word in (str(tmp_path / "empty"), str(tmp_path / "*.png"), "nowhere.png"):
        with pytest.raises(UserError, match="no image or video found"):
            list_images([word])


def test_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = photo(tmp_path / "x.png", (8, 8))
    assert main(["predict", str(tmp_path / "nowhere"), str(image)]) == 2
    assert f"{tmp_path}/nowhere" in capsys.readouterr().err


class Bytes(io.TextIOWrapper):
    """A standard stream made of bytes."""

    def __init__(self, data: bytes = b"") -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8")


def test_tiles_and_views_are_the_pipelines(run: Path, tmp_path: Path) -> None:
    image = photo(tmp_path / "x.png", (50, 41))
    words = [
        "--tile",
        "24,32",
        "--overlap",
        "0.5",
        "--flip",
        "--scales",
        "1,1.5",
        "--batch_size",
        "3",
        "--device",
        "cpu",
    ]
    assert main(["predict", str(run), str(image), "--output", str(tmp_path), *words]) == 0
    options = InferenceConfig(tile=[24, 32], overlap=0.5, flip=True, scales=[1.0, 1.5])
    pipeline = SegmentationPipeline.from_pretrained(run / "best")
    with Image.open(tmp_path / "masks" / "x.png") as mask:
        predicted = np.asarray(mask)
    assert (predicted == pipeline(image, inference=options).mask).mean() > 0.95  # bf16 where the machine has it


def test_options_that_cannot_be(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = photo(tmp_path / "x.png", (8, 8))
    for words, part in (
        (["--tile", "-4"], "--tile=[-4, -4]: must be"),
        (["--tile", "1,2,3"], "argument --tile: 1,2,3: must be a side"),
        (["--overlap", "1"], "--overlap=1.0: must be in [0, 0.9]"),
        (["--scales", "1,0"], "--scales=[1.0, 0.0]: must be a list of positive factors"),
        (["--batch_size", "0"], "--batch_size=0: must be at least 1."),
        (["--device", "abacus"], "--device=abacus: must be available"),
        (["--device", "meta"], "--device=meta: must be available"),
        (["--list"], "--list: an input must be -"),
        (["--probabilities", "--output", "-"], "--probabilities=true: must be left out for --output=-"),
        (["-", "--output", "-"], "-: must be the only input"),
        ([str(photo(tmp_path / "y.png", (8, 8))), "--output", "-"], "--output=-: must be a folder for"),
    ):
        assert main(["predict", str(run), str(image), *words]) == 2
        assert part in capsys.readouterr().err


def test_probabilities_in_every_mode(run: Path, tmp_path: Path) -> None:
    """They sum to 1, and their largest is the mask's class: of the whole image, and averaged over flips and scales."""
    image = photo(tmp_path / "x.png", (50, 41))
    views = {"whole": [], "views": ["--flip", "--scales", "1,1.5", "--tile", "32"]}
    for name, words in views.items():
        output = tmp_path / name
        assert main(["predict", str(run), str(image), "--output", str(output), "--probabilities", *words]) == 0
        with np.load(output / "probabilities" / "x.npz", allow_pickle=False) as file:
            found = file["probabilities"]
        with Image.open(output / "masks" / "x.png") as mask:
            predicted = np.asarray(mask)
        assert found.dtype == np.float16 and found.shape[1:] == (41, 50) == predicted.shape
        np.testing.assert_allclose(found.astype(np.float32).sum(axis=0), 1, atol=2e-3)
        chosen = np.take_along_axis(found, predicted[None].astype(np.int64), axis=0)[0]
        np.testing.assert_array_equal(chosen, found.max(axis=0))
    pipeline = SegmentationPipeline.from_pretrained(run / "best")
    result = pipeline(image, return_logits=True)
    torch.testing.assert_close(result.probabilities.log(), result.logits.log_softmax(dim=0))
    assert pipeline(image).probabilities is None


def test_bytes_in_mask_out(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = photo(tmp_path / "x.png", (40, 36))
    assert main(["predict", str(run), str(image), "--output", str(tmp_path / "files")]) == 0
    monkeypatch.setattr(sys, "stdin", Bytes(image.read_bytes()))
    monkeypatch.setattr(sys, "stdout", stdout := Bytes())
    assert main(["predict", str(run), "-", "--output", "-"]) == 0
    stdout.flush()
    written = io.BytesIO(stdout.buffer.getvalue())  # type: ignore[attr-defined]
    with Image.open(written) as predicted, Image.open(tmp_path / "files/masks/x.png") as file:
        assert predicted.mode == "P" and np.array_equal(np.asarray(predicted), np.asarray(file))


def test_standard_input_to_files(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    image = photo(tmp_path / "x.png", (40, 36))
    monkeypatch.setattr(sys, "stdin", Bytes(image.read_bytes()))
    assert main(["predict", str(run), "-", "--output", str(tmp_path / "one")]) == 0
    assert (tmp_path / "one" / "overlays" / "stdin.png").is_file()
    other = photo(tmp_path / "a name.png", (32, 32))
    monkeypatch.setattr(sys, "stdin", Bytes(f"{image}\n\n{other}\n".encode()))
    assert main(["predict", str(run), "-", "--list", "--output", str(tmp_path / "two")]) == 0
    assert {path.name for path in (tmp_path / "two" / "masks").iterdir()} == {"x.png", "a name.png"}
    capsys.readouterr()
    for data, words, status, part in (
        (b"no image", [], 1, "<8 bytes>: must be an image"),
        (b"\n", ["--list"], 2, "the list on standard input is empty"),
        (b"nowhere.png\n", ["--list"], 2, "nowhere.png: no image or video found"),
    ):
        monkeypatch.setattr(sys, "stdin", Bytes(data))
        assert main(["predict", str(run), "-", "--output", str(tmp_path / "three"), *words]) == status
        assert part in capsys.readouterr().err


def test_videos_beside_images(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    photo(tmp_path / "in" / "x.png", (32, 32))
    with av.open(str(tmp_path / "in" / "clip.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(10))
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for number in range(3):
            frame = np.full((32, 48, 3), 80 * number, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    (tmp_path / "in" / "broken.mov").write_text("no video")
    output = tmp_path / "out"
    assert main(["predict", str(run), str(tmp_path / "in"), "--output", str(output), "--masks"]) == 1
    captured = capsys.readouterr()
    assert "broken.mov: not a readable video" in captured.err
    assert captured.out.startswith(f"{output}: 1 masks and overlays, 1 overlay videos\n")
    found = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}
    frames = {f"masks/clip/{number:06d}.png" for number in range(3)}
    assert found == {"masks/x.png", "overlays/x.png", "overlays/clip.mp4"} | frames
    with av.open(str(output / "overlays" / "clip.mp4")) as container:
        assert [(frame.height, frame.width) for frame in container.decode(video=0)] == [(32, 48)] * 3
    monkeypatch.setitem(sys.modules, "av", None)
    assert main(["predict", str(run), str(tmp_path / "in" / "clip.mp4")]) == 2
    assert "pip install 'unetdiff[video]'" in capsys.readouterr().err
