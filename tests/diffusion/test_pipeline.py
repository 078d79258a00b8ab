"""Sampling: deterministic by generator, guidance, any scheduler, what it keeps, and what it refuses."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    ImagePipelineOutput,
    UniPCMultistepScheduler,
)
from diffusers.models.unets.unet_2d import UNet2DOutput

from unetdiff.diffusion.conditioning.classes import ClassConditioner
from unetdiff.diffusion.config import DiffusionConfig
from unetdiff.diffusion.editing import ImageStart
from unetdiff.diffusion.guidance import Guidance
from unetdiff.diffusion.objectives import build_scheduler
from unetdiff.diffusion.pipeline import GenerationPipeline
from unetdiff.diffusion.trajectory import TrajectoryRecorder
from unetdiff.errors import UserError
from unetdiff.models.unet import UNet

NAMES = ["zero", "one", "seven"]


def make_pipeline(conditional: bool = True, **config) -> GenerationPipeline:
    torch.manual_seed(0)
    unet = UNet(
        sample_size=config.pop("sample_size", 16),
        encoder={"name": "residual", "channels": [8, 16]},
        residual={"norm_num_groups": 4, "layers_per_block": 1, "dropout": 0.5},
        heads={"diffusion": {"out_channels": 3}},
        conditioning={"cross_attention_dim": 16} if conditional else None,
    )
    for name, parameter in unet.named_parameters():  # outputs that matter, whatever starts at zero
        if parameter.std() == 0 and "weight" in name and "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.1)
    conditioner = ClassConditioner(3, 16, labels=NAMES) if conditional else None
    pipeline = GenerationPipeline(unet, build_scheduler(DiffusionConfig(**config)), conditioner)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def pipeline() -> GenerationPipeline:
    return make_pipeline()


def draw(pipeline: GenerationPipeline, labels=("zero", "seven"), seed: int = 0, **arguments) -> torch.Tensor:
    arguments = {"num_inference_steps": 3, "output_type": "pt", **arguments}
    labels = list(labels) if labels is not None else None
    return pipeline(labels, generator=torch.Generator().manual_seed(seed), **arguments).images


def test_the_generator_decides(pipeline: GenerationPipeline) -> None:
    first = draw(pipeline)
    assert first.shape == (2, 3, 16, 16) and 0 <= first.min() < first.max() <= 1
    assert torch.equal(first, draw(pipeline))
    assert not torch.allclose(first, draw(pipeline, seed=1), atol=1e-2)
    assert not torch.allclose(first[0], draw(pipeline, ["one", "seven"])[0], atol=1e-4)


def test_a_generator_each_makes_a_image_independent_of_its_batch(pipeline: GenerationPipeline) -> None:
    pipeline.scheduler, ddim = DDPMScheduler.from_config(pipeline.scheduler.config), pipeline.scheduler
    settings = {"num_inference_steps": 3, "output_type": "pt"}
    both = pipeline([0, 2], generator=[torch.Generator().manual_seed(s) for s in (5, 6)], **settings).images
    alone = pipeline(2, generator=[torch.Generator().manual_seed(6)], **settings).images
    pipeline.scheduler = ddim
    assert torch.allclose(both[1:], alone, atol=1e-5)


def test_one_batch_of_guidance_equals_two_passes(pipeline: GenerationPipeline) -> None:
    noise = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    ours = pipeline(["zero", "one"], latents=noise, num_inference_steps=4, guidance_scale=3.0, output_type="pt").images
    unet, scheduler = pipeline.unet.eval(), DDIMScheduler.from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(4)  # divides 1,000: diffusers' own steps are right
    x = noise
    with torch.no_grad():
        for t in scheduler.timesteps:
            given = unet(x, t, encoder_hidden_states=pipeline.conditioner(torch.tensor([[0], [1]])).tokens).sample
            null = unet(x, t, encoder_hidden_states=pipeline.conditioner(torch.tensor([[3], [3]])).tokens).sample
            x = scheduler.step(null + 3 * (given - null), t, x, use_clipped_model_output=True).prev_sample
    assert torch.allclose(ours, (x / 2 + 0.5).clamp(0, 1), atol=1e-4)


def test_scale_one_is_the_conditional_pass_alone(pipeline: GenerationPipeline, monkeypatch) -> None:
    batches = []
    forward = pipeline.unet.forward
    monkeypatch.setattr(
        pipeline.unet, "forward", lambda sample, *a, **k: batches.append(len(sample)) or forward(sample, *a, **k)
    )
    one = draw(pipeline, guidance_scale=1.0)
    assert batches == [2, 2, 2]
    two = draw(pipeline, guidance_scale=1.0001)
    assert batches[3:] == [4, 4, 4]
    assert torch.allclose(one, two, atol=1e-3)


def test_guidance_outside_its_interval_costs_one_pass(pipeline: GenerationPipeline, monkeypatch) -> None:
    batches = []
    forward = pipeline.unet.forward
    monkeypatch.setattr(
        pipeline.unet, "forward", lambda sample, *a, **k: batches.append(len(sample)) or forward(sample, *a, **k)
    )
    draw(pipeline, guidance_scale=Guidance(3.0, interval=(0.3, 0.8)))  # timesteps 999, 666, 333
    assert batches == [2, 4, 4]


def test_a_negative_class_takes_the_place_of_nothing(pipeline: GenerationPipeline) -> None:
    plain = draw(pipeline, guidance_scale=3.0)
    away = draw(pipeline, guidance_scale=3.0, negative_class_labels="one")
    assert not torch.allclose(plain, away, atol=1e-3)
    # away from itself is no guidance at all
    itself = draw(pipeline, ["one", "one"], guidance_scale=3.0, negative_class_labels="one")
    assert torch.allclose(itself, draw(pipeline, ["one", "one"], guidance_scale=1.0), atol=1e-4)
    assert not torch.allclose(itself, draw(pipeline, ["one", "one"], guidance_scale=3.0), atol=1e-3)


def test_conditions_are_what_the_conditioner_makes(pipeline: GenerationPipeline) -> None:
    encoded = pipeline.conditioner.encode(["zero", "seven"])
    assert torch.equal(draw(pipeline, None, conditions=encoded), draw(pipeline))


def test_without_labels_the_null_token_is_told(pipeline: GenerationPipeline, monkeypatch) -> None:
    told = []
    forward = pipeline.unet.forward

    def spy(sample, timestep, encoder_hidden_states):
        told.append(encoder_hidden_states)
        return forward(sample, timestep, encoder_hidden_states=encoder_hidden_states)

    monkeypatch.setattr(pipeline.unet, "forward", spy)
    assert draw(pipeline, None, batch_size=2).shape[0] == 2
    assert len(told) == 3 and torch.equal(
        told[0].tokens, pipeline.conditioner(pipeline.conditioner.null_condition(2)).tokens
    )


@pytest.mark.parametrize(
    "solver",
    [
        DDPMScheduler,
        DDIMScheduler,
        DPMSolverMultistepScheduler,
        UniPCMultistepScheduler,
        HeunDiscreteScheduler,
        EulerDiscreteScheduler,
    ],
)
def test_an_oracle_network_is_led_to_its_image_by_any_scheduler(solver) -> None:
    """The pipeline's own loop (scaling, steps, trajectory) with a network that knows the image."""
    pipeline = make_pipeline(conditional=False)
    base = pipeline.scheduler
    pipeline.scheduler = solver.from_config(base.config)
    x0 = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1

    def oracle(sample: torch.Tensor, timestep: torch.Tensor) -> UNet2DOutput:
        alpha_bar = base.alphas_cumprod[int(timestep.round())]
        noise = (sample - alpha_bar.sqrt() * x0) / (1 - alpha_bar).sqrt()
        return UNet2DOutput(sample=base.get_velocity(x0, noise, timestep.round().long()[None]))

    pipeline.unet.forward = oracle
    recorder = TrajectoryRecorder(5)
    generator = torch.Generator().manual_seed(0)
    out = pipeline(num_inference_steps=10, output_type="pt", callback_on_step_end=recorder, generator=generator)
    assert torch.allclose(out.images, x0 / 2 + 0.5, atol=1e-4)
    trajectory = recorder.trajectory
    assert trajectory.noisy.shape == trajectory.predicted.shape == (5, 1, 3, 16, 16)
    assert trajectory.timesteps[0] == 999 and trajectory.timesteps == sorted(trajectory.timesteps, reverse=True)
    assert torch.allclose(trajectory.predicted, (x0 / 2 + 0.5).expand(5, -1, -1, -1, -1), atol=1e-3)
    assert torch.equal(trajectory.noisy[-1], out.images)
    assert trajectory.noisy[0].std() > 0.3 > (trajectory.noisy[-1] - out.images).std()


