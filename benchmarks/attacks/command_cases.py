"""Hostile command lines, options, output paths, run directories and YAML."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import stat
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from attacks import spoil
from attacks.case import Case, Spoil
from attacks.data_cases import CHECK_SEG, PREDICT, SAMPLE, SEG, STATS_SEG, TRAIN_DIFF, TRAIN_SEG, at, trained
from attacks.material import CONFIGS
from attacks.process import Result
from attacks.spoil import ESCAPE, LONG, NOT_A_FILE, SpoilFile

BENCHMARK = ("benchmark", "seg.yaml", "--rounds", "1", "--warmups", "0", "--no_memory", "--batch_sizes", "1")
AGREEMENT = ("experiment", "agreement", "joint", "--num_images", "2", "--num_inference_steps", "2", "--num_rows", "1")
AGREEMENT = (*AGREEMENT, "--guidance_scales", "1", "--output", "e")
BASES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "train": (TRAIN_SEG, SEG),
    "check": (CHECK_SEG, SEG),
    "stats": (STATS_SEG, SEG),
    "evaluate": (("evaluate", "seg", "--output", "out"), ("seg", "voc")),
    "evaluate denoiser": (
        ("evaluate", "diff", "--output", "out", "--num_inference_steps", "2", "--samples_per_class", "1"),
        ("diff", "images"),
    ),
    "predict": (PREDICT, ("seg", "photos")),
    "sample": (SAMPLE, ("diff", "photos")),
    "compare": (("compare", "seg", "--output", "r.html"), ("seg", "voc")),
    "export": (("export", "seg", "--format", "torch", "--output", "x.pt2"), ("seg",)),
    "benchmark": (BENCHMARK, SEG),
    "agreement": (AGREEMENT, ("joint",)),
}
"""Command -> a command line that succeeds, and what it needs."""
OPTIONS: dict[str, tuple[str, ...]] = {
    "evaluate": ("num_worst", "tile", "overlap", "scales", "split", "output"),
    "evaluate denoiser": (
        *("samples_per_class", "num_inference_steps", "guidance_scale", "seed", "features", "reference", "sweep"),
        *("num_distance_samples", "num_neighbors", "num_likelihood_images", "num_likelihood_timesteps", "segmenter"),
    ),
    "predict": ("output", "batch_size", "device", "tile", "overlap", "scales"),
    "sample": (
        *("class", "prompt", "layout", "condition_image", "negative_class", "negative_prompt", "num_images", "seed"),
        *("num_inference_steps", "guidance_scale", "guidance_rescale", "guidance_interval", "scheduler", "image"),
        *("strength", "mask_image", "output", "interpolate_to_seed", "frames"),
    ),
    "compare": ("experiments", "output"),
    "export": ("format", "output", "head", "size", "opset"),
    "benchmark": ("batch_sizes", "rounds", "warmups", "num_inference_steps", "guidance_scale", "device", "output"),
    "agreement": ("segmenter", "guidance_scales", "num_images", "num_inference_steps", "seed", "num_rows", "output"),
    "stats": ("output",),
}
"""Options that take a value, of each command."""
WORDS = (
    "nan",
    "inf",
    "-inf",
    "-1",
    "0",
    "1e30",
    str(2**64),
    "",
    "\u732b",
    ESCAPE,
    "x",
    "voc",
    "/dev/null/x",
    LONG,
    "1,2,3",
    "[]",
)
"""Values for any option."""


def option_cases() -> Iterator[Case]:
    """Every option of every command with every word."""
    for command, options in OPTIONS.items():
        argv, uses = BASES[command]
        for option in options:
            for word in WORDS:
                value = (f"--{option}={word}",) if word.startswith("-") or not word else (f"--{option}", word)
                yield Case("option", f"{command} {option}={word[:20]!r}", (*argv, *value), uses, expect="either")
    for command, (argv, uses) in BASES.items():
        for name, extra in {
            "unknown": ("--nonsense", "1"),
            "empty word": ("",),
            "escape codes": (f"--{ESCAPE}",),
            "lone dashes": ("---",),
            "NUL": ("--data.\0=1",),
            "surrogate": ("\udcff",),
            "long": ("x" * 100_000,),
            "dots": ("--...=1",),
        }.items():
            expect: Any = "either" if command == "predict" or name in ("empty word", "long", "surrogate") else "refused"
            yield Case("option", f"{command}, {name}", (*argv, *extra), uses, expect=expect)
        alone = "accepted" if argv[0] == "experiment" else "refused"
        yield Case("option", f"{command}, nothing", argv[:1], uses, expect=alone)  # type: ignore[arg-type]
        for name in ("nowhere", "", "/", ".", "seg.yaml", "/dev/null", ESCAPE, LONG, "photos/a.png", "pipe"):
            index = 2 if argv[0] in ("train", "data", "experiment") else 1
            words = (*argv[:index], name, *argv[index + 1 :])
            pipe = at("pipe", spoil.fifo)
            expect = "either" if command in ("check", "train", "stats", "benchmark") else "refused"
            yield Case("option", f"{command} of {name[:20]!r}", words, (*uses, "photos"), pipe, expect)
    for words in (
        (),
        ("--help",),
        ("--version",),
        ("nonsense",),
        ("",),
        (ESCAPE,),
        ("data",),
        ("data", ESCAPE),
        ("experiment", ESCAPE),
    ):
        yield Case("option", f"{words!r}", words)
    for word in ("--data.name", "--data.root", "--data.size", "--data.num_classes", "--data.train_split"):
        for value in WORDS:
            yield Case("option", f"check {word}={value[:20]!r}", (*CHECK_SEG, f"{word}={value}"), SEG)
    stdin = {
        "nothing": b"",
        "noise": bytes(range(256)),
        "text": b"photos/a.png\n",
        "long": b"x" * 10**6,
        "NUL": b"a\0b\n",
    }
    for name, data in stdin.items():
        for words in (("-",), ("-", "--list")):
            argv = ("predict", "seg", *words, "--output", "out")
            yield Case("option", f"predict {' '.join(words)}, {name}", argv, ("seg", "photos"), stdin=data)


# ------------------------------------------------------------------------------------------------ paths

OUTPUTS: dict[str, tuple[str, ...]] = {
    "train": (*TRAIN_SEG[:3], "--output_dir"),
    "evaluate": ("evaluate", "seg", "--output"),
    "predict": ("predict", "seg", "photos", "--output"),
    "sample": ("sample", "diff", "--num_images", "1", "--num_inference_steps", "2", "--output"),
    "compare": ("compare", "seg", "--output"),
    "export": ("export", "diff", "--format", "diffusers", "--output"),
    "torch": ("export", "seg", "--format", "torch", "--output"),
    "benchmark": (*BENCHMARK, "--output"),
    "agreement": (*AGREEMENT[:-1],),
    "stats": (*STATS_SEG, "--output"),
    "quickstart": ("quickstart", "--tiny", "--output"),
}


def path_cases() -> Iterator[Case]:
    """Every command's output at places that cannot be written, or should not be."""

    def place(scratch: Path, rng: random.Random) -> None:
        (scratch / "file").write_text("mine")
        (scratch / "full").mkdir()
        (scratch / "full" / "file").write_text("mine")
        (scratch / "locked").mkdir()
        (scratch / "locked").chmod(0o555)
        os.mkfifo(scratch / "pipe")
        make_device(scratch / "device")
        (scratch / "loop").symlink_to("loop")
        (scratch / "dangling").symlink_to("nowhere/at/all")

    needs = {
        "sample": ("diff",),
        "export": ("diff",),
        "agreement": ("joint",),
        "quickstart": (),
        "train": SEG,
        "stats": SEG,
    }
    for command, argv in OUTPUTS.items():
        uses = (*needs.get(command, ("seg", *SEG)), *(("photos",) if command == "predict" else ()))
        for name, expect in {
            "locked/x": "refused",
            "locked": "refused",
            "file/x": "refused",
            "loop/x": "refused",
            "loop": "refused",
            "/proc/x": "refused",
            "device": "refused",
            f"{LONG}": "refused",
            "a\0b": "refused",
            "pipe": "refused",
            "": "either",
            ".": "either",
            "full": "either",
            "file": "either",
            "deep/er/out": "either",
            "dangling": "either",
            f"odd {ESCAPE[:6]}": "either",
            "~/x": "either",
        }.items():
            if command == "quickstart" and expect == "either":
                continue
            replaced = (command, name) in (("export", "locked"), ("stats", "loop"))  # an empty folder, a broken link
            wanted = "either" if replaced else expect
            yield Case(
                *("path", f"{command} to {name[:20]!r}", (*argv, name), uses, place, wanted),  # type: ignore[arg-type]
                precious=("full/file", "file", "device") if name != "file" else ("device",),
                check=no_tilde,
            )


