"""Segmentation on latents, at a timestep, alone and jointly: against the same computation written out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from unetdiff import GenerationPipeline, SegmentationPipeline, UNet
from unetdiff.config.schema import RunConfig
from unetdiff.config.validation.run import validate
from unetdiff.data.base import collate
from unetdiff.data.build import build_dataset
from unetdiff.errors import UserError
from unetdiff.evaluation.load_run import load_run
from unetdiff.segmentation.config import InferenceConfig
from unetdiff.segmentation.segmenter import NetworkInput
from unetdiff.training.draws import whole_batch
from unetdiff.training.tasks.build import build_task
from unetdiff.training.tasks.joint import JointTask
from unetdiff.training.tasks.segmentation import SegmentationTask
from unetdiff.training.trainer import train

Tiny = Callable[..., RunConfig]
SHORT: dict[str, Any] = {
    "data__scenes__train_images": 8,
    "data__scenes__val_images": 2,
    "training__steps": 2,
    "training__validate_every": 2,
    "training__checkpoint_every": 2,
    "model__heads__segmentation__pyramid": 8,
    "segmentation__losses": {"cross_entropy": 1.0},
}


def build(config: RunConfig) -> tuple[Any, dict[str, Any]]:
    data = build_dataset(config.data, "train", True)
    return build_task(config, data, data), collate([data[i] for i in range(4)])


def latents_of(vae: Path, pixels: Tensor) -> Tensor:
    """The mean of the posterior, shifted and scaled (Rombach et al. 2022, appendix G)."""
    model = AutoencoderKL.from_pretrained(vae)
    with torch.no_grad():
        return (model.encode(pixels).latent_dist.mean - 0.3) * 0.6


def test_the_loss_is_that_of_the_upsampled_logits_of_the_latents(tiny: Tiny, vae: Path) -> None:
    config = tiny(
        "segmentation", latent__vae=str(vae), segmentation__timestep=7, model__conditioning__timestep=True, **SHORT
    )
    task, batch = build(config)
    assert isinstance(task, SegmentationTask) and task.unet.config["in_channels"] == 4
    loss = task.batch_losses(batch, 0)["loss"]
    loss.backward()
    latents = latents_of(vae, batch["image"].float() / 127.5 - 1)
    assert latents.shape[-1] == batch["image"].shape[-1] // 2
    logits = task.unet.segment(latents, 7)
    expected = F.cross_entropy(
        F.interpolate(logits, scale_factor=2, mode="bilinear"), batch["mask"].long(), ignore_index=255
    )
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    assert task.unet.encoder.conv_in.weight.grad is not None
    moments = task.codec.encode_moments(task.pixels(batch["image"]))  # encoded once
    once = task.batch_losses({"latents": moments, "mask": batch["mask"], "name": batch["name"]}, 0)["loss"]
    torch.testing.assert_close(once, loss)


def test_a_run_on_latents_is_evaluated_predicted_saved_and_loaded(tiny: Tiny, vae: Path) -> None:
    config = tiny(
        "segmentation",
        latent__vae=str(vae),
        segmentation__timestep=300,
        segmentation__noised=True,
        model__conditioning__timestep=True,
        **SHORT,
    )
    run = train(config)
    best = run / "best"
    names = ["README.md", "segmentation.json", "segmentation.png", "unet", "vae"]
    assert sorted(path.name for path in best.iterdir()) == names
    saved = json.loads((best / "segmentation.json").read_text())["input"]
    # the cosine schedule (Nichol & Dhariwal 2021, equation 17)
    alpha = np.cos((0.3 + 0.008) / 1.008 * np.pi / 2) / np.cos(0.008 / 1.008 * np.pi / 2)
    assert saved["timestep"] == 300
    np.testing.assert_allclose(saved["noise_level"], [alpha, np.sqrt(1 - alpha**2)], atol=2e-3)

    pipeline = SegmentationPipeline.from_pretrained(best)
    pipeline.size = None
    image = np.random.default_rng(0).integers(0, 256, (31, 45, 3)).astype(np.uint8)
    logits = pipeline(image, return_logits=True).logits
    padded = np.pad(image, ((0, 1), (0, 1), (0, 0)), mode="edge")
    x0 = latents_of(vae, torch.from_numpy(padded).permute(2, 0, 1)[None].float() / 127.5 - 1)
    noise = torch.randn(x0.shape[1:], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        small = pipeline.unet.segment(saved["noise_level"][0] * x0 + saved["noise_level"][1] * noise, 300)
    expected = F.interpolate(small, scale_factor=2, mode="bilinear")[0, :, :31, :45]
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-4)

    views = InferenceConfig(tile=[16, 16], flip=True, scales=[1.0, 1.5])
    assert pipeline(image, inference=views).mask.shape == (31, 45)
    with pytest.raises(UserError, match=r"inference.tile=\[15, 16\]: must be multiples of 2"):
        pipeline(image, inference=InferenceConfig(tile=[15, 16]))

    loaded = load_run(run)
    task = loaded.segmentation
    assert task is not None and task.segmenter.view == pipeline.segmenter.view
    item = loaded.images[0]
    with torch.no_grad():
        again = task.segmenter(task.pixels(item["image"][None]))
    torch.testing.assert_close(again[0], pipeline(item["image"], return_logits=True).logits, rtol=1e-3, atol=1e-3)


def test_images_are_noised_to_the_timestep(tiny: Tiny) -> None:
    options = {"segmentation__timestep": 400, "model__conditioning__timestep": True}
    task, batch = build(tiny("segmentation", **options, segmentation__noised=True))
    clean = task.pixels(batch["image"])
    sample, timesteps = task.add_noise(clean, whole_batch(0, 4, "cpu"))
    assert timesteps.tolist() == [400] * 4
    a, b = task.view.noise_level
    noise = (sample - a * clean) / b
    assert noise.mean().abs() < 0.02 and (noise.std() - 1).abs() < 0.02 and not torch.equal(noise[0], noise[1])
    task, _ = build(tiny("segmentation", **options))
    sample, timesteps = task.add_noise(clean, whole_batch(0, 4, "cpu"))
    assert torch.equal(sample, clean) and timesteps.tolist() == [400] * 4 and task.view == NetworkInput(400)


@pytest.mark.parametrize("timestep", [0, 5])
def test_a_joint_run_in_latents_shows_both_heads_the_latents(tiny: Tiny, vae: Path, timestep: int) -> None:
    config = tiny(
        "joint",
        latent__vae=str(vae),
        segmentation__timestep=timestep,
        diffusion__max_classes=2,
        data__scenes__digits=2,
        model__residual__dropout=0.0,
        **SHORT,
    )
    task, batch = build(config)
    assert isinstance(task, JointTask)
    losses = task.batch_losses(batch, 0)
    noisy = task.diffusion.add_noise(batch, whole_batch(0, 4, "cpu"))
    assert noisy.x0 is not None and noisy.x0.shape[1:] == (4, 16, 16)
    logits = F.interpolate(task.unet.segment(noisy.x0, timestep), scale_factor=2, mode="bilinear")
    expected = F.cross_entropy(logits, batch["mask"].long(), ignore_index=255)
    torch.testing.assert_close(losses["segmentation/loss"], expected, rtol=1e-4, atol=1e-4)
    alone = task.diffusion.batch_losses(batch, 0)["loss"]
    torch.testing.assert_close(losses["diffusion/loss"], alone, rtol=1e-4, atol=1e-4)
    if timestep:
        return
    best = train(config) / "best"
    image = SegmentationPipeline.from_pretrained(best)(np.zeros((32, 32, 3), np.uint8))
    assert image.mask.shape == (32, 32)
    pipeline = GenerationPipeline.from_pretrained(best)
    drawn = pipeline(class_labels=["1+2"], num_inference_steps=2, output_type="np").images
    assert drawn[0].shape == (32, 32, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"segmentation__timestep": 5, "model__conditioning__timestep": False}, "segmentation.timestep=5: must be 0"),
        ({"segmentation__timestep": 1000, "model__conditioning__timestep": True}, "must be less than 1000"),
        ({"segmentation__noised": True}, "segmentation.noised=true: must be false with segmentation.timestep=0"),
        (
            {"segmentation__timestep": 5, "segmentation__noise": 0.5, "model__conditioning__timestep": True},
            "segmentation.noise=0.5: must be 0 with segmentation.timestep=5",
        ),
    ],
)
def test_contradictions_are_refused(tiny: Tiny, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        validate(tiny("segmentation", **options))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"timestep": -1}, "input.timestep must be an integer in"),
        ({"noise_level": [1.0]}, "input.noise_level must be two numbers"),
        ({"context": 1}, "keys of input must be some of timestep, noise_level"),
        ({"timestep": 3}, "input.timestep=3: must be 0 for a network without time embedding"),
    ],
)
def test_a_damaged_input_section_is_refused(tmp_path: Path, section: dict[str, Any], message: str) -> None:
    unet = UNet(
        encoder={"channels": [8, 8]}, residual={"norm_num_groups": 4}, heads={"segmentation": {"num_classes": 2}}
    )
    SegmentationPipeline(unet, ["a", "b"]).save_pretrained(tmp_path)
    file = tmp_path / "segmentation.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"input": section}))
    with pytest.raises(UserError, match=message):
        SegmentationPipeline.from_pretrained(tmp_path)
