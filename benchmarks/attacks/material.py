"""Valid data, configs and runs, made once: hostile commands get copies of what they break."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from attacks.process import command, run_forked
from suite.text_encoder import write_text_encoder

SIDE = 32
CLASSES = ("background", "cat", "dog")
TRAIN, VAL = ("p0", "p1", "p2", "p3"), ("p4", "p5")

NETWORK = {"encoder": {"name": "classic", "channels": [4, 8]}}
TRAINING = {
    "steps": 2,
    "batch_size": 2,
    "eval_batch_size": 2,
    "validate_every": 2,
    "checkpoint_every": 1,
    "log_every": 1,
}
PREVIEWS = {"preview_steps": 2, "preview_per_class": 1}
DENOISER = {
    "sample_size": SIDE,
    "encoder": {"name": "residual", "channels": [8, 8]},
    "residual": {"layers_per_block": 1, "norm_num_groups": 4},
    "conditioning": {"cross_attention_dim": 8, "attention_levels": [1], "attention_head_dim": 8},
}
VOC = {"name": "voc_folder", "root": "voc", "size": [SIDE, SIDE]}
CONFIGS = {
    "seg": {
        "task": "segmentation",
        "model": NETWORK,
        "data": VOC,
    },
    "diff": {
        "task": "diffusion",
        "model": DENOISER,
        "data": {"name": "image_folder", "root": "images", "size": [SIDE, SIDE]},
        "diffusion": PREVIEWS,
    },
    "joint": {
        "task": "joint",
        "model": DENOISER,
        "data": {"name": "scenes", "scenes": {"train_images": 8, "val_images": 4}},
        "diffusion": PREVIEWS,
    },
    "text": {
        "task": "diffusion",
        "model": DENOISER,
        "data": {"name": "captioned_folder", "root": "captions", "size": [SIDE, SIDE]},
        "diffusion": {**PREVIEWS, "condition": "text", "text": {"encoder": "text_encoder", "cache_dir": "features"}},
    },
    "layout": {
        "task": "diffusion",
        "model": DENOISER,
        "data": VOC,
        "diffusion": {**PREVIEWS, "condition": "layout"},
    },
    "table": {
        "task": "diffusion",
        "model": DENOISER,
        "data": {"name": "parquet", "root": "table.parquet", "image_column": "image", "size": [SIDE, SIDE]},
        "diffusion": PREVIEWS,
    },
}
"""The configs, by file name without ".yaml"; the runs of RUNS have their names."""
RUNS = ("seg", "diff", "joint", "text", "layout")
DATA = ("voc", "images", "captions", "table.parquet", "photos", "text_encoder")
THREE_STEPS = ("--training.steps", "3", "--training.keep_checkpoints", "3")
COMMANDS = {name: ["train", CONFIGS[name]["task"], f"{name}.yaml", "--output_dir", name] for name in RUNS} | {
    "stock": ["export", "diff", "--format", "diffusers", "--output", "stock"],
    "record": [
        *("experiment", "agreement", "joint", "--num_images", "4", "--num_inference_steps", "2"),
        *("--guidance_scales", "1", "--num_rows", "2", "--output", "record"),
    ],
    "whole": ["train", "segmentation", "seg.yaml", "--output_dir", "whole", *THREE_STEPS],
}
"""How each run, model directory and record is made."""


def make(folder: Path, names: Iterable[str] = tuple(COMMANDS)) -> None:
    """Everything in a new folder; `names` of COMMANDS only, where fewer are enough.

    Raises:
        RuntimeError: a command on valid input failed.
    """
    folder.mkdir(parents=True)
    voc_layout(folder / "voc")
    image_folder(folder / "images")
    captioned_folder(folder / "captions")
    parquet(folder / "table.parquet")
    photos(folder / "photos")
    for name, config in CONFIGS.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config | {"training": TRAINING}, sort_keys=False))
    wanted = set(names)
    for name, argv in COMMANDS.items():
        if name not in wanted:
            continue
        if name == "text":
            _run(lambda: text_encoder(folder / "text_encoder"), "text_encoder", folder)
        _run(command(argv), " ".join(argv), folder)
        if name == "whole":  # as if it had been killed in its last step
            shutil.copytree(folder / "whole", folder / "half")
            shutil.rmtree(folder / "half/checkpoints/step-00000003")
            (folder / "half/summary.json").unlink()


def _run(function, name: str, folder: Path) -> None:  # type: ignore[no-untyped-def]
    result = run_forked(function, folder, folder / ".streams", limit=120)
    if result.status != 0:
        raise RuntimeError(f"{name}: exit status {result.status} on valid input\n{result.stdout}{result.stderr}")


def copy(material: Path, names: Sequence[str], scratch: Path) -> None:
    """Copies of files and folders of the material in a new directory."""
    scratch.mkdir(parents=True)
    (scratch / "home").mkdir()
    for name in dict.fromkeys(names):
        if (material / name).is_dir():
            shutil.copytree(material / name, scratch / name, symlinks=True)
        else:
            shutil.copy2(material / name, scratch / name)


def noise_image(seed: int, side: int = SIDE) -> Image.Image:
    """Noise, RGB."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8))


