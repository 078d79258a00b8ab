"""Loss guidance: its gradient against finite differences, a scale of 0, a toy that reaches its target, and refusals."""

from __future__ import annotations

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor
from torch.nn import functional as F

from unetdiff.diffusion.conditioning.classes import ClassConditioner
from unetdiff.diffusion.config import DiffusionConfig
from unetdiff.diffusion.loss_guidance import LossGuidance, apply_loss_guidance, layout_loss, loss_gradient
from unetdiff.diffusion.objectives import alpha_sigma, build_scheduler, predicted_x0
from unetdiff.diffusion.pipeline import GenerationPipeline
from unetdiff.diffusion.schedulers import make_scheduler
from unetdiff.errors import UserError
from unetdiff.models.unet import UNet

NOISY = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
WEIGHTS = torch.randn(3, 3, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / 5
T = torch.tensor([400, 400])


def predict(x: Tensor, timestep: Tensor | None = None) -> Tensor:
    """A denoiser that is not linear, (B, 3, 4, 4)."""
    return torch.tanh(F.conv2d(x.to(WEIGHTS), WEIGHTS, padding=1))


def loss(x0: Tensor) -> Tensor:
    return (x0**3 + x0.roll(1, dims=-1) * x0).flatten(1).sum(dim=1)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("through", ["network", "image"])
def test_gradient_against_finite_differences(prediction: str, through: str) -> None:
    scheduler = build_scheduler(DiffusionConfig(prediction_type=prediction), bound=None)  # type: ignore[arg-type]
    alpha, sigma = (level.double()[:, None, None, None] for level in alpha_sigma(scheduler, T))
    fixed = (NOISY - alpha * predicted_x0(scheduler, predict(NOISY), NOISY, T)) / sigma  # the noise at x_t itself

    def loss_at(x: Tensor) -> Tensor:
        if through == "network":
            return loss(predicted_x0(scheduler, predict(x), x, T))
        return loss((x - sigma * fixed) / alpha)

    guidance = LossGuidance(loss, backprop_through=through)  # type: ignore[arg-type]
    output, gradient = loss_gradient(guidance, scheduler, predict, NOISY, T)
    assert torch.allclose(output, predict(NOISY)) and not gradient.requires_grad
    step = 1e-5
    for place in [(0, 0, 0, 0), (0, 2, 1, 3), (1, 1, 2, 2), (1, 2, 3, 0)]:
        there = torch.zeros_like(NOISY)
        there[place] = step
        slope = (loss_at(NOISY + there) - loss_at(NOISY - there)).sum() / (2 * step)
        assert float(gradient[place]) == pytest.approx(float(slope), rel=1e-4, abs=1e-6)


def test_a_loss_of_x_t_is_classifier_guidance() -> None:
    """Dhariwal & Nichol 2021, algorithm 2: the gradient with respect to x_t, whatever the denoiser predicts."""
    seen = []

    def noisy_loss(xt: Tensor, timesteps: Tensor) -> Tensor:
        seen.append(timesteps)
        return loss(xt) * timesteps.to(xt)

    guidance = LossGuidance(noisy_loss, sees="xt")
    output, gradient = loss_gradient(guidance, build_scheduler(DiffusionConfig(), None), predict, NOISY, T)
    by_hand = (3 * NOISY**2 + NOISY.roll(1, dims=-1) + NOISY.roll(-1, dims=-1)) * T.to(NOISY)[:, None, None, None]
    assert torch.allclose(gradient, by_hand) and torch.equal(output, predict(NOISY))
    assert torch.equal(seen[0], T)


def test_the_noise_moves_by_the_scale_and_the_image_against_the_gradient() -> None:
    scheduler = build_scheduler(DiffusionConfig(), bound=None)
    alpha, sigma = (level.double()[:, None, None, None] for level in alpha_sigma(scheduler, T))
    before = predict(NOISY)
    after = apply_loss_guidance(LossGuidance(loss, scale=0.3), scheduler, predict, NOISY, T[0])

    def noise(output: Tensor) -> Tensor:
        return (NOISY - alpha * predicted_x0(scheduler, output, NOISY, T)) / sigma

    moved = noise(after) - noise(before)
    lengths = moved.flatten(1).norm(dim=1) / noise(before).flatten(1).norm(dim=1)
    assert lengths.tolist() == pytest.approx([0.3, 0.3], rel=1e-3)
    _, gradient = loss_gradient(LossGuidance(loss), scheduler, predict, NOISY, T)
    assert F.cosine_similarity(moved.flatten(1), gradient.flatten(1)).tolist() == pytest.approx([1, 1], abs=1e-4)
    x0 = [predicted_x0(scheduler, output, NOISY, T) for output in (before, after)]
    assert ((x0[1] - x0[0]) * gradient).flatten(1).sum(dim=1).max() < 0


def test_a_saturated_pixel_has_no_gradient_where_the_sampler_clips() -> None:
    scheduler = build_scheduler(DiffusionConfig())
    _, gradient = loss_gradient(LossGuidance(lambda x0: x0.flatten(1).sum(dim=1)), scheduler, predict, NOISY, T)
    beyond = predicted_x0(scheduler, predict(NOISY), NOISY, T).abs() > 1
    assert beyond.any() and not beyond.all()
    assert torch.equal(gradient == 0, beyond)


@pytest.fixture(scope="module")
def pipeline() -> GenerationPipeline:
    torch.manual_seed(0)
    unet = UNet(
        sample_size=8,
        encoder={"name": "residual", "channels": [8, 16]},
        residual={"norm_num_groups": 4, "layers_per_block": 1},
        heads={"diffusion": {"out_channels": 3}},
        conditioning={"cross_attention_dim": 16},
    )
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    pipeline = GenerationPipeline(unet, build_scheduler(DiffusionConfig()), ClassConditioner(3, 16))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline: GenerationPipeline, guidance: LossGuidance | None, **arguments) -> Tensor:
    arguments = {"num_inference_steps": 8, "guidance_scale": 2.0, "output_type": "pt", **arguments}
    noise = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    return pipeline([0, 2], latents=noise, loss_guidance=guidance, **arguments).images


