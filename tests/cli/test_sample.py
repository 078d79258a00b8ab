"""`unetdiff sample`: the same images whatever the batch, by class, with any of the samplers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from unetdiff.cli import sample
from unetdiff.cli.file_names import file_names
from unetdiff.cli.main import main
from unetdiff.diffusion.pipeline import GenerationPipeline
from unetdiff.diffusion.scheduler_names import SCHEDULERS
from unetdiff.evaluation import sampling as evaluation
from unetdiff.evaluation.load_run import load_run
from unetdiff.evaluation.types import SamplingConfig
from unetdiff.reports.runs import read_runs
from unetdiff.reports.samples import Budget, sample_blocks
from unetdiff.training import runtime


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def test_images_grid_and_strip(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [
        "sample",
        str(run),
        "--class",
        "seven",
        "two",
        "--num_images",
        "3",
        "--num_inference_steps",
        "2",
        "--guidance_scale",
        "1.5",
    ]
    labels = sample.load(run, None).conditioner.labels
    names = [labels[7], labels[2]]
    words[3:5] = names
    assert main([*words, "--output", str(tmp_path / "a")]) == 0
    found = sorted(path.stem for path in (tmp_path / "a" / "images").iterdir())
    assert found == sorted(f"{name}-{i:03d}" for name in names for i in range(3))
    assert pixels(tmp_path / "a" / "images" / f"{found[0]}.png").shape == (32, 32, 3)
    for image in ("grid.png", "noise_to_image.png"):
        assert pixels(tmp_path / "a" / image).shape[0] > 32

    # an image depends on its own seed only: drawn two at a time, or with another number before it, it is the same
    monkeypatch.setattr(sample, "BATCH", 2)
    assert main([*words, "--output", str(tmp_path / "b")]) == 0
    assert main([*words, "--seed", "1", "--output", str(tmp_path / "c")]) == 0
    for stem in found:
        first, second, other = (pixels(tmp_path / folder / "images" / f"{stem}.png") for folder in "abc")
        assert abs(first - second).mean() < 4  # bf16 in another batch size
        assert abs(first - other).mean() > 4


def test_all_classes_without_being_asked(run: Path, tmp_path: Path) -> None:
    assert main(["sample", str(run), "--num_images", "1", "--num_inference_steps", "1", "--output", str(tmp_path)]) == 0
    assert len(list((tmp_path / "images").iterdir())) == 10


def test_from_a_image_with_a_mask_and_a_film(run: Path, tmp_path: Path) -> None:
    red, left = Image.new("RGB", (48, 48), (250, 10, 10)), Image.new("L", (48, 48), 0)
    left.paste(255, (0, 0, 24, 48))
    red.save(tmp_path / "red.png")
    left.save(tmp_path / "left.png")
    words = [
        "sample",
        str(run),
        "--class",
        "2",
        "--num_images",
        "2",
        "--num_inference_steps",
        "3",
        "--image",
        str(tmp_path / "red.png"),
    ]
    words += [
        "--mask_image",
        str(tmp_path / "left.png"),
        "--gif",
        "--negative_class",
        "3",
        "--guidance_interval",
        "0,0.9",
    ]
    assert main([*words, "--output", str(tmp_path / "out")]) == 0
    for image in (tmp_path / "out" / "images").iterdir():
        assert abs(pixels(image)[:, 16:] - [250, 10, 10]).max() <= 1
        assert abs(pixels(image)[:, :16] - [250, 10, 10]).max() > 20
    with Image.open(tmp_path / "out" / "noise_to_image.gif") as film:
        assert film.n_frames == 4


def test_between_two_seeds(run: Path, tmp_path: Path) -> None:
    words = ["sample", str(run), "--class", "2", "7", "--num_inference_steps", "2", "--seed", "3"]
    assert main([*words, "--interpolate_to_seed", "4", "--frames", "5", "--output", str(tmp_path)]) == 0
    assert pixels(tmp_path / "interpolation.png").shape[1] > 5 * 32
    with Image.open(tmp_path / "interpolation.gif") as film:
        assert film.n_frames == 8  # there and back


def test_sample_and_evaluate_draw_the_same_images(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "autocast_dtype", lambda: None)
    task = load_run(run).diffusion
    assert task is not None
    evaluated, labels = evaluation.sample(task, 10, SamplingConfig(num_inference_steps=3, guidance_scale=2.0, seed=4))
    pipeline = GenerationPipeline.from_pretrained(run / "best")
    rows = sample.Rows(["seven", "two"], pipeline.conditioner.encode([7, 2]))
    images, _ = sample.sample(pipeline, rows, 1, 4, {"num_inference_steps": 3, "guidance_scale": 2.0})
    assert labels is not None and labels.tolist() == list(range(10))
    for index, image in zip((7, 2), images, strict=True):
        difference = np.asarray(image).astype(int) - evaluated[index].permute(1, 2, 0).numpy()
        assert abs(difference).max() <= 1  # rounding of other batches


def test_one_noise_of_a_seed_class_and_index_everywhere(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`sample`, `evaluate`, `compare` and the previews of training: {seed of the generator: class}."""
    call, drawn = GenerationPipeline.__call__, {}

    def spy(self: GenerationPipeline, class_labels=None, *, conditions=None, generator, **options):
        labels = conditions[:, 0] if class_labels is None else torch.as_tensor(class_labels)
        drawn.update(zip([one.initial_seed() for one in generator], labels.tolist(), strict=True))
        return call(self, class_labels, conditions=conditions, generator=generator, **options)

    def noises(work: Callable[[], object]) -> dict[int, int]:
        drawn.clear()
        work()
        return dict(drawn)

    monkeypatch.setattr(GenerationPipeline, "__call__", spy)
    task = load_run(run).diffusion
    assert task is not None
    task.config.preview_per_class, task.config.preview_steps, seed = 3, 1, task.seed
    pipeline = task.pipeline()
    rows = sample.Rows(pipeline.conditioner.labels, pipeline.conditioner.encode(list(range(10))))
    sampled = noises(lambda: sample.sample(pipeline, rows, 3, seed, {"num_inference_steps": 1}))
    assert len(sampled) == 30
    assert sampled == noises(lambda: evaluation.sample(task, 30, SamplingConfig(1, 2.0, seed)))
    assert sampled == noises(lambda: task.preview(Accelerator()))
    budget = Budget(images=30, steps=1, classifier_steps=1)
    assert sampled == noises(lambda: sample_blocks(read_runs([run]), budget, seed))


