"""Runs whose batches are cut in several ways: the shipped configs and further losses, on made-up data."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from suite.stable_diffusion import write_stable_diffusion
from suite.text_encoder import write_text_encoder
from unetdiff.config.reading import parse
from unetdiff.config.schema import RunConfig
from unetdiff.data.prompt import COLORS, DIGITS

CONFIGS = Path(__file__).parents[2] / "configs"
CLASSES = ["background", "disc", "square"]
SIDE, IMAGES = 32, 12

RUN: dict[str, Any] = {
    "data.scenes.train_images": IMAGES,
    "data.scenes.val_images": 2,
    "training.epochs": None,
    "training.batch_size": 8,
    "training.num_workers": 0,
    "training.mixed_precision": "no",
    "training.ema.enabled": False,
    "training.log_every": 1000,
    "training.overwrite": True,
}
SMALL: dict[str, Any] = {
    "model.encoder.channels": [8, 16],
    "model.residual.norm_num_groups": 4,
    "model.residual.layers_per_block": 1,
    "model.conditioning.cross_attention_dim": 8,
    "model.conditioning.attention_levels": [1],
    "model.conditioning.attention_head_dim": 8,
    "model.sample_size": None,
}
VOC: dict[str, Any] = {
    "data.name": "voc_folder",
    "data.root": "voc",
    "data.train_split": "train",
    "data.val_split": "val",
}
FOLDER: dict[str, Any] = {"data.name": "image_folder", "data.root": "folder", "data.size": [SIDE, SIDE]}
BATCH_NORM: dict[str, Any] = {"model.encoder.weights": None, "training.batch_norm_images": 2}
CLASSIC: dict[str, Any] = {"model.encoder.name": "classic", "model.encoder.channels": [4, 8]}
NO_NORM: dict[str, Any] = {"model.encoder.norm": "none", "model.decoder.norm": "none"}
MASKS = {**SMALL, **VOC, "data.size": [SIDE, SIDE]}
SEGMENTATION = {**MASKS, "model.conditioning.timestep": False}
JOINT: dict[str, Any] = {**SMALL, "joint.segmentation_fraction": 0.25, "joint.diffusion_weight": 10.0}


PATHS = (
    "data.root",
    "data.regularization_root",
    "model.pretrained",
    "diffusion.text.encoder",
    "latent.vae",
    "diffusion.text.cache_dir",
)


@dataclass(frozen=True)
class Case:
    """A run: a task, a shipped config or none, and keys that replace its own."""

    task: str
    path: str | None = None
    keys: dict[str, Any] = field(default_factory=dict)

    def config(self, root: Path, steps: int, accumulation: int) -> RunConfig:
        """The run, with the data of `make_data` in `root`."""
        keys = {**RUN, **self.keys, "training.steps": steps, "training.gradient_accumulation_steps": accumulation}
        for key in PATHS:
            if keys.get(key) is not None:
                keys[key] = str(root / keys[key])
        keys["training.output_dir"] = str(root / f"run-of-{os.environ.get('WORLD_SIZE', 1)}")
        return parse(None if self.path is None else CONFIGS / f"{self.path}.yaml", keys, self.task)  # type: ignore[arg-type]


def _shipped(path: str, **keys: Any) -> Case:
    return Case(path.split("/")[0], path, keys)


TEXT = {"diffusion.text.encoder": "text", "diffusion.text.max_tokens": 8, "diffusion.text.cache_dir": "cache"}
PRETRAINED: dict[str, Any] = {
    "model.pretrained": "stable_diffusion",
    "data.root": "aspects",
    "data.size": [SIDE, SIDE],
    "data.bucket_step": 8,
    "diffusion.text.cache_dir": "cache",
}
LOSS = "segmentation.losses"
CASES: dict[str, Case] = {
    "diffusion/captioned_folder": _shipped(
        "diffusion/captioned_folder", **{**SMALL, **TEXT, "data.root": "captioned", "data.size": [SIDE, SIDE]}
    ),
    "diffusion/cifar10": _shipped("diffusion/cifar10", **{**SMALL, **FOLDER}),
    "diffusion/cifar10_gpu": _shipped("diffusion/cifar10_gpu", **{**SMALL, **FOLDER}),
    "diffusion/fashion_mnist": _shipped("diffusion/fashion_mnist", **{**SMALL, **FOLDER, "data.download": False}),
    "diffusion/flowers_latent": _shipped("diffusion/flowers_latent", **{**SMALL, **FOLDER, "latent.vae": "vae"}),
    "diffusion/flowers_pixels": _shipped("diffusion/flowers_pixels", **{**SMALL, **FOLDER}),
    "diffusion/image_folder": _shipped("diffusion/image_folder", **{**SMALL, **FOLDER}),
    "diffusion/scenes": _shipped("diffusion/scenes", **SMALL),
    "diffusion/scenes_text": _shipped("diffusion/scenes_text", **{**SMALL, **TEXT}),
    "diffusion/stable_diffusion": _shipped("diffusion/stable_diffusion", **PRETRAINED),
    "diffusion/voc_layout": _shipped("diffusion/voc_layout", **MASKS),
    "joint/camvid": _shipped("joint/camvid", **{**MASKS, "model.conditioning.cross_attention_dim": None}),
    "joint/scenes": _shipped("joint/scenes", **SMALL),
    "segmentation/camvid_mobilenet_v2": _shipped(
        "segmentation/camvid_mobilenet_v2",
        **{**VOC, **BATCH_NORM, "model.decoder.channels": [8, 8, 8], "data.augment.crop": [64, 64]},
    ),
    "segmentation/scenes": _shipped("segmentation/scenes", **SMALL),
    "segmentation/voc_mobilenet_v2": _shipped(
        "segmentation/voc_mobilenet_v2",
        **{**VOC, **BATCH_NORM, "model.decoder.channels": [8, 8, 8]},
        **{"data.longest_side": 64, "data.augment.crop": [64, 64]},
    ),
    "segmentation/voc_resnet50": _shipped(
        "segmentation/voc_resnet50",
        **{**VOC, **BATCH_NORM, "model.decoder.channels": [8, 8, 8], "data.augment.crop": [64, 64]},
    ),
    "segmentation/voc_resnet50_reference": _shipped(
        "segmentation/voc_resnet50_reference",
        **{**VOC, **BATCH_NORM, "model.decoder.channels": [8] * 5},
        **{"data.longest_side": 64, "data.augment.crop": [64, 64]},
    ),
    "classic, BatchNorm": Case("segmentation", None, {**VOC, **BATCH_NORM, **CLASSIC}),
    "valid padding": Case(
        "segmentation",
        None,
        {**VOC, "model.encoder.name": "classic", "model.encoder.channels": [4, 8], "model.encoder.padding": "valid"}
        | NO_NORM,
    ),
    "cross-entropy": Case("segmentation", None, {**SEGMENTATION, LOSS: {"cross_entropy": 1.0}}),
    "Dice": Case("segmentation", None, {**SEGMENTATION, LOSS: {"dice": 1.0}}),
    "focal": Case("segmentation", None, {**SEGMENTATION, LOSS: {"focal": 1.0}}),
    "OHEM": Case("segmentation", None, {**SEGMENTATION, "segmentation.ohem": {"threshold": 0.3, "min_fraction": 0.3}}),
    "class weights": Case(
        "segmentation",
        None,
        {
            **SEGMENTATION,
            LOSS: {"cross_entropy": 1.0, "focal": 1.0},
            "segmentation.class_weights": "median_frequency",
            "segmentation.class_weights_anneal_until": 0.5,
        },
    ),
    "label smoothing": Case(
        "segmentation", None, {**SEGMENTATION, LOSS: {"cross_entropy": 1.0}, "segmentation.label_smoothing": 0.1}
    ),
    "noisy segmentation, dropout": Case(
        "segmentation",
        None,
        {
            **SEGMENTATION,
            "model.conditioning.timestep": True,
            "model.residual.dropout": 0.2,
            "segmentation.noise": 0.5,
        },
    ),
    "masks as targets": Case(
        "diffusion",
        None,
        {
            **MASKS,
            "diffusion.target": "mask",
            "diffusion.condition": "image",
            "diffusion.image.degradation": "none",
            "diffusion.noise.input_scale": 0.5,
        },
    ),
    "super-resolution, offset noise": Case(
        "diffusion", None, {**SMALL, "diffusion.condition": "image", "diffusion.offset_noise": 0.1}
    ),
    "LoRA, prior preservation": _shipped(
        "diffusion/stable_diffusion",
        **{
            **PRETRAINED,
            "data.bucket_step": None,
            "data.augment.random_crop": True,
            "data.regularization_root": "captioned",
            "training.lora.rank": 2,
            "training.lora.dropout": 0.2,
            "training.optimizer.lr": 1e-3,
        },
    ),
    "latents": Case("diffusion", None, {**SMALL, "latent.vae": "vae"}),
    "several classes": Case("diffusion", None, {**MASKS, "diffusion.max_classes": 2}),
    "joint, uncertainty": Case("joint", None, {**JOINT, "joint.weighting": "uncertainty"}),
    "joint, gradient norm": Case("joint", None, {**JOINT, "joint.weighting": "gradient_norm"}),
    "joint, little noise": Case("joint", None, {**JOINT, "joint.segment_noise_below": 0.5}),
    "joint, dropout, OHEM": Case(
        "joint", None, {**JOINT, "model.residual.dropout": 0.2, "segmentation.ohem": {"min_fraction": 0.3}}
    ),
}


def make_data(root: Path, cases: Sequence[Case]) -> None:
    """Images with masks whose ignored part differs, a folder per class, captions; the models that the cases need."""
    random = np.random.default_rng(0)
    for folder in ("voc/JPEGImages", "voc/SegmentationClass", "voc/ImageSets/Segmentation", "captioned"):
        (root / folder).mkdir(parents=True)
    (root / "voc/classes.txt").write_text("\n".join(CLASSES))
    lines = []
    names = [f"{i:02}" for i in range(IMAGES + 2)]
    for i, name in enumerate(names):
        image, mask = _image(random, ignored=i % 5)
        Image.fromarray(mask).save(root / f"voc/SegmentationClass/{name}.png")
        folder = root / f"folder/{'train' if i < IMAGES else 'val'}/{CLASSES[i % 2 + 1]}"
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{name}.png")
        image.save(root / f"voc/JPEGImages/{name}.jpg")
        image.save(root / f"captioned/{name}.png")
        lines.append(json.dumps({"file_name": f"{name}.png", "text": f"a {COLORS[i % 4]} {DIGITS[i % 10]}"}))
    (root / "captioned/metadata.jsonl").write_text("\n".join(lines))
    for split, part in (("train", names[:IMAGES]), ("val", names[IMAGES:])):
        (root / f"voc/ImageSets/Segmentation/{split}.txt").write_text("\n".join(part))
    if any("diffusion.text.encoder" in case.keys for case in cases):
        write_text_encoder(root / "text", ["a", "and", *COLORS, *DIGITS])
    if any("model.pretrained" in case.keys for case in cases):
        write_stable_diffusion(root / "stable_diffusion")
        _captioned_aspects(root / "aspects", random)
    if any("latent.vae" in case.keys for case in cases):
        _autoencoder(root / "vae")


def _image(random: np.random.Generator, ignored: int) -> tuple[Image.Image, np.ndarray]:
    y, x = np.mgrid[:SIDE, :SIDE]
    mask = np.zeros((SIDE, SIDE), np.uint8)
    cy, cx = random.integers(6, SIDE - 6, 2)
    mask[(y - cy) ** 2 + (x - cx) ** 2 < 36] = 1
    top, left = random.integers(0, SIDE - 8, 2)
    mask[top : top + 8, left : left + 8] = 2
    pixels = 60 + 60 * mask[..., None] + random.integers(0, 60, (SIDE, SIDE, 3))
    mask[-1, :4] = 1  # a class in every mask
    mask[: ignored * 7] = 255  # from nothing to 28 of 32 rows
    return Image.fromarray(pixels.astype(np.uint8)), mask


def _captioned_aspects(folder: Path, random: np.random.Generator) -> None:
    """Captioned images of three aspect ratios."""
    folder.mkdir()
    lines = []
    for i in range(IMAGES + 2):
        box = [(0, 0, SIDE, SIDE), (0, 8, SIDE, SIDE - 8), (4, 0, SIDE - 4, SIDE)][i % 3]
        _image(random, 0)[0].crop(box).save(folder / f"{i:02}.png")
        lines.append(json.dumps({"file_name": f"{i:02}.png", "text": "abc"[: 1 + i % 3]}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))


def _autoencoder(folder: Path) -> None:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    AutoencoderKL(block_out_channels=(4, 4), norm_num_groups=2, **blocks).save_pretrained(folder)
