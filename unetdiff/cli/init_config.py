"""The config that `unetdiff init` writes: plain YAML, every choice with its reason."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from unetdiff.cli.init_facts import RARE, Facts
from unetdiff.errors import as_yaml
from unetdiff.files.records import dump_yaml

COLUMN = 40
"""Of the comments."""
SAMPLES_PER_RUN, MIN_EPOCHS, MAX_EPOCHS, MAX_SAMPLES = 16_000, 48, 300, 200_000
"""Length of a segmenter's training: this many images, but between these numbers of epochs, and at most this many."""
MIN_STEPS = 300
"""Of a segmenter, however few its images are: its decoder starts at random weights."""
DENOISER_SAMPLES, DENOISER_EPOCHS = 640_000, 1000
"""Length of a denoiser's training: this many images, but at most so many epochs."""
FEW = 500
"""Images of which a denoiser's batches are half as large: twice the steps in the same epochs."""
CROP_AREA = {"cpu": 256 * 256, "gpu": 512 * 512}
LONGEST_SIDE = {"cpu": 320, "gpu": 640}
IMBALANCED = 20
"""Ratio of the pixels of the largest class to those of the smallest."""


def config_text(facts: Facts, name: str, output: Path, weights: str) -> str:
    """The YAML of a config for a dataset."""
    machine = "gpu" if torch.cuda.is_available() else "cpu"
    head = [
        f"# {facts.found.kind}. Images: {facts.images}",
        f"# unetdiff train {facts.found.task} {output}",
        *([f"# Note: {facts.found.hint}"] if facts.found.hint else []),
        f"task: {facts.found.task}",
    ]
    if facts.found.task == "segmentation":
        return "\n".join([*head, *_segmentation(facts, name, weights, machine)]) + "\n"
    return "\n".join([*head, *_diffusion(facts, name)]) + "\n"


def next_commands(facts: Facts, name: str, output: Path) -> list[str]:
    """The commands that follow."""
    train = f"unetdiff train {facts.found.task} {output}"
    if facts.found.task == "segmentation":
        image = "IMAGES" if facts.example is None else shlex.quote(str(facts.example))
        return [f"unetdiff data check {output}", train, f"unetdiff predict runs/{name} {image} --output predictions"]
    option = {"class": f" --class {_quoted(facts.classes[0])}" if facts.classes else "", "text": ' --prompt "..."'}
    return [train, f"unetdiff sample runs/{name}{option.get(facts.found.condition, '')}"]


def _quoted(text: str) -> str:
    return f"'{text}'" if " " in text else text


def line(depth: int, key: str, value: Any, reason: str = "") -> str:
    """`key: value   # reason` at a depth of indentation."""
    text = f"{'  ' * depth}{key}: {_yaml(value)}" if value is not _SECTION else f"{'  ' * depth}{key}:"
    return f"{text:<{COLUMN}} # {reason}" if reason else text


_SECTION = object()


def _yaml(value: Any) -> str:
    if isinstance(value, Mapping | list):
        return dump_yaml(value).strip() if not value else _flow(value)
    if value is None or isinstance(value, bool | int):
        return as_yaml(value)
    if isinstance(value, float):
        return f"{value:g}" if 1e-3 <= value < 1e6 else f"{value:.1e}"
    return dump_yaml(str(value)).strip().removesuffix("\n...").strip()


