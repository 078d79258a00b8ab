"""Layout guidance of a denoiser by the gradient of a segmenter.

At each DDIM step the predicted x_0 is segmented, or x_t itself by a segmenter of noisy images, such as the denoiser's
own head. The gradient of the cross-entropy against a target layout is added to the predicted noise
(`unetdiff.diffusion.loss_guidance`). The layouts are masks of validation images, which the denoiser was not trained on.
Following the gradient of one network may only fool that network, as adversarial examples do, so the samples are
evaluated twice: by the guiding segmenter and by an independent one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from unetdiff.config.reading import to_yaml
from unetdiff.config.schema import RunConfig
from unetdiff.config.validation.checks import require_at_least
from unetdiff.console import progress_bar
from unetdiff.data.base import collate
from unetdiff.data.sampling import evenly_spaced_indices
from unetdiff.diffusion.loss_guidance import LossGuidance, layout_loss
from unetdiff.errors import UserError, config_error
from unetdiff.evaluation.layout_consistency import layout_consistency
from unetdiff.evaluation.load_run import load_run, run_config
from unetdiff.evaluation.sampling import sample_batches
from unetdiff.evaluation.types import SamplingConfig, concat_batches
from unetdiff.experiments.loss_guidance_report import UNGUIDED, GuidedSamples, loss_guidance_record
from unetdiff.experiments.run_inputs import diffusion_task, open_segmenter, refuse_overrides
from unetdiff.experiments.runs import ALL_TRAINED, train_run, variant
from unetdiff.reports.record import Record
from unetdiff.reports.runs import data_name
from unetdiff.segmentation.inference import input_size_of, segment_whole
from unetdiff.segmentation.pipeline import SegmentationPipeline
from unetdiff.training import runtime as machine
from unetdiff.training.tasks.diffusion import DiffusionTask


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `unetdiff experiment loss_guidance`."""
    parser.add_argument("run", type=Path, metavar="RUN", help="a run with a diffusion head")
    parser.add_argument("--segmenter", type=Path, metavar="RUN", help="guiding segmenter (default: RUN's own head)")
    parser.add_argument(
        "--eval_segmenter",
        type=Path,
        metavar="RUN",
        help="independent segmenter (default: the guiding segmenter's config, trained with another seed)",
    )
    parser.add_argument(
        "--segmenter_train_steps", type=int, help="optimizer steps of the independent segmenter (default: its config's)"
    )
    parser.add_argument(
        "--loss_scales", type=float, nargs="+", default=[0.05, 0.1, 0.2, 0.4], help="scales of the loss guidance"
    )
    parser.add_argument(
        "--loss_interval",
        type=float,
        nargs=2,
        default=[0.0, 1.0],
        metavar=("LOW", "HIGH"),
        help="timesteps with loss guidance, as fractions: 0 is clean, 1 is noise",
    )
    parser.add_argument(
        "--loss_sees",
        choices=("x0", "xt"),
        default="x0",
        help="segment the predicted clean image, or the noisy one (a segmenter with segmentation.noise)",
    )
    parser.add_argument(
        "--backprop_through",
        choices=("network", "image"),
        default="network",
        help="of x0: backpropagate through the denoiser, or only to the predicted x_0",
    )
    parser.add_argument("--conditional", action="store_true", help="also give the denoiser the images' own condition")
    parser.add_argument("--guidance_scale", type=float, default=1.0, help="guidance scale with --conditional")
    parser.add_argument("--num_images", type=int, default=64, help="layouts, with one sample each")
    parser.add_argument("--num_inference_steps", type=int, default=50, help="denoising steps per sample")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise, which all scales share")
    parser.add_argument("--num_rows", type=int, default=6, help="layouts in the gallery")


