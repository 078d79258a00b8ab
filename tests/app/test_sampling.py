"""The page's samples are those of `unetdiff sample`, and stopping ends them."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unetdiff.app import sampling
from unetdiff.app.runs import AppRun
from unetdiff.app.sampling import Options
from unetdiff.cli.main import main
from unetdiff.data.transforms import to_model_range
from unetdiff.diffusion.objectives import predicted_x0
from unetdiff.errors import UserError


@pytest.fixture(autouse=True)
def _every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "PREVIEW_SECONDS", 0.0)


def test_images_are_those_of_the_command(
    runs: dict[str, AppRun], folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    words = [
        "--class",
        "four",
        "--num_images",
        "2",
        "--num_inference_steps",
        "3",
        "--seed",
        "7",
        "--scheduler",
        "dpm++",
    ]
    assert main(["sample", str(folders["denoiser"]), *words, "--output", str(tmp_path)]) == 0
    options = Options(2, 3, 2.0, "dpm++", 7)
    *previews, last = sampling.sample(runs["denoiser"], {"class_labels": "four"}, options)
    assert last.finished and [one.step for one in previews] == [1, 2]
    images = (last.predicted * 255).round().permute(0, 2, 3, 1).numpy().astype(np.int32)
    for number, image in enumerate(images):
        with Image.open(tmp_path / "images" / f"four-{number:03d}.png") as file:
            assert np.abs(np.asarray(file).astype(np.int32) - image).max() <= 1
    assert images.std() > 10
    own = list(sampling.sample(runs["denoiser"], {"class_labels": "four"}, Options(2, 3, seed=7)))[-1]
    assert not torch.equal(own.predicted, last.predicted)  # the model's own sampler is back


def test_the_same_noise_for_every_class(runs: dict[str, AppRun]) -> None:
    def first(label: str, **options: range) -> torch.Tensor:
        iterator = sampling.sample(runs["joint"], {"class_labels": label}, Options(1, 2), **options)
        return next(iter(list(iterator))).noisy

    assert torch.equal(first("two", indices=range(1)), first("nine", indices=range(1)))
    assert not torch.equal(first("two"), first("nine"))  # as in a grid of `unetdiff sample`


def test_closing_stops_and_frees_the_network(runs: dict[str, AppRun]) -> None:
    run = runs["joint"]
    before = threading.active_count()
    iterator = sampling.sample(run, {"class_labels": "two"}, Options(1, 900))
    assert not next(iterator).finished  # type: ignore[call-overload]
    iterator.close()  # type: ignore[attr-defined]
    limit = time.monotonic() + 30
    while threading.active_count() > before and time.monotonic() < limit:
        time.sleep(0.02)
    assert threading.active_count() <= before and not run.lock.locked()
    assert list(sampling.sample(run, {"class_labels": "two"}, Options(1, 1)))[-1].finished


def test_errors_of_the_pipeline_arrive(runs: dict[str, AppRun]) -> None:
    with pytest.raises(UserError, match="unknown class 'tree'"):
        list(sampling.sample(runs["joint"], {"class_labels": "tree"}, Options()))
    with pytest.raises(UserError, match="must be a run with a diffusion head"):
        list(sampling.sample(runs["segmenter"], {}, Options()))
    with pytest.raises(UserError, match="num_images=9: must be an integer"):
        Options.of(9, 10, 2.0, sampling.OWN_SAMPLER, 0)
    assert sampling.sampler_names(runs["joint"], runs["layout"])[:2] == [sampling.OWN_SAMPLER, "ddim"]


def test_denoised_in_one_pass(runs: dict[str, AppRun]) -> None:
    run = runs["denoiser"]
    assert run.generation is not None
    image = run.examples.items[0]["image"]
    result = sampling.denoised_once(run, image, 0.4)
    timestep = torch.tensor([round(0.4 * 999)])
    alpha, sigma = run.process.alpha_sigma(timestep)
    noise = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(0))
    xt = (alpha * to_model_range(image) + sigma * noise)[None]
    unet, conditioner = run.generation.unet, run.generation.conditioner
    with torch.no_grad():
        tokens = conditioner(conditioner.null_condition(1)).tokens.to(unet.dtype)
        output = unet(xt.to(unet.dtype), timestep, encoder_hidden_states=tokens).sample.float()
    expected = (predicted_x0(run.scheduler, output, xt, timestep)[0] / 2 + 0.5).clamp(0, 1)
    assert (result - expected).abs().mean() < 0.02 and expected.std() > 0.05
