"""Latent denoisers: trained, saved, loaded, sampled, evaluated and compared through the commands' code."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from unetdiff.cli.main import main
from unetdiff.config.schema import RunConfig
from unetdiff.config.validation.files import check_files
from unetdiff.config.validation.run import validate
from unetdiff.data.base import collate
from unetdiff.data.build import build_dataset
from unetdiff.data.hashing import generator_of
from unetdiff.data.transforms import to_model_range
from unetdiff.diffusion.objectives import alpha_sigma
from unetdiff.diffusion.pipeline import GenerationPipeline
from unetdiff.errors import UserError
from unetdiff.evaluation.config import EvaluationConfig
from unetdiff.evaluation.evaluate import evaluate
from unetdiff.reports.illustrations import illustrations
from unetdiff.reports.runs import read_runs
from unetdiff.reports.samples import Budget, sample_blocks
from unetdiff.training.draws import whole_batch
from unetdiff.training.tasks.build import build_task
from unetdiff.training.tasks.diffusion import DiffusionTask
from unetdiff.training.trainer import train

Resume = Callable[[RunConfig], dict[str, torch.Tensor]]
Tiny = Callable[..., RunConfig]
SHORT = {"training__steps": 2, "training__validate_every": 2}
CHANNELS = {"class": 4, "layout": 4 + 8, "image": 4 + 5}  # of the latents, and beside them
ASKED = {
    "class": {"class_labels": "seven"},
    "layout": {"layout": Image.new("L", (16, 16), 1)},
    "image": {"condition_image": Image.new("RGB", (8, 8), (200, 30, 30))},
}


def test_what_is_noised_is_a_sample_of_the_posterior(tiny: Tiny, vae: Path) -> None:
    config = tiny("diffusion", latent__vae=str(vae), diffusion__prediction_type="epsilon")
    data = build_dataset(config.data, "train", False)
    task = build_task(config, data, data)
    assert isinstance(task, DiffusionTask)
    batch, theirs = collate([data[i] for i in range(4)]), AutoencoderKL.from_pretrained(vae)
    noised = task.add_noise(batch, whole_batch(3, 4, "cpu"))
    with torch.no_grad():
        posterior = theirs.encode(to_model_range(batch["image"])).latent_dist
        z = (posterior.sample(generator_of(3, 2)) - 0.3) * 0.6
    alpha, sigma = (level[:, None, None, None] for level in alpha_sigma(task.scheduler, noised.timesteps))
    torch.testing.assert_close(noised.sample, alpha * z + sigma * noised.target, atol=1e-4, rtol=1e-4)
    assert torch.equal(task.add_noise(batch, whole_batch(3, 4, "cpu")).sample, noised.sample)
    assert task.scheduler.config.clip_sample is False
    assert not any("vae" in name or "encoder.conv_out" in name for name, _ in task.named_parameters())


@pytest.mark.parametrize("condition", CHANNELS)
def test_trained_saved_loaded_drawn_and_judged(tiny: Tiny, vae: Path, condition: str, tmp_path: Path) -> None:
    copied = shutil.copytree(vae, tmp_path / "vae")
    config = tiny(
        "diffusion",
        latent__vae=str(copied),
        diffusion__condition=condition,
        diffusion__layout__grid=4,
        **SHORT,
    )
    run = train(config)
    shutil.rmtree(copied)  # what was trained is whole without it
    with Image.open(next((run / "images").rglob("*.png"))) as preview:
        assert preview.width > 32
    pipeline = GenerationPipeline.from_pretrained(run / "best")
    pipeline.set_progress_bar_config(disable=True)
    assert (pipeline.unet.config.in_channels, pipeline.channels) == (CHANNELS[condition], 4)
    assert pipeline.unet.config.sample_size == 16 and pipeline.size() == (32, 32)
    out = pipeline(**ASKED[condition], batch_size=2, num_inference_steps=2, output_type="pt")
    assert out.images.shape == (2, 3, 32, 32) and out.images.std() > 0
    samples = int(condition == "class")  # one condition's are enough: the judges see images
    metrics = evaluate(
        run, config=EvaluationConfig(samples_per_class=samples, num_inference_steps=2, num_neighbors=1)
    ).metrics
    assert metrics["diffusion/loss"] > 0 and metrics.get("samples/num_images", 0) == 10 * samples
    with pytest.raises(UserError, match="num_likelihood_images=1: must be 0 for a model of latents"):
        evaluate(run, config=EvaluationConfig(num_likelihood_images=1))


def test_resumed_sampled_and_compared(tiny: Tiny, vae: Path, tmp_path: Path, cut_and_resumed: Resume) -> None:
    config = tiny("diffusion", latent__vae=str(vae), **{**SHORT, "training__steps": 4})
    weights = cut_and_resumed(config)
    assert {key.split(".")[0] for key in weights} == {"unet", "conditioner"}
    run = Path(config.training.output_dir)

    words = ["sample", str(run), "--class", "seven", "--num_inference_steps", "2", "--output", str(tmp_path / "out")]
    assert main([*words, "--interpolate_to_seed", "4", "--frames", "2"]) == 0
    assert main([*words, "--num_images", "1"]) == 0
    with Image.open(next((tmp_path / "out" / "images").iterdir())) as image:
        assert image.size == (32, 32)

    runs = read_runs([run])
    blocks, problems = sample_blocks(runs, Budget(images=10, steps=1, classifier_steps=2, batch_size=8))
    assert problems == [] and len(blocks[0].grids) == 2 and len(blocks[0].strips) == 1
    assert illustrations(runs[0]).keys() == {"image", "noised", "noise"}


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("diffusion", {"model__sample_size": 32}, "model.sample_size=32: must be null with latent.vae"),
        (
            "diffusion",
            {"model__encoder__name": "resnet18", "model__encoder__channels": None},
            "model.encoder.name=resnet18: must be residual or classic with latent.vae",
        ),
        (
            "diffusion",
            {"latent__vae": "nowhere"},
            "latent.vae=nowhere: must be an existing folder",
        ),
    ],
)
def test_what_cannot_be_is_refused(tiny: Tiny, vae: Path, task: str, changes: dict, message: str) -> None:
    config = tiny(task, **{"latent__vae": str(vae), **changes})
    with pytest.raises(UserError, match=message):
        validate(config)
        check_files(config)


def test_images_that_do_not_divide_are_refused_before_anything_is_written(
    tiny: Tiny, vae: Path, voc_layout: Callable[..., Path]
) -> None:
    mask = np.zeros((24, 32), np.uint8)
    root = voc_layout(["background", "cat"], {"train": {"a": mask}, "val": {"b": mask}})
    shared = {"data__name": "voc_folder", "data__root": str(root), "data__size": [17, 16]}
    config = tiny("diffusion", latent__vae=str(vae), diffusion__condition="none", **shared, **SHORT)
    with pytest.raises(UserError, match=r"data.size=\[17, 16\]: must be multiples of .* Use \[16, 16\]"):
        train(config)
    assert not Path(config.training.output_dir).exists()
