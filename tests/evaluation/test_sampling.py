"""A task as a denoiser for evaluation: samples independent of their number, conditions, sizes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from unetdiff.config.schema import RunConfig
from unetdiff.config.validation.data import needs_layout
from unetdiff.data.base import collate
from unetdiff.data.build import build_dataset
from unetdiff.evaluation import sampling
from unetdiff.evaluation.sampling import as_denoiser, denoise_of, sample
from unetdiff.evaluation.types import SamplingConfig
from unetdiff.training import runtime as machine
from unetdiff.training.tasks.build import build_task
from unetdiff.training.tasks.diffusion import DiffusionTask

Tiny = Callable[..., RunConfig]


def build(tiny: Tiny, **options) -> DiffusionTask:
    config = tiny("diffusion", **options)
    torch.manual_seed(0)
    layout = needs_layout(config)
    val = build_dataset(config.data, "val", False, layout)
    task = build_task(config, build_dataset(config.data, "train", False, layout), val)
    assert isinstance(task, DiffusionTask)
    with torch.no_grad():
        for parameter in task.parameters():
            parameter += 0.1 * torch.randn_like(parameter)  # what joins starts at zero, the class too
    return task


@pytest.fixture(autouse=True)
def _in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "autocast_dtype", lambda: None)


def test_samples_do_not_depend_on_their_number(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    task, setting = build(tiny), SamplingConfig(num_inference_steps=2, guidance_scale=2.0, seed=5)
    few, classes = sample(task, 3, setting)
    monkeypatch.setattr(sampling, "SAMPLE_BATCH", {"cpu": 2})
    more, more_classes = sample(task, 5, setting)
    assert classes is not None and more_classes is not None
    assert few.dtype == torch.uint8 and few.shape == (3, 3, 32, 32)
    assert (more[:3].int() - few.int()).abs().max() <= 1  # rounding of other batches
    assert more_classes.tolist() == [0, 1, 2, 3, 4] and classes.tolist() == [0, 1, 2]
    other, _ = sample(task, 3, SamplingConfig(num_inference_steps=2, guidance_scale=2.0, seed=6))
    assert (other.int() - few.int()).abs().max() > 10


def test_another_scheduler_keeps_the_tasks(tiny: Tiny) -> None:
    task, used = build(tiny), []
    original = DPMSolverMultistepScheduler.step

    def step(self, *arguments, **options):
        used.append(self)
        return original(self, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DPMSolverMultistepScheduler, "step", step)
        sample(task, 1, SamplingConfig(num_inference_steps=2, scheduler="dpm++"))
    assert len(used) == 2 and used[0].config.timestep_spacing == "trailing"
    assert type(task.scheduler).__name__ == "DDIMScheduler"


def test_class_condition_of_each_image(tiny: Tiny) -> None:
    task = build(tiny)
    task.train()
    batch = collate([task.data.val[i] for i in range(3)])
    xt, t = torch.randn(3, 3, 32, 32), torch.tensor([1, 500, 900])
    output = denoise_of(task, batch)(xt, t)
    assert task.training  # as it was
    task.eval()
    with torch.no_grad():
        right = task.unet(xt, t, task.conditioner(batch["label"][:, None]).tokens).sample  # type: ignore[misc]
        wrong = task.unet(xt, t, task.conditioner((batch["label"][:, None] + 1) % 10).tokens).sample  # type: ignore[misc]
    assert torch.allclose(output, right, atol=1e-5) and not torch.allclose(output, wrong, atol=1e-3)
    denoiser = as_denoiser(task)
    assert denoiser.classes == task.data.val.labels and denoiser.uses_guidance
    assert torch.equal(denoiser.denoise(batch)(xt, t), output)


def test_without_classes(tiny: Tiny) -> None:
    task = build(tiny, diffusion__condition="none")
    denoiser = as_denoiser(task)
    assert denoiser.classes == [] and not denoiser.uses_guidance
    images, labels = sample(task, 2, SamplingConfig(num_inference_steps=1, guidance_scale=7.0))
    assert labels is None and images.shape == (2, 3, 32, 32)
    batch = collate([task.data.val[0]])
    assert denoiser.denoise(batch)(torch.zeros(1, 3, 32, 32), torch.tensor([3])).shape == (1, 3, 32, 32)


def test_samples_have_the_size_of_the_dataset(tiny: Tiny) -> None:
    """Height and width that differ are in the model's config, and are what is drawn where that does not say."""
    task = build(tiny, data__size=[16, 24], diffusion__condition="layout")
    assert task.unet.config.sample_size == [16, 24] and task.pipeline().size() == (16, 24)
    images, _ = sample(task, 2, SamplingConfig(num_inference_steps=1))
    assert images.shape == (2, 3, 16, 24)
    task.unet.register_to_config(sample_size=None)  # as runs of before have it
    assert sample(task, 2, SamplingConfig(num_inference_steps=1))[0].shape == (2, 3, 16, 24)
    task.data.size = None
    task.unet.register_to_config(sample_size=8)
    assert task.image_size() == (8, 8)
