"""Drawing from an image: a network that knows nothing keeps it, a mask keeps its part, noises meet half way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, HeunDiscreteScheduler
from diffusers.models.unets.unet_2d import UNet2DOutput
from PIL import Image

from unetdiff.diffusion.conditioning.images import ImageConditioner
from unetdiff.diffusion.conditioning.layouts import LayoutConditioner
from unetdiff.diffusion.config import DiffusionConfig
from unetdiff.diffusion.editing import img2img_timesteps, known_image
from unetdiff.diffusion.noise import slerp
from unetdiff.diffusion.objectives import build_scheduler
from unetdiff.diffusion.pipeline import GenerationPipeline
from unetdiff.diffusion.trajectory import TrajectoryRecorder
from unetdiff.errors import UserError
from unetdiff.models.unet import UNet

SOLVERS = [DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, HeunDiscreteScheduler]


def make(solver=DDIMScheduler, in_channels: int = 3, conditioner=None) -> GenerationPipeline:
    torch.manual_seed(0)
    unet = UNet(
        in_channels=in_channels,
        sample_size=8,
        encoder={"name": "residual", "channels": [8, 8]},
        residual={"norm_num_groups": 4, "layers_per_block": 1},
        heads={"diffusion": {"out_channels": 3}},
    )
    scheduler = build_scheduler(DiffusionConfig())
    pipeline = GenerationPipeline(unet, solver.from_config(scheduler.config), conditioner)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def know(pipeline: GenerationPipeline, image: torch.Tensor) -> list[int]:
    """Give the pipeline a network that takes every x_t for `image`, in [-1, 1]; the timesteps it will be asked."""
    base, asked = build_scheduler(DiffusionConfig()), []

    def oracle(sample: torch.Tensor, timestep: torch.Tensor, **_) -> UNet2DOutput:
        t = timestep.round().long()
        asked.append(int(t))
        alpha_bar = base.alphas_cumprod[t]
        noise = (sample[:, :3] - alpha_bar.sqrt() * image) / (1 - alpha_bar).sqrt()
        return UNet2DOutput(sample=base.get_velocity(image.expand_as(noise), noise, t[None]))

    pipeline.unet.forward = oracle
    return asked


def image(seed: int = 0) -> torch.Tensor:
    """(3, 8, 8) in [0, 1]."""
    return torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("solver", SOLVERS)
def test_image_to_image_starts_part_of_the_way(solver) -> None:
    pipeline = make(solver)
    asked = know(pipeline, image(1)[None] * 2 - 1)
    out = pipeline.image_to_image(
        image(),
        strength=0.5,
        num_inference_steps=10,
        output_type="pt",
        generator=torch.Generator().manual_seed(0),
    )
    assert max(asked) <= 500 and len(set(asked)) in (5, 6)  # Heun asks twice, its last time of the end
    torch.testing.assert_close(out.images[0], image(1), atol=2e-3, rtol=0)


@pytest.mark.parametrize("solver", SOLVERS)
def test_image_to_image_starts_from_the_noised_image(solver) -> None:
    pipeline, base = make(solver), build_scheduler(DiffusionConfig())
    know(pipeline, image()[None] * 2 - 1)
    noise = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    recorder = TrajectoryRecorder(3)
    pipeline.image_to_image(
        image(), strength=0.3, latents=noise, num_inference_steps=10, callback_on_step_end=recorder, output_type="pt"
    )
    trajectory = recorder.trajectory
    t = trajectory.timesteps[0]
    expected = base.add_noise(image()[None] * 2 - 1, noise, torch.tensor([t]))
    torch.testing.assert_close(trajectory.noisy[0], (expected / 2 + 0.5).clamp(0, 1), atol=2e-3, rtol=0)


@pytest.mark.parametrize("solver", SOLVERS)
def test_inpainting_keeps_the_known_part_and_draws_the_rest(solver) -> None:
    pipeline = make(solver)
    know(pipeline, image(1)[None] * 2 - 1)
    mask = torch.zeros(8, 8)
    mask[:, 4:] = 1
    out = pipeline.inpaint(
        image(), mask_image=mask, num_inference_steps=10, output_type="pt",
        generator=torch.Generator().manual_seed(0),
    ).images[0]  # fmt: skip
    torch.testing.assert_close(out[:, :, :4], image()[:, :, :4], atol=1e-5, rtol=0)
    torch.testing.assert_close(out[:, :, 4:], image(1)[:, :, 4:], atol=5e-2, rtol=0)


def test_the_network_sees_the_known_part_at_the_right_noise() -> None:
    pipeline, base = make(), build_scheduler(DiffusionConfig())
    seen = []
    pipeline.unet.forward = lambda x, t, **_: (
        seen.append((int(t), x.clone())) or UNet2DOutput(sample=torch.zeros_like(x))
    )
    noise = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    pipeline.inpaint(image(), torch.zeros(8, 8), latents=noise, num_inference_steps=4, output_type="pt")
    for t, x in seen[1:]:  # the first is noise alone
        torch.testing.assert_close(x, base.add_noise(image()[None] * 2 - 1, noise, torch.tensor([t])))


def test_images_and_masks_of_any_kind_and_size() -> None:
    noise = torch.randn(2, 3, 8, 8)
    pil = Image.new("RGB", (16, 12), (255, 0, 0))
    known = known_image(pil, Image.new("RGB", (4, 4), (255, 255, 255)), noise)
    assert known.pixels.shape == (2, 3, 8, 8) and known.latent_mask.shape == (2, 1, 8, 8)
    torch.testing.assert_close(known.pixels[1, :, 3, 3], torch.tensor([1.0, -1.0, -1.0]))
    assert known.latent_mask.all()
    for mask in (np.full((8, 8), 255, np.uint8), torch.ones(8, 8), torch.ones(2, 8, 8), np.ones((8, 8), bool)):
        assert known_image(pil, mask, noise).latent_mask.all()
    assert not known_image(pil, np.zeros((8, 8), np.uint8), noise).latent_mask.any()
    with pytest.raises(UserError, match="mask_image: must be in 0..255 for uint8"):
        known_image(pil, np.ones((8, 8), np.uint8), noise)
    with pytest.raises(UserError, match=r"mask_image: must be uint8, .* \(got torch.int64 from 0 to 255\)"):
        known_image(pil, torch.arange(64).reshape(8, 8) * 255 // 63, noise)
    with pytest.raises(UserError, match=r"image: must be uint8, .* \(got torch.float32 from -1 to 1\)"):
        known_image(torch.linspace(-1, 1, 192).reshape(3, 8, 8), None, noise)
    with pytest.raises(UserError, match=r"image: must be 1 or 2 images.*\(got 3\)"):
        known_image(torch.zeros(3, 3, 8, 8), None, noise)


def test_img2img_timesteps_count_heuns_two_passes() -> None:
    for solver, order in ((DDIMScheduler, 1), (HeunDiscreteScheduler, 2)):
        scheduler = solver.from_config(build_scheduler(DiffusionConfig()).config)
        scheduler.set_timesteps(10)
        whole = scheduler.timesteps.tolist()
        assert img2img_timesteps(scheduler, 10, 0.3).tolist() == whole[7 * order :]
        assert img2img_timesteps(scheduler, 10, 1.0).tolist() == whole


def test_slerp_keeps_the_variance_and_both_ends() -> None:
    first, last = (torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    way = slerp(first, last, 5)
    torch.testing.assert_close(way[0], first)
    torch.testing.assert_close(way[-1], last, atol=1e-5, rtol=1e-5)
    assert (way.std(dim=(1, 2, 3)) > 0.97).all()  # a straight line has 0.71 in the middle
    torch.testing.assert_close(slerp(first, first, 3)[1], first)
    with pytest.raises(UserError, match="frames=1: must be at least 2"):
        slerp(first, last, 1)


def test_a_layout_and_a_image_reach_the_network_as_channels() -> None:
    layout = LayoutConditioner(3, None, channels=2)
    pipeline = make(in_channels=5, conditioner=layout)
    seen = []
    pipeline.unet.forward = lambda x, t, **_: seen.append(x.clone()) or UNet2DOutput(sample=torch.zeros_like(x[:, :3]))
    mask = np.zeros((4, 4), np.uint8)
    mask[:, 2:] = 2
    out = pipeline(layout=[mask, mask], num_inference_steps=1, guidance_scale=2.0, output_type="pt")
    assert out.images.shape == (2, 3, 8, 8) and seen[0].shape == (4, 5, 8, 8)
    assert torch.equal(seen[0][2, 3:, 0, 7], layout.colours.weight[2])
    assert torch.equal(seen[0][0, 3:, 0, 7], layout.colours.weight[layout.null_index])

    pipeline = make(in_channels=7, conditioner=ImageConditioner())
    pipeline.unet.forward = lambda x, t, **_: seen.append(x.clone()) or UNet2DOutput(sample=torch.zeros_like(x[:, :3]))
    pipeline(
        condition_image=Image.new("RGB", (2, 2), (255, 0, 0)), batch_size=3, num_inference_steps=1, guidance_scale=1.0
    )
    assert seen[-1].shape == (3, 7, 8, 8)
    torch.testing.assert_close(seen[-1][2, 3:, 4, 4], torch.tensor([1.0, -1.0, -1.0, 1.0]))


def test_layouts_survive_a_round_trip(tmp_path) -> None:
    pipeline = make(in_channels=5, conditioner=LayoutConditioner(3, None, channels=2))
    pipeline.save_pretrained(tmp_path)
    loaded = GenerationPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    settings = {"layout": np.ones((8, 8), np.uint8), "num_inference_steps": 2, "output_type": "pt"}
    ours, theirs = (one(**settings, generator=torch.Generator().manual_seed(0)).images for one in (pipeline, loaded))
    assert torch.equal(ours, theirs)
