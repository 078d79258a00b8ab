"""Targets, weights and timesteps against diffusers' schedulers and against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from unetdiff.diffusion import objectives
from unetdiff.diffusion.config import DiffusionConfig, NoiseConfig
from unetdiff.diffusion.processes.ddpm import DDPM
from unetdiff.diffusion.schedulers import make_scheduler
from unetdiff.errors import UserError

PREDICTIONS = ["epsilon", "sample", "v_prediction"]
SCHEDULES = ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"]


def scheduler_of(prediction: str = "v_prediction", schedule: str = "squaredcos_cap_v2", zero: bool = False):
    noise = NoiseConfig(beta_schedule=schedule, zero_terminal_snr=zero)  # type: ignore[arg-type]
    return objectives.build_scheduler(DiffusionConfig(prediction_type=prediction, noise=noise))  # type: ignore[arg-type]


def steps_of(total: int) -> DDPM:
    """A process of so many timesteps."""
    return DDPM(DDPMScheduler(num_train_timesteps=total))


class AtSnr:
    """A scheduler whose timesteps have the signal-to-noise ratios asked for."""

    def __init__(self, prediction: str, ratios: list[float]) -> None:
        ratio = torch.tensor(ratios, dtype=torch.float64)
        self.alphas_cumprod = ratio / (1 + ratio)
        self.config = type("Config", (), {"prediction_type": prediction})


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_forward_process_is_diffusers_own(schedule: str, zero: bool) -> None:
    ours = scheduler_of(schedule=schedule, zero=zero)
    theirs = DDPMScheduler(beta_schedule=schedule, rescale_betas_zero_snr=zero)
    assert torch.allclose(ours.alphas_cumprod, theirs.alphas_cumprod, atol=1e-7)
    assert ours.config.timestep_spacing == "trailing" and ours.config.clip_sample
    assert (ours.alphas_cumprod[-1] == 0) == zero
    timesteps = torch.tensor([0, 1, 13, 250, 500, 750, 998, 999])
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 8, 3, 2, 2, generator=generator)
    alpha, sigma = (level[:, None, None, None] for level in objectives.alpha_sigma(ours, timesteps))
    assert torch.allclose(alpha * x0 + sigma * noise, theirs.add_noise(x0, noise, timesteps), atol=1e-5)
    velocity = objectives.target(ours, x0, noise, timesteps)
    assert torch.allclose(velocity, theirs.get_velocity(x0, noise, timesteps), atol=1e-5)
    assert torch.allclose(objectives.snr(ours, timesteps), compute_snr(theirs, timesteps), rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "sigmoid"])
def test_the_betas_are_those_of_the_config(schedule: str) -> None:
    """Stable Diffusion's, which its scheduler computes from 0.00085 and 0.012; kept when the sampler is changed."""
    betas = {"beta_start": 0.00085, "beta_end": 0.012}
    noise = NoiseConfig(beta_schedule=schedule, **betas)  # type: ignore[arg-type]
    ours = objectives.build_scheduler(DiffusionConfig(noise=noise))
    theirs = DDPMScheduler(beta_schedule=schedule, **betas)
    assert torch.allclose(ours.alphas_cumprod, theirs.alphas_cumprod, atol=1e-7)
    assert torch.equal(make_scheduler(ours, "heun").betas, make_scheduler(ours, "ddim").betas)


def test_zero_terminal_snr_with_epsilon_is_refused() -> None:
    with pytest.raises(UserError, match="zero_terminal_snr.*v_prediction or sample"):
        scheduler_of("epsilon", zero=True)
    scheduler_of("sample", zero=True)


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


@pytest.mark.parametrize("weighting", ["min_snr", "soft_min_snr", "clamped_snr"])
def test_weighted_losses_are_one_loss_whatever_is_predicted(weighting: str) -> None:
    """The same prediction, stated as noise, image or v, costs the same: its weight times the image's error."""
    generator = torch.Generator().manual_seed(0)
    x0, guess = torch.randn(2, 6, 3, 4, 4, generator=generator)
    noise = torch.randn(6, 3, 4, 4, generator=generator)
    timesteps = torch.tensor([50, 200, 350, 500, 700, 900])
    ratio = compute_snr(scheduler_of(), timesteps)
    of_x0 = {
        "min_snr": ratio.clamp(max=5),
        "soft_min_snr": 1 / (1 / ratio + 1 / 5),
        "clamped_snr": ratio.clamp(1, 5),
    }
    expected = of_x0[weighting] * (guess - x0).square().mean(dim=(1, 2, 3))
    for prediction in PREDICTIONS:
        if (prediction, weighting) == ("epsilon", "clamped_snr"):  # refused
            continue
        scheduler = scheduler_of(prediction)
        xt = scheduler.add_noise(x0, noise, timesteps)
        alpha, sigma = (level[:, None, None, None] for level in objectives.alpha_sigma(scheduler, timesteps))
        output = objectives.target(scheduler, guess, (xt - alpha * guess) / sigma, timesteps)
        target = objectives.target(scheduler, x0, noise, timesteps)
        weight = objectives.loss_weight(scheduler, timesteps, weighting, 5.0)
        assert torch.allclose(objectives.diffusion_loss(output, target, weight), expected, rtol=1e-3), prediction


@pytest.mark.parametrize("weighting", ["uniform", "min_snr", "soft_min_snr", "clamped_snr"])
@pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
def test_weights_are_finite_at_zero_terminal_snr(prediction: str, weighting: str) -> None:
    weight = objectives.loss_weight(scheduler_of(prediction, zero=True), torch.arange(1000), weighting)
    assert weight.isfinite().all() and (weight[:-1] > 0).all()
    assert weight[-1] == (0 if "min_snr" in weighting else 1)


