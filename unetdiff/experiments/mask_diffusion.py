"""Segmentation by a discriminative head against a mask-generating denoiser, with one backbone.

Amit et al. 2021 ("SegDiff") train an image-conditional denoiser of masks and average several samples; Chen et al. 2023
("A Generalist Framework for Panoptic Segmentation of Images and Videos") do so with an input scale. Both models are
trained here for the same number of steps with the same batches, and evaluated on the same images.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unetdiff.benchmark.timing import synchronizer, time_interleaved
from unetdiff.config.quickstart import quickstart_configs
from unetdiff.config.schema import RunConfig
from unetdiff.config.validation.checks import require_at_least
from unetdiff.console import progress_bar
from unetdiff.data.base import collate
from unetdiff.data.build import build_dataset
from unetdiff.data.sampling import evenly_spaced_indices
from unetdiff.data.transforms import to_model_range
from unetdiff.diffusion.mask_sampling import MaskSampler, MaskSamplingConfig, running_means
from unetdiff.diffusion.pipeline import GenerationPipeline
from unetdiff.diffusion.scheduler_names import SCHEDULERS
from unetdiff.experiments.mask_diffusion_report import MaskDiffusionResults, mask_diffusion_record
from unetdiff.experiments.mask_metrics import MaskEvaluator
from unetdiff.experiments.runs import base_config, train_all, variant
from unetdiff.reports.record import Record
from unetdiff.reports.runs import Run
from unetdiff.reports.samples import load_generator
from unetdiff.segmentation.inference import eval_mode, segment_whole
from unetdiff.segmentation.pipeline import SegmentationPipeline
from unetdiff.training import runtime as machine

HEAD, DENOISER = "discriminative", "denoiser"
TRAIN_STEPS = 900
"""Default optimizer steps without CONFIG: twice the quickstart's, as mask generation converges more slowly."""
BATCH = 16
"""Images whose masks are sampled at once."""
TIMING_ROUNDS, TIMED_IMAGES = 3, 4
"""Rounds of the timing, and images in each."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `unetdiff experiment mask_diffusion`."""
    parser.add_argument(
        "config", nargs="?", type=Path, metavar="CONFIG", help="YAML of any task (default: the quickstart's)"
    )
    parser.add_argument("--num_samples", type=int, default=8, help="masks sampled per image")
    parser.add_argument("--num_inference_steps", type=int, default=10, help="denoising steps per sample")
    parser.add_argument("--scheduler", default="ddim", choices=list(SCHEDULERS["ddpm"]), help="sampler")
    parser.add_argument("--input_scale", type=float, default=0.3, help="the denoiser's diffusion.noise.input_scale")
    parser.add_argument(
        "--prediction_type",
        default="sample",
        choices=["sample", "v_prediction", "epsilon"],
        help="the denoiser's diffusion.prediction_type",
    )
    parser.add_argument("--num_val_images", type=int, default=200, help="maximum number of validation images")
    parser.add_argument("--num_rows", type=int, default=8, help="validation images in the gallery")
    parser.add_argument("--seed", type=int, default=0, help="seed of the samples' noise")


def run(args: argparse.Namespace, overrides: Sequence[str], output: Path, command: str) -> Record:
    """Train both models, evaluate and report; see `unetdiff.experiments`.

    Raises:
        UserError: an invalid config, numbers below 1, or a folder that holds other runs.
        TrainingStopped: see `unetdiff.training.trainer.train`.
    """
    start = time.perf_counter()
    for name in ("num_samples", "num_inference_steps", "num_val_images", "num_rows"):
        require_at_least(f"--{name}", getattr(args, name), 1)
    configs = run_configs(args, overrides, output)
    runs = train_all(configs, command)
    results = evaluate(args, configs[DENOISER], runs)
    return mask_diffusion_record(results, runs, args, output, command, start)