def make_device(path: Path) -> None:
    """A node like /dev/full, which an atomic write would replace; a pipe where this takes privileges."""
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 7))
    except PermissionError:
        os.mkfifo(path)


def no_tilde(scratch: Path, result: Result) -> str:
    """`~` is the home directory, not a folder of that name."""
    return "made a folder called ~" if (scratch / "~").exists() else ""


# ------------------------------------------------------------------------------------------ directories


def swap(old: str, new: str, *paths: str) -> Spoil:
    """A text replaced in files."""

    def spoiler(scratch: Path, rng: random.Random) -> None:
        for path in paths:
            (scratch / path).write_text((scratch / path).read_text().replace(old, new))

    return spoiler


def directory_cases() -> Iterator[Case]:
    """Run directories and data that are not what a command takes them for."""
    site = {"config.yaml": "title: my site\n", "index.html": "mine", "posts/a.md": "mine"}

    def foreign(scratch: Path, rng: random.Random) -> None:
        for name, text in site.items():
            spoil.write(text)(scratch / "site" / name, rng)

    for flag in ("--overwrite", "--resume", "--training.overwrite=true"):
        argv = (*TRAIN_SEG[:-1], "site", flag)
        yield Case("directory", f"foreign {flag}", argv, SEG, foreign, "refused", precious=("site",))
        for folder in (".", "voc", "voc/JPEGImages", "images", "photos", ""):
            argv = (*TRAIN_SEG[:-1], folder, flag)
            yield Case("directory", f"{folder!r} {flag}", argv, (*SEG, "images", "photos"), expect="refused")

    def mixed(scratch: Path, rng: random.Random) -> None:
        (scratch / "seg/thesis.tex").write_text("mine")

    argv = (*TRAIN_SEG[:-1], "seg", "--overwrite")
    yield Case(
        *("directory", "--overwrite of a run with a stranger's file", argv, (*SEG, "seg"), mixed, "either"),
        precious=("seg/thesis.tex",),
    )

    def inside(scratch: Path, rng: random.Random) -> None:
        shutil.move(scratch / "voc", scratch / "seg/voc")

    yield Case(
        *(
            "directory",
            "data inside the run, --overwrite",
            (*argv, "--data.root", "seg/voc"),
            (*SEG, "seg"),
            inside,
            "refused",
        ),
        precious=("seg/voc",),
    )
    for name, how in {
        "reordered": swap("cat\ndog", "dog\ncat", "voc/classes.txt"),
        "renamed": swap("cat", "zebu", "voc/classes.txt"),
        "one more": swap("dog\n", "dog\ncow\n", "voc/classes.txt"),
    }.items():
        resume = (*TRAIN_SEG[:-1], "seg", "--resume", "--training.steps", "3")
        yield Case("directory", f"classes {name}, --resume", resume, (*SEG, "seg"), how, "refused")
        evaluate = ("evaluate", "seg", "--output", "out")
        yield Case("directory", f"classes {name}, evaluate", evaluate, ("voc", "seg"), how, "refused")

    def zebu(scratch: Path, rng: random.Random) -> None:
        for split in ("train", "val"):
            (scratch / "images" / split / "cat").rename(scratch / "images" / split / "zebu")

    resume = (*TRAIN_DIFF[:-1], "diff", "--resume", "--training.steps", "3")
    yield Case(
        "directory", "folders renamed, --resume", resume, ("images", "diff.yaml", "diff"), zebu, "refused", "zebu"
    )

    def without(*names: str) -> Spoil:
        def spoiler(scratch: Path, rng: random.Random) -> None:
            for name in names:
                path = scratch / "seg" / name
                shutil.rmtree(path) if path.is_dir() else path.unlink()

        return spoiler

    plain = (*TRAIN_SEG[:-1], "seg", "--resume")
    best = ("seg/best",)
    uses = (*SEG, "seg")
    yield Case(
        "directory", "finished, no checkpoints, --resume", plain, uses, without("checkpoints"), "refused", precious=best
    )
    yield Case("directory", "no config.yaml, --resume", plain, uses, without("config.yaml"), "refused", precious=best)
    yield Case("directory", "no latest, --resume", plain, uses, without("latest"), "accepted", check=_has_latest)
    yield Case("directory", "best is a file, --resume", plain, uses, at("seg/best", spoil.write("x")), "either")
    yield Case("directory", "a typo, --resume", (*TRAIN_SEG[:-1], "sge", "--resume"), uses, expect="either")
    for name, keys in {
        "other seed": ("--training.seed", "5"),
        "other network": ("--model.encoder.channels", "[4, 16]"),
        "shorter": ("--training.steps", "1"),
        "other data": ("--data.root", "nowhere"),
    }.items():
        yield Case("directory", f"{name}, --resume", (*plain, *keys), uses, expect="refused", precious=("seg",))
    for name, source in {
        "quoted": "#1/best",
        "missing": "nowhere",
        "a file": "seg.yaml",
        "another network": "diff",
        "stock": "stock",
        "escape codes": ESCAPE,
        "itself": "out",
        "a folder": "voc",
    }.items():
        argv = (*TRAIN_SEG, "--training.init_from", source)
        needs = (*SEG, "diff", "stock")
        yield Case("directory", f"init_from {name}", argv, needs, expect="refused", written=("out",))
    argv = (*TRAIN_DIFF, "--training.init_from", "diff", "--diffusion.prediction_type", "epsilon")
    yield Case("directory", "init_from of another objective", argv, ("images", "diff.yaml", "diff"), expect="refused")
    argv = (*TRAIN_DIFF, "--training.init_from", "diff", "--diffusion.noise.beta_schedule", "linear")
    yield Case("directory", "init_from of another schedule", argv, ("images", "diff.yaml", "diff"), expect="refused")
    twice = ("predict", "seg", ".", "--output", "out")
    yield Case("directory", "predict . twice", twice, ("seg", "photos"), before=twice, check=_no_masks_of_masks)
    argv = ("evaluate", "stock", "--output", "out", "--num_inference_steps", "2", "--samples_per_class", "1")
    yield Case("directory", "evaluate of a diffusers directory", argv, ("stock", "images"), expect="either")
    argv = ("sample", "stock", *SAMPLE[2:])
    yield Case("directory", "sample of a diffusers directory", argv, ("stock",), expect="accepted")

    def alike(scratch: Path, rng: random.Random) -> None:
        for part in ("best", "latest"):
            path = scratch / "diff" / part / "conditioner/config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"labels": ["a b", "a_b"]}))

    argv = ("sample", "diff", "--class", "a b", "a_b", "--num_images", "2", *SAMPLE[4:])
    yield Case("directory", "sample of names alike", argv, ("diff",), alike, "accepted", check=_four_samples)