def run(args: argparse.Namespace, overrides: Sequence[str], output: Path, command: str) -> Record:
    """Sample with and without loss guidance, evaluate and report.

    Raises:
        UserError: a run without a diffusion head, a denoiser of latents, or segmenters of other classes.
    """
    start = time.perf_counter()
    refuse_overrides(overrides)
    for name in ("num_images", "num_inference_steps", "num_rows"):
        require_at_least(f"--{name}", getattr(args, name), 1)
    settings = {scale: _guidance_options(scale, args) for scale in sorted(set(args.loss_scales) - {0.0})}
    loaded = load_run(args.run, layouts=True)
    task, images = diffusion_task(loaded, args.run), loaded.images
    segmenter_path = args.segmenter or args.run
    segmenter = open_segmenter(segmenter_path, images.classes, loaded)
    sees_noise = args.loss_sees == "xt"
    if sees_noise:
        _require_noise(segmenter_path, run_config(segmenter_path), loaded.config)
    elif segmenter.segmenter.codec is not None:
        remedy = "Give a run without latent.vae, or --loss_sees xt."
        raise config_error("--segmenter", segmenter_path, "a segmenter of pixels, through which gradients flow", remedy)
    eval_path = args.eval_segmenter or _train_eval_segmenter(
        run_config(segmenter_path), args.segmenter_train_steps, output, command
    )
    eval_segmenter = open_segmenter(eval_path, images.classes, loaded, "--eval_segmenter")
    task.unet.requires_grad_(False)
    segmenter.unet.eval().requires_grad_(False)
    items = [images[index] for index in evenly_spaced_indices(len(images), args.num_images)]
    layouts: Tensor = collate(items)["mask"]  # (N, H, W)

    def condition(task: DiffusionTask, numbers: range) -> tuple[dict[str, Any], None]:
        if not args.conditional or task.conditioner is None:
            return {}, None
        return {"conditions": task.conditioner.from_batch(collate([items[number] for number in numbers]))}, None

    def sample(options: dict[str, Any] | None) -> tuple[Tensor, float]:
        """Samples, uint8 (N, 3, H, W), and seconds per sample."""

        def guidance(numbers: range) -> LossGuidance:
            targets = layouts[numbers.start : numbers.stop]
            segment = partial(segment_noisy if sees_noise else segment_at_size, segmenter)
            loss = layout_loss(segment, targets, segmenter.ignore_index)
            return LossGuidance(loss, **(options or {}))

        start = time.perf_counter()
        config = SamplingConfig(args.num_inference_steps, args.guidance_scale, args.seed)
        parts = sample_batches(task, len(items), config, condition, None if options is None else guidance)
        pixels, _ = concat_batches(parts)
        return pixels, (time.perf_counter() - start) / len(items)

    def evaluate(pixels: Tensor, seconds: float | None) -> GuidedSamples:
        guiding, independent = (
            layout_consistency(one, pixels, list(layouts), len(images.classes))["mean_iou"]
            for one in (segmenter, eval_segmenter)
        )
        return GuidedSamples(pixels, guiding, independent, seconds)

    results: dict[str, GuidedSamples] = {UNGUIDED: evaluate(*sample(None))}
    for scale, options in progress_bar(settings.items(), desc="loss guidance", unit="scale"):
        results[f"scale {scale:g}"] = evaluate(*sample(options))
    real = evaluate(torch.stack([item["image"] for item in items]), None)
    return loss_guidance_record(
        results,
        real,
        layouts,
        segmenter,
        eval_segmenter,
        args,
        output,
        palette=images.palette,
        paths=(segmenter_path, eval_path),
        command=command,
        dataset_name=data_name(asdict(loaded.config.data)),
        configs={
            "denoiser": to_yaml(loaded.config),
            "segmenter": to_yaml(run_config(segmenter_path)),
            "eval_segmenter": to_yaml(run_config(eval_path)),
        },
        machine=machine.facts(loaded.accelerator),
        minutes=(time.perf_counter() - start) / 60,
    )


def segment_at_size(segmenter: SegmentationPipeline, images: Tensor) -> Tensor:
    """Logits (B, classes, h, w) of images in [-1, 1] (B, 3, H, W), at the segmenter's input size; differentiable."""
    target = input_size_of(images, segmenter.size)
    if target != images.shape[-2:]:
        images = F.interpolate(images, size=target, mode="bilinear", antialias=True, align_corners=False)
    return segment_whole(segmenter.segmenter, images)


def segment_noisy(segmenter: SegmentationPipeline, noisy: Tensor, timesteps: Tensor) -> Tensor:
    """Logits (B, classes, H, W) of x_t (B, C, h, w), pixels or latents, at its timesteps (B,); differentiable."""
    codec = segmenter.segmenter.codec
    factor = 1 if codec is None else codec.factor
    size = noisy.shape[-2] * factor, noisy.shape[-1] * factor
    return segmenter.segmenter.logits(noisy.to(segmenter.unet.dtype), timesteps, size)


def _require_noise(path: Path, config: RunConfig, denoiser: RunConfig) -> None:
    """Raise UserError unless a segmenter was trained on the denoiser's noisy images, and so knows the timestep."""
    if not config.segmentation.noise:
        remedy = "Train it with segmentation.noise=0.5, or give --loss_sees x0."
        constraint = "trained on noisy images (segmentation.noise) for --loss_sees xt"
        raise config_error("--segmenter", path, constraint, remedy)
    for key in ("diffusion.noise", "latent.vae", "data.size"):
        own, other = (attrgetter(key)(one) for one in (config, denoiser))
        if own != other:
            constraint = f"a run with the denoiser's {key}, {other}, for --loss_sees xt (got {own})"
            raise config_error("--segmenter", path, constraint, "Give the denoiser's own head, or --loss_sees x0.")


def _guidance_options(scale: float, args: argparse.Namespace) -> dict[str, Any]:
    """Options of `LossGuidance`, validated before anything is loaded or trained."""
    options = {
        "scale": scale,
        "interval": tuple(args.loss_interval),
        "backprop_through": args.backprop_through,
        "sees": args.loss_sees,
    }
    try:
        LossGuidance(lambda x: x, **options)
    except UserError as error:
        raise UserError(f"--loss_{error}") from None
    return options


def _train_eval_segmenter(config: RunConfig, steps: int | None, output: Path, command: str) -> Path:
    """A segmenter of the same config with another seed, trained if missing."""
    changes: dict[str, Any] = {
        "model.heads.diffusion": None,
        "training.init_from": None,
        "training.resume": False,
        "training.overwrite": False,
        "training.seed": config.training.seed + 1,
    }
    if config.training.init_from is not None:  # random weights instead
        changes |= ALL_TRAINED
    if steps is not None:
        changes |= {"training.steps": steps, "training.epochs": None}
    folder = output / "eval_segmenter"
    return train_run("independent segmenter", variant(config, "segmentation", folder, changes), command).path
