"""`unetdiff init`: what it finds in folders as people have them, and that its config trains on them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets as hf
import numpy as np
import pytest
from PIL import Image

from unetdiff.cli.init_config import _denoiser_epochs, _epochs
from unetdiff.cli.main import main
from unetdiff.config.reading import load
from unetdiff.config.schema import RunConfig
from unetdiff.training import train

RNG = np.random.default_rng(0)


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(path)


def photo(path: Path, height: int = 40, width: int = 48) -> None:
    save(path, RNG.integers(0, 256, (height, width, 3)))


def classes(height: int = 40, width: int = 48) -> np.ndarray:
    values = np.repeat(np.arange(4), 12)[None].repeat(height, 0)[:, :width]
    values[:2] = 255
    return values


@pytest.fixture
def init(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.chdir(tmp_path)

    def call(*words: str, status: int = 0) -> tuple[str, RunConfig | None]:
        Path("set.yaml").unlink(missing_ok=True)
        assert main(["init", "set", "--weights", "null", *words]) == status
        output = capsys.readouterr()
        config = load("set.yaml") if Path("set.yaml").exists() else None
        return output.out + output.err, config

    return call


def test_binary_masks_without_lists_are_trained_on_and_predicted(init: Any, tmp_path: Path) -> None:
    for i in range(10):
        save(tmp_path / f"set/images/slice_{i:02d}.png", RNG.integers(0, 256, (64, 64)))
        save(tmp_path / f"set/masks/slice_{i:02d}.png", np.where(np.arange(64) < 16, 255, 0)[None].repeat(64, 0))
    text, config = init()
    assert "images   10, 64 x 64, 8-bit gray, PNG" in text and "10, 0 and 255: 25% is 255 (binary)" in text
    assert "2: background 75.0%, foreground 25.0%" in text and "background has 3 times the pixels of foreground" in text
    assert "8 for training, 2 for validation" in text
    command = next(line for line in text.splitlines() if "unetdiff predict" in line).split()
    data = config.data
    assert (data.name, data.images, data.masks, data.mask_encoding) == ("folders", "images", "masks", "binary")
    assert data.val_fraction == 0.2 and data.augment.crop == [64, 64] and config.training.epochs == 300
    reasons = [line for line in Path("set.yaml").read_text().splitlines() if "#" in line]
    assert len(reasons) > 15
    config.training.steps, config.training.epochs, config.training.batch_size = 1, None, 2
    train(config)
    assert main(command[1:]) == 0  # as it was printed
    assert any(path.suffix == ".png" for path in Path(command[-1]).rglob("*"))


def flat(root: Path) -> None:
    for i in range(8):
        photo(root / f"{i}.jpg")
        save(root / f"{i}_mask.png", classes())


def nested(root: Path) -> None:
    for i in range(8):
        part = f"{'train' if i < 6 else 'val'}/city{i % 2}/{i:03d}"
        photo(root / f"leftImg8bit/{part}_leftImg8bit.png", 40 + i)
        for end in ("labelIds", "color"):
            values = classes(40 + i)
            save(root / f"gt/{part}_gt_{end}.png", values if end == "labelIds" else np.stack([values * 60] * 3, -1))


def by_split(root: Path) -> None:
    for split in ("train", "valid"):
        for i in range(4):
            photo(root / f"{split}/images/{split}{i}.png")
            save(root / f"{split}/labels/{split}{i}.png", classes())


def split_and_suffix(root: Path) -> None:
    for i in range(9):
        part = f"{'train' if i < 6 else 'val'}/{'aachen' if i < 6 else 'bonn'}/{i}"
        photo(root / f"{part}_rgb.png")
        save(root / f"{part}_labels.png", classes())


def colored(root: Path) -> None:
    table = np.array([[0, 0, 0], [128, 64, 128], [64, 0, 128], [9, 9, 200]])
    for i in range(8):
        photo(root / f"pics/{i}.png")
        save(root / f"labels/{i}_L.png", table[np.minimum(classes(), 3)])


def colored_with_table(root: Path) -> None:
    colored(root)
    (root / "class_dict.csv").write_text("name,r,g,b\nroad,128,64,128\ncar,64,0,128\nsign,9,9,200\nVoid,0,0,0\n")


def sparse(root: Path) -> None:
    for i in range(8):
        photo(root / f"scene{i // 2}_{i}.png")
        save(root / f"masks/scene{i // 2}_{i}.png", np.minimum(classes(), 3) * 80)


@pytest.mark.parametrize(
    ("make", "expected", "text"),
    [
        (flat, {"images": "*.jpg", "masks": "*_mask.png", "num_classes": 4}, "0 to 3, and 255 (5.0%, ignored) (index)"),
        (nested, {"images": "leftImg8bit/**/*_leftImg8bit.png", "masks": "gt/**/*_gt_labelIds.png", "num_classes": 4},
         "48 x 40 to 48 x 45"),
        (by_split, {"images": "*/images", "masks": "*/labels", "val_fraction": None}, "4 for training, 4 for valid"),
        (split_and_suffix, {"images": "**/*_rgb.png", "masks": "**/*_labels.png", "val_fraction": None},
         "6 for training, 3 for validation"),
        (colored, {"images": "pics", "mask_colors": {f"class {i}": color for i, color in enumerate(
            [[0, 0, 0], [9, 9, 200], [64, 0, 128], [128, 64, 128]])}}, "4 colors in RGB"),
        (colored_with_table, {"mask_colors": "class_dict.csv"}, "3: road 3"),
        (sparse, {"mask_values": {0: 0, 80: 1, 160: 2, 240: 3}, "group_pattern": r"^.*?(?=[_-]?\d+$)"},
         "4 scenes such as scene0 (2 images) stay whole"),
    ],
)  # fmt: skip
def test_folders_of_images_and_masks(
    init: Any, tmp_path: Path, make: Callable[[Path], None], expected: dict[str, Any], text: str
) -> None:
    make(tmp_path / "set")
    output, config = init()
    assert {key: getattr(config.data, key) for key in expected} == expected
    assert text in output + Path("set.yaml").read_text()
    assert main(["data", "check", "set.yaml"]) == 0


def test_annotations_and_tables(init: Any, tmp_path: Path) -> None:
    root = tmp_path / "set"
    for i in range(6):
        photo(root / f"pics/{i}.png")
    shape = {"label": "dog", "points": [[1, 1], [20, 1], [20, 20]], "shape_type": "polygon"}
    for i in range(6):
        content = {"imagePath": f"../pics/{i}.png", "imageHeight": 40, "imageWidth": 48, "shapes": [shape]}
        (root / f"pics/{i}.json").write_text(json.dumps(content))
    assert init()[1].data.name == "labelme"
    entries = [{"id": i, "file_name": f"{i}.png", "height": 40, "width": 48} for i in range(6)]
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[1, 1, 9, 1, 9, 9]], "area": 32}
    content = {"images": entries, "annotations": [annotation], "categories": [{"id": 1, "name": "dog"}]}
    (root / "ann").mkdir()
    (root / "ann/mine.json").write_text(json.dumps(content))
    text, config = init()
    assert (config.data.name, config.data.annotations, config.data.images) == ("coco", "ann/mine.json", "pics")
    assert "a fifth, as they are few" in text
    rows = {"image": [Image.new("RGB", (48, 40))] * 4, "label": [Image.new("L", (48, 40))] * 4}
    features = hf.Features({"image": hf.Image(), "label": hf.Image()})
    (tmp_path / "other").mkdir()
    hf.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "other" / "rows.parquet"))
    assert main(["init", "other", "--weights", "null"]) == 0
    data = load("other.yaml").data
    assert (data.name, data.num_classes, data.val_fraction) == ("huggingface", 2, 0.2)
    for file in (root / "ann/mine.json", *root.glob("pics/*.json")):
        file.unlink()


def test_voc_and_lists_of_other_names(init: Any, tmp_path: Path) -> None:
    root = tmp_path / "set"
    for i in range(6):
        photo(root / f"JPEGImages/{i}.jpg")
        save(root / f"SegmentationClass/{i}.png", classes())
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "ImageSets/Segmentation/training.txt").write_text("0\n1\n2\n3\n")
    (root / "ImageSets/Segmentation/val.txt").write_text("4\n5\n")
    (root / "classes.txt").write_text("a\nb\nc\nd\n")
    _, config = init()
    assert config.data.name == "voc_folder" and config.data.train_split == "training"
    assert config.data.num_classes is None
    save(root / "SegmentationClass/0.png", np.full((40, 48), 9))
    text, _ = init(status=1)
    assert "0.png: mask values outside 0..3 and 255 (ignore) (9)" in text and "1 problem found" in text


def test_images_by_class_with_captions_and_alone(init: Any, tmp_path: Path) -> None:
    root = tmp_path / "set"
    for name in ("cat", "dog"):
        for i in range(5):
            photo(root / name / f"{i}.png")
    text, config = init()
    assert "2 folders of images, one per class (5 images each)" in text and "--class cat" in text
    assert (config.task, config.data.name, config.diffusion.condition) == ("diffusion", "image_folder", "class")
    captions = "".join(json.dumps({"file_name": f"cat/{i}.png", "text": "a cat"}) + "\n" for i in range(5))
    (root / "metadata.jsonl").write_text(captions)
    _, config = init()
    assert (config.data.name, config.diffusion.condition) == ("captioned_folder", "text")
    (root / "metadata.jsonl").unlink()
    for path in list(root.rglob("*.png")):
        path.rename(root / f"{path.parent.name}{path.name}")
    for name in ("cat", "dog"):
        (root / name).rmdir()
    _, config = init("--overwrite")
    assert config.diffusion.condition == "none"


def test_what_cannot_be_written_is_refused(init: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "set").mkdir()
    assert "set: no images found" in init(status=2)[0]
    flat(tmp_path / "set")
    init()
    assert main(["init", "set"]) == 2
    assert "set.yaml: exists already. --overwrite replaces it, with your edits; " in capsys.readouterr().err
    assert main(["init", "nowhere"]) == 2 and "nowhere: does not exist." in capsys.readouterr().err
    assert main(["init"]) == 2 and "unetdiff: missing path (folder with" in capsys.readouterr().err


def test_stats_propose_the_keys_of_masks_that_they_cannot_count(
    init: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    colored(tmp_path / "set")
    words = ["data", "stats", "--data.name=folders", "--data.root=set", "--data.images=pics"]
    assert main([*words, "--data.masks=labels/*_L.png", "--data.num_classes=4"]) == 1
    output = capsys.readouterr().out
    assert "The 8 masks hold 4 colors in RGB." in output and "class 3: [128, 64, 128]" in output
    for path in (tmp_path / "set/labels").iterdir():
        save(path, np.minimum(classes(), 1) * 255)
    assert main([*words, "--data.masks=labels/*_L.png"]) == 1
    assert "Set:\ndata:\n  mask_encoding: binary" in capsys.readouterr().out


def test_a_folder_next_to_its_masks(init: Any, tmp_path: Path) -> None:
    for i in range(8):
        photo(tmp_path / f"set/{i}.png")
        save(tmp_path / f"masks/{i}.png", classes())
    note = "the folder masks next to it has masks of the same 8 names; `unetdiff init .` would train a segmenter"
    text, config = init()
    assert f"  note     {note}\n" in text and config.task == "diffusion" and "  classes" not in text
    assert f"# Note: {note}\n" in Path("set.yaml").read_text()


def test_length_and_download_are_said(init: Any, tmp_path: Path) -> None:
    flat(tmp_path / "set")
    text, _ = init()
    assert "It trains for 400 epochs (300 steps). Shorter: --training.epochs 100\n" in text
    assert "downloads" not in text
    text, config = init("--weights", "imagenet")
    assert f"The first training downloads the weights of {config.model.encoder.name}. Without a network: " in text
    assert "--model.encoder.weights null" in text
    without = load("set.yaml", ["--model.encoder.weights", "null"])
    assert without.training.frozen_levels == 0 and without.training.optimizer.encoder_lr is None


@pytest.mark.parametrize(
    ("images", "batch", "steps"),
    [(1, 8, (300, 300)), (17, 8, (600, 700)), (120, 8, (1900, 2100)), (9000, 16, (12_000, 12_500))],
)
def test_segmenters_of_any_number_of_images_train_for_some_hundred_steps_at_least(
    images: int, batch: int, steps: tuple[int, int]
) -> None:
    epochs, reason = _epochs(images, batch)
    assert steps[0] <= epochs * images / batch <= steps[1] and reason


@pytest.mark.parametrize(
    ("images", "epochs"), [(1, 1000), (17, 1000), (640, 1000), (1000, 640), (9000, 71), (10**6, 0.64)]
)
def test_denoisers_see_no_image_more_than_a_thousand_times(images: int, epochs: float) -> None:
    assert _denoiser_epochs(images)[0] == epochs


def test_an_existing_config_is_refused_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set.yaml").write_text("task: diffusion\n")
    code = (
        "import sys; from unetdiff.cli.main import main; status = main(['init', 'set']); "
        "print(status, [m for m in ('torch', 'numpy') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert result.stdout == "2 []\n" and "set.yaml: exists already." in result.stderr
