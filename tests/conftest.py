"""What tests of several folders need: a tiny set in VOC's layout, a text encoder with its tokenizer, an autoencoder."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from suite.stable_diffusion import write_stable_diffusion
from suite.text_encoder import write_text_encoder
from unetdiff.config.reading import parse
from unetdiff.config.schema import RunConfig
from unetdiff.data.prompt import COLORS, DIGITS
from unetdiff.evaluation import classifier

TINY: dict[str, Any] = {
    "model.encoder.channels": [8, 16],
    "model.residual.layers_per_block": 1,
    "model.residual.norm_num_groups": 4,
    "model.residual.dropout": 0.1,
    "model.conditioning.cross_attention_dim": 8,
    "model.conditioning.attention_levels": [1],
    "model.conditioning.attention_head_dim": 8,
    "data.scenes.train_images": 24,
    "data.scenes.val_images": 6,
    "diffusion.preview_steps": 2,
    "diffusion.preview_per_class": 1,
    "training.steps": 6,
    "training.batch_size": 4,
    "training.eval_batch_size": 4,
    "training.log_every": 2,
    "training.validate_every": 3,
    "training.checkpoint_every": 2,
}


@pytest.fixture(autouse=True)
def _short_classifier(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """`evaluate` trains its classifier for 20 steps instead of 500, except in the tests of what it measures."""
    if "evaluation" not in request.path.parts:
        short = partial(classifier.ClassifierConfig, steps=20)
        monkeypatch.setattr(classifier, "ClassifierConfig", short)


@pytest.fixture
def voc_layout(tmp_path: Path) -> Callable[..., Path]:
    """voc_layout(classes, {split: {name: mask}}, images=True): a new folder, with random images of that size."""

    def make(classes: list[str], splits: dict[str, dict[str, np.ndarray]], images: bool = True) -> Path:
        root = tmp_path / "voc"
        for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
            (root / folder).mkdir(parents=True)
        (root / "classes.txt").write_text("".join(f"{name}\n" for name in classes))
        random = np.random.default_rng(0)
        for split, masks in splits.items():
            (root / "ImageSets/Segmentation" / f"{split}.txt").write_text("".join(f"{name}\n" for name in masks))
            for name, mask in masks.items():
                Image.fromarray(mask).save(root / "SegmentationClass" / f"{name}.png")
                if images:
                    pixels = random.integers(0, 255, (*mask.shape, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(root / "JPEGImages" / f"{name}.jpg")
        return root

    return make


@pytest.fixture(scope="session")
def text_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT and a tokenizer that knows the words of the scenes."""
    folder = tmp_path_factory.mktemp("text_encoder")
    write_text_encoder(folder, ["a", "and", *COLORS, *DIGITS])
    return folder


@pytest.fixture(scope="session")
def stable_diffusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny StableDiffusionPipeline, as diffusers writes it."""
    folder = tmp_path_factory.mktemp("stable_diffusion")
    write_stable_diffusion(folder)
    return folder


@pytest.fixture(scope="session")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny autoencoder: four channels of latents, a cell for 2 x 2 pixels, with a shift and a scale."""
    from diffusers import AutoencoderKL

    folder = tmp_path_factory.mktemp("vae")
    torch.manual_seed(0)
    AutoencoderKL(
        block_out_channels=(4, 4),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=2,
        scaling_factor=0.6,
        shift_factor=0.3,
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., RunConfig]:
    """tiny(task, "training.steps=3", ...): a config whose run directory is below tmp_path."""

    def build(task: str = "joint", directory: str = "run", **overrides: Any) -> RunConfig:
        dotted = {key.replace("__", "."): value for key, value in overrides.items()}
        return parse(None, {**TINY, "training.output_dir": str(tmp_path / directory), **dotted}, task)  # type: ignore[arg-type]

    return build
