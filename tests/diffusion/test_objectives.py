"""Targets, weights and timesteps against diffusers' schedulers and against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.training_utils import compute_snr

from unetdiff.diffusion import objectives
from unetdiff.diffusion.config import DiffusionConfig, NoiseConfig
from unetdiff.errors import UserError

PREDICTIONS = ["epsilon", "sample", "v_prediction"]
SCHEDULES = ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"]


def scheduler_of(prediction: str = "v_prediction", schedule: str = "squaredcos_cap_v2", zero: bool = False):
    noise = NoiseConfig(beta_schedule=schedule, zero_terminal_snr=zero)  # type: ignore[arg-type]
    return objectives.build_scheduler(DiffusionConfig(prediction_type=prediction, noise=noise))  # type: ignore[arg-type]


class AtSnr:
    """A scheduler whose timesteps have the signal-to-noise ratios asked for."""

    def __init__(self, prediction: str, ratios: list[float]) -> None:
        ratio = torch.tensor(ratios, dtype=torch.float64)
        self.alphas_cumprod = ratio / (1 + ratio)
        self.config = type("Config", (), {"prediction_type": prediction})


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("zero", [False, True])
def test_scheduler_is_diffusers_own_forward_process(schedule: str, zero: bool) -> None:
    ours = scheduler_of(schedule=schedule, zero=zero)
    theirs = DDPMScheduler(beta_schedule=schedule, rescale_betas_zero_snr=zero)
    assert torch.allclose(ours.alphas_cumprod, theirs.alphas_cumprod, atol=1e-7)
    assert ours.config.timestep_spacing == "trailing" and ours.config.clip_sample
    assert (ours.alphas_cumprod[-1] == 0) == zero
    for other in (DDPMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler, HeunDiscreteScheduler):
        if not (zero and other is HeunDiscreteScheduler):  # which has no such option
            swapped = other.from_config(ours.config)
            assert torch.allclose(swapped.alphas_cumprod, ours.alphas_cumprod, atol=1e-7), other


def test_zero_terminal_snr_with_epsilon_is_refused() -> None:
    with pytest.raises(UserError, match="zero_terminal_snr.*v_prediction or sample"):
        scheduler_of("epsilon", zero=True)
    scheduler_of("sample", zero=True)


def test_snr_is_diffusers_own() -> None:
    scheduler, timesteps = scheduler_of(), torch.tensor([0, 1, 500, 999])
    theirs = compute_snr(scheduler, timesteps)
    assert torch.allclose(objectives.snr(scheduler, timesteps), theirs, rtol=1e-5)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_target_and_its_inverse(prediction: str) -> None:
    scheduler = scheduler_of(prediction)
    generator = torch.Generator().manual_seed(0)
    x0 = torch.rand(4, 3, 5, 7, generator=generator) * 2 - 1
    noise = torch.randn(4, 3, 5, 7, generator=generator)
    timesteps = torch.tensor([0, 13, 500, 900])
    xt = scheduler.add_noise(x0, noise, timesteps)
    target = objectives.target(scheduler, x0, noise, timesteps)
    expected = {"epsilon": noise, "sample": x0, "v_prediction": scheduler.get_velocity(x0, noise, timesteps)}
    assert torch.allclose(target, expected[prediction], atol=1e-6)
    assert torch.allclose(objectives.predicted_x0(scheduler, target, xt, timesteps), x0, atol=1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(
    "solver",
    [
        DDPMScheduler,
        DDIMScheduler,
        DPMSolverMultistepScheduler,
        UniPCMultistepScheduler,
        HeunDiscreteScheduler,
    ],
)
def test_oracle_gives_back_x0_in_ten_steps(solver, prediction: str, schedule: str) -> None:
    """A network that knows x_0 and outputs the exact target leads every scheduler to x_0."""
    base = scheduler_of(prediction, schedule)
    scheduler = solver.from_config(base.config)
    generator = torch.Generator().manual_seed(0)
    x0 = torch.rand(2, 3, 4, 4, generator=generator) * 2 - 1
    scheduler.set_timesteps(10)
    assert scheduler.timesteps[0] == 999  # trailing: from pure noise
    x = torch.randn(x0.shape, generator=generator) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        xt = scheduler.scale_model_input(x, t)
        at = t.round().long().expand(2)
        alpha, sigma = (level[:, None, None, None] for level in objectives.alpha_sigma(base, at))
        output = objectives.target(base, x0, (xt - alpha * x0) / sigma, at)
        x = scheduler.step(output, t, x).prev_sample
    assert torch.allclose(x, x0, atol=2e-5)


@pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
@pytest.mark.parametrize("solver", [DDPMScheduler, DDIMScheduler, DPMSolverMultistepScheduler])
def test_oracle_with_zero_terminal_snr(solver, prediction: str) -> None:
    base = scheduler_of(prediction, zero=True)
    scheduler = solver.from_config(base.config)
    generator = torch.Generator().manual_seed(0)
    x0 = torch.rand(1, 3, 4, 4, generator=generator) * 2 - 1
    scheduler.set_timesteps(10)
    x = torch.randn(x0.shape, generator=generator)
    for t in scheduler.timesteps:
        at = t.expand(1)
        alpha, sigma = objectives.alpha_sigma(base, at)
        x = scheduler.step(objectives.target(base, x0, (x - alpha * x0) / sigma, at), t, x).prev_sample
    assert torch.allclose(x, x0, atol=2e-5)


# With gamma = 5 at SNR 0, 1, 5, 20: (Hang et al. 2023; the soft form at 20 is 20·5/25 = 4.)
WEIGHTS = {
    ("sample", "min_snr"): [0, 1, 5, 5],
    ("epsilon", "min_snr"): [1, 1, 1, 5 / 20],
    ("v_prediction", "min_snr"): [0, 1 / 2, 5 / 6, 5 / 21],
    ("sample", "soft_min_snr"): [0, 5 / 6, 2.5, 4],
    ("epsilon", "soft_min_snr"): [1, 5 / 6, 2.5 / 5, 4 / 20],
    ("v_prediction", "soft_min_snr"): [0, 5 / 12, 2.5 / 6, 4 / 21],
    ("v_prediction", "uniform"): [1, 1, 1, 1],
    ("sample", "clamped_snr"): [1, 1, 5, 5],
    ("v_prediction", "clamped_snr"): [1, 1 / 2, 5 / 6, 5 / 21],
}


@pytest.mark.parametrize(("prediction", "weighting"), list(WEIGHTS))
def test_weights_by_hand(prediction: str, weighting: str) -> None:
    scheduler = AtSnr(prediction, [0.0, 1.0, 5.0, 20.0])
    weight = objectives.loss_weight(scheduler, torch.arange(4), weighting, gamma=5.0)
    assert torch.allclose(weight, torch.tensor(WEIGHTS[prediction, weighting]).float(), rtol=1e-5)


@pytest.mark.parametrize("weighting", ["min_snr", "soft_min_snr"])
def test_weighted_losses_are_one_loss_whatever_is_predicted(weighting: str) -> None:
    """The same prediction, stated as noise, picture or v, costs the same."""
    generator = torch.Generator().manual_seed(0)
    x0, guess = torch.randn(2, 6, 3, 4, 4, generator=generator)
    noise = torch.randn(6, 3, 4, 4, generator=generator)
    timesteps = torch.tensor([50, 200, 350, 500, 700, 900])
    losses = []
    for prediction in PREDICTIONS:
        scheduler = scheduler_of(prediction)
        xt = scheduler.add_noise(x0, noise, timesteps)
        alpha, sigma = (level[:, None, None, None] for level in objectives.alpha_sigma(scheduler, timesteps))
        output = objectives.target(scheduler, guess, (xt - alpha * guess) / sigma, timesteps)
        target = objectives.target(scheduler, x0, noise, timesteps)
        weight = objectives.loss_weight(scheduler, timesteps, weighting, 5.0)
        losses.append(objectives.diffusion_loss(output, target, weight))
    assert torch.allclose(losses[0], losses[1], rtol=1e-3)
    assert torch.allclose(losses[2], losses[1], rtol=1e-3)


def test_clamped_snr_with_epsilon_is_refused() -> None:
    with pytest.raises(UserError, match="epsilon; use min_snr"):
        objectives.loss_weight(scheduler_of("epsilon"), torch.tensor([3]), "clamped_snr")


def test_unknown_weighting_is_refused() -> None:
    with pytest.raises(UserError, match="min-snr"):
        objectives.loss_weight(scheduler_of(), torch.tensor([3]), "min-snr")


def test_stratified_timesteps_cover_the_strata_of_all_processes() -> None:
    for seed in range(20):
        parts = [
            objectives.sample_timesteps(8, 1600, torch.Generator().manual_seed(seed + p), True, p, 2) for p in (0, 1)
        ]
        strata = torch.cat(parts) // 100
        assert sorted(strata.tolist()) == list(range(16))


@pytest.mark.parametrize("stratified", [True, False])
def test_timesteps_are_uniform(stratified: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.cat([objectives.sample_timesteps(4, 10, generator, stratified) for _ in range(5000)])
    assert drawn.dtype == torch.int64
    share = torch.bincount(drawn, minlength=10) / len(drawn)
    assert len(share) == 10 and (share - 0.1).abs().max() < 0.01


def test_independent_timesteps_are_not_stratified() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = objectives.sample_timesteps(64, 1000, generator, stratified=False)
    assert len(set((drawn * 64 // 1000).tolist())) < 60


def test_loss_is_a_float32_mean_per_picture() -> None:
    output = torch.full((2, 3, 2, 2), 1.0, dtype=torch.bfloat16)
    target = torch.zeros(2, 3, 2, 2)
    target[1] = 3.0
    loss = objectives.diffusion_loss(output, target, torch.tensor([1.0, 0.5]))
    assert loss.dtype == torch.float32 and loss.tolist() == [1.0, 2.0]


def test_loss_by_quartile() -> None:
    losses = torch.tensor([1.0, 2.0, 4.0, 10.0])
    quartiles = objectives.loss_by_quartile(losses, torch.tensor([0, 249, 250, 999]), 1000)
    assert {key: value.item() for key, value in quartiles.items()} == {"loss_q0": 1.5, "loss_q1": 4.0, "loss_q3": 10.0}
