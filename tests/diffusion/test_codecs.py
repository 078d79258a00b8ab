"""Latents against diffusers' own autoencoder, and a denoiser of them: drawing, editing, saving, refusing."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDPMScheduler, UNet2DModel
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor

from unetdiff.diffusion.codecs import BATCH, LatentCodec
from unetdiff.diffusion.config import DiffusionConfig
from unetdiff.diffusion.objectives import build_scheduler
from unetdiff.diffusion.pipeline import GenerationPipeline
from unetdiff.diffusion.trajectory import TrajectoryRecorder
from unetdiff.errors import UserError
from unetdiff.models.unet import UNet


@pytest.fixture(scope="module")
def latents(vae: Path) -> LatentCodec:
    return LatentCodec.from_pretrained(vae)


def pixels(batch: int = 2, seed: int = 0) -> Tensor:
    """(B, 3, 8, 12) in [-1, 1]."""
    return torch.rand(batch, 3, 8, 12, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_formula_is_diffusers_own(latents: LatentCodec) -> None:
    """(z - shift) scale on the way in and z / scale + shift on the way out, as in its StableDiffusion3Pipeline."""
    theirs, many = latents.vae, pixels(BATCH + 3)
    with torch.no_grad():
        posterior = theirs.encode(many).latent_dist
        mean, drawn = posterior.mode(), posterior.sample(seeded())
        torch.testing.assert_close(latents.encode(many), (mean - 0.3) * 0.6)
        torch.testing.assert_close(
            latents.encode(many, torch.randn(mean.shape, generator=seeded())), (drawn - 0.3) * 0.6
        )
        assert (drawn - mean).abs().mean() > 0.05
        z = torch.randn(BATCH + 3, 4, 4, 6)
        torch.testing.assert_close(latents.decode(z), theirs.decode(z / 0.6 + 0.3).sample)
    assert (latents.channels, latents.factor, latents.grid((8, 12), "")) == (4, 2, (4, 6))
    assert not latents.encode(many.requires_grad_()).requires_grad


def tiny_autoencoder(**options: Any) -> AutoencoderTiny:
    """TAESD's layers with random weights: three levels, so a cell for 4 x 4 pixels."""
    torch.manual_seed(0)
    levels: dict[str, Any] = {f"{part}_block_out_channels": (4, 4, 4) for part in ("encoder", "decoder")}
    blocks = {f"num_{part}_blocks": (1, 1, 1) for part in ("encoder", "decoder")}
    return AutoencoderTiny(**{**levels, **blocks, **options})


def test_a_tiny_autoencoder_is_diffusers_own_and_has_no_posterior(tmp_path: Path) -> None:
    tiny_autoencoder(scaling_factor=0.5, shift_factor=0.1).save_pretrained(tmp_path)
    latents, theirs = LatentCodec.from_pretrained(tmp_path), AutoencoderTiny.from_pretrained(tmp_path)
    assert (latents.channels, latents.factor, latents.grid((8, 12), "")) == (4, 4, (2, 3))
    many = pixels(BATCH + 3)
    with torch.no_grad():
        torch.testing.assert_close(latents.encode(many), (theirs.encode(many).latents - 0.1) * 0.5)
        z = torch.randn(2, 4, 2, 3)
        torch.testing.assert_close(latents.decode(z), theirs.decode(z / 0.5 + 0.1).sample)
    assert torch.equal(latents.encode(many), latents.encode(many, torch.ones(len(many), 4, 2, 3)))

    edited = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(edited | {"upsampling_scaling_factor": 4}))
    with pytest.raises(UserError, match="encodes by a factor of 4 and decodes by 16"):
        LatentCodec.from_pretrained(tmp_path)


def test_a_mean_and_a_deviation_for_each_channel() -> None:
    """latents * std / scaling_factor + mean, as diffusers' StableDiffusionXLPipeline decodes."""
    mean, std = [0.1, -0.2, 0.3, 0.0], [1.0, 2.0, 0.5, 3.0]
    torch.manual_seed(0)
    theirs = AutoencoderKL(
        block_out_channels=(4,), norm_num_groups=2, latents_mean=mean, latents_std=std, scaling_factor=0.5
    )
    z, latents = torch.randn(1, 4, 4, 4), LatentCodec(theirs)
    with torch.no_grad():
        raw = z * torch.tensor(std).view(1, 4, 1, 1) / 0.5 + torch.tensor(mean).view(1, 4, 1, 1)
        torch.testing.assert_close(latents.decode(z), theirs.decode(raw).sample)
        back = (theirs.encode(pixels()).latent_dist.mode() - torch.tensor(mean).view(1, 4, 1, 1)) * 0.5
        torch.testing.assert_close(latents.encode(pixels()), back / torch.tensor(std).view(1, 4, 1, 1))


