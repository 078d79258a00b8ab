"""Broken checkpoints, model directories and records, met by every command that reads them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attacks import spoil
from attacks.case import PWNED, Case
from attacks.data_cases import PREDICT, SAMPLE, SEG, TRAIN_SEG, at, predicted
from attacks.material import THREE_STEPS
from attacks.process import Result
from attacks.spoil import ESCAPE, JSON_FAULTS, SpoilFile, set_json
from attacks.tensor_files import BAD_TENSORS, ODD_TENSORS, only_pickle

RESUME = ("train", "segmentation", "seg.yaml", "--output_dir", "half", *THREE_STEPS, "--resume")
RESUMED = (*SEG, "half", "whole")
NEWEST = "half/checkpoints/step-00000002"
PROMPT = ("sample", "text", *SAMPLE[2:], "--prompt", "a red one")
STOCK = ("sample", "stock", *SAMPLE[2:])
UNET = "diffusion_pytorch_model.safetensors"
PHOTOS = ("seg", "photos")


def as_uninterrupted(scratch: Path, result: Result) -> str:
    """Of a resumed run: its weights are those of the uninterrupted one."""
    for name in ("model", "ema", "optimizer"):
        file = f"checkpoints/step-00000003/{name}.safetensors"
        if (scratch / "half" / file).read_bytes() != (scratch / "whole" / file).read_bytes():
            return f"{name}.safetensors differs from that of the uninterrupted run"
    return ""


# ------------------------------------------------------------------------------------------ checkpoints

STATE_VALUES: dict[str, tuple[Any, ...]] = {
    "step": (-1, 0, 1, 3, 10**9, 2**64, 1.5, "2", None, float("nan"), [2], True),
    "images": (-4, 0, 5, 2**64, 4.5, None, "4"),
    "minutes": (-1, float("nan"), float("inf"), "x", None),
    "best": ("x", float("nan"), float("inf"), [], True),
    "best_step": (-1, 10**9, "x", 1.5),
    "validated": (-5, 10**9, "x"),
    "nonfinite": (-1, 10**9, "x", None, 5),
    "planned": (0, -1, 1, "x", 2**64),
    "replanned": (None, "x", [1], [{}], {"a": 1}),
    "scaler": ({"scale": "x"}, None, [], {"_growth_tracker": -1}),
    "init_from": ("x", 3, []),
}


def checkpoint_cases() -> Iterator[Case]:
    """What `--resume` reads: an accepted checkpoint gives the weights of an unbroken one."""
    state = f"{NEWEST}/state.json"
    for name, spoiler in JSON_FAULTS.items():
        yield Case("checkpoint", f"state {name}", RESUME, RESUMED, at(state, spoiler), check=as_uninterrupted)
    yield Case("checkpoint", "state later version", RESUME, RESUMED, at(state, set_json("later", 1)), "either")
    for key, values in STATE_VALUES.items():
        for value in values:
            how = at(state, set_json(key, value))
            yield Case("checkpoint", f"state {key}={value!r}", RESUME, RESUMED, how, check=as_uninterrupted)
    for part in ("model", "ema", "optimizer"):
        for name, spoiler in BAD_TENSORS.items():
            file = f"{part}.safetensors"
            yield Case(
                "checkpoint", f"{part} {name}", RESUME, RESUMED, at(f"{NEWEST}/{file}", spoiler), "refused", file
            )
        for name, spoiler in ODD_TENSORS.items():
            yield Case("checkpoint", f"{part} {name}", RESUME, RESUMED, at(f"{NEWEST}/{part}.safetensors", spoiler))

    def mixed(scratch: Path, rng: random.Random) -> None:
        old = scratch / "half/checkpoints/step-00000001"
        (scratch / NEWEST / "optimizer.safetensors").write_bytes((old / "optimizer.safetensors").read_bytes())

    yield Case("checkpoint", "optimizer of another step", RESUME, RESUMED, mixed, "refused", "optimizer")

    def renamed(scratch: Path, rng: random.Random) -> None:
        (scratch / NEWEST).rename(scratch / "half/checkpoints/step-00000007")

    yield Case("checkpoint", "folder of another step", RESUME, RESUMED, renamed, "refused")
    strangers: dict[str, SpoilFile] = {
        "step-99999999": spoil.directory,
        "step-00000009": spoil.write("a file"),
        "step-abc/state.json": spoil.write("{}"),
        ".old-step-00000002/state.json": spoil.write("{}"),
        ".writing-step-00000003/model.safetensors": spoil.write("half"),
        ".writing-step-00000002": spoil.write("a file"),
    }
    for name, spoiler in strangers.items():
        how = at(f"half/checkpoints/{name}", spoiler)
        yield Case("checkpoint", f"extra {name}", RESUME, RESUMED, how, "either", check=as_uninterrupted)
    for name in (".writing-latest/unet/config.json", ".old-best/unet/config.json", ".writing-config.yaml"):
        yield Case(
            *("checkpoint", f"extra {name}", RESUME, RESUMED, at(f"half/{name}", spoil.write("{}")), "accepted"),
            check=as_uninterrupted,
        )
    for name, spoiler in {"noise": spoil.GARBAGE["noise"], "empty": spoil.write(b""), **JSON_FAULTS}.items():
        how = at("half/metrics.jsonl", spoiler)
        yield Case("checkpoint", f"metrics {name}", RESUME, RESUMED, how, "either", check=as_uninterrupted)
    for name in ("no step", "a list", "half a line", "NaN"):
        lines = {"no step": b'{"kind": "train"}\n', "a list": b"[1]\n", "half a line": b'{"kind": "tr', "NaN": b"NaN\n"}
        how = at("half/metrics.jsonl", spoil.append(lines[name]))
        yield Case("checkpoint", f"metrics {name}", RESUME, RESUMED, how, "either", check=as_uninterrupted)


def checkpoint_mutations(number: int) -> Case:
    """state.json mutated, or the bytes of a tensor file's header."""
    if number % 2 == 0:
        how = at(f"{NEWEST}/state.json", spoil.mutate_json)
        return Case("checkpoint", f"state {number}", RESUME, RESUMED, how)
    part = ("model", "ema", "optimizer")[number // 2 % 3]
    return Case(
        "checkpoint", f"{part} {number}", RESUME, RESUMED, at(f"{NEWEST}/{part}.safetensors", spoil.mutate_bytes)
    )


# ------------------------------------------------------------------------------------ model directories

MODEL_FILES: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("seg/best/unet/config.json", PREDICT, PHOTOS),
    ("seg/best/segmentation.json", PREDICT, PHOTOS),
    ("diff/best/model_index.json", SAMPLE, ("diff",)),
    ("diff/best/scheduler/scheduler_config.json", SAMPLE, ("diff",)),
    ("diff/best/conditioner/config.json", SAMPLE, ("diff",)),
    ("diff/best/unet/config.json", SAMPLE, ("diff",)),
    ("text/best/text_encoder/config.json", PROMPT, ("text",)),
    ("text/best/tokenizer/tokenizer.json", PROMPT, ("text",)),
    ("text/best/tokenizer/tokenizer_config.json", PROMPT, ("text",)),
    ("text/best/conditioner/config.json", PROMPT, ("text",)),
    ("stock/unet/config.json", STOCK, ("stock",)),
    ("stock/model_index.json", STOCK, ("stock",)),
)
"""JSON of a model directory with a command that reads it."""
TENSOR_FILES: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    (f"seg/best/unet/{UNET}", PREDICT, PHOTOS),
    (f"seg/best/unet/{UNET}", ("evaluate", "seg", "--output", "out"), ("seg", "voc")),
    (f"seg/best/unet/{UNET}", ("export", "seg", "--format", "torch", "--output", "x.pt2"), ("seg",)),
    (f"seg/best/unet/{UNET}", (*TRAIN_SEG, "--training.init_from", "seg"), ("seg", *SEG)),
    (f"diff/best/unet/{UNET}", SAMPLE, ("diff",)),
    (f"diff/best/conditioner/{UNET}", SAMPLE, ("diff",)),
    (f"stock/unet/{UNET}", STOCK, ("stock",)),
    ("text/best/text_encoder/model.safetensors", PROMPT, ("text",)),
)  # fmt: skip
MODEL_VALUES: dict[str, dict[str, tuple[Any, ...]]] = {
    "seg/best/unet/config.json": {
        "encoder.channels": ([10**9, 10**9], [4] * 40, [4], [4, 9], [0, 0], [-4, 8], ["a", "b"], [], [4.5, 8]),
        "encoder.name": ("residual", "nonsense", ESCAPE, "resnet18", None),
        "in_channels": (1, 4, 0, -1, 10**9),
        "sample_size": (-1, 2**40, "x"),
        "patch_size": (2, 0, 1000, -1),
        "heads": (None, {}, {"segmentation": 0}, {"segmentation": 10**9}, {"segmentation": "x"}, "x"),
    },
    "seg/best/segmentation.json": {
        "classes": (["a", "b"], ["a", "b", "c", "d"], [], None, [1, 2, 3], "abc", ["a", "a", "b"], [ESCAPE, "b", "c"]),
        "palette": ([], [[0, 0, 0]] * 4, [[300, 0, 0]] * 3, [[-1, 0, 0]] * 3, [[0.5, 0, 0]] * 3, None, "x"),
        "size": ([10**6, 10**6], 10**9, [0, 0], [-1, 5], [2**40, 1], "x", [32], [32.5, 3]),
        "ignore_index": (-1, 2**64, None, "x", 1.5),
        "inference": (
            {},
            None,
            [],
            {"tile": [2**40, 2]},
            {"scales": [1e9]},
            {"scales": [float("nan")]},
            {"x": 1},
            {"batch_size": 2**64},
            {"scales": [1e-9]},
            {"overlap": float("nan")},
        ),
    },
    "diff/best/scheduler/scheduler_config.json": {
        "num_train_timesteps": (10**9, 0, -1, "x", None, 2.5, 3),
        "beta_schedule": ("nonsense", None, 3),
        "prediction_type": ("epsilon", "nonsense", None, 3),
        "trained_betas": ([2.0] * 3, "x", [float("nan")] * 1000, [0.1]),
        "beta_start": (float("nan"), -1, 2, "x"),
        "timestep_spacing": ("nonsense", 3),
        "steps_offset": (-5, 10**9, "x"),
        "_class_name": ("os.system", "Nonsense", None, "PNDMScheduler", ESCAPE),
    },
    "diff/best/conditioner/config.json": {
        "labels": ([], ["a"], None, [1, 2], ["cat", "cat"], [ESCAPE, "b"], ["x"] * 5),
        "_class_name": ("os.system", "TextConditioner", None),
        "tokens": (0, 10**9, -1, "x"),
        "dim": (0, 10**9, -1, "x"),
    },
    "diff/best/model_index.json": {
        "unet": (["evil", "Evil"], ["os", "system"], ["diffusers", "UNet2DModel"], None, "x", ["unetdiff.models.unet"]),
        "scheduler": (["evil", "Evil"], ["diffusers", "Nonsense"], ["subprocess", "Popen"], [None, None], 3),
        "conditioner": (["evil", "Evil"], [None, None], ["unetdiff.diffusion.conditioning.text", "TextConditioner"]),
        "more": (["evil", "Evil"],),
        "_class_name": ("Evil", ["evil", "Evil"], "StableDiffusionPipeline", None, 3),
    },
    "text/best/text_encoder/config.json": {
        "model_type": ("nonsense", None, "t5", ESCAPE),
        "hidden_size": (0, 10**9, 9, "x"),
        "vocab_size": (0, 10**9, 2),
        "auto_map": ({"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"},),
    },
    "stock/unet/config.json": {
        "block_out_channels": ([10**9, 8], [], [7, 8], None),
        "_class_name": ("UNet3DConditionModel", "os.system", None),
        "in_channels": (1, 4, 10**9),
    },
}
HOPELESS = ("evil", "'os'", "subprocess", "onsense", "1000000000")
"""Values that must be refused contain one of these."""


