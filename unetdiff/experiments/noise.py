"""Noise robustness of segmenters, with and without timestep conditioning.

Images are noised like the input of the diffusion head, x_t = α_t x_0 + σ_t ε, and segmented at increasing timesteps.
Three segmenters of one backbone are trained with the same steps and images: on clean images; on noisy images without a
timestep; and on noisy images with timestep conditioning. The last one is also evaluated with the wrong timestep t = 0,
which shows how much it uses the timestep.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from unetdiff.config.quickstart import quickstart_configs
from unetdiff.config.reading import to_yaml
from unetdiff.config.schema import RunConfig
from unetdiff.config.validation.checks import require_at_least
from unetdiff.config.validation.files import check_files
from unetdiff.data.sampling import evenly_spaced_indices
from unetdiff.diffusion.codecs import LatentCodec
from unetdiff.diffusion.objectives import Scheduler, build_scheduler
from unetdiff.diffusion.processes.load import process_of
from unetdiff.errors import UserError, config_error
from unetdiff.evaluation.class_names import require_same_classes
from unetdiff.evaluation.load_run import load_run, split_of
from unetdiff.evaluation.robustness import (
    CLEAN,
    NoisedImages,
    Segment,
    as_segment_function,
    check_timesteps,
    mean_iou_by_timestep,
)
from unetdiff.experiments import runs
from unetdiff.experiments.noise_report import (
    CLEAN_TRAINED,
    CONDITIONED,
    JOINT,
    NOISE_TRAINED,
    WRONG_TIMESTEP,
    NoiseResults,
    noise_record,
)
from unetdiff.reports.record import Record
from unetdiff.segmentation.pipeline import SegmentationPipeline
from unetdiff.segmentation.segmenter import Segmenter
from unetdiff.training import runtime as machine

TIMESTEPS = (0, 50, 100, 200, 300, 400, 500, 600, 700, 800, 900, 999)
FOLDERS = {CLEAN_TRAINED: "clean", NOISE_TRAINED: "noisy", CONDITIONED: "conditioned"}
"""Segmenters that are trained, and the prefixes of their folders."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `unetdiff experiment noise`."""
    parser.add_argument(
        "config", nargs="?", type=Path, metavar="CONFIG", help="YAML of any task (default: the quickstart's)"
    )
    parser.add_argument("--train_steps", type=int, help="optimizer steps per segmenter (default: CONFIG's)")
    parser.add_argument("--num_seeds", type=int, default=1, help="segmenters per method, with different seeds")
    parser.add_argument("--timesteps", type=int, nargs="+", default=list(TIMESTEPS), help="noise levels; 0: clean")
    parser.add_argument("--noise_fraction", type=float, default=1.0, help="fraction of the training images to noise")
    parser.add_argument("--num_val_images", type=int, default=500, help="maximum number of validation images")
    parser.add_argument("--num_rows", type=int, default=2, help="validation images in the gallery")
    parser.add_argument(
        "--joint_run", type=Path, metavar="RUN", help="a joint run whose segmenter is evaluated as well"
    )


