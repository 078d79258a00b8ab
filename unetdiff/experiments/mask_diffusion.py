"""Two ways to segment with one backbone: a head that labels the image, and a denoiser that draws its mask.

Amit et al. 2021 ("SegDiff") train a denoiser of masks that is told the image, and average several samples; Chen et
al. 2023 ("A Generalist Framework for Panoptic Segmentation of Images and Videos") do so with a scale of the input. Both
are trained here for the same number of steps with the same batches, and judged on the same images.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from unetdiff.benchmark.timing import synchronizer, time_interleaved
from unetdiff.config.quickstart import quickstart_configs
from unetdiff.config.schema import RunConfig
from unetdiff.config.validation.checks import require_at_least
from unetdiff.data.base import ImageDataset, collate
from unetdiff.data.build import build_dataset
from unetdiff.data.sampling import evenly_spaced_indices
from unetdiff.data.transforms import to_model_range
from unetdiff.diffusion.mask_sampling import MaskSampler, MaskSamplingConfig, running_means
from unetdiff.diffusion.pipeline import GenerationPipeline
from unetdiff.diffusion.schedulers import SCHEDULERS
from unetdiff.experiments.mask_metrics import MaskJudge
from unetdiff.experiments.mask_report import Measured, gallery, record_of
from unetdiff.experiments.runs import base_config, configs_of, machine_of, train_all, variant
from unetdiff.reports.record import Record
from unetdiff.reports.runs import Run
from unetdiff.reports.samples import load_generator
from unetdiff.segmentation.inference import eval_mode, segment_whole
from unetdiff.segmentation.pipeline import SegmentationPipeline
from unetdiff.training import runtime as machine

HEAD, DENOISER = "discriminative", "denoiser"
STEPS = 900
"""Optimizer steps of each run without CONFIG: twice the quickstart's, for drawing a mask is learned later."""
BATCH = 16
"""Images whose masks are drawn at once."""
ROUNDS, TIMED_IMAGES = 3, 4
"""Rounds of the timing, and images in each."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The experiment's options."""
    parser.add_argument("config", nargs="?", type=Path, metavar="CONFIG", help="YAML of any task; none: the scenes")
    parser.add_argument("--k", type=int, default=8, help="masks drawn of each image")
    parser.add_argument("--steps", type=int, default=10, help="denoising steps of each")
    parser.add_argument("--scheduler", default="ddim", choices=list(SCHEDULERS), help="sampler")
    parser.add_argument("--input_scale", type=float, default=0.3, help="the denoiser's diffusion.noise.input_scale")
    parser.add_argument(
        "--prediction", default="sample", choices=["sample", "v_prediction", "epsilon"], help="what it predicts"
    )
    parser.add_argument("--images", type=int, default=200, help="validation images that are judged")
    parser.add_argument("--rows", type=int, default=8, help="validation images that are shown")
    parser.add_argument("--seed", type=int, default=0, help="of the drawn masks' noise")


def run(given: argparse.Namespace, overrides: Sequence[str], output: Path, command: str) -> Record:
    """Train both, draw and judge; see `unetdiff.experiments`.

    Raises:
        UserError: a config that cannot be, numbers below 1, or a folder that holds other runs.
        TrainingStopped: see `train`.
    """
    began = time.perf_counter()
    for name in ("k", "steps", "images", "rows"):
        require_at_least(f"--{name}", getattr(given, name), 1)
    configs = configs_for(given, overrides, output)
    runs = train_all(configs, command)
    measured = judge(given, configs[DENOISER], runs)
    shown = gallery(measured, output)
    minutes = (time.perf_counter() - began) / 60
    return record_of(
        given, measured, runs[HEAD], shown, command, configs_of(runs), machine_of([*runs.values()]), minutes
    )