def evil(scratch: Path) -> None:
    """A module next to every config that shows when it is imported."""
    code = f"import os\nos.mkdir({str(scratch / PWNED)!r})\nclass Evil: pass\n"
    for config in [*scratch.rglob("config.json"), *scratch.rglob("model_index.json")]:
        (config.parent / "evil.py").write_text(code)


def model_cases() -> Iterator[Case]:
    """Model directories."""
    for path, argv, uses in MODEL_FILES:
        for name, spoiler in JSON_FAULTS.items():
            lenient = path.endswith("tokenizer_config.json")
            yield Case("model", f"{path} {name}", argv, uses, at(path, spoiler), "either" if lenient else "refused")
    for path, argv, uses in MODEL_FILES:
        for key, values in MODEL_VALUES.get(path, {}).items():
            for value in values:

                def change(
                    scratch: Path, rng: random.Random, path: str = path, key: str = key, value: Any = value
                ) -> None:
                    evil(scratch)
                    set_json(key, value)(scratch / path, rng)

                hopeless = key not in ("auto_map", "_class_name") and any(word in repr(value) for word in HOPELESS)
                yield Case(
                    *("model", f"{path} {key}={value!r:.60}", argv, uses, change),
                    expect="refused" if hopeless else "either",
                    check=predicted if argv == PREDICT else None,
                )
    for path, argv, uses in TENSOR_FILES:
        for name, spoiler in {**BAD_TENSORS, "only pickles": only_pickle}.items():
            yield Case("model", f"{argv[0]} {path} {name}", argv, uses, at(path, spoiler), "refused")
        for name, spoiler in ODD_TENSORS.items():
            expect: Any = "refused" if name in ("NaN", "infinite") and argv[0] in ("predict", "sample") else "either"
            expect = "either" if "text_encoder" in path else expect
            yield Case("model", f"{argv[0]} {path} {name}", argv, uses, at(path, spoiler), expect)


