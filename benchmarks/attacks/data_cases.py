"""Broken images, masks, lists, captions and tables, met by every command that reads them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from attacks import spoil
from attacks.case import Case, Check, Expect, Spoil, strict_json
from attacks.material import CLASSES
from attacks.process import Result
from attacks.spoil import BAD_IMAGES, ESCAPE, LONG, NOT_A_FILE, PLAIN_IMAGES, SpoilFile

SEG = ("voc", "seg.yaml")
DIFF = ("images", "diff.yaml")
CHECK_SEG = ("data", "check", "seg.yaml")
STATS_SEG = ("data", "stats", "seg.yaml")
TRAIN_SEG = ("train", "segmentation", "seg.yaml", "--output_dir", "out")
EVALUATE_SEG = ("evaluate", "seg", "--output", "out")
PREDICT = ("predict", "seg", "photos", "--output", "out")
CHECK_DIFF = ("data", "check", "diff.yaml")
TRAIN_DIFF = ("train", "diffusion", "diff.yaml", "--output_dir", "out")
SAMPLE = ("sample", "diff", "--num_images", "1", "--num_inference_steps", "2", "--output", "out")


def at(path: str, spoiler: SpoilFile) -> Spoil:
    """A spoiler of one file of the scratch directory."""
    return lambda scratch, rng: spoiler(scratch / path, rng)


def trained(scratch: Path, result: Result) -> str:
    """Of a training in `out`: whole records, and weights to continue from."""
    out = scratch / "out"
    if not (out / "latest" / "unet" / "config.json").is_file() or not list(out.glob("checkpoints/step-*/state.json")):
        return "no latest/ or no checkpoint"
    for line in (out / "metrics.jsonl").read_text().splitlines():
        if "NaN" in line or "Infinity" in line:
            return f"metrics.jsonl: {line[:100]}"
        json.loads(line)
    return strict_json(out / "summary.json")


def predicted(scratch: Path, result: Result) -> str:
    """Of predictions in `out`: one mask per photo, of its size, with values that are classes."""
    photos = [p for p in sorted((scratch / "photos").iterdir()) if p.is_file() and p.suffix in (".png", ".jpg")]
    photos = [p for p in photos if not p.name.startswith(".")]
    for photo in photos:
        file = scratch / "out" / "masks" / f"{photo.stem}.png"
        if not file.is_file():
            return f"no mask of {photo.name}"
        with Image.open(file) as image, Image.open(photo) as source:
            if image.size != source.size:
                return f"mask of {photo.name} is {image.size}, the image {source.size}"
            if np.array(image).max() >= len(CLASSES):
                return f"mask of {photo.name} has other values"
    count = len(list((scratch / "out" / "masks").rglob("*.png")))
    return "" if count == len(photos) else f"{count} masks of {len(photos)} images"


def classes_are(names: tuple[str, ...]) -> Check:
    """Of a segmentation run in `out`: it learned these classes, in this order."""

    def check(scratch: Path, result: Result) -> str:
        learned = json.loads((scratch / "out/latest/segmentation.json").read_text())["classes"]
        return "" if learned == list(names) else f"learned {learned}"

    return check


def labels_are(names: tuple[str, ...]) -> Check:
    """Of a class-conditional run in `out`: it learned these labels, in this order."""

    def check(scratch: Path, result: Result) -> str:
        learned = json.loads((scratch / "out/latest/conditioner/config.json").read_text())["labels"]
        return "" if list(learned) == list(names) else f"learned {learned}"

    return check


# ---------------------------------------------------------------------------------------------- images


def image_cases() -> Iterator[Case]:
    """Images that cannot be read, and plausible ones of other kinds."""
    for name, spoiler in BAD_IMAGES.items():
        photo, member = at("photos/a.png", spoiler), at("images/train/cat/1.png", spoiler)
        spoiled = at("voc/JPEGImages/p1.jpg", spoiler)
        val = at("voc/JPEGImages/p4.jpg", spoiler)

        yield Case("image", f"{name}, check voc", CHECK_SEG, SEG, spoiled, "refused", "p1.jpg")
        yield Case("image", f"{name}, stats voc", STATS_SEG, SEG, spoiled)
        yield Case("image", f"{name}, train voc", TRAIN_SEG, SEG, spoiled, "refused", "p1.jpg", written=("out",))
        skipped = name in ("fifo", "dangling link", "link to itself")  # a search of a folder finds regular files
        found: Expect = "either" if skipped else "refused"
        yield Case("image", f"{name}, check folder", CHECK_DIFF, DIFF, member, found, "1.png")
        yield Case("image", f"{name}, train folder", TRAIN_DIFF, DIFF, member, found, "1.png", written=("out",))
        yield Case("image", f"{name}, predict", PREDICT, ("seg", "photos"), photo, found, "a.png")
        yield Case("image", f"{name}, evaluate", EVALUATE_SEG, ("seg", "voc"), val, "refused", "p4.jpg")
        argv = (*SAMPLE, "--image", "photos/a.png")
        yield Case("image", f"{name}, sample", argv, ("diff", "photos"), photo, "refused", "a.png")
    for name, spoiler in PLAIN_IMAGES.items():
        photo = at("photos/a.png", spoiler)
        member = at("images/train/cat/1.png", spoiler)
        yield Case("image", f"{name}, train folder", TRAIN_DIFF, DIFF, member, "accepted", check=trained)
        yield Case("image", f"{name}, predict", PREDICT, ("seg", "photos"), photo, "accepted", check=predicted)
        argv = (*SAMPLE, "--image", "photos/a.png")
        yield Case("image", f"{name}, sample", argv, ("diff", "photos"), photo, "accepted")
    for height, width in ((1, 1), (2, 2), (1, 33), (7, 3), (5000, 40)):
        photo = at("photos/a.png", spoil.saved(spoil.noise_image(height, width), "PNG"))
        yield Case(
            "image", f"{height} x {width}, predict", PREDICT, ("seg", "photos"), photo, "accepted", check=predicted
        )
        free = at("seg/best/segmentation.json", spoil.set_json("size", None))

        def both(scratch: Path, rng: random.Random, first: Spoil = photo, second: Spoil = free) -> None:
            first(scratch, rng)
            second(scratch, rng)

        name = f"{height} x {width}, predict without resizing"
        yield Case("image", name, PREDICT, ("seg", "photos"), both, "accepted", check=predicted)
        member = at("images/train/cat/1.png", spoil.saved(spoil.noise_image(height, width), "PNG"))
        yield Case("image", f"{height} x {width}, train", TRAIN_DIFF, DIFF, member, "accepted", check=trained)
    strangers: dict[str, SpoilFile] = {
        "._0.png": spoil.write("resource fork"),
        ".ipynb_checkpoints/x.png": spoil.saved(spoil.noise_image(32, 32, seed=8), "PNG"),
        ".hidden.png": spoil.saved(spoil.noise_image(32, 32, seed=9), "PNG"),
        "Thumbs.db": spoil.write(bytes(99)),
        ".DS_Store": spoil.write(bytes(99)),
    }
    for name, spoiler in strangers.items():
        for folder in ("images/train", "images/train/cat", "images"):
            yield Case(
                *("image", f"{folder}/{name}, train", TRAIN_DIFF, DIFF, at(f"{folder}/{name}", spoiler), "accepted"),
                check=labels_are(("cat", "dog")),
            )
            yield Case(
                "image", f"{folder}/{name}, check", CHECK_DIFF, DIFF, at(f"{folder}/{name}", spoiler), "accepted"
            )
        add = at(f"photos/{name}", spoiler)
        yield Case("image", f"photos/{name}, predict", PREDICT, ("seg", "photos"), add, "accepted", check=predicted)
    for name, spoiler in {"sub.jpg": spoil.directory, "index.ts": spoil.write("export const a = 1;\n")}.items():
        yield Case("image", f"{name}, predict", PREDICT, ("seg", "photos"), at(f"photos/{name}", spoiler), "accepted")


def image_mutations(number: int) -> Case:
    """Bytes of an image mutated: readable or refused."""
    targets = [
        (CHECK_SEG, SEG, "voc/JPEGImages/p1.jpg"),
        (TRAIN_SEG, SEG, "voc/JPEGImages/p0.jpg"),
        (TRAIN_DIFF, DIFF, "images/train/dog/0.png"),
        (PREDICT, ("seg", "photos"), "photos/b.jpg"),
        (PREDICT, ("seg", "photos"), "photos/a.png"),
        (CHECK_DIFF, DIFF, "images/val/dog/0.png"),
    ]
    argv, uses, path = targets[number % len(targets)]
    return Case("image", f"bytes {number}", argv, uses, at(path, spoil.mutate_bytes))


# ----------------------------------------------------------------------------------------------- masks


def array_mask(change: Any, form: str = "PNG") -> SpoilFile:
    """The values of a mask changed by a function, saved as gray."""

    def spoiler(path: Path, rng: random.Random) -> None:
        values = np.array(Image.open(path)) if path.is_file() else np.zeros((32, 32), np.uint8)
        Image.fromarray(change(values)).save(path, form)

    return spoiler


def one_value(value: int) -> SpoilFile:
    """One pixel has another value."""

    def change(values: np.ndarray) -> np.ndarray:
        values = values.copy()
        values[3, 5] = value
        return values

    return array_mask(change)


BAD_MASKS: dict[str, SpoilFile] = {
    **{name: BAD_IMAGES[name] for name in BAD_IMAGES if name not in ("SVG", "PDF")},
    "missing": spoil.missing,
    "directory": spoil.directory,
    "value 3": one_value(3),
    "value 254": one_value(254),
    "RGB": spoil.saved(spoil.noise_image(32, 32), "PNG"),
    "RGBA": spoil.saved(spoil.noise_image(32, 32, 4), "PNG"),
    "0 and 255": array_mask(lambda values: (values > 0).astype(np.uint8) * 255),
    "16 bits": array_mask(lambda values: values.astype(np.uint16)),
    "16 bits above 255": array_mask(lambda values: values.astype(np.uint16) * 256),
    "32 bits": array_mask(lambda values: values.astype(np.int32), "TIFF"),
    "other size": array_mask(lambda values: values[:, :20]),
    "JPEG": array_mask(lambda values: values * 40, "JPEG"),
}


def mask_cases() -> Iterator[Case]:
    """Masks that must be refused by name, and plausible ones."""
    for name, spoiler in BAD_MASKS.items():
        train, val = at("voc/SegmentationClass/p1.png", spoiler), at("voc/SegmentationClass/p4.png", spoiler)
        expect: Any = "either" if name == "16 bits" else "refused"
        named = "" if expect == "either" else "p1.png"
        yield Case("mask", f"{name}, check", CHECK_SEG, SEG, train, expect, named)
        yield Case("mask", f"{name}, train", TRAIN_SEG, SEG, train, expect, named)
        yield Case("mask", f"{name}, stats", STATS_SEG, SEG, train, "either")
        if name == "0 and 255":  # 255 is ignored: valid, if suspicious
            expect = "either"
        named = "" if expect == "either" else "p4.png"
        yield Case("mask", f"{name}, evaluate", EVALUATE_SEG, ("seg", "voc"), val, expect, named)
        if name not in ("other size", "0 and 255", "directory", "missing"):
            argv = ("sample", "layout", *SAMPLE[2:], "--layout", "voc/SegmentationClass/p1.png")
            yield Case("mask", f"{name}, sample", argv, ("layout", "voc"), train, expect, "" if not named else "p1.png")
    void = at("voc/SegmentationClass/p1.png", array_mask(lambda values: np.full_like(values, 255)))
    yield Case("mask", "all void, train", TRAIN_SEG, SEG, void, "either", check=trained)
    yield Case("mask", "all void, stats", STATS_SEG, SEG, void, "either")

    def all_void(scratch: Path, rng: random.Random) -> None:
        for path in (scratch / "voc/SegmentationClass").iterdir():
            array_mask(lambda values: np.full_like(values, 255))(path, rng)

    for name, argv in {"check": CHECK_SEG, "train": TRAIN_SEG, "stats": STATS_SEG}.items():
        yield Case("mask", f"everything void, {name}", argv, SEG, all_void)
    yield Case("mask", "everything void, evaluate", EVALUATE_SEG, ("seg", "voc"), all_void)
    gray = at("voc/SegmentationClass/p0.png", array_mask(lambda values: values))
    yield Case("mask", "gray, train", TRAIN_SEG, SEG, gray, "accepted", check=trained)


def mask_mutations(number: int) -> Case:
    """Bytes of a mask mutated: readable or refused."""
    argv, path = [(CHECK_SEG, "p0"), (TRAIN_SEG, "p1"), (STATS_SEG, "p5"), (CHECK_SEG, "p4")][number % 4]
    return Case("mask", f"bytes {number}", argv, SEG, at(f"voc/SegmentationClass/{path}.png", spoil.mutate_bytes))


# ----------------------------------------------------------------------------------------------- lists

TRAIN_LIST, VAL_LIST, CLASS_LIST = (
    "voc/ImageSets/Segmentation/train.txt",
    "voc/ImageSets/Segmentation/val.txt",
    "voc/classes.txt",
)
BAD_LISTS: dict[str, SpoilFile] = {
    **{name: NOT_A_FILE[name] for name in ("directory", "fifo", "link to itself", "unreadable", "dangling link")},
    "empty": spoil.write(b""),
    "blank lines": spoil.write("\n \n\n"),
    "UTF-16": spoil.encoded("utf-16"),
    "Latin-1": spoil.encoded("latin-1", "\u00e9t\u00e9\n"),
    "NUL": spoil.write(b"p0\0\np1\n"),
    "noise": spoil.GARBAGE["noise"],
    "one long line": spoil.write("x" * 1_000_000),
    "escape codes": spoil.append(f"{ESCAPE}\n".encode()),
    "above the folder": spoil.append(b"../../secret\n"),
    "absolute": spoil.append(b"/etc/passwd\n"),
    "unknown id": spoil.append(b"unknown\n"),
    "300 letters": spoil.append(f"{LONG}\n".encode()),
    "twice": spoil.append(b"p0\n"),
    "in both": spoil.append(b"p4\n"),
}
BAD_CLASSES: dict[str, SpoilFile] = {
    **{name: BAD_LISTS[name] for name in ("fifo", "link to itself", "unreadable", "UTF-16", "Latin-1", "noise")},
    "directory": spoil.directory,
    "empty": spoil.write(b""),
    "one": spoil.write("background\n"),
    "300": spoil.write("".join(f"class{i}\n" for i in range(300))),
    "twice": spoil.write("background\nother\nother\n"),
    "twice but for blanks": spoil.write("background\nother\n other \n"),
    "NUL": spoil.write(b"background\nca\0t\ndog\n"),
}
ODD_NAMES = {
    "dollars": "$x_1$ \\frac{",
    "one dollar": "5$",
    "markup": "<script>alert(1)</script>",
    "percent": "%s %d {0} {x}",
    "unicode": "caf\u00e9 \u732b \U0001f408",
    "slash": "a/b",
    "comma and quote": 'a,"b",c',
    "long": LONG,
    "escape codes": ESCAPE,
    "underscore": "_x",
    "number": "010",
    "formula": "=1+1",
}


def list_cases() -> Iterator[Case]:
    """Split lists and class names."""
    for name, spoiler in BAD_LISTS.items():
        for file, split in ((TRAIN_LIST, "train"), (VAL_LIST, "val")):
            expect: Any = "either" if name == "twice" or (name, split) == ("in both", "val") else "refused"
            yield Case("list", f"{split} {name}, check", CHECK_SEG, SEG, at(file, spoiler), expect)
            yield Case("list", f"{split} {name}, train", TRAIN_SEG, SEG, at(file, spoiler), expect)
        yield Case("list", f"{name}, stats", STATS_SEG, SEG, at(TRAIN_LIST, spoiler), "either")
    for name, spoiler in BAD_CLASSES.items():
        for what, argv in {"check": CHECK_SEG, "train": TRAIN_SEG, "stats": STATS_SEG}.items():
            yield Case("list", f"classes {name}, {what}", argv, SEG, at(CLASS_LIST, spoiler), "refused", "classes.txt")
    good: dict[str, SpoilFile] = {
        "BOM": spoil.encoded("utf-8-sig"),
        "CRLF": lambda path, rng: path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n")),
        "blanks": lambda path, rng: path.write_text("\n".join(f" {x}\t" for x in path.read_text().split()) + "\n\n"),
        "no last newline": lambda path, rng: path.write_text(path.read_text().strip()),
    }
    for name, spoiler in good.items():
        for file in (TRAIN_LIST, VAL_LIST, CLASS_LIST):
            case = at(file, spoiler)
            title = f"{file.rpartition('/')[2]} {name}"
            yield Case("list", f"{title}, train", TRAIN_SEG, SEG, case, "accepted", check=classes_are(CLASSES))
            yield Case("list", f"{title}, check", CHECK_SEG, SEG, case, "accepted")
    for name, odd in ODD_NAMES.items():
        write_classes = at(CLASS_LIST, spoil.write(f"background\n{odd}\ndog\n"))
        argv = TRAIN_SEG
        yield Case("list", f"class name {name}, train", argv, SEG, write_classes, "either", check=trained)
        yield Case(
            "list", f"class name {name}, stats", (*STATS_SEG, "--output", "s.json"), SEG, write_classes, "either"
        )
        yield Case(
            *(
                "list",
                f"class name {name}, evaluate",
                ("evaluate", "out", "--output", "e"),
                SEG,
                write_classes,
                "either",
            ),
            before=TRAIN_SEG if name != "escape codes" else (),
        )
        folder = odd.replace("/", "\u2215")[:200]

        def rename(scratch: Path, rng: random.Random, folder: str = folder) -> None:
            for split in ("train", "val"):
                (scratch / "images" / split / "cat").rename(scratch / "images" / split / folder)

        yield Case("list", f"class folder {name}, train", TRAIN_DIFF, DIFF, rename, "either", check=trained)
        yield Case("list", f"class folder {name}, check", CHECK_DIFF, DIFF, rename, "either")

    def twice(scratch: Path, rng: random.Random) -> None:
        spoil.noise_image(32, 32, seed=11).save(scratch / "voc/JPEGImages/p1.png")

    for what, argv in {"check": CHECK_SEG, "train": TRAIN_SEG}.items():
        yield Case("list", f"p1.jpg next to p1.png, {what}", argv, SEG, twice, "refused", "p1")

    def nested(scratch: Path, rng: random.Random) -> None:
        for folder, suffix in (("JPEGImages", "jpg"), ("SegmentationClass", "png")):
            (scratch / "voc" / folder / "sub").mkdir()
            (scratch / "voc" / folder / f"p1.{suffix}").rename(scratch / "voc" / folder / "sub" / f"p1.{suffix}")
        path = scratch / TRAIN_LIST
        path.write_text(path.read_text().replace("p1", "sub/p1"))

    yield Case("list", "ids with folders, check", CHECK_SEG, SEG, nested)
    yield Case("list", "ids with folders, train", TRAIN_SEG, SEG, nested, check=trained)


def list_mutations(number: int) -> Case:
    """Bytes of a list mutated."""
    argv = (CHECK_SEG, TRAIN_SEG, STATS_SEG)[number % 3]
    return Case(
        "list",
        f"bytes {number}",
        argv,
        SEG,
        at((TRAIN_LIST, CLASS_LIST, VAL_LIST)[number // 3 % 3], spoil.mutate_bytes),
    )
