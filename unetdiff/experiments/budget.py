"""Joint against separate training of the two heads, at equal optimizer steps.

A segmentation run, a diffusion run, and joint runs of both heads on one backbone, all for the same number of optimizer
steps and batch size; one joint run per loss weighting (Kendall et al. 2018; Chen et al. 2018). Joint runs log the
cosine similarity of the two losses' gradients (Yu et al. 2020) by layer group.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from unetdiff.config.quickstart import quickstart_configs
from unetdiff.config.schema import RunConfig
from unetdiff.config.training import JointConfig
from unetdiff.experiments.budget_report import JOINT, ConsistencyByRun, RunsByMethod, budget_record
from unetdiff.experiments.class_consistency import class_consistency
from unetdiff.experiments.runs import (
    base_config,
    num_train_steps,
    seed_list,
    train_all,
    variant,
    with_shared_backbone,
)
from unetdiff.reports.record import Record
from unetdiff.reports.samples import Budget

WEIGHTINGS: tuple[str, ...] = get_args(get_type_hints(JointConfig)["weighting"])
SAMPLING = Budget(steps=20)
"""Sampling for class consistency, as in the quickstart."""
TRAIN_STEPS = 900
"""Default optimizer steps of each run without --train_steps and CONFIG."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `unetdiff experiment budget`."""
    parser.add_argument(
        "config", nargs="?", type=Path, metavar="CONFIG", help="YAML of any task (default: the quickstart's)"
    )
    parser.add_argument(
        "--train_steps", type=int, help=f"optimizer steps per run (default: CONFIG's, or {TRAIN_STEPS})"
    )
    parser.add_argument("--num_seeds", type=int, default=1, help="runs per method, with different seeds")
    weightings = {"nargs": "+", "choices": WEIGHTINGS, "default": ["fixed", "gradient_norm"]}
    parser.add_argument("--weighting", help="values of joint.weighting, one joint run each", **weightings)  # type: ignore[arg-type]
    parser.add_argument(
        "--loss_weights",
        nargs=2,
        type=float,
        default=[1.0, 1.0],
        metavar=("SEGMENTATION", "DIFFUSION"),
        help="joint.segmentation_weight and joint.diffusion_weight of all weightings but fixed",
    )
    parser.add_argument("--num_validations", type=int, default=8, help="validations per run, the points of its curves")
    parser.add_argument(
        "--num_gradient_steps", type=int, default=48, help="steps of a joint run at which gradients are compared"
    )
    parser.add_argument("--num_images", type=int, default=SAMPLING.images, help="samples per run for class consistency")
    parser.add_argument("--num_inference_steps", type=int, default=SAMPLING.steps, help="denoising steps per sample")
    parser.add_argument(
        "--classifier_train_steps",
        type=int,
        default=SAMPLING.classifier_steps,
        help="optimizer steps of their classifier",
    )


def plan(args: argparse.Namespace, overrides: Sequence[str], output: Path) -> dict[str, dict[int, RunConfig]]:
    """The config of every run, by method and seed.

    Raises:
        UserError: an invalid config, key or combination.
    """
    default = quickstart_configs(output)["joint"]
    default.training.steps = TRAIN_STEPS
    default.joint.segmentation_fraction = 1.0  # each head sees as many images as in its separate run
    default.joint.segment_noise_below = 0.0  # and no noisy ones
    default.joint.segmentation_weight = 0.5  # of four times as many images as in the quickstart
    base = with_shared_backbone(base_config(args.config, overrides, default))
    steps = num_train_steps(replace(base, task="joint")) if args.train_steps is None else args.train_steps
    shared = {
        "training.steps": steps,
        "training.epochs": None,
        "training.validate_every": math.ceil(steps / max(1, args.num_validations)),
    }
    log_gradients = base.joint.log_gradients or math.ceil(steps / max(1, args.num_gradient_steps))
    runs: dict[str, dict[int, RunConfig]] = {}
    seeds = seed_list(args.num_seeds, base.training.seed)
    for task in ("segmentation", "diffusion"):
        runs[task] = {
            seed: variant(base, task, output / task / f"seed-{seed}", {**shared, "training.seed": seed})
            for seed in seeds
        }
    for weighting in dict.fromkeys(args.weighting):
        changes: dict[str, Any] = {
            **shared,
            "joint.log_gradients": log_gradients,
            "joint.weighting": weighting,
        }
        if weighting != "fixed":
            weights = dict(zip(("segmentation", "diffusion"), args.loss_weights, strict=True))
            changes |= {f"joint.{head}_weight": weight for head, weight in weights.items()}
        name = f"{JOINT}-{weighting}"
        runs[name] = {
            seed: variant(base, "joint", output / name / f"seed-{seed}", {**changes, "training.seed": seed})
            for seed in seeds
        }
    return runs


def run(args: argparse.Namespace, overrides: Sequence[str], output: Path, command: str) -> Record:
    """Train missing runs, evaluate class consistency, and report."""
    start = time.perf_counter()
    configs = plan(args, overrides, output)
    flat = {f"{name}, seed {seed}": config for name, seeds in configs.items() for seed, config in seeds.items()}
    trained = train_all(flat, command)
    runs: RunsByMethod = {
        _method_name(name): [trained[f"{name}, seed {seed}"] for seed in seeds] for name, seeds in configs.items()
    }
    sampling = replace(
        SAMPLING, images=args.num_images, steps=args.num_inference_steps, classifier_steps=args.classifier_train_steps
    )
    consistency: ConsistencyByRun = {
        one.name: class_consistency(one, sampling, output / ".classifiers") for seeds in runs.values() for one in seeds
    }
    return budget_record(runs, consistency, args, command, (time.perf_counter() - start) / 60)


def _method_name(name: str) -> str:
    """ "joint-gradient_norm" -> "joint, gradient norm"; "diffusion" -> "diffusion only"."""
    kind, _, weighting = name.partition("-")
    return f"{JOINT}, {weighting.replace('_', ' ')}" if kind == JOINT else f"{name} only"