def mask(seed: int, side: int = SIDE) -> Image.Image:
    """A mask of all classes with a palette."""
    values = np.random.default_rng(seed).integers(0, len(CLASSES), (side, side), dtype=np.uint8)
    image = Image.fromarray(values)
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0] + [0] * (3 * 253))  # mode P
    return image


def voc_layout(root: Path) -> None:
    """Four training and two validation images with masks in VOC's layout."""
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True)
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    for split, names in (("train", TRAIN), ("val", VAL)):
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(names) + "\n")
    for i, name in enumerate((*TRAIN, *VAL)):
        noise_image(i).save(root / f"JPEGImages/{name}.jpg")
        mask(i).save(root / f"SegmentationClass/{name}.png")


def image_folder(root: Path) -> None:
    """Two classes in train/ and val/."""
    for split, count in (("train", 2), ("val", 1)):
        for c, label in enumerate(("cat", "dog")):
            (root / split / label).mkdir(parents=True)
            for i in range(count):
                noise_image(100 + 10 * c + i + 50 * (split == "val")).save(root / split / label / f"{i}.png")


def captioned_folder(root: Path) -> None:
    """Four captioned images in train/, two in val/."""
    for split, count in (("train", 4), ("val", 2)):
        (root / split).mkdir(parents=True)
        rows = [{"file_name": f"{i}.png", "text": f"a {'red' if i % 2 else 'blue'} one"} for i in range(count)]
        (root / split / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for i in range(count):
            noise_image(200 + i + 50 * (split == "val")).save(root / split / f"{i}.png")


def png_bytes(seed: int) -> bytes:
    """An image as PNG."""
    file = io.BytesIO()
    noise_image(seed).save(file, "PNG")
    return file.getvalue()


def parquet(path: Path) -> None:
    """Twelve rows with image, label and caption."""
    write_parquet(path, [row(i) for i in range(12)])


def row(i: int) -> dict[str, Any]:
    """Row i of the table."""
    return {"image": {"bytes": png_bytes(i + 300), "path": None}, "label": i % 2, "text": f"image {i}"}


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    """A table of rows as they are."""
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def photos(root: Path) -> None:
    """What is predicted: RGB, gray, another size."""
    root.mkdir()
    noise_image(400).save(root / "a.png")
    noise_image(401, 20).save(root / "b.jpg")
    noise_image(402).convert("L").save(root / "c.png")


def text_encoder(folder: Path) -> int:
    """A tiny BERT with a tokenizer, in transformers' format; returns 0."""
    write_text_encoder(folder, ["a", "red", "blue", "one"])
    return 0