def model_mutations(number: int) -> Case:
    """A config mutated, or the bytes of a tensor file."""
    if number % 4:
        path, argv, uses = MODEL_FILES[number % len(MODEL_FILES)]
        return Case("model", f"{path} {number}", argv, uses, at(path, spoil.mutate_json))
    path, argv, uses = TENSOR_FILES[number // 4 % len(TENSOR_FILES)]
    return Case("model", f"{argv[0]} {path} {number}", argv, uses, at(path, spoil.mutate_bytes))


# ---------------------------------------------------------------------------------------------- records

COMPARE = ("compare", "seg", "--output", "r.html")
COMPARE_RECORD = ("compare", "--experiments", "record", "--output", "r.html")
RECORDS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("seg/summary.json", COMPARE, ("seg", "voc")),
    ("seg/metrics.jsonl", COMPARE, ("seg", "voc")),
    ("seg/config.yaml", COMPARE, ("seg", "voc")),
    ("record/record.json", COMPARE_RECORD, ("record",)),
    ("seg/config.yaml", ("evaluate", "seg", "--output", "out"), ("seg", "voc")),
    ("seg/config.yaml", ("benchmark", "seg", "--rounds", "1", "--warmups", "0", "--no_memory"), ("seg", "voc")),
)


def record_cases() -> Iterator[Case]:
    """Records of runs and experiments."""
    for path, argv, uses in RECORDS:
        for name, spoiler in JSON_FAULTS.items():
            expect: Any = "either" if "jsonl" in path or "summary" in path or "yaml" in path else "refused"
            yield Case(
                "record", f"{path} {name}, {argv[0]}", argv, uses, at(path, spoiler), expect, precious=("seg/best",)
            )
        how = at(path, spoil.missing)
        yield Case("record", f"{path} missing, {argv[0]}", argv, uses, how, "either")
    for name, line in {
        "a list": b"[1]\n",
        "no step": b'{"kind": "validation"}\n',
        "step text": b'{"kind": "train", "step": "x", "loss": "y"}\n',
        "NaN": b'{"kind": "train", "step": 3, "loss": NaN}\n',
        "half": b'{"kind": "trai',
        "deep": b"[" * 99_999 + b"\n",
        "huge step": b'{"kind": "train", "step": 1e400, "loss": 1, "images": 99999999999999999999999}\n',
    }.items():
        yield Case(
            "record", f"metrics line {name}", COMPARE, ("seg", "voc"), at("seg/metrics.jsonl", spoil.append(line))
        )
    images: dict[str, Any] = {
        "outside": "../secret.png",
        "absolute": "/etc/hostname",
        "missing": "images/nothing.png",
        "escape codes": ESCAPE,
        "null": None,
        "text": "record.json",
        "FIFO": "pipe",
    }
    for name, value in images.items():

        def gallery(scratch: Path, rng: random.Random, value: Any = value) -> None:
            spoil.fifo(scratch / "record/pipe", rng)
            spoil.saved(spoil.noise_image(40, 40), "PNG")(scratch / "secret.png", rng)
            path = scratch / "record/record.json"
            tree = json.loads(path.read_text())
            _replace_images(tree, value)
            path.write_text(json.dumps(tree))

        yield Case("record", f"gallery {name}", COMPARE_RECORD, ("record",), gallery, "refused")
    runs = {"a run twice": ("compare", "seg", "seg"), "a file": ("compare", "seg.yaml"), "no run": ("compare", "voc")}
    for name, argv in runs.items():
        yield Case("record", name, (*argv, "--output", "r.html"), ("seg", *SEG), expect="either")


def _replace_images(tree: Any, value: Any) -> None:
    for key, node in tree.items() if isinstance(tree, dict) else enumerate(tree):
        if isinstance(node, dict | list):
            _replace_images(node, value)
        elif isinstance(node, str) and node.endswith(".png"):
            tree[key] = value


def record_mutations(number: int) -> Case:
    """A record mutated."""
    path, argv, uses = RECORDS[(0, 3, 1)[number % 3]]
    how: SpoilFile = spoil.mutate_bytes if "jsonl" in path else spoil.mutate_json
    return Case("record", f"{path} {number}", argv, uses, at(path, how))
