"""Every sampler on our forward process: the right timesteps, the right noise on the way, the image in the end."""

from __future__ import annotations

import re
from fractions import Fraction

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

from unetdiff.diffusion import objectives
from unetdiff.diffusion.config import DiffusionConfig, NoiseConfig
from unetdiff.diffusion.scheduler_names import SCHEDULERS
from unetdiff.diffusion.schedulers import make_scheduler, set_steps, step
from unetdiff.errors import UserError

BETAS = ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"]


def scheduler_of(prediction: str = "v_prediction", betas: str = "squaredcos_cap_v2", zero: bool = False):
    noise = NoiseConfig(beta_schedule=betas, zero_terminal_snr=zero)  # type: ignore[arg-type]
    return objectives.build_scheduler(DiffusionConfig(prediction_type=prediction, noise=noise))  # type: ignore[arg-type]


def trailing(steps: int, total: int = 1000) -> list[int]:
    """Lin et al. 2024, table 2, in exact fractions."""
    return [round(Fraction(total * (steps - k), steps)) - 1 for k in range(steps)]


def follow_the_exact_target(base, name: str, steps: int) -> None:
    """A network that knows x_0 leads the sampler along x_t = α_t x_0 + σ_t ε to x_0."""
    scheduler = make_scheduler(base, name)
    set_steps(scheduler, steps)
    expected = trailing(steps)
    if name == "heun":  # asks twice at every timestep but the first
        expected = expected[:1] + [t for t in expected[1:] for _ in range(2)]
    assert scheduler.timesteps.tolist() == expected

    generator = torch.Generator().manual_seed(0)
    x0 = torch.rand(4, 3, 8, 8, generator=generator) * 2 - 1
    arguments = {"ddim": {"use_clipped_model_output": True}, "ddpm": {"generator": generator}}.get(name, {})
    levels = scheduler.alphas_cumprod if name == "heun" else base.alphas_cumprod
    noise = None
    x = torch.randn(x0.shape, generator=generator) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        xt = scheduler.scale_model_input(x, t)
        at = t.round().long().expand(4)
        alpha, sigma = levels[at[0]] ** 0.5, (1 - levels[at[0]]) ** 0.5
        left = (xt - alpha * x0) / sigma
        noise = left if noise is None else noise
        if name != "ddpm":  # which draws new noise
            assert torch.allclose(xt, alpha * x0 + sigma * noise, atol=2e-3), int(t)
        else:
            assert 0.85 < left.std() < 1.15, int(t)  # 6 deviations
        output = {"epsilon": left, "sample": x0, "v_prediction": alpha * left - sigma * x0}[base.config.prediction_type]
        x = step(scheduler, output, t, x, **arguments)
    assert torch.allclose(x, x0, atol=2e-5)


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("name", SCHEDULERS["ddpm"])
def test_the_exact_target_gives_back_x0_in_ten_steps(name: str, prediction: str, betas: str) -> None:
    follow_the_exact_target(scheduler_of(prediction, betas), name, 10)


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
@pytest.mark.parametrize("name", SCHEDULERS["ddpm"])
def test_the_exact_target_gives_back_x0_from_pure_noise(name: str, prediction: str, betas: str) -> None:
    follow_the_exact_target(scheduler_of(prediction, betas, zero=True), name, 10)


@pytest.mark.parametrize("steps", [1, 7, 61, 150])  # 61: numpy counts one more; 150: does not divide 1,000
@pytest.mark.parametrize("name", SCHEDULERS["ddpm"])
def test_any_number_of_steps(name: str, steps: int) -> None:
    follow_the_exact_target(scheduler_of(), name, steps)


def test_every_number_of_steps_has_its_timesteps() -> None:
    scheduler = scheduler_of()
    for steps in range(1, 1001):
        set_steps(scheduler, steps)
        timesteps = scheduler.timesteps
        assert len(timesteps) == steps and timesteps[0] == 999 and timesteps[-1] >= 0


@pytest.mark.parametrize("steps", [60, 61, 150])
def test_ddim_is_the_solver_of_order_one(steps: int) -> None:
    """Lu et al. 2022, section 4: DPM-Solver++ of order one is DDIM; diffusers' own follows its list of timesteps."""
    base = DDIMScheduler.from_config(scheduler_of().config, clip_sample=False)
    solver = DPMSolverMultistepScheduler.from_config(base.config, solver_order=1)
    start = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images = []
    for scheduler in (base, solver):
        set_steps(scheduler, steps)
        x = start
        for t in scheduler.timesteps:
            alpha, sigma = base.alphas_cumprod[t] ** 0.5, (1 - base.alphas_cumprod[t]) ** 0.5
            x0 = 0.04 * alpha * x / (0.04 * alpha**2 + sigma**2) + 0.1 * x.tanh()
            v = (alpha * x - x0) / sigma
            x = step(scheduler, v, t, x)
        images.append(x)
    assert images[0].std() > 0.1
    assert torch.allclose(*images, atol=1e-3)


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("name", SCHEDULERS["ddpm"])
def test_a_swap_keeps_the_forward_process(name: str, betas: str, zero: bool) -> None:
    base = scheduler_of("sample", betas, zero)
    scheduler = make_scheduler(base, name)
    assert type(scheduler).__name__ == SCHEDULERS["ddpm"][name]
    assert scheduler.config.timestep_spacing == "trailing" and scheduler.config.prediction_type == "sample"
    theirs = DDPMScheduler(beta_schedule=betas, rescale_betas_zero_snr=zero).alphas_cumprod
    least = {"heun": 1 / 6401, "dpm++": 2**-24, "unipc": 2**-24}.get(name, 0)  # the solvers take a logarithm of it
    assert torch.allclose(scheduler.alphas_cumprod, theirs.clamp(min=least if zero or name == "heun" else 0), atol=1e-7)
    assert torch.allclose(make_scheduler(scheduler, "ddim").alphas_cumprod, base.alphas_cumprod, atol=1e-7)  # and back


def test_a_swap_is_trailing_whatever_was_saved() -> None:
    assert make_scheduler(DDPMScheduler(timestep_spacing="leading"), "dpm++").config.timestep_spacing == "trailing"


@pytest.mark.parametrize(
    ("base", "name", "message"),
    [
        (scheduler_of(), "dpm+", r"scheduler=dpm\+: must be one of ddim, ddpm, .*Did you mean dpm\+\+"),
        *[
            (
                DDIMScheduler(rescale_betas_zero_snr=True),
                name,
                f"scheduler={re.escape(name)}: must sample v_prediction or sample .*got epsilon",
            )
            for name in SCHEDULERS["ddpm"]
        ],
    ],
)
def test_refusals(base, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_scheduler(base, name)