def run_configs(args: argparse.Namespace, overrides: Sequence[str], output: Path) -> dict[str, RunConfig]:
    """The two runs, which differ in the task and the denoiser's target."""
    default = quickstart_configs(output)["segmentation"]
    default.training.steps = TRAIN_STEPS
    default.training.validate_every = default.training.checkpoint_every = -(-TRAIN_STEPS // 3)
    base = base_config(args.config, overrides, default)
    mask_target: Mapping[str, Any] = {
        "diffusion.target": "mask",
        "diffusion.condition": "image",
        "diffusion.image.degradation": "none",
        "latent.vae": None,
        "diffusion.condition_dropout": 0.0,
        "diffusion.guidance_scale": 1.0,
        "diffusion.prediction_type": args.prediction_type,
        "diffusion.noise.input_scale": args.input_scale,
        "diffusion.preview_steps": args.num_inference_steps,
        "model.heads.diffusion": None,
        "model.heads.segmentation": None,
    }
    return {
        HEAD: variant(base, "segmentation", output / HEAD, {"model.heads.diffusion": None}),
        DENOISER: variant(base, "diffusion", output / DENOISER, mask_target),
    }


def evaluate(args: argparse.Namespace, config: RunConfig, runs: Mapping[str, Run]) -> MaskDiffusionResults:
    """Metrics of both models on the same validation images, and their inference time."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = machine.autocast_dtype(config.training.mixed_precision, device.type)
    data = build_dataset(config.data, "val", False, layout=True)
    segmenter = SegmentationPipeline.from_pretrained(runs[HEAD].path / "latest").to(device)
    pipeline = load_generator(runs[DENOISER].path / "latest").to(device)
    sampling = MaskSamplingConfig(args.num_samples, args.num_inference_steps, args.scheduler, args.seed)
    sampler = MaskSampler(pipeline, sampling, dtype)

    def segment(images: Tensor) -> Tensor:
        """Class probabilities (B, C, H, W) of uint8 images, by the head."""
        with eval_mode(segmenter.unet, device.type, dtype):
            return segment_whole(segmenter.segmenter, to_model_range(images.to(device))).float().softmax(dim=1)

    def evaluator() -> MaskEvaluator:
        return MaskEvaluator(len(data.classes), config.segmentation.ignore_index, device)

    head = evaluator()
    single = [evaluator() for _ in range(args.num_samples)]
    means = [evaluator() for _ in range(args.num_samples)]
    indices = evenly_spaced_indices(len(data), args.num_val_images)
    for start in progress_bar(range(0, len(indices), BATCH), desc="sampling masks", unit="batch"):
        batch = collate([data[index] for index in indices[start : start + BATCH]])
        target = batch["mask"]
        head.update(segment(batch["image"]), target)
        samples = sampler.sample(batch["image"], first=start)  # (K, B, C, H, W)
        for number, (sample, mean) in enumerate(zip(samples, running_means(samples), strict=True)):
            single[number].update(sample, target)
            means[number].update(mean, target)
    timed = torch.stack([data[index]["image"] for index in evenly_spaced_indices(len(data), TIMED_IMAGES)])
    items = [data[index] for index in evenly_spaced_indices(len(data), args.num_rows)]
    images = torch.stack([item["image"] for item in items])
    return MaskDiffusionResults(
        data,
        head.compute(),
        [one.compute() for one in single],
        [one.compute() for one in means],
        inference_seconds(segment, pipeline, sampling, dtype, timed),
        {name: sum(one.parameters.values()) for name, one in runs.items()},
        {name: float(one.summary["train_minutes"]) for name, one in runs.items()},
        len(indices),
        items,
        segment(images).cpu(),
        sampler.sample(images, first=len(data)).cpu(),
    )


def inference_seconds(
    segment: Any, pipeline: GenerationPipeline, sampling: MaskSamplingConfig, dtype: torch.dtype | None, images: Tensor
) -> dict[str, float]:
    """Median seconds per image of the head ("head"), of one sample ("one") and of all samples ("all")."""
    one = MaskSampler(
        pipeline, MaskSamplingConfig(1, sampling.num_inference_steps, sampling.scheduler, sampling.seed), dtype
    )
    every = MaskSampler(pipeline, sampling, dtype)
    work = {
        "head": lambda: segment(images),
        "one": lambda: one.sample(images),
        "all": lambda: every.sample(images),
    }
    times = time_interleaved(work, TIMING_ROUNDS, 1, synchronizer(pipeline.device))
    return {name: float(torch.tensor(taken.wall).median()) / len(images) for name, taken in times.items()}
