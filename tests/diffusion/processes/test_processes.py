"""Every forward process by its own formulas, and by those that all share."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDPMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_density_for_timestep_sampling

from unetdiff.diffusion import objectives
from unetdiff.diffusion.config import DiffusionConfig, EDMConfig, FlowConfig, NoiseConfig
from unetdiff.diffusion.processes.base import Process
from unetdiff.diffusion.processes.ddpm import DDPM
from unetdiff.diffusion.processes.edm import EDM
from unetdiff.diffusion.processes.flow import Flow
from unetdiff.diffusion.processes.load import process_of

PROCESSES = {
    "ddpm": DDPM(DDPMScheduler(prediction_type="v_prediction")),
    "flow": Flow(),
    "shift": Flow(shift=3.0),
    "edm": EDM(),
    "edm-F": EDM(sigma_data=1.7, rho=3.0, prediction_type="epsilon"),
    "edm-exponential": EDM(exponential=True),
}
ALL = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())


@ALL
def test_the_target_gives_back_x0(process: Process) -> None:
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 16, 3, 2, 2, generator=generator)
    timesteps = process.sample_timesteps(16, generator)
    xt = process.add_noise(x0, noise, timesteps)
    output = process.target(x0, noise, timesteps)
    assert torch.allclose(process.predicted_x0(output, xt, timesteps), x0, atol=1e-4)
    # an error e of the output is one of x_0, and what `x0_error` says of its square
    error = process.predicted_x0(output + 0.5, xt, timesteps) - x0
    expected = 0.25 * process.x0_error(timesteps)
    assert torch.allclose(error.square().mean(dim=(1, 2, 3)), expected, rtol=2e-2, atol=1e-6)


@ALL
def test_timesteps_are_stratified_in_their_own_distribution(process: Process) -> None:
    timesteps = process.sample_timesteps(4000, torch.Generator().manual_seed(0))
    assert bool((timesteps[1:] >= timesteps[:-1]).all())  # stratum by stratum, least noise first
    quartiles = process.quartile(timesteps)
    assert torch.bincount(quartiles, minlength=4).tolist() == pytest.approx([1000] * 4, abs=2)
    assert process.quartile_widths() == pytest.approx([0.25] * 4)
    one = process.random_timestep(torch.Generator().manual_seed(1))
    assert one.shape == () and one.dtype == timesteps.dtype


@ALL
def test_fractions_of_the_steps_and_back(process: Process) -> None:
    fractions = torch.linspace(0.02, 1, 50)
    timesteps = process.at_fraction(fractions)
    assert torch.allclose(process.fraction(timesteps), fractions, atol=1e-3)
    assert (process.snr(timesteps).diff() < 0).all()


@pytest.mark.parametrize(("shift", "mean", "std"), [(1.0, 0.0, 1.0), (3.0, -0.5, 0.7)])
def test_flow_timesteps_are_those_of_diffusers_training_scripts(shift: float, mean: float, std: float) -> None:
    """examples/dreambooth/train_dreambooth_lora_sd3.py: the density's u counts into the scheduler's sigmas."""
    process = Flow(shift=shift, logit_mean=mean, logit_std=std)
    generator = torch.Generator().manual_seed(0)
    u = compute_density_for_timestep_sampling("logit_normal", 40_000, mean, std, generator=generator)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    theirs = scheduler.timesteps.flip(0)[(u * 1000).long()].sort().values
    ours = process.sample_timesteps(40_000, generator).sort().values
    assert (theirs - ours).abs().mean() < 4  # of 1,000: 3 deviations of a quantile of as many draws
    assert ours.min() > 0 and ours.max() <= 1000


def test_flow_is_diffusers_own() -> None:
    config = DiffusionConfig(noise=NoiseConfig(process="flow", flow=FlowConfig(shift=2.0)))
    scheduler = objectives.build_scheduler(config)
    assert isinstance(scheduler, FlowMatchEulerDiscreteScheduler) and scheduler.config.shift == 2.0
    process = process_of(scheduler, config.noise)
    timesteps = scheduler.timesteps[[0, 300, 999]]
    x0, noise = torch.randn(2, 3, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(process.add_noise(x0, noise, timesteps), scheduler.scale_noise(x0, timesteps, noise))
    assert torch.equal(process.target(x0, noise, timesteps), noise - x0)


@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon"])
def test_edm_is_diffusers_own(prediction: str) -> None:
    edm = EDMConfig(sigma_data=0.7, sigma_min=0.01, sigma_max=50.0, rho=5.0)
    config = DiffusionConfig(prediction_type=prediction, noise=NoiseConfig(process="edm", edm=edm))  # type: ignore[arg-type]
    scheduler = objectives.build_scheduler(config)
    assert isinstance(scheduler, EDMEulerScheduler)
    process = process_of(scheduler, config.noise)
    fractions = torch.linspace(1, 0, 1001)
    assert torch.allclose(process.at_fraction(fractions), scheduler.timesteps, atol=1e-4)
    sigmas = torch.tensor([0.05, 0.7, 20.0])
    timesteps, s = scheduler.precondition_noise(sigmas), sigmas[:, None, None, None]
    x0, noise, output = torch.randn(3, 3, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    x = x0 + s * noise
    xt = process.add_noise(x0, noise, timesteps)
    assert torch.allclose(xt, scheduler.precondition_inputs(x, s), atol=1e-5)
    assert torch.allclose(
        process.predicted_x0(output, xt, timesteps), scheduler.precondition_outputs(x, output, s), atol=1e-5
    )
    assert torch.allclose(scheduler.precondition_outputs(x, process.target(x0, noise, timesteps), s), x0, atol=1e-4)


def test_edm_loss_is_the_papers() -> None:
    """edm/training/loss.py: the error of D, weighted by (s² + d²) / (s d)², at ln(s) ~ N(-1.2, 1.2²)."""
    process, generator = EDM(sigma_data=0.5, prediction_type="epsilon"), torch.Generator().manual_seed(0)
    timesteps = process.sample_timesteps(20_000, generator)
    log_s = 4 * timesteps
    assert float(log_s.mean()) == pytest.approx(-1.2, abs=0.01) and float(log_s.std()) == pytest.approx(1.2, abs=0.01)
    s = log_s[:5].exp()
    weight = (s**2 + 0.5**2) / (s * 0.5) ** 2
    assert torch.allclose(weight * process.x0_error(timesteps[:5]), torch.ones(5), rtol=1e-4)


@pytest.mark.parametrize("weighting", ["uniform", "min_snr", "soft_min_snr", "clamped_snr"])
def test_weights_of_the_velocity(weighting: str) -> None:
    """At σ = 0.2 the SNR is 16 and the error of x_0 is 0.04 of the velocity's; γ = 5."""
    scheduler = FlowMatchEulerDiscreteScheduler()
    weight = objectives.loss_weight(scheduler, torch.tensor([200.0]), weighting)
    expected = {"uniform": 1, "min_snr": 5 * 0.04, "soft_min_snr": 80 / 21 * 0.04, "clamped_snr": 5 * 0.04}
    assert weight.item() == pytest.approx(expected[weighting], rel=1e-5)
    extremes = Flow(logit_std=10.0).quantile(torch.tensor([0.0, 1.0]))
    assert bool(objectives.loss_weight(scheduler, extremes, weighting).isfinite().all())


def test_extreme_flow_timesteps_are_in_range() -> None:
    assert 0 < Flow(logit_std=10.0).quantile(torch.tensor([0.0]))[0] < 0.01
    assert math.isclose(float(Flow(logit_std=10.0).quantile(torch.tensor([1.0]))[0]), 1000)