def _has_latest(scratch: Path, result: Result) -> str:
    return "" if (scratch / "seg/latest/unet/config.json").is_file() else "latest/ is still missing"


def _no_masks_of_masks(scratch: Path, result: Result) -> str:
    masks = [str(path) for path in (scratch / "out").rglob("*.png") if str(path.relative_to(scratch)).count("out") > 1]
    return f"labeled its own output: {masks[0]}" if masks else ""


def _four_samples(scratch: Path, result: Result) -> str:
    count = sum(1 for path in (scratch / "out").rglob("*.png") if path.parent.name != "out" or "a_b" in path.name)
    return "" if count >= 4 else f"{count} files of 4 samples"


# ------------------------------------------------------------------------------------------------- YAML

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(9)
)


def yaml_text(text: str, *, first: bool = False) -> SpoilFile:
    """More lines in a config."""
    return lambda path, rng: path.write_text(text + path.read_text() if first else path.read_text() + text)


BAD_YAML: dict[str, SpoilFile] = {
    **{name: NOT_A_FILE[name] for name in ("missing", "directory", "fifo", "link to itself", "unreadable")},
    "noise": spoil.GARBAGE["noise"],
    "zeros": spoil.GARBAGE["zeros"],
    "UTF-16": spoil.encoded("utf-16-be"),
    "Latin-1": spoil.encoded("latin-1", "# \u00e9\n"),
    "tabs": yaml_text("data:\n\troot: x\n"),
    "a section twice": yaml_text("training:\n  lr: 1\n"),
    "a key twice": lambda path, rng: path.write_text(path.read_text().replace("steps: 2", "steps: 2\n  steps: 3")),
    "a bomb": yaml_text(BOMB),
    "a bomb in a value": yaml_text(f"{BOMB}model: *i\n"),
    "itself": yaml_text("joint: &a {x: *a}\n"),
    "a list of itself": spoil.write("&a [*a]\n"),
    "deep": yaml_text("joint: " + "[" * 5000 + "]" * 5000 + "\n"),
    "deep mappings": yaml_text("joint: " + "{a: " * 3000 + "1" + "}" * 3000 + "\n"),
    "5000 digits": lambda path, rng: path.write_text(path.read_text().replace("steps: 2", "steps: " + "9" * 5000)),
    "python object": yaml_text("joint: !!python/object/apply:os.mkdir [pwned]\n"),
    "a tag": yaml_text("joint: !thing {}\n"),
    "two documents": yaml_text("---\ntask: joint\n"),
    "a list": spoil.write("[1, 2]\n"),
    "a number": spoil.write("7\n"),
    "a text": spoil.write("hello\n"),
    "an alias of nothing": yaml_text("joint: *nothing\n"),
    "unknown key": yaml_text("nonsense: 1\n"),
    "unknown key with escape codes": yaml_text(f'"{json.dumps(ESCAPE)[1:-1]}": 1\n'),
    "key of a number": yaml_text("1: 2\n"),
    "key of a list": yaml_text("? [a]\n: 1\n"),
    "key null": yaml_text("null: 1\n"),
    "section is a text": yaml_text("joint: yes please\n"),
    "other task": lambda path, rng: path.write_text(
        path.read_text().replace("task: segmentation", "task: sgmentation")
    ),
}
GOOD_YAML: dict[str, SpoilFile] = {
    "BOM": spoil.encoded("utf-8-sig"),
    "CRLF": lambda path, rng: path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n")),
    "mixed_precision: no": lambda path, rng: path.write_text(path.read_text() + "  mixed_precision: no\n"),
    "a comment": yaml_text("# \U0001f408 the end\n"),
}
YAML_COMMANDS = {
    "train": TRAIN_SEG,
    "check": CHECK_SEG,
    "stats": STATS_SEG,
    "benchmark": BENCHMARK,
}
LENGTH = ("training.steps", "training.epochs", "diffusion.preview_steps", "diffusion.preview_per_class")
"""Keys whose large values are long work and not a fault: they are printed, not trained."""


