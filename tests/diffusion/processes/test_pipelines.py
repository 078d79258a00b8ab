"""The pipeline with the samplers of continuous timesteps: editing, guidance, trajectory, files, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import ConfigMixin, DDIMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor

from unetdiff.diffusion import objectives
from unetdiff.diffusion.config import DiffusionConfig, NoiseConfig
from unetdiff.diffusion.guidance import in_guidance_interval
from unetdiff.diffusion.loss_guidance import LossGuidance
from unetdiff.diffusion.pipeline import GenerationPipeline
from unetdiff.diffusion.processes.load import process_of
from unetdiff.diffusion.scheduler_file import load_scheduler
from unetdiff.diffusion.scheduler_names import SCHEDULERS
from unetdiff.diffusion.schedulers import make_scheduler
from unetdiff.diffusion.trajectory import TrajectoryRecorder
from unetdiff.errors import UserError

CASES = [(process, name) for process, names in SCHEDULERS.items() if process != "ddpm" for name in names]
ALL = pytest.mark.parametrize(("process", "name"), CASES)
OTHERS = pytest.mark.parametrize("process", [process for process in SCHEDULERS if process != "ddpm"])


def scheduler_of(process: str):
    return objectives.build_scheduler(DiffusionConfig(noise=NoiseConfig(process=process)))  # type: ignore[arg-type]


def image(seed: int) -> Tensor:
    """(3, 4, 4) in [0, 1]."""
    return torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(seed))


class Knowing(ModelMixin, ConfigMixin):
    """A network that takes every x_t for `image(1)`, noised."""

    @register_to_config
    def __init__(self, in_channels: int = 3, sample_size: int = 4) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.fractions: list[float] = []

    def forward(self, sample: Tensor, timestep: Tensor) -> UNet2DOutput:
        timesteps = timestep.reshape(-1).expand(len(sample))
        self.fractions.append(float(self.process.fraction(timesteps[0])))
        alpha, sigma = self.process.levels(timesteps)
        x0 = (image(1) * 2 - 1).expand_as(sample)
        return UNet2DOutput(sample=self.process.target(x0, (sample - alpha * x0) / sigma, timesteps))


def make(process: str, name: str) -> GenerationPipeline:
    base, unet = scheduler_of(process), Knowing()
    unet.process = process_of(base)
    pipeline = GenerationPipeline(unet, make_scheduler(base, name))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@ALL
def test_image_to_image_and_inpainting(process: str, name: str) -> None:
    pipeline, noise, recorder = make(process, name), torch.randn(1, 3, 4, 4), TrajectoryRecorder(3)
    options = {"num_inference_steps": 10, "latents": noise, "output_type": "pt"}
    out = pipeline.image_to_image(image(0), 0.5, callback_on_step_end=recorder, **options)
    torch.testing.assert_close(out.images[0], image(1), atol=2e-3, rtol=0)
    assert max(pipeline.unet.fractions) < 0.56
    trajectory = recorder.trajectory  # starts with the image, noised
    first = process_of(pipeline.scheduler).at_fraction(torch.tensor([pipeline.unet.fractions[0]]))
    expected = pipeline.unet.process.add_noise(image(0)[None] * 2 - 1, noise, first)
    torch.testing.assert_close(trajectory.noisy[0], (expected / 2 + 0.5).clamp(0, 1), atol=2e-3, rtol=0)
    torch.testing.assert_close(trajectory.predicted[0, 0], image(1), atol=2e-3, rtol=0)

    mask = torch.zeros(4, 4)
    mask[:, 2:] = 1
    out = pipeline.inpaint(image(0), mask, **options).images[0]
    torch.testing.assert_close(out[..., :2], image(0)[..., :2], atol=1e-5, rtol=0)
    torch.testing.assert_close(out[..., 2:], image(1)[..., 2:], atol=5e-2, rtol=0)


@ALL
def test_loss_guidance_from_the_first_step_does_not_diverge(process: str, name: str) -> None:
    pipeline, target = make(process, name), image(2) * 2 - 1

    def loss(images: Tensor) -> Tensor:
        return (images - target).square().mean(dim=(1, 2, 3))

    noise = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    plain, guided = (
        pipeline(latents=noise, num_inference_steps=10, loss_guidance=guidance, output_type="latent").images
        for guidance in (None, LossGuidance(loss, 0.3, backprop_through="image"))
    )
    assert guided.abs().max() < 2 and float(loss(guided)) < float(loss(plain))


@OTHERS
def test_intervals_are_fractions_of_the_steps(process: str) -> None:
    base = process_of(scheduler_of(process))
    inside = [
        in_guidance_interval(base.at_fraction(torch.tensor(f)), base, (0.2, 0.8))
        for f in (0.0, 0.15, 0.3, 0.7, 0.9, 1.0)
    ]
    assert inside == [False, False, True, True, False, False]


@ALL
def test_a_saved_sampler_comes_back(process: str, name: str, tmp_path: Path) -> None:
    scheduler = make_scheduler(scheduler_of(process), name)
    scheduler.save_pretrained(tmp_path)
    again = load_scheduler(tmp_path)
    assert type(again) is type(scheduler) and process_of(again).describe() == process_of(scheduler).describe()
    back = make_scheduler(again, next(iter(SCHEDULERS[process])))
    expected = scheduler_of(process)
    assert type(back) is type(expected)
    assert all(back.config[key] == value for key, value in expected.config.items() if not key.startswith("_"))


def test_samplers_of_another_process_are_refused() -> None:
    with pytest.raises(UserError, match=r"scheduler=ddim: must be one of euler, heun, .*process=flow\."):
        make_scheduler(scheduler_of("flow"), "ddim")
    with pytest.raises(UserError, match=r"scheduler=euler: must be one of ddim, .*process=ddpm\."):
        make_scheduler(DDIMScheduler(), "euler")
    with pytest.raises(UserError, match=r"scheduler=hein: .*Did you mean heun\?"):
        make_scheduler(scheduler_of("flow"), "hein")
    with pytest.raises(UserError, match=r"scheduler=heun: must be one of euler, dpm\+\+ .*process=edm\."):
        make_scheduler(scheduler_of("edm"), "heun")
    pipeline = make("flow", "euler")
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    with pytest.raises(UserError, match="scheduler=DDIMScheduler: must sample from the flow process"):
        pipeline(num_inference_steps=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shift": 0.0}, r"shift=0.0: must be in \(0, 1000\]"),
        ({"shift": "3"}, "shift='3': must be of the type"),
        ({"shift": None}, "shift=None: must be"),
        ({"shift": ...}, "must have the key 'shift'"),
        ({"use_dynamic_shifting": True}, "use_dynamic_shifting=True: must be off"),
        ({"invert_sigmas": True}, "invert_sigmas=True: must be off"),
        ({"num_train_timesteps": 0}, "num_train_timesteps=0"),
        ({"beta_start": 0.1}, "'beta_start' is not a key of FlowMatchEulerDiscreteScheduler"),
    ],
)
def test_flow_files_are_read_strictly(change: dict, message: str, tmp_path: Path) -> None:
    FlowMatchEulerDiscreteScheduler().save_pretrained(tmp_path)
    path = tmp_path / "scheduler_config.json"
    config = json.loads(path.read_text()) | change
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))
    with pytest.raises(UserError, match=message):
        load_scheduler(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigma_data": 0.0}, r"sigma_data=0.0: must be in \(0, 100000\]"),
        ({"sigma_min": 90.0}, "sigma_min=90.0: must be below sigma_max"),
        ({"rho": None}, "rho=None: must be"),
        ({"rho": ...}, "must have the key 'rho'"),
        ({"prediction_type": "sample"}, "prediction_type=sample: must be one of epsilon, v_prediction"),
        ({"sigma_schedule": "linear"}, "sigma_schedule"),
    ],
)
def test_edm_files_are_read_strictly(change: dict, message: str, tmp_path: Path) -> None:
    EDMEulerScheduler().save_pretrained(tmp_path)
    path = tmp_path / "scheduler_config.json"
    config = json.loads(path.read_text()) | change
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))
    with pytest.raises(UserError, match=message):
        load_scheduler(tmp_path)