def test_clamped_snr_with_epsilon_is_refused() -> None:
    with pytest.raises(UserError, match="epsilon. Use min_snr"):
        objectives.loss_weight(scheduler_of("epsilon"), torch.tensor([3]), "clamped_snr")


def test_unknown_weighting_is_refused() -> None:
    with pytest.raises(UserError, match="min-snr"):
        objectives.loss_weight(scheduler_of(), torch.tensor([3]), "min-snr")


def test_stratified_timesteps_cover_the_strata() -> None:
    for seed in range(20):
        timesteps = steps_of(1600).sample_timesteps(16, torch.Generator().manual_seed(seed))
        assert sorted((timesteps // 100).tolist()) == list(range(16))


@pytest.mark.parametrize("stratified", [True, False])
def test_timesteps_are_uniform(stratified: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.cat([steps_of(10).sample_timesteps(4, generator, stratified) for _ in range(5000)])
    assert drawn.dtype == torch.int64
    share = torch.bincount(drawn, minlength=10) / len(drawn)
    assert len(share) == 10 and (share - 0.1).abs().max() < 0.01


def test_independent_timesteps_are_not_stratified() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = steps_of(1000).sample_timesteps(64, generator, stratified=False)
    assert len(set((drawn * 64 // 1000).tolist())) < 60


def test_loss_is_a_float32_mean_per_image() -> None:
    output = torch.full((2, 3, 2, 2), 1.0, dtype=torch.bfloat16)
    target = torch.zeros(2, 3, 2, 2)
    target[1] = 3.0
    loss = objectives.diffusion_loss(output, target, torch.tensor([1.0, 0.5]))
    assert loss.dtype == torch.float32 and loss.tolist() == [1.0, 2.0]


def by_quartile(losses: list[float], timesteps: list[int], total: int) -> dict[str, torch.Tensor]:
    sums = objectives.sums_by_quartile(torch.tensor(losses), torch.tensor(timesteps), steps_of(total))
    return objectives.loss_by_quartile(sums, torch.tensor(len(losses)), steps_of(total))


def quartiles(losses: list[float], timesteps: list[int], total: int = 1000) -> list[float]:
    parts = by_quartile(losses, timesteps, total)
    assert list(parts) == ["loss_q0", "loss_q1", "loss_q2", "loss_q3"]
    return [value.item() for value in parts.values()]


def test_loss_by_quartile_is_the_mean_of_a_stratified_batch() -> None:
    assert quartiles([1.0, 2.0, 4.0, 10.0], [0, 250, 749, 999]) == [1.0, 2.0, 4.0, 10.0]
    assert quartiles([1.0, 2.0, 4.0, 10.0, 1, 1, 1, 1], [0, 249, 250, 499, 500, 749, 750, 999]) == [1.5, 7, 1, 1]


def test_loss_by_quartile_averages_over_steps_of_one_image_each() -> None:
    """Each step names all four quarters, so that their log lines can be averaged entry by entry."""
    steps = [quartiles([loss], [t]) for loss, t in zip([1.0, 2.0, 4.0, 10.0], [10, 300, 600, 900], strict=True)]
    assert torch.tensor(steps).mean(dim=0).tolist() == [1.0, 2.0, 4.0, 10.0]


def test_loss_by_quartile_of_timesteps_that_four_does_not_divide() -> None:
    assert quartiles([1.0] * 10, list(range(10)), 10) == pytest.approx([1.0] * 4)
    two = by_quartile([3.0, 5.0], [0, 1], 2)
    assert {name: value.item() for name, value in two.items()} == {"loss_q0": 3.0, "loss_q2": 5.0}


def test_offset_noise_is_a_constant_for_each_image_and_channel() -> None:
    shape = (500, 3, 4, 4)
    plain, offset = (
        objectives.sample_noise(shape, torch.Generator().manual_seed(0), strength) for strength in (0.0, 0.5)
    )
    assert torch.equal(plain, torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    added = offset - plain
    assert torch.allclose(added, added[..., :1, :1].expand_as(added), atol=1e-6)
    assert added[..., 0, 0].std().item() == pytest.approx(0.5, rel=0.1)  # 1,500 draws: 5 deviations
    assert (added[..., 0, 0].T.corrcoef() - torch.eye(3)).abs().max() < 0.2  # channels apart: 4.5 deviations
    assert offset.var().item() == pytest.approx(1 + 0.5**2, rel=0.1)
    assert offset.mean(dim=(2, 3)).var().item() == pytest.approx(1 / 16 + 0.5**2, rel=0.2)


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2", "sigmoid"])
def test_input_scale_is_the_process_of_a_smaller_image(schedule: str) -> None:
    plain, scaled = (
        objectives.build_scheduler(DiffusionConfig(noise=NoiseConfig(schedule, input_scale=b)))  # type: ignore[arg-type]
        for b in (1.0, 0.1)
    )
    steps = torch.arange(1000)
    ratio = objectives.snr(scaled, steps).double() / objectives.snr(plain, steps).double()
    assert torch.allclose(ratio[:990], torch.full((990,), 0.01, dtype=torch.float64), rtol=2e-2)
    # x_t of b x_0 divided by its deviation is x_t of x_0 under the scaled process, noise and all
    x0, noise, t = torch.tensor([[[[1.0, -1]]]]), torch.tensor([[[[0.3, 0.8]]]]), torch.tensor([400])
    alpha, sigma = objectives.alpha_sigma(plain, t)
    by_hand = (alpha * 0.1 * x0 + sigma * noise) / (0.01 * alpha**2 + sigma**2).sqrt()
    torch.testing.assert_close(scaled.add_noise(x0, noise, t), by_hand, atol=1e-4, rtol=1e-3)