def _flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_yaml(name)}: {_flow(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_flow(item) for item in value) + "]"
    return _yaml(value)


def data_lines(facts: Facts) -> list[str]:
    """The keys of `data:` that were found."""
    found, lines = facts.found, [line(0, "data", _SECTION)]
    lines.append(line(1, "name", found.keys["name"], found.reasons.get("name", found.kind)))
    reason = "" if found.root.is_absolute() else "from where the commands are run"
    lines.append(line(1, "root", found.root.as_posix(), reason))
    for key, value in found.keys.items():
        if key == "mask_colors" and isinstance(value, Mapping):
            lines.append(line(1, key, _SECTION, f"{found.reasons[key]}: name them, `void` for what is ignored"))
            lines += [line(2, name, color) for name, color in value.items()]
        elif key != "name":
            lines.append(line(1, key, value, found.reasons.get(key, "")))
    if facts.image_range is not None:
        lines.append(line(1, "image_range", None, f"from the training images: {facts.range_text}"))
    return lines


def _segmentation(facts: Facts, name: str, weights: str, machine: str) -> list[str]:
    height, width = facts.median_size
    varied, longest = not facts.one_size, LONGEST_SIDE[machine]
    scale_to = longest if (varied and max(height, width) > longest) or max(height, width) > 3 * longest else None
    factor = 1.0 if scale_to is None else scale_to / max(height, width)
    crop = _crop(height * factor, width * factor, CROP_AREA[machine])
    batch = 8 if facts.num_train < 1000 else 16
    epochs, why = _epochs(facts.num_train, batch)
    samples = epochs * facts.num_train
    encoder = "mobilenet_v2" if machine == "cpu" else "resnet50"
    where = {"cpu": "light: this machine has no GPU", "gpu": "this machine has a GPU"}[machine]
    is_pretrained = weights not in ("null", "none")
    source = {"imagenet": "downloaded once by torchvision; without a network give a safetensors file, or null"}
    lines = [
        line(0, "model", _SECTION),
        line(1, "encoder", _SECTION),
        line(2, "name", encoder, where),
        line(2, "weights", weights if is_pretrained else None, source.get(weights, "" if is_pretrained else "random")),
        line(1, "decoder", _SECTION),
    ]
    if varied:
        lines.append(line(2, "channels", [192, 96, 64], "stops at a quarter of the size: objects more than outlines"))
        lines.append(line(2, "upsample", "bilinear"))
    else:
        lines.append(line(2, "channels", [128, 64, 48, 32], "stops at half the size: thin structures stay"))
    lines += data_lines(facts)
    if scale_to is not None:
        lines.append(line(1, "longest_side", scale_to, f"images have {width} x {height} (median); masks keep theirs"))
    if facts.counts is not None and len(facts.classes) > 4 and facts.image_fraction < RARE and facts.num_train >= 200:
        reason = f"the rarest class is in {facts.image_fraction:.1%} of the images: these are drawn more often"
        lines.append(line(1, "repeat_factor_threshold", RARE, reason))
    jitter = [0.5, 1.5] if varied else [0.75, 1.5]
    lines += [
        line(1, "augment", _SECTION),
        line(2, "flip", True, "false where left and right differ in meaning, e.g. letters"),
        line(2, "scale", jitter, "sizes vary" if varied else "all images have one size: little"),
        line(2, "crop", crop, "training crops, multiples of 32; validation sees whole images"),
        line(2, "color", 0.3, "brightness, contrast and saturation"),
        line(0, "segmentation", _SECTION),
        line(1, "losses", {"cross_entropy": 1.0, "dice": 1.0}, "per pixel, and per class whatever its size"),
    ]
    if facts.counts is not None and facts.ratio > IMBALANCED and not varied:
        reason = f"pixels of classes differ {facts.ratio:.0f}-fold"
        lines.append(line(1, "class_weights", "median_frequency", reason))
        lines.append(
            line(1, "class_weights_anneal_until", 0.5, "to 1 at half of the run: kept, they cost accuracy elsewhere")
        )
    lines += [
        line(0, "training", _SECTION),
        line(1, "output_dir", f"runs/{name}"),
        line(1, "epochs", epochs, f"{round(samples / batch):,} steps; {why}"),
        line(1, "batch_size", batch),
        line(1, "eval_batch_size", 8 if varied else 4),
    ]
    if is_pretrained:
        lines.append(line(1, "frozen_levels", 2, "the first filters are generic"))
    lines += [
        line(1, "optimizer", _SECTION),
        line(2, "lr", 1e-3, "decoder and head"),
        *([line(2, "encoder_lr", 5e-4, "the pretrained encoder")] if is_pretrained else []),
        line(2, "weight_decay", 0.05 if facts.num_train >= 1000 else 0.01),
        line(1, "ema", _SECTION),
        line(2, "half_life_images", rounded(min(4000, max(100, samples // 16))), "a sixteenth of the run at most"),
    ]
    return lines


def _epochs(images: int, batch: int) -> tuple[int, str]:
    """Length of a segmenter's training on so many images, and why."""
    if images * MAX_EPOCHS < MIN_STEPS * batch:
        return math.ceil(MIN_STEPS * batch / images), "fewer teach a new decoder little"
    if MAX_EPOCHS * images <= SAMPLES_PER_RUN:
        return MAX_EPOCHS, "more passes over few images overfit"
    if MIN_EPOCHS * images <= SAMPLES_PER_RUN:
        return rounded(SAMPLES_PER_RUN / images, 2), f"{SAMPLES_PER_RUN:,} images, augmented"
    epochs = max(1, min(MIN_EPOCHS, MAX_SAMPLES // images))
    return epochs, "each image with many augmentations" if epochs == MIN_EPOCHS else f"{MAX_SAMPLES:,} images at most"


def _denoiser_epochs(images: int) -> tuple[float, str]:
    """Length of a denoiser's training on so many images, and why."""
    if images * DENOISER_EPOCHS <= DENOISER_SAMPLES:
        return DENOISER_EPOCHS, "with more, a denoiser copies its few images"
    epochs = DENOISER_SAMPLES / images
    return rounded(epochs, 2) if epochs >= 10 else float(f"{epochs:.2g}"), f"{DENOISER_SAMPLES:,} images"


def _crop(height: float, width: float, area: int) -> list[int]:
    """A crop of the image's aspect and at most `area` pixels, in multiples of 32 where the image is that large."""
    factor = min(1.0, (area / (height * width)) ** 0.5)
    return [max(32, int(side * factor) // 32 * 32) for side in (height, width)]


def rounded(number: float, digits: int = 1) -> int:
    """A number of at least 1, down to so many significant digits."""
    unit = 10 ** max(0, len(str(int(number))) - digits)
    return max(1, int(number) // unit) * unit


def _diffusion(facts: Facts, name: str) -> list[str]:
    condition = facts.found.condition
    side = 64 if min(facts.median_size) >= 48 else 32
    patch = 2 if side == 64 else 1
    batch = 16 if facts.num_train < FEW else 32
    epochs, why = _denoiser_epochs(facts.num_train)
    samples = epochs * facts.num_train
    lines = [
        line(0, "model", _SECTION),
        line(1, "sample_size", side, "of the samples; same as data.size"),
        line(1, "patch_size", patch, "2 x 2 pixels become one position: a quarter of the cost" if patch == 2 else ""),
        line(1, "encoder", _SECTION),
        line(2, "name", "residual", "blocks of DDPM and Stable Diffusion"),
        line(2, "channels", [64, 128, 192, 192]),
        line(1, "residual", {"layers_per_block": 1, "norm_num_groups": 16, "time_scale_shift": "scale_shift"}),
        line(1, "conditioning", _SECTION),
    ]
    if condition != "none":
        lines.append(line(2, "cross_attention_dim", 128, f"width of the {condition} tokens"))
        lines.append(line(2, "pooled_context", True, "they reach every block through the time embedding, too"))
    lines += [
        line(2, "attention_levels", [1, 2, 3] if condition == "text" else [2, 3], "the coarsest maps"),
        line(2, "attention_head_dim", 32),
        *data_lines(facts),
        line(1, "size", [side, side], "the short side is resized, the center is cropped"),
        line(1, "augment", {"flip": condition != "text"}, "false where left and right differ, as in captions"),
        line(0, "diffusion", _SECTION),
        line(1, "prediction_type", "v_prediction"),
        line(1, "weighting", "uniform", "with v-prediction: learns fastest in short runs"),
        line(1, "condition", condition, {"none": "no classes, no captions"}.get(condition, facts.found.kind)),
    ]
    if condition != "none":
        lines.append(line(1, "condition_dropout", 0.1, "for classifier-free guidance"))
    if condition == "text":
        lines.append(line(1, "text", _SECTION))
        lines.append(
            line(2, "encoder", "openai/clip-vit-large-patch14", "any text encoder of transformers, by name or folder")
        )
    return [
        *lines,
        line(0, "training", _SECTION),
        line(1, "output_dir", f"runs/{name}"),
        line(1, "epochs", epochs, f"{round(samples / batch):,} steps; {why}"),
        line(1, "batch_size", batch),
        line(1, "eval_batch_size", 64),
        line(1, "optimizer", {"lr": 1e-3, "betas": [0.9, 0.99]}),
        line(1, "ema", {"half_life_images": rounded(min(20_000, max(100, samples // 16)))}),
    ]
