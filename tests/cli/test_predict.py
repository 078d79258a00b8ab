"""`unetdiff predict`: pictures, folders, globs in; palette masks and overlays out; bad files named, the rest done."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unetdiff.cli.main import main
from unetdiff.cli.predict import list_pictures
from unetdiff.errors import UserError
from unetdiff.segmentation.pipeline import SegmentationPipeline


def picture(path: Path, size: tuple[int, int], seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_pictures_in_masks_out(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = picture(tmp_path / "in" / "one.png", (40, 36))
    picture(tmp_path / "in" / "deep" / "two.png", (33, 47), 1)
    picture(tmp_path / "more" / "three.jpg", (32, 32), 2)
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
    assert f"{output}: 3 masks" in capsys.readouterr().out

    pipeline = SegmentationPipeline.from_pretrained(run / "best")
    with Image.open(output / "masks" / "one.png") as mask:
        palette = np.array(mask.getpalette()).reshape(-1, 3)
        np.testing.assert_array_equal(palette[: len(pipeline.classes)], pipeline.palette)
        assert (np.asarray(mask) == pipeline(one).mask).mean() > 0.95  # bf16 where the machine has it


def test_bad_pictures_are_named_and_the_rest_is_done(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        picture(tmp_path / "in" / f"{number}.png", (32, 32), number)
    (tmp_path / "in" / "1.png").write_bytes((tmp_path / "in" / "1.png").read_bytes()[:200])
    (tmp_path / "in" / "text.jpg").write_text("no picture")
    assert main(["predict", str(run), str(tmp_path / "in"), "--output", str(tmp_path / "out")]) == 1
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("unetdiff:")]
    assert len(lines) == 2
    assert str(tmp_path / "in" / "1.png") in lines[0] and str(tmp_path / "in" / "text.jpg") in lines[1]
    assert {path.name for path in (tmp_path / "out" / "masks").iterdir()} == {"0.png", "2.png"}
    assert "2 masks" in captured.out


def test_names_that_meet_do_not_overwrite_each_other(tmp_path: Path) -> None:
    a, b, c = (picture(tmp_path / name, (8, 8)) for name in ("a/x.png", "b/x.png", "b/x.jpg"))
    pairs = list_pictures([str(tmp_path / "a"), str(tmp_path / "b"), str(a)])
    assert [file for file, _ in pairs] == [a, c, b]
    assert [str(stem) for _, stem in pairs] == ["x", "x-2", "x-3"]


def test_inputs_that_name_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for word in (str(tmp_path / "empty"), str(tmp_path / "*.png"), "nowhere.png"):
        with pytest.raises(UserError, match="no picture there"):
            list_pictures([word])


def test_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = picture(tmp_path / "x.png", (8, 8))
    assert main(["predict", str(tmp_path / "nowhere"), str(image)]) == 2
    assert f"{tmp_path}/nowhere" in capsys.readouterr().err