@cache
def leaves(task: str) -> tuple[str, ...]:
    """The dotted keys of a config that hold values."""
    from unetdiff.config.schema import LEAVES

    return tuple(key for key in LEAVES if not key.startswith("training.output_dir"))


def yaml_cases() -> Iterator[Case]:
    """Config files."""
    for name, spoiler in BAD_YAML.items():
        for what, argv in YAML_COMMANDS.items():
            how = at("seg.yaml", spoiler)
            yield Case("yaml", f"{name}, {what}", argv, SEG, how, "refused", written=("out",))
    for name, spoiler in GOOD_YAML.items():
        yield Case("yaml", f"{name}, train", TRAIN_SEG, SEG, at("seg.yaml", spoiler), "accepted", check=trained)
        yield Case("yaml", f"{name}, check", CHECK_SEG, SEG, at("seg.yaml", spoiler), "accepted")
    for value, expect in {
        "010": "either",
        "1:30": "refused",
        "0x10": "either",
        "1_0": "either",
        "2.0": "either",
    }.items():
        argv = ("train", "segmentation", "seg.yaml", "--print_config")
        how = swap("steps: 2", f"steps: {value}", "seg.yaml")
        yield Case("yaml", f"steps: {value}", argv, SEG, how, expect, check=_steps_as_written(value))  # type: ignore[arg-type]
    named = {
        "data.size": ("[1, 1]", "[0, 0]", "[-1, 5]", "[1000000, 1000000]", "[]", "[32]"),
        "data.augment.crop": ("[1, 1]", "[0, 1]", "[100000, 100000]"),
        "model.encoder.channels": ("[4, 8, 8, 8, 8, 8, 8, 8, 8, 8]", "[" + "4, " * 39 + "4]", "[1000000000, 8]", "[]"),
        "model.patch_size": ("1000", "0", "-1", "33"),
        "model.encoder.weights": ("imagenet", "nowhere.safetensors", "/dev/null"),
        "model.encoder.name": ("resnet18", "mobilenet_v2", "sgmentation"),
        "data.scenes.train_images": ("2000000000", "0", "-1"),
        "training.batch_size": ("0", "-1", "1000000000", "18446744073709551616"),
        "training.num_workers": ("-1", "100000"),
        "training.seed": ("18446744073709551616", "-1", "9223372036854775808"),
        "training.output_dir": ("''", ".", "voc", "~"),
        "data.root": ("''", "/", ".", "seg.yaml", "/proc"),
        "segmentation.losses": ("{}", "{nonsense: 1}", "{dice: nan}", "{dice: -1}", "{dice: 0}"),
    }
    for key, values in named.items():
        for value in values:
            text = "" if value == "''" else value
            yield Case("yaml", f"{key}={value[:40]}", (*TRAIN_SEG, f"--{key}={text}"), SEG)
            task = "diffusion" if not key.startswith("segmentation") else "segmentation"
            base = TRAIN_DIFF if task == "diffusion" else TRAIN_SEG
            yield Case(
                "yaml", f"{key}={value[:40]}, {task} again", (*base, f"--{key}={text}"), ("images", "diff.yaml", *SEG)
            )