def test_bfloat16_is_followed_and_float16_is_not(latents: LatentCodec) -> None:
    exact = latents.encode(pixels()), latents.decode(torch.ones(1, 4, 4, 4))
    for dtype, same in ((torch.bfloat16, False), (torch.float16, True)):
        with torch.autocast("cpu", dtype):
            found = latents.encode(pixels()), latents.decode(torch.ones(1, 4, 4, 4))
        assert all(one.dtype == torch.float32 for one in found)
        assert all(torch.equal(a, b) == same for a, b in zip(exact, found, strict=True))
        assert all(torch.allclose(a, b, atol=0.1) for a, b in zip(exact, found, strict=True))


def test_copies_share_the_autoencoder_which_does_not_learn(latents: LatentCodec) -> None:
    assert copy.deepcopy({"task": latents})["task"] is latents
    assert not latents.vae.training and not any(p.requires_grad for p in latents.vae.parameters())


def test_found_in_a_folder_of_stable_diffusions_layout(vae: Path, tmp_path: Path, latents: LatentCodec) -> None:
    shutil.copytree(vae, tmp_path / "vae")
    assert torch.equal(LatentCodec.from_pretrained(tmp_path).encode(pixels()), latents.encode(pixels()))


def test_what_is_no_autoencoder_is_refused(vae: Path, tmp_path: Path) -> None:
    weights = "diffusion_pytorch_model.safetensors"
    for name in ("pickle", "truncated", "foreign", "grey"):
        shutil.copytree(vae, tmp_path / name)
    (tmp_path / "pickle" / weights).rename(tmp_path / "pickle" / "diffusion_pytorch_model.bin")
    (tmp_path / "truncated" / weights).write_bytes((vae / weights).read_bytes()[:5000])
    unet = UNet2DModel(block_out_channels=(4,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
                       norm_num_groups=2)  # fmt: skip
    unet.save_pretrained(tmp_path / "unet")
    shutil.copy(tmp_path / "unet" / weights, tmp_path / "foreign" / weights)
    AutoencoderKL(1, 1, block_out_channels=(4,), norm_num_groups=2).save_pretrained(tmp_path / "grey")
    for name in ("empty", "broken"):
        (tmp_path / name).mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    cases = [
        (
            "nowhere",
            r"nowhere: must be a folder with a diffusers AutoencoderKL or AutoencoderTiny \(it does not exist\)",
        ),
        ("empty", "has no config.json"),
        ("broken", "config.json: must be JSON"),
        ("unet", "has a UNet2DModel"),
        ("pickle", r".*diffusion_pytorch_model.bin is a pickle. .*torch.load\("),
        ("truncated", "must be a complete safetensors file"),
        ("foreign", "its config describes"),
        ("grey", "takes images of 1 channels"),
    ]
    for name, says in cases:
        with pytest.raises(UserError, match=f"^latent.vae=.*{says}"):
            LatentCodec.from_pretrained(tmp_path / name)


def test_a_size_that_does_not_divide_is_refused(latents: LatentCodec) -> None:
    says = r"data.size=\[9, 12\]: must be multiples of 2.* Use \[8, 12\]"
    with pytest.raises(UserError, match=says):
        latents.encode(torch.zeros(1, 3, 9, 12))


# ---------------------------------------------------------------------------------------- a denoiser of latents


def make(vae: Path | AutoencoderTiny) -> GenerationPipeline:
    torch.manual_seed(0)
    unet = UNet(
        in_channels=4,
        sample_size=4,
        encoder={"name": "residual", "channels": [8, 8]},
        residual={"norm_num_groups": 4, "layers_per_block": 1},
        heads={"diffusion": {"out_channels": 4}},
    )
    torch.nn.init.normal_(unet.heads["diffusion"].conv.weight, std=0.1)
    scheduler = build_scheduler(DiffusionConfig(), bound=None)
    vae = AutoencoderKL.from_pretrained(vae) if isinstance(vae, Path) else vae
    pipeline = GenerationPipeline(unet, scheduler, vae=vae)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_a_pipeline_has_a_tiny_autoencoder(tmp_path: Path) -> None:
    pipeline = make(tiny_autoencoder())
    pipeline.save_pretrained(tmp_path)
    again = GenerationPipeline.from_pretrained(tmp_path)
    assert isinstance(again.vae, AutoencoderTiny) and again.size() == (16, 16)
    noise = torch.randn(1, 4, 4, 4)
    options = {"latents": noise, "num_inference_steps": 2, "output_type": "pt"}
    assert torch.equal(again(**options).images, pipeline(**options).images)


def know(pipeline: GenerationPipeline, z: Tensor) -> list[Tensor]:
    """Give the pipeline a network that takes every x_t for the latents `z`; the x_t that it will be shown."""
    seen: list[Tensor] = []

    def oracle(sample: Tensor, timestep: Tensor, **_) -> UNet2DOutput:
        seen.append(sample.clone())
        alpha_bar = pipeline.scheduler.alphas_cumprod[int(timestep)]
        noise = (sample - alpha_bar.sqrt() * z) / (1 - alpha_bar).sqrt()
        return UNet2DOutput(sample=alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * z)

    pipeline.unet.forward = oracle
    return seen


def unit(x: Tensor) -> Tensor:
    return (x / 2 + 0.5).clamp(0, 1)


@pytest.mark.parametrize("solver", [None, DDPMScheduler])
def test_what_is_drawn_is_decoded(vae: Path, latents: LatentCodec, solver) -> None:
    pipeline, z = make(vae), 3 * torch.randn(2, 4, 4, 4, generator=seeded(1))  # beyond [-1, 1], and not clipped
    if solver is not None:
        pipeline.scheduler = solver.from_config(pipeline.scheduler.config)
    know(pipeline, z)
    recorder = TrajectoryRecorder(3)
    out = pipeline(
        batch_size=2, num_inference_steps=5, generator=seeded(), output_type="pt", callback_on_step_end=recorder
    )
    with torch.no_grad():
        expected = unit(latents.vae.decode(z / 0.6 + 0.3).sample)
    assert out.images.shape == (2, 3, 8, 8)  # what it was trained at: four cells of two pixels
    torch.testing.assert_close(out.images, expected, atol=1e-3, rtol=0)
    assert recorder.trajectory.noisy.shape == (3, 2, 3, 8, 8)
    torch.testing.assert_close(recorder.trajectory.predicted[0], expected, atol=1e-3, rtol=0)


def test_sizes_are_those_of_images_and_noise_has_those_of_latents(vae: Path) -> None:
    pipeline = make(vae)
    assert pipeline.noise_shape() == (4, 4, 4) and pipeline.noise_shape(8, 20) == (4, 4, 10)
    settings = {"num_inference_steps": 1, "output_type": "pt"}
    assert pipeline(height=16, width=12, **settings).images.shape == (1, 3, 16, 12)
    assert pipeline(latents=torch.randn(2, 4, 6, 5), **settings).images.shape == (2, 3, 12, 10)
    with pytest.raises(UserError, match=r"height, width=\[9, 8\]: must be multiples of 2"):
        pipeline(height=9, width=8)


def test_drawing_starts_from_the_images_latents(vae: Path, latents: LatentCodec) -> None:
    pipeline, image = make(vae), pixels(1)[..., :8]
    seen, noise = know(pipeline, torch.zeros(1, 4, 4, 4)), torch.randn(1, 4, 4, 4, generator=seeded(2))
    pipeline.image_to_image(unit(image), strength=0.5, latents=noise, num_inference_steps=10)
    t = torch.tensor([499])
    expected = pipeline.scheduler.add_noise(latents.encode(image), noise, t)
    assert len(seen) == 5
    torch.testing.assert_close(seen[0], expected, atol=1e-3, rtol=1e-3)


def test_inpainting_keeps_every_pixel_and_draws_every_cell_of_the_hole(vae: Path, latents: LatentCodec) -> None:
    pipeline, image = make(vae), pixels(1)[..., :8]
    z = torch.randn(1, 4, 4, 4, generator=seeded(1))
    seen, noise = know(pipeline, z), torch.randn(1, 4, 4, 4, generator=seeded(2))
    hole = torch.zeros(8, 8)
    hole[:, 3:] = 1  # a column of the second cells, and all after it
    out = pipeline.inpaint(
        unit(image), hole, latents=noise, num_inference_steps=10, output_type="pt"
    ).images  # fmt: skip
    torch.testing.assert_close(out[..., :3], unit(image)[..., :3])
    known = pipeline.scheduler.add_noise(latents.encode(image), noise, torch.tensor([99]))
    torch.testing.assert_close(seen[-1][..., :1], known[..., :1], atol=1e-4, rtol=1e-4)
    assert (seen[-1][..., 1] - known[..., 1]).abs().mean() > 0.1
    cells = torch.cat([latents.encode(image)[..., :1], z[..., 1:]], dim=-1)
    torch.testing.assert_close(out[..., 3:], unit(latents.decode(cells))[..., 3:], atol=2e-3, rtol=0)


def test_round_trip_in_diffusers_layout(vae: Path, tmp_path: Path, latents: LatentCodec) -> None:
    pipeline = make(vae)
    pipeline.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["vae"] == ["diffusers", "AutoencoderKL"]
    loaded = GenerationPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.scheduler.config.clip_sample is False
    ours, theirs = (
        one(num_inference_steps=2, generator=seeded(), output_type="pt").images for one in (pipeline, loaded)
    )
    assert torch.equal(ours, theirs) and ours.std() > 0
    assert torch.equal(LatentCodec.from_pretrained(tmp_path).encode(pixels()), latents.encode(pixels()))