def test_more_entries_than_steps_are_all_steps(pipeline: GenerationPipeline) -> None:
    recorder = TrajectoryRecorder(25)
    pipeline("one", num_inference_steps=3, callback_on_step_end=recorder)
    assert recorder.trajectory.timesteps == [999, 666, 332, 0]


def test_sampling_is_in_eval_mode_and_puts_back_every_mode(pipeline: GenerationPipeline) -> None:
    reference = draw(pipeline)
    pipeline.unet.train()
    pipeline.unet.mid_block.eval()  # say, a frozen part
    before = [module.training for module in pipeline.unet.modules()]
    assert torch.equal(draw(pipeline), reference)  # the model has dropout
    assert [module.training for module in pipeline.unet.modules()] == before
    with pytest.raises(ZeroDivisionError):
        draw(pipeline, callback_on_step_end=lambda *_: 1 / 0)
    assert [module.training for module in pipeline.unet.modules()] == before
    pipeline.unet.eval()


def test_round_trip_in_diffusers_layout(pipeline: GenerationPipeline, tmp_path, caplog) -> None:
    pipeline.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["unet"] == ["unetdiff.models.unet", "UNet"]
    assert index["scheduler"] == ["diffusers", "DDIMScheduler"]
    assert index["conditioner"] == ["unetdiff.diffusion.conditioning.classes", "ClassConditioner"]
    assert (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").is_file()
    logging.getLogger("diffusers").propagate = True
    with caplog.at_level("WARNING"):
        loaded = GenerationPipeline.from_pretrained(tmp_path)
    assert not [record.message for record in caplog.records if "Expected types" in record.message]
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(draw(loaded), draw(pipeline))


def test_a_damaged_part_is_named(pipeline: GenerationPipeline, tmp_path) -> None:
    pipeline.save_pretrained(tmp_path)
    (tmp_path / "scheduler" / "scheduler_config.json").write_text("{")
    with pytest.raises(UserError, match=f"{tmp_path}.*scheduler_config.json: must be JSON"):
        GenerationPipeline.from_pretrained(tmp_path)


def test_round_trip_without_a_conditioner(tmp_path) -> None:
    pipeline = make_pipeline(conditional=False)
    pipeline.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index.pop("vae") == [None, None]
    (tmp_path / "model_index.json").write_text(json.dumps(index))  # as it was before there were latents
    loaded = GenerationPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.conditioner is None
    assert torch.equal(draw(loaded, None), draw(pipeline, None))
    with pytest.raises(UserError, match="class_labels: must be None, .* trained without a condition"):
        draw(loaded, ["zero"])


def test_output_types(pipeline: GenerationPipeline) -> None:
    pt = draw(pipeline)
    array = draw(pipeline, output_type="np")
    assert array.shape == (2, 16, 16, 3) and np.allclose(array, pt.permute(0, 2, 3, 1))
    images = draw(pipeline, output_type="pil")
    assert images[1].size == (16, 16)
    assert np.abs(np.asarray(images[1]) / 255 - array[1]).max() <= 0.5 / 255 + 1e-6
    out = pipeline("one", num_inference_steps=1)
    assert isinstance(out, ImagePipelineOutput)
    assert len(pipeline("one", num_inference_steps=1, return_dict=False)) == 1


def test_sizes_and_batches(pipeline: GenerationPipeline) -> None:
    assert draw(pipeline, ["one"], batch_size=3).shape == (3, 3, 16, 16)
    assert draw(pipeline, height=20, width=13).shape == (2, 3, 20, 13)
    assert draw(pipeline, None).shape[0] == 1
    noise = torch.randn(2, 3, 8, 8)
    assert draw(pipeline, None, latents=noise).shape == (2, 3, 8, 8)


def test_the_callback_sees_and_may_change_every_step(pipeline: GenerationPipeline) -> None:
    seen = []

    def callback(pipe, step, timestep, state):
        seen.append((step, int(timestep)))
        return {"latents": torch.zeros_like(state["latents"])} if step == 2 else {}

    images = draw(pipeline, callback_on_step_end=callback)
    assert [step for step, _ in seen] == [0, 1, 2] and seen[0][1] == 999
    assert torch.equal(images, torch.full_like(images, 0.5))


def test_autocast_is_for_the_network_alone(pipeline: GenerationPipeline, monkeypatch) -> None:
    exact = draw(pipeline)
    kinds = set()
    step = pipeline.scheduler.step

    def spy(output, t, xt, generator=None, use_clipped_model_output=False):
        kinds.update((output.dtype, xt.dtype))
        return step(output, t, xt, generator=generator, use_clipped_model_output=use_clipped_model_output)

    monkeypatch.setattr(pipeline.scheduler, "step", spy)
    monkeypatch.setattr(pipeline, "autocast_dtype", torch.bfloat16)
    bf16 = draw(pipeline)
    assert kinds == {torch.float32}
    assert not torch.equal(bf16, exact) and torch.allclose(bf16, exact, atol=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"class_labels": "sevn"}, "unknown class 'sevn'. Did you mean 'seven'"),
        ({"class_labels": [0, 1], "batch_size": 3}, r"class_labels: must be 1 or 3, the number of images \(got 2\)"),
        ({"class_labels": [0, 1, 2], "negative_class_labels": [0, 1]}, r"negative_class_labels: must be 1 or 3.*got 2"),
        ({"class_labels": [0, 1], "generator": [torch.Generator()] * 3}, r"generator: .*one per image \(2\) \(got 3\)"),
        ({"class_labels": 0, "output_type": "jpg"}, "output_type='jpg': must be one of"),
        ({"class_labels": 0, "num_inference_steps": 1001}, r"num_inference_steps=1001: must be in 1\.\.1000"),
        (
            {"batch_size": 3, "latents": torch.zeros(2, 3, 8, 8)},
            r"batch_size=3: .* number of latents \(got 2\)",
        ),
        ({"prompt": "a seven"}, "prompt: must be None, because this model was trained with class_labels"),
        ({"class_labels": 0, "negative_prompt": "gray"}, "negative_prompt: must be None.*trained with class_labels"),
        (
            {"class_labels": 0, "start": ImageStart(np.zeros((8, 8, 3)), strength=1.5)},
            r"strength=1.5: must be in \(0, 1\]",
        ),
        ({"class_labels": 0, "start": ImageStart(np.zeros((8, 8, 3)), strength=0.001)}, "strength=0.001: must leave"),
    ],
)
def test_refusals(pipeline: GenerationPipeline, arguments, message: str) -> None:
    with pytest.raises(UserError, match=message):
        pipeline(**arguments)


def test_an_interval_that_ends_before_it_starts_is_refused() -> None:
    with pytest.raises(UserError, match=r"guidance_interval=\(0.8, 0.2\): must be"):
        Guidance(3.0, interval=(0.8, 0.2))


def test_no_size_and_no_denoiser_are_refused(tmp_path) -> None:
    with pytest.raises(UserError, match="height, width"):
        draw(make_pipeline(sample_size=None), height=16)
    with pytest.raises(UserError, match="no diffusion head"):
        GenerationPipeline.from_pretrained(tmp_path)