TARGET = torch.stack([torch.full((3, 8, 8), 0.6), torch.full((3, 8, 8), -0.6)])


def distance(x0: Tensor) -> Tensor:
    return (x0 - TARGET).square().flatten(1).mean(dim=1)


def test_scale_0_and_an_empty_interval_change_no_bit(pipeline: GenerationPipeline) -> None:
    plain = draw(pipeline, None)
    assert torch.equal(draw(pipeline, LossGuidance(distance, scale=0.0)), plain)
    never = LossGuidance(distance, scale=0.5, interval=(0.0, 0.0))  # timestep 0 is none of these eight
    assert torch.equal(draw(pipeline, never), plain)
    assert not torch.equal(draw(pipeline, LossGuidance(distance, scale=0.5)), plain)


@pytest.mark.parametrize("through", ["network", "image"])
def test_a_quadratic_loss_leads_to_its_target(pipeline: GenerationPipeline, through: str) -> None:
    def off(guidance: LossGuidance | None, **arguments) -> Tensor:
        return distance(draw(pipeline, guidance, **arguments) * 2 - 1)

    far = off(None)
    nearer = [off(LossGuidance(distance, scale, (0.0, 0.9), through)) for scale in (0.05, 0.2)]  # type: ignore[arg-type]
    assert (nearer[0] < 0.96 * far).all() and (nearer[1] < 0.75 * far).all()
    pipeline.scheduler, ddim = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config), pipeline.scheduler
    other = (off(None), off(LossGuidance(distance, 0.2, (0.0, 0.9), through)))  # type: ignore[arg-type]
    pipeline.scheduler = ddim
    assert (other[1] < 0.8 * other[0]).all()


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
@pytest.mark.parametrize("name", ["ddim", "dpm++", "unipc"])
def test_guided_from_the_first_step_no_sampler_diverges(
    pipeline: GenerationPipeline, name: str, zero_terminal_snr: bool
) -> None:
    """Next to pure noise a small change of ε is a large one of x_0, which the fast samplers do not clip."""
    config = DiffusionConfig(prediction_type="v_prediction")
    config.noise.zero_terminal_snr = zero_terminal_snr
    before, lengths = pipeline.scheduler, []

    def watch(drawing: GenerationPipeline, step: int, t: Tensor, kept: dict[str, Tensor]) -> dict[str, Tensor]:
        lengths.append(float(kept["latents"].square().mean().sqrt()))
        return kept

    pipeline.scheduler = make_scheduler(build_scheduler(config), name)
    drawn = draw(pipeline, LossGuidance(distance), callback_on_step_end=watch)
    pipeline.scheduler = before
    assert drawn.isfinite().all() and max(lengths) < 1.5


