"""One backbone, one budget, trained three ways: does sharing it cost or help a head, and where do the two losses fight?

Segmentation alone, diffusion alone, and both heads on one backbone (one state dict), each for the same number of
optimizer steps of the same batch; the joint run once for each way of weighing its losses (Kendall et al. 2018; Chen et
al. 2018).
Joint runs log the cosine between the two losses' gradients (Yu et al. 2020) by layer group.
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
from unetdiff.experiments.budget_tables import JOINT, Judgements, Ways, charts, cost_table, findings, head_tables
from unetdiff.experiments.consistency import class_consistency
from unetdiff.experiments.gradients import gradient_chart, gradient_findings, gradient_table, pulls_of
from unetdiff.experiments.runs import (
    base_config,
    configs_of,
    machine_of,
    one_backbone,
    seeds_of,
    steps_of,
    train_all,
    variant,
)
from unetdiff.reports.record import Record
from unetdiff.reports.runs import Run
from unetdiff.reports.samples import Budget
from unetdiff.training.config import JointConfig

BUDGET = Budget(steps=20)
"""Sampling for the report, as in the quickstart."""

WEIGHTINGS: tuple[str, ...] = get_args(get_type_hints(JointConfig)["weighting"])
STEPS = 900
"""Optimizer steps of each run where neither --steps nor a CONFIG says so."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The experiment's options."""
    parser.add_argument(
        "config", nargs="?", type=Path, metavar="CONFIG", help="YAML of any task; none: the quickstart's"
    )
    parser.add_argument("--steps", type=int, help=f"optimizer steps of each run (CONFIG's, or {STEPS})")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each kind, for a spread")
    weightings = {"nargs": "+", "choices": WEIGHTINGS, "default": ["fixed", "gradient_norm"]}
    parser.add_argument("--weighting", help="joint.weighting: a joint run for each", **weightings)  # type: ignore[arg-type]
    parser.add_argument(
        "--learned_weights",
        nargs=2,
        type=float,
        default=[1.0, 1.0],
        metavar=("SEGMENTATION", "DIFFUSION"),
        help="joint.segmentation_weight and diffusion_weight of weightings other than fixed",
    )
    parser.add_argument("--points", type=int, default=8, help="validations of each run, along its curves")
    parser.add_argument("--comparisons", type=int, default=48, help="steps of a joint run whose gradients are compared")
    parser.add_argument("--images", type=int, default=BUDGET.images, help="samples that are judged by class")
    parser.add_argument("--sample_steps", type=int, default=BUDGET.steps, help="denoising steps of each sample")
    parser.add_argument(
        "--classifier_steps", type=int, default=BUDGET.classifier_steps, help="training of their classifier"
    )


def plan(given: argparse.Namespace, overrides: Sequence[str], output: Path) -> dict[str, dict[int, RunConfig]]:
    """The config of every run, by its kind and seed.

    Raises:
        UserError: a config, key or combination that cannot be.
    """
    default = quickstart_configs(output)["joint"]
    default.training.steps = STEPS
    default.joint.segmentation_fraction = 1.0  # each head sees as many images as alone
    base = one_backbone(base_config(given.config, overrides, default))
    steps = steps_of(replace(base, task="joint")) if given.steps is None else given.steps
    shared = {
        "training.steps": steps,
        "training.epochs": None,
        "training.validate_every": math.ceil(steps / max(1, given.points)),
    }
    logged = {"joint.log_gradients": base.joint.log_gradients or math.ceil(steps / max(1, given.comparisons))}
    runs: dict[str, dict[int, RunConfig]] = {}
    seeds = seeds_of(given.seeds, base.training.seed)
    for task in ("segmentation", "diffusion"):
        runs[task] = {
            seed: variant(base, task, output / task / f"seed-{seed}", {**shared, "training.seed": seed})
            for seed in seeds
        }
    for weighting in dict.fromkeys(given.weighting):
        changes: dict[str, Any] = {**shared, **logged, "joint.weighting": weighting}
        if weighting != "fixed":
            weights = dict(zip(("segmentation", "diffusion"), given.learned_weights, strict=True))
            changes |= {f"joint.{head}_weight": weight for head, weight in weights.items()}
        name = f"{JOINT}-{weighting}"
        runs[name] = {
            seed: variant(base, "joint", output / name / f"seed-{seed}", {**changes, "training.seed": seed})
            for seed in seeds
        }
    return runs