def _steps_as_written(value: str) -> Any:
    def check(scratch: Path, result: Result) -> str:
        found = re.search(r"^  steps: (.*)$", result.stdout, re.MULTILINE)
        read = found[1] if found else "nothing"
        right = {"010": "10", "0x10": "16", "1_0": "10", "2.0": "2"}[value]
        return "" if read == right else f"steps: {value} was read as {read}"

    return check


def yaml_mutations(number: int) -> Case:
    """A random key with a hostile value, or the bytes of the file mutated."""
    task = ("seg", "diff", "joint")[number % 3]
    uses = {"seg": SEG, "diff": ("images", "diff.yaml"), "joint": ("joint.yaml",)}[task]
    name = str(CONFIGS[task]["task"])
    argv = ("train", name, f"{task}.yaml", "--output_dir", "out")
    rng = random.Random(number)
    if number % 4 == 0:
        return Case("yaml", f"bytes {number}", argv, uses, at(f"{task}.yaml", spoil.mutate_bytes))
    key, value = rng.choice(leaves(name)), rng.choice(spoil.VALUES)
    if key in LENGTH and value not in (-1, 0, None, "", "x"):
        argv = (*argv, "--print_config")

    def change(scratch: Path, rng: random.Random) -> None:
        tree = yaml.safe_load((scratch / f"{task}.yaml").read_text())
        node = tree
        *parents, last = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
        (scratch / f"{task}.yaml").write_text(yaml.safe_dump(tree))

    return Case("yaml", f"{task} {key}={value!r:.40} {number}", argv, uses, change)