def test_pure_noise_is_not_guided() -> None:
    config = DiffusionConfig()
    config.noise.zero_terminal_snr = True
    scheduler = build_scheduler(config)
    last = torch.tensor(999)
    assert torch.equal(apply_loss_guidance(LossGuidance(loss), scheduler, predict, NOISY, last), predict(NOISY))


def test_layout_loss_by_hand() -> None:
    logits = torch.tensor([[[[0.0, 2.0]], [[0.0, 0.0]]]])  # (1, 2 classes, 1, 2)
    layouts = torch.tensor([[[1, 255]], [[0, 0]]])
    wanted = layout_loss(lambda x: logits.expand(2, -1, -1, -1) + 0 * x.sum(), layouts)(torch.zeros(2, 3, 1, 2))
    half, sure = torch.log(torch.tensor(2.0)), torch.log1p(torch.exp(torch.tensor(-2.0)))
    assert torch.allclose(wanted, torch.stack([half, (half + sure) / 2]))
    void = layout_loss(lambda x: logits, torch.full((1, 1, 2), 255))(torch.zeros(1, 3, 1, 2))
    assert void.tolist() == [0.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": -1.0}, "scale=-1.0"),
        ({"scale": float("nan")}, "scale=nan"),
        ({"interval": (0.5, 0.2)}, r"interval=\[0.5, 0.2\]"),
        ({"backprop_through": "nothing"}, "backprop_through='nothing'.*network or image"),
        ({"sees": "x1"}, "sees='x1'.*x0 or xt"),
    ],
)
def test_refusals(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        LossGuidance(distance, **options)


def test_latents_are_refused(pipeline: GenerationPipeline, vae) -> None:
    from diffusers import AutoencoderKL

    of_latents = GenerationPipeline(pipeline.unet, pipeline.scheduler, vae=AutoencoderKL.from_pretrained(vae))
    with pytest.raises(UserError, match="loss_guidance: must be None, .* for a denoiser of latents"):
        of_latents(loss_guidance=LossGuidance(distance), num_inference_steps=1)


def test_a_loss_of_x_t_guides_latents(pipeline: GenerationPipeline, vae) -> None:
    from diffusers import AutoencoderKL

    codec = AutoencoderKL.from_pretrained(vae)
    channels = codec.config["latent_channels"]
    unet = UNet(
        in_channels=channels, sample_size=8, encoder={"channels": [8, 8]}, residual={"norm_num_groups": 4},
        conditioning={"timestep": True}, heads={"diffusion": {"out_channels": channels}},
    )  # fmt: skip
    latents = GenerationPipeline(unet, pipeline.scheduler, vae=codec)
    options = {"num_inference_steps": 2, "output_type": "latent", "batch_size": 1}

    def energy(xt: Tensor, timesteps: Tensor) -> Tensor:
        return xt.square().flatten(1).sum(dim=1)

    plain, guided = (
        latents(generator=torch.Generator().manual_seed(0), loss_guidance=one, **options).images
        for one in (None, LossGuidance(energy, scale=0.3, sees="xt"))
    )
    assert float(guided.square().sum()) < float(plain.square().sum())