def run(given: argparse.Namespace, overrides: Sequence[str], output: Path, command: str) -> Record:
    """Train what is missing, draw and judge, and tell."""
    began = time.perf_counter()
    configs = plan(given, overrides, output)
    flat = {f"{name}, seed {seed}": config for name, each in configs.items() for seed, config in each.items()}
    trained = train_all(flat, command)
    ways: Ways = {_words(name): [trained[f"{name}, seed {seed}"] for seed in each] for name, each in configs.items()}
    samples = replace(BUDGET, images=given.images, steps=given.sample_steps, classifier_steps=given.classifier_steps)
    judged: Judgements = {
        run.name: class_consistency(run, samples, output / ".judges") for runs in ways.values() for run in runs
    }
    joint = {name: runs for name, runs in ways.items() if runs[0].task == "joint"}
    pulls = pulls_of(joint)
    first = next(iter(trained.values()))
    gradients = [gradient_table(pulls)] if any(pulls.values()) else []
    return Record(
        name="budget",
        title="Same backbone, same budget",
        question="Does one network with two heads lose or gain against two networks, each trained for as long?",
        findings=[*findings(ways, judged), *gradient_findings(pulls)],
        parts=[
            *head_tables(ways, judged),
            cost_table(ways),
            *charts(ways),
            *gradients,
            *(gradient_chart(name, runs, given.points) for name, runs in joint.items() if pulls[name]),
        ],
        method=_method(first, ways, judged, samples.steps),
        source="Weights: Kendall et al. 2018; Chen et al. 2018. Cosine of gradients: Yu et al. 2020, definition 1.",
        command=command,
        seeds=seeds_of(given.seeds, int(first.config["training"]["seed"])),
        dataset_name=first.data_name,
        configs=configs_of(trained),
        machine=machine_of(list(trained.values())),
        minutes=(time.perf_counter() - began) / 60,
    )


def _words(name: str) -> str:
    """ "joint-gradient_norm" -> "joint, gradient norm"; "diffusion" -> "diffusion alone"."""
    kind, _, weighting = name.partition("-")
    return f"{JOINT}, {weighting.replace('_', ' ')}" if kind == JOINT else f"{name} alone"


def _method(first: Run, ways: Ways, judged: Judgements, sample_steps: int) -> list[str]:
    training, joint = first.config["training"], first.config["joint"]
    share = joint["segmentation_fraction"]
    told = [
        f"Every run: {training['steps']} optimizer steps of {training['batch_size']} images, of a seed in the same "
        "order; one learning rate, one backbone. A step of a joint run passes clean and noised images through it, so "
        "it takes longer.",
        "Figures are those of the last validation (averaged weights), not of the best one.",
        "Minutes are those of training; validations and their samples are not in them.",
        "Peak memory on a CPU is that of the whole process, what earlier runs of the same call left in it included.",
        "A cosine is that of two gradients of one batch: their noise pulls it towards zero, so its sign says more than "
        "its size. It is told from zero where its mean is two standard errors away, the logged steps taken as "
        "independent.",
    ]
    if share < 1:
        told.insert(1, f"The segmentation head of a joint run is asked for {share:.0%} of each batch.")
    weights = {
        name: tuple(runs[0].config["joint"][f"{head}_weight"] for head in ("segmentation", "diffusion"))
        for name, runs in ways.items()
        if runs[0].task == "joint"
    }
    told += [f"{name}: weights of segmentation and diffusion loss {a:g} and {b:g}." for name, (a, b) in weights.items()]
    one = next((judgement for judgement in judged.values() if judgement is not None), None)
    if one is not None:
        told.append(
            f"Class consistency: the share of {one.n} samples ({sample_steps} steps) that an independent classifier "
            f"takes for the class that was asked for; it names {one.accuracy:.1%} of real validation images rightly."
        )
    return told
