"""configs/diffusion/stable_diffusion.yaml, as its comments say: LoRA on a folder of captioned images of many sizes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from unetdiff.config.reading import load
from unetdiff.models.adapters import LORA_WEIGHTS
from unetdiff.training.trainer import train

CONFIG = Path(__file__).parents[2] / "configs" / "diffusion" / "stable_diffusion.yaml"
SHAPES = [(32, 32), (32, 64), (60, 40), (16, 90), (32, 33), (30, 60)]


@pytest.fixture
def captioned(tmp_path: Path) -> Path:
    folder, random, rows = tmp_path / "captioned", np.random.default_rng(0), []
    folder.mkdir()
    for number, (height, width) in enumerate(SHAPES):
        pixels = random.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        rows.append(json.dumps({"file_name": f"{number}.png", "text": "abc"[: 1 + number % 3]}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    return folder


def test_lora_in_buckets_is_read_by_diffusers(stable_diffusion: Path, captioned: Path, tmp_path: Path) -> None:
    """Stock diffusers draws the same with best/ as with the pretrained model and the adapter's file."""
    source = tmp_path / "source"
    shutil.copytree(stable_diffusion, source)
    keys = {
        "model.pretrained": source,
        "data.root": captioned,
        "data.size": [32, 32],
        "data.bucket_step": 8,
        "diffusion.preview_steps": 2,
        "diffusion.text.cache_dir": tmp_path / "captions",
        "training.output_dir": tmp_path / "run",
        "training.steps": 2,
        "training.batch_size": 4,
        "training.gradient_accumulation_steps": 2,
        "training.num_workers": 0,
        "training.mixed_precision": "no",
        "training.ema.half_life_images": 1,
        "training.optimizer.lr": 0.05,
        "training.lora.rank": 2,
        "training.lora.alpha": 4,
    }
    run = train(load(CONFIG, [f"--{key}={value}" for key, value in keys.items()], "diffusion"))
    assert (run / "best" / LORA_WEIGHTS).is_file()

    def draw(directory: Path, adapter: Path | None = None) -> torch.Tensor:
        pipeline = StableDiffusionPipeline.from_pretrained(directory, safety_checker=None)
        pipeline.set_progress_bar_config(disable=True)
        if adapter is not None:
            pipeline.load_lora_weights(adapter)
        generator = torch.Generator().manual_seed(0)
        size = {"height": 32, "width": 32}
        images = pipeline("ab", **size, num_inference_steps=2, generator=generator, output_type="np").images
        return torch.from_numpy(images)

    merged, before = draw(run / "best"), draw(source)
    assert (merged - before).abs().max() > 1e-3
    torch.testing.assert_close(draw(source, run / "best"), merged, atol=1e-4, rtol=0)
