"""The variational bound against torch.distributions, closed forms of Gaussian data, and its own unbiasedness."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from unetdiff.diffusion.config import DiffusionConfig, NoiseConfig
from unetdiff.diffusion.objectives import alpha_sigma, build_scheduler, target
from unetdiff.evaluation.likelihood import discretized_log_likelihood, strata, summarize, variational_bound
from unetdiff.evaluation.types import Denoise

LN2 = math.log(2)


def scheduler(timesteps: int = 20, prediction: str = "sample", **noise):
    config = NoiseConfig(num_train_timesteps=timesteps, **noise)
    return build_scheduler(DiffusionConfig(prediction_type=prediction, noise=config))  # type: ignore[arg-type]


def flat(level: int, count: int = 2) -> Tensor:
    return torch.full((count, 3, 4, 4), level, dtype=torch.uint8)


def constant_denoiser(process, x0: float) -> Denoise:
    """A network that predicts x0 everywhere, in the parametrization of the process."""

    def denoise(xt: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (level[:, None, None, None] for level in alpha_sigma(process, t))
        clean = torch.full_like(xt, x0)
        return target(process, clean, (xt - alpha * clean) / sigma, t)

    return denoise


@pytest.mark.parametrize("prediction", ["sample", "epsilon", "v_prediction"])
def test_every_term_is_torch_distributions(prediction: str) -> None:
    """The image is x everywhere, the prediction x + 0.1: each term is a divergence of known Gaussians."""
    process = scheduler(prediction=prediction)
    level, wrong = 150, 0.1
    x = level / 127.5 - 1
    bound = variational_bound(
        constant_denoiser(process, x + wrong), process, flat(level), torch.Generator().manual_seed(0)
    )

    betas = process.betas.double()
    alpha_bar = torch.cumprod(1 - betas, dim=0)
    nats = 0.0
    for t in range(1, 20):  # Ho et al. 2020, equations 6 and 7
        variance = betas[t] * (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t])
        coefficient = alpha_bar[t - 1].sqrt() * betas[t] / (1 - alpha_bar[t])
        posterior, model = (Normal(coefficient * clean, variance.sqrt()) for clean in (x, x + wrong))
        nats += kl_divergence(posterior, model).item()
    assert bound.steps.tolist() == pytest.approx([nats / LN2] * 2, rel=2e-3)

    last = Normal(alpha_bar[-1].sqrt() * x, (1 - alpha_bar[-1]).sqrt())
    prior = kl_divergence(last, Normal(torch.tensor(0.0).double(), torch.tensor(1.0).double())).item()
    assert bound.prior.tolist() == pytest.approx([prior / LN2] * 2, rel=2e-3)

    sigma = (betas[1] * (1 - alpha_bar[0]) / (1 - alpha_bar[1])).sqrt()
    decoder = Normal(torch.tensor(x + wrong).double(), sigma)
    mass = decoder.cdf(torch.tensor(x + 1 / 255).double()) - decoder.cdf(torch.tensor(x - 1 / 255).double())
    assert bound.decoder.tolist() == pytest.approx([-mass.log2().item()] * 2, rel=2e-3)
    assert torch.allclose(bound.total, bound.prior + bound.steps + bound.decoder)


def test_perfect_denoiser_costs_the_decoder_only() -> None:
    process = scheduler(1000, beta_schedule="linear")
    denoise, generator = constant_denoiser(process, 150 / 127.5 - 1), torch.Generator().manual_seed(0)
    bound = variational_bound(denoise, process, flat(150), generator, timesteps=5)
    assert bound.steps.abs().max() < 1e-9 and bound.prior.max() < 1e-3
    assert 1 < bound.total.max() < 2  # sigma 0.0074 is nearly a level; against 8 bits of a level


def test_bound_grows_with_the_error() -> None:
    process, x = scheduler(), 150 / 127.5 - 1
    totals = [
        variational_bound(
            constant_denoiser(process, x + wrong), process, flat(150, 1), torch.Generator().manual_seed(0)
        ).total
        for wrong in (0.0, 0.05, 0.1, 0.3)
    ]
    assert (torch.cat(totals).diff() > 0.01).all()


def best_for_gaussian(process, mean: float, spread: float) -> Denoise:
    """The posterior mean of x_0 where every pixel is N(mean, spread²)."""

    def denoise(xt: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (level[:, None, None, None] for level in alpha_sigma(process, t))
        gain = alpha * spread**2 / (alpha**2 * spread**2 + sigma**2)
        return mean + gain * (xt - alpha * mean)

    return denoise


def test_bound_of_gaussian_data() -> None:
    """Pixels of N(m, s²): the best x_0 has the error s²σ² / (α²s² + σ²), and the bound is above the entropy."""
    process, mean, spread = scheduler(200, beta_schedule="linear"), 0.1, 0.2
    pixels = mean + spread * torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    images = ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    denoise = best_for_gaussian(process, mean, spread)
    bound = variational_bound(denoise, process, images, torch.Generator().manual_seed(1))
    alpha_bar = process.alphas_cumprod.double()
    snr = alpha_bar / (1 - alpha_bar)
    error = spread**2 * (1 - alpha_bar) / (alpha_bar * spread**2 + 1 - alpha_bar)
    theory = (0.5 * (snr[:-1] - snr[1:]) * error[1:]).sum().item() / LN2
    assert bound.steps.item() == pytest.approx(theory, rel=0.02)
    entropy = math.log2(spread * math.sqrt(2 * math.pi * math.e) * 127.5)  # of a level, by its density
    assert entropy < bound.total.item() < entropy + 1.5
    worse = variational_bound(best_for_gaussian(process, 0.5, 0.1), process, images, torch.Generator().manual_seed(1))
    assert worse.total.item() > bound.total.item()  # a mismatched model has a larger bound


def test_some_timesteps_estimate_all_without_bias() -> None:
    process = scheduler(30)
    denoise, images = constant_denoiser(process, 0.5), flat(150, 400)
    whole = variational_bound(denoise, process, images[:1], torch.Generator().manual_seed(0)).steps
    calls: list[int] = []

    def counted(xt: Tensor, t: Tensor) -> Tensor:
        calls.append(len(t))
        return denoise(xt, t)

    some = variational_bound(counted, process, images, torch.Generator().manual_seed(0), timesteps=6).steps
    assert calls == [400] * 7  # the decoder's too
    error = some.std() / 20
    assert some.std() > 0.01 and abs(some.mean() - whole[0]) < 4 * error


@pytest.mark.parametrize(("timesteps", "count"), [(10, 0), (10, 3), (10, 9), (10, 50), (1000, 7), (2, 5)])
def test_strata_cover_every_step_once(timesteps: int, count: int) -> None:
    bound = strata(timesteps, count)
    assert [t for first, last in bound for t in range(first, last)] == list(range(1, timesteps))
    assert len(bound) == (min(count, timesteps - 1) if count else timesteps - 1)
    sizes = {last - first for first, last in bound}
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(("mean", "sigma"), [(0.3, 0.1), (-1.0, 0.004), (0.999, 0.5), (0.0, 5.0)])
def test_levels_sum_to_one(mean: float, sigma: float) -> None:
    levels = torch.arange(256).to(torch.uint8)
    bound = discretized_log_likelihood(levels, torch.full((256,), mean).double(), sigma)
    assert bound.exp().sum().item() == pytest.approx(1, abs=1e-9)
    normal = Normal(torch.tensor(mean).double(), sigma)
    edges = (torch.arange(1, 256).double() - 0.5) / 127.5 - 1
    mass = torch.diff(torch.cat([torch.zeros(1), normal.cdf(edges), torch.ones(1)]).double())
    assert torch.allclose(bound.exp(), mass, atol=1e-12)


def test_far_levels_stay_finite_and_ordered() -> None:
    levels = torch.arange(256).to(torch.uint8)
    for mean in (-1.0, 1.0):
        bound = discretized_log_likelihood(levels, torch.full((256,), mean).double(), 0.003)
        assert bound.isfinite().all()
        assert (bound.diff() * mean >= 0).all() and bound.min() < -1e5


def test_zero_terminal_snr_leaves_nothing_for_the_prior() -> None:
    process = scheduler(prediction="v_prediction", zero_terminal_snr=True)
    bound = variational_bound(constant_denoiser(process, 0.2), process, flat(20), torch.Generator().manual_seed(0))
    assert bound.prior.abs().max() < 1e-6 and bound.total.isfinite().all()


def test_summary() -> None:
    process = scheduler()
    bounds = [
        variational_bound(constant_denoiser(process, 0.0), process, flat(level, 1), torch.Generator().manual_seed(0))
        for level in (120, 160)
    ]
    bound = summarize(bounds, 6, 20)
    totals = [bound.total.item() for bound in bounds]
    assert bound["bits_per_dimension"] == pytest.approx(sum(totals) / 2)
    assert bound["prior"] + bound["steps"] + bound["decoder"] == pytest.approx(bound["bits_per_dimension"])
    assert bound["standard_error"] == pytest.approx(abs(totals[0] - totals[1]) / 2)
    assert (bound["num_images"], bound["timesteps"]) == (2, "6 of 20")
    assert math.isnan(summarize(bounds[:1], 6, 20)["standard_error"])