@pytest.mark.parametrize("name", SCHEDULERS["ddpm"])
def test_samplers(run: Path, name: str) -> None:
    pipeline = sample.load(run, name)
    assert isinstance(pipeline.scheduler, getattr(diffusers, SCHEDULERS["ddpm"][name]))
    assert pipeline.scheduler.config.timestep_spacing == "trailing"
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    rows = sample.Rows(["zero"], pipeline.conditioner.encode([0]))
    images, trajectory = sample.sample(pipeline, rows, 1, 0, {"num_inference_steps": 3, "guidance_scale": 1.0})
    assert len(images) == 1 and np.asarray(images[0]).std() > 0
    assert trajectory.timesteps[-1] == 0


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--class", "sevn"], ["unknown class 'sevn'", "'seven'"]),
        (["--class", "99"], ["class 99"]),
        (["--num_images", "0"], ["--num_images=0", "at least 1"]),
        (["--num_inference_steps", "0"], ["num_inference_steps=0"]),
        (["--scheduler", "dimm"], ["dimm", "ddim"]),
        (["--num_inference_steps", "x"], ["--num_inference_steps", "'x'"]),
        (["--prompt", "a three"], ["--prompt=a three", "trained with --class"]),
        (["--negative_prompt", "gray"], ["negative_prompt: must be None", "trained with class_labels"]),
        (["--mask_image", "hole.png"], ["--mask_image=hole.png", "--image"]),
        (["--strength", "0.5"], ["--strength=0.5", "--image"]),
        (["--image", "nowhere.png"], ["nowhere.png", "no such file"]),
        (["--guidance_interval", "0.2"], ["'0.2'", "two increasing fractions in [0, 1]"]),
        (["--negative_class", "sevn"], ["unknown class 'sevn'"]),
    ],
)
def test_refusals(run: Path, words: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", str(run), *words]) == 2
    error = capsys.readouterr().err
    for part in parts:
        assert part in error


def test_file_names() -> None:
    assert file_names(["T-shirt/top", "a red 7"]) == ["T-shirt_top", "a_red_7"]
