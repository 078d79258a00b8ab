"""Classifier-free guidance by hand, and against diffusers' rescaling."""

from __future__ import annotations

import torch
from diffusers import DDPMScheduler
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from unetdiff.diffusion.conditioning.base import Conditioning
from unetdiff.diffusion.guidance import classifier_free_guidance, in_guidance_interval
from unetdiff.diffusion.processes.ddpm import DDPM

SAMPLE = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
GIVEN, NULL = Conditioning(torch.full((2, 1, 5), 2.0)), Conditioning(torch.full((2, 1, 5), 0.5))


class Denoiser:
    """Output = the context's first number times the sample, plus the timestep; counts its calls."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, sample: torch.Tensor, timestep: torch.Tensor, context: Conditioning | None) -> torch.Tensor:
        self.batches.append(len(sample))
        strength = torch.ones(len(sample)) if context is None else context.tokens[:, 0, 0]
        return strength[:, None, None, None] * sample + timestep.expand(len(sample))[:, None, None, None]


def test_by_hand_in_one_batch() -> None:
    denoiser = Denoiser()
    output = classifier_free_guidance(denoiser, SAMPLE, torch.tensor(7), GIVEN, NULL, 3.0)
    # null + 3 (given - null) = 0.5 x + t + 3 · 1.5 x = 5 x + t
    assert torch.allclose(output, 5 * SAMPLE + 7, atol=1e-5)
    assert denoiser.batches == [4]


def test_a_timestep_for_each_image() -> None:
    output = classifier_free_guidance(Denoiser(), SAMPLE, torch.tensor([7, 9]), GIVEN, NULL, 3.0)
    assert torch.allclose(output, 5 * SAMPLE + torch.tensor([7.0, 9.0])[:, None, None, None], atol=1e-5)


def test_scale_one_is_the_conditional_output_in_one_pass() -> None:
    denoiser = Denoiser()
    assert torch.equal(classifier_free_guidance(denoiser, SAMPLE, torch.tensor(0), GIVEN, NULL, 1.0), 2 * SAMPLE)
    assert torch.equal(classifier_free_guidance(denoiser, SAMPLE, torch.tensor(0), None, None, 4.0), SAMPLE)
    assert torch.equal(classifier_free_guidance(denoiser, SAMPLE, torch.tensor(0), NULL, None, 4.0), 0.5 * SAMPLE)
    assert denoiser.batches == [2, 2, 2]


def test_rescale_is_diffusers_own() -> None:
    t = torch.tensor(7)
    plain = classifier_free_guidance(Denoiser(), SAMPLE, t, GIVEN, NULL, 3.0)
    conditional = 2 * SAMPLE + 7
    for strength in (0.3, 1.0):
        ours = classifier_free_guidance(Denoiser(), SAMPLE, t, GIVEN, NULL, 3.0, rescale=strength)
        assert torch.allclose(ours, rescale_noise_cfg(plain, conditional, strength), atol=1e-5)
        assert not torch.allclose(ours, plain, atol=1e-2)


def test_channels_are_joined_like_tokens() -> None:
    seen = []

    def denoise(sample: torch.Tensor, timestep: torch.Tensor, context: Conditioning | None) -> torch.Tensor:
        seen.append(context)
        return sample

    one, zero = torch.ones(2, 4, 4, 4), torch.zeros(2, 4, 4, 4)
    classifier_free_guidance(
        denoise, SAMPLE, torch.tensor(0), Conditioning(channels=one), Conditioning(channels=zero), 2.0
    )
    assert torch.equal(seen[0].channels, torch.cat([zero, one])) and seen[0].tokens is None
    assert torch.equal(seen[0].concat_channels(torch.cat([SAMPLE, SAMPLE]))[:, 3:], torch.cat([zero, one]))


def test_the_interval_is_of_shares_of_the_timesteps() -> None:
    where = [
        in_guidance_interval(torch.tensor(t), DDPM(DDPMScheduler()), (0.2, 0.8))
        for t in (0, 199, 200, 500, 799, 800, 999)
    ]
    assert where == [False, False, True, True, True, False, False]
    assert all(in_guidance_interval(torch.tensor(t), DDPM(DDPMScheduler()), (0.0, 1.0)) for t in (0, 999))
