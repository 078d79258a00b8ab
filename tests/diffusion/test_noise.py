"""Noise per image: independent of the batch, without collisions of seeds and indices, and interpolated on a sphere."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.utils.torch_utils import randn_tensor

from unetdiff.diffusion.conditioning.classes import ClassConditioner
from unetdiff.diffusion.config import DiffusionConfig
from unetdiff.diffusion.noise import generator_for, generators_for, image_indices, noise_for
from unetdiff.diffusion.objectives import build_scheduler
from unetdiff.diffusion.pipeline import GenerationPipeline
from unetdiff.models.unet import UNet

SHAPE = (3, 16, 16)


def make_pipeline() -> GenerationPipeline:
    torch.manual_seed(0)
    unet = UNet(
        sample_size=16,
        encoder={"name": "residual", "channels": [8, 16]},
        residual={"norm_num_groups": 4, "layers_per_block": 1},
        heads={"diffusion": {"out_channels": 3}},
        conditioning={"cross_attention_dim": 16},
    )
    for parameter in unet.parameters():  # what starts at zero
        parameter.data += 0.05 * torch.randn_like(parameter)
    pipeline = GenerationPipeline(unet, build_scheduler(DiffusionConfig()), ClassConditioner(3, 16))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_a22_seeds_and_indices_do_not_collide() -> None:
    noises = [noise_for(seed, index, SHAPE) for seed in range(4) for index in range(4)]
    flat = torch.stack(noises).flatten(1)
    correlation = torch.corrcoef(flat) - torch.eye(len(flat))
    assert correlation.abs().max() < 0.2  # 768 numbers: a deviation of 0.036
    assert not torch.equal(noise_for(0, 1, SHAPE), noise_for(1, 0, SHAPE))
    assert torch.equal(noise_for(3, 7, SHAPE), noise_for(3, 7, SHAPE))
    assert abs(float(flat.std()) - 1) < 0.02


def test_the_pipeline_draws_this_noise() -> None:
    latents = randn_tensor((2, *SHAPE), generator=generators_for(5, [3, 9]))
    assert torch.equal(latents, torch.stack([noise_for(5, 3, SHAPE), noise_for(5, 9, SHAPE)]))


@pytest.mark.parametrize("stochastic", [False, True])
def test_an_image_does_not_depend_on_its_batch(stochastic: bool) -> None:
    """Of a stochastic sampler too, whose steps draw from the generator of each image."""
    pipeline = make_pipeline()
    if stochastic:
        pipeline.scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    options = {"num_inference_steps": 3, "output_type": "pt"}
    together = pipeline([0, 1, 2, 0], generator=generators_for(0, range(4)), **options).images
    for index, label in enumerate([0, 1, 2, 0]):
        alone = pipeline(label, generator=generators_for(0, [index]), **options).images
        torch.testing.assert_close(together[index : index + 1], alone, atol=1e-5, rtol=0)
    started = pipeline(1, latents=noise_for(0, 1, SHAPE)[None], **options).images
    assert torch.allclose(started, together[1:2], atol=1e-5) is not stochastic


def test_the_noise_of_a_step_is_not_the_starting_noise() -> None:
    generator = generator_for(0, 0)
    start = torch.randn(SHAPE, generator=generator)
    assert not torch.equal(start, torch.randn(SHAPE, generator=generator))


def test_indices_of_a_grid() -> None:
    assert image_indices([0, 1, 2], 3, 2) == [[0, 3], [1, 4], [2, 5]]
    assert image_indices([7, 2], 10, 3) == [[7, 17, 27], [2, 12, 22]]  # classes that are sampled alone
    assert [row[:1] for row in image_indices([0, 1], 2, 5)] == image_indices(
        [0, 1], 2, 1
    )  # more columns keep the first