def run(args: argparse.Namespace, overrides: Sequence[str], output: Path, command: str) -> Record:
    """Train missing segmenters, segment the noised validation images, and report.

    Raises:
        UserError: an invalid config or timestep, or a joint run of another dataset or noise schedule.
    """
    start = time.perf_counter()
    for name in ("num_val_images", "num_rows"):
        require_at_least(f"--{name}", getattr(args, name), 1)
    base = base_config(args.config, overrides, args.train_steps)
    if base.latent.vae is not None:
        raise config_error("latent.vae", base.latent.vae, "null: the images are noised, not their latents")
    seeds = runs.seed_list(args.num_seeds, base.training.seed)
    timesteps = sorted(set(args.timesteps))
    scheduler = build_scheduler(base.diffusion)
    check_timesteps(timesteps, scheduler)
    configs = {
        (name, number): variant(base, name, seed, args.noise_fraction, output / f"{FOLDERS[name]}-{number}")
        for name in FOLDERS
        for number, seed in enumerate(seeds)
    }
    check_files(base)
    images = split_of(base.data, "val", masks=True)
    noises = NoisedImages(images, scheduler, base.training.seed)
    joint = None if args.joint_run is None else _joint_segmenter(args.joint_run, images.classes, scheduler)
    trained = {(name, n): runs.train_run(f"{name} {n}", config, command) for (name, n), config in configs.items()}
    accelerator = machine.build_accelerator(base.training)
    dtype = machine.autocast_dtype(base.training.mixed_precision)
    indices = evenly_spaced_indices(len(images), args.num_val_images)

    def segmenter(name: str, number: int) -> Segmenter:
        # the last weights: the best ones were selected on clean images
        pipeline = SegmentationPipeline.from_pretrained(trained[name, number].path / "latest")
        return pipeline.to(accelerator.device).segmenter

    miou: dict[str, list[list[float]]] = {}  # by segmenter, then seed, then timestep
    gallery_segmenters: dict[str, Segment] = {}
    for number in range(len(seeds)):
        conditioned = segmenter(CONDITIONED, number)
        segmenters = {
            name: as_segment_function(segmenter(name, number), False, dtype) for name in (CLEAN_TRAINED, NOISE_TRAINED)
        }
        segmenters |= {
            CONDITIONED: as_segment_function(conditioned, True, dtype),
            WRONG_TIMESTEP: as_segment_function(conditioned, True, dtype, fixed_timestep=CLEAN),
        }
        if joint is not None and number == 0:
            segmenters[JOINT] = as_segment_function(joint, True, dtype)
        ignore_index, batch_size = base.segmentation.ignore_index, base.training.eval_batch_size
        by_name = mean_iou_by_timestep(segmenters, noises, indices, timesteps, ignore_index, batch_size)
        for name, values in by_name.items():
            miou.setdefault(name, []).append(values)
        gallery_segmenters = gallery_segmenters or segmenters
    return noise_record(
        NoiseResults(timesteps, miou, scheduler, len(indices)),
        gallery_segmenters,
        noises,
        indices[: args.num_rows],
        base,
        args,
        output,
        seeds=seeds,
        command=command,
        configs={name: to_yaml(configs[name, 0]) for name in FOLDERS},
        machine=machine.facts(accelerator),
        start=start,
    )


def base_config(path: Path | None, overrides: Sequence[str], train_steps: int | None) -> RunConfig:
    """The config that the segmenters share: that of a file or of the quickstart, with overrides."""
    config = runs.base_config(path, overrides, quickstart_configs(Path("runs"))["segmentation"])
    config.task = "segmentation"
    config.model.heads.diffusion = None
    if train_steps is not None:
        config.training.steps, config.training.epochs = train_steps, None
    return config


def variant(base: RunConfig, name: str, seed: int, noise_fraction: float, folder: Path) -> RunConfig:
    """The config of one segmenter: its training noise and timestep conditioning."""
    return runs.variant(
        base,
        "segmentation",
        folder,
        {
            "model.conditioning.timestep": name == CONDITIONED,
            "model.conditioning.pooled_context": False,  # needs a time embedding, and a segmenter has no tokens
            "segmentation.noise": 0.0 if name == CLEAN_TRAINED else noise_fraction,
            "training.seed": seed,
        },
    )


def _joint_segmenter(path: Path, classes: Sequence[str], scheduler: Scheduler) -> Segmenter:
    """The segmenter of a joint run with the same classes and noise schedule."""
    loaded = load_run(path)
    if loaded.segmentation is None or loaded.diffusion is None:
        raise UserError(f"--joint_run={path}: must have both heads. Give a joint run.")
    if isinstance(loaded.segmentation.codec, LatentCodec):
        raise UserError(f"--joint_run={path}: must be a run of pixels, as the images are noised, not their latents.")
    rule = "the run must have the classes of this dataset"
    require_same_classes(classes, loaded.images.classes, f"--joint_run={path}", "Give a run of that dataset.", rule)
    own, other = process_of(scheduler), process_of(loaded.diffusion.scheduler)
    timesteps = own.at_fraction(torch.linspace(0.001, 1, 100))
    if (
        own.name != other.name
        or own.num_timesteps != other.num_timesteps
        or not torch.allclose(own.snr(timesteps), other.snr(timesteps))
    ):
        raise UserError(
            f"--joint_run={path}: must have the noise schedule of this config. Set its diffusion.noise here."
        )
    return loaded.segmentation.segmenter