def configs_for(given: argparse.Namespace, overrides: Sequence[str], output: Path) -> dict[str, RunConfig]:
    """The two runs, which differ in their task and in what the denoiser draws."""
    default = quickstart_configs(output)["segmentation"]
    default.training.steps = STEPS
    default.training.validate_every = default.training.checkpoint_every = -(-STEPS // 3)
    base = base_config(given.config, overrides, default)
    drawing: Mapping[str, Any] = {
        "diffusion.target": "mask",
        "diffusion.condition": "image",
        "diffusion.image.degradation": "none",
        "diffusion.latent.vae": None,
        "diffusion.condition_dropout": 0.0,
        "diffusion.guidance_scale": 1.0,
        "diffusion.prediction_type": given.prediction,
        "diffusion.noise.input_scale": given.input_scale,
        "diffusion.preview_steps": given.steps,
        "model.heads.diffusion": None,
        "model.heads.segmentation": None,
    }
    return {
        HEAD: variant(base, "segmentation", output / HEAD, {"model.heads.diffusion": None}),
        DENOISER: variant(base, "diffusion", output / DENOISER, drawing),
    }


def judge(given: argparse.Namespace, config: RunConfig, runs: Mapping[str, Run]) -> Measured:
    """Both on the same validation images, and the time that they take."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = machine.autocast_dtype(config.training.mixed_precision, device.type)
    data = build_dataset(config.data, "val", False, layout=True)
    segmenter = SegmentationPipeline.from_pretrained(runs[HEAD].path / "latest").to(device)
    pipeline = load_generator(runs[DENOISER].path / "latest").to(device)
    asked = MaskSamplingConfig(given.k, given.steps, given.scheduler, given.seed)
    sampler = MaskSampler(pipeline, asked, precision)

    def head(images: Tensor) -> Tensor:
        """Class probabilities (B, C, H, W) of uint8 images."""
        with eval_mode(segmenter.unet, device.type, precision):
            return segment_whole(segmenter.unet, to_model_range(images.to(device))).float().softmax(dim=1)

    classes, void = len(data.classes), config.segmentation.ignore_index
    discriminative, single = (
        MaskJudge(classes, void, device),
        [MaskJudge(classes, void, device) for _ in range(given.k)],
    )
    means = [MaskJudge(classes, void, device) for _ in range(given.k)]
    numbers = evenly_spaced_indices(len(data), given.images)
    for at in tqdm(range(0, len(numbers), BATCH), desc="drawing masks", unit="batch", disable=None):
        batch = collate([data[number] for number in numbers[at : at + BATCH]])
        drawn, truth = sampler.sample(batch["image"], first=at), batch["mask"]
        discriminative.update(head(batch["image"]), truth)
        for count, (one, mean) in enumerate(zip(drawn, running_means(drawn), strict=True)):
            single[count].update(one, truth)
            means[count].update(mean, truth)
    seconds = timed(head, pipeline, asked, precision, _first(data, TIMED_IMAGES))
    shown = [data[number] for number in evenly_spaced_indices(len(data), given.rows)]
    images = torch.stack([item["image"] for item in shown])
    return Measured(
        data,
        discriminative.figures(),
        [one.figures() for one in single],
        [mean.figures() for mean in means],
        seconds,
        {name: sum(run.parameters.values()) for name, run in runs.items()},
        {name: float(run.summary["train_minutes"]) for name, run in runs.items()},
        len(numbers),
        shown,
        head(images).cpu(),
        sampler.sample(images, first=len(data)).cpu(),
    )


def timed(
    head: Any, pipeline: GenerationPipeline, asked: MaskSamplingConfig, precision: torch.dtype | None, images: Tensor
) -> dict[str, float]:
    """Seconds an image (the median of the rounds) of the head, of one sample and of all: "head", "one", "all"."""
    one = MaskSampler(
        pipeline, MaskSamplingConfig(1, asked.num_inference_steps, asked.scheduler, asked.seed), precision
    )
    every = MaskSampler(pipeline, asked, precision)
    work = {
        "head": lambda: head(images),
        "one": lambda: one.sample(images),
        "all": lambda: every.sample(images),
    }
    times = time_interleaved(work, ROUNDS, 1, synchronizer(pipeline.device))
    return {name: float(torch.tensor(taken.wall).median()) / len(images) for name, taken in times.items()}


def _first(data: ImageDataset, count: int) -> Tensor:
    """Some images of a set, uint8 (B, 3, H, W)."""
    return torch.stack([data[number]["image"] for number in evenly_spaced_indices(len(data), count)])
